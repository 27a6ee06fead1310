# SPDX-License-Identifier: Apache-2.0
"""Renders the HTML page of a report: one file, which also suits the screen of a phone.

The page loads no other files: images are embedded as data URLs, and a script in it sorts and
filters the answers. The Jinja2 templates escape all text, because names, queries and answers are
untrusted input.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jinja2

from lisa_ros.evaluation import html_plots
from lisa_ros.files.access import path_inside

MAX_IMAGES = 300  # the page shows the worst answers up to this number; report.json has all
_JPEG_START, _LARGEST_IMAGE = b'\xff\xd8\xff', 10**7  # of overlays, some 100 kB each [bytes]
COLUMNS = {
    'giou': 'gIoU',
    'ciou': 'cIoU',
    'p@0.5': 'P@0.5',
    'p@0.7': 'P@0.7',
    'p@0.9': 'P@0.9',
    'boundary_f': 'boundary F',
    't_acc': 'T-acc.',
    'n_acc': 'N-acc.',
}
_SORT_ORDERS = {
    'iou 1': 'worst first',
    'iou -1': 'best first',
    'score -1': 'highest score first',
    'score 1': 'lowest score first',
    'name 1': 'by name',
}
_CHANGE_SORT_ORDERS = {'change 1': 'largest loss first', 'change -1': 'largest gain first'}


@dataclass(frozen=True)
class Card:
    """A figure at the top of the page."""

    name: str
    value: str
    note: str


@dataclass(frozen=True)
class Tile:
    """An answer in the gallery."""

    id: str  # of its HTML element
    case: Mapping
    score: float | None
    tag: str  # IoU; in a comparison the IoUs of both runs
    answers: tuple[str, ...]  # distinct answers of the compared runs
    images: tuple[tuple[str, str], ...]  # (alternative text, data URL)

    @property
    def record(self) -> dict:
        """The fields by which the script sorts and filters the tiles."""
        keys = ('name', 'category', 'query', 'answer', 'iou')
        record = {key: self.case[key] for key in keys}
        return {**record, 'score': self.score, 'id': self.id, 'change': self.case.get('change')}


@dataclass(frozen=True)
class Gallery:
    """The answers of a page with their controls."""

    tiles: Sequence[Tile]
    categories: Sequence[str]
    orders: Mapping[str, str]  # label of each sort order, by "KEY DIRECTION" (1 ascending)
    total: int  # cases in the report
    is_comparison: bool


def run_page(report: Mapping, timings: Mapping, folder: Path) -> str:
    """Return the page of one run.

    Args:
        report: the content of report.json.
        timings: the content of timings.json.
        folder: folder of the report, with its images.
    """
    by_bag = sorted(report['by_bag'].items(), key=lambda item: item[1].get('giou', 2.0))
    cases = report['cases']
    plots = (
        html_plots.reliability(cases),
        html_plots.iou_histogram(cases),
        html_plots.latency(timings['cases'].values()),
    )
    return _render(
        'run.html',
        report=report,
        cards=_cards(report['figures']['all'], timings['percentiles']['all']),
        by_bag=dict(by_bag),
        plots=[plot for plot in plots if plot],
        conditions={**timings['delays'], **timings['conditions']},
        gallery=_gallery(cases, [[case] for case in cases], [folder], False),
        settings={**report['settings'], **timings['machine']},
    )


def comparison_page(comparison: Mapping, runs: Sequence[Mapping], folders: Sequence[Path]) -> str:
    """Return the page of two runs.

    Args:
        comparison: the content of compare.json.
        runs: both reports, as `report_files.read_report` returns them.
        folders: of both reports.
    """
    pairs = [[run['names'][name] for run in runs] for name, _ in comparison['changes']]
    cases = [
        {**second, 'change': change}
        for (_, second), (_, change) in zip(pairs, comparison['changes'], strict=True)
    ]
    settings = [
        {**own, **run['timings']['machine']}
        for own, run in zip(comparison['settings'], runs, strict=True)
    ]
    return _render(
        'comparison.html',
        comparison=comparison,
        gallery=_gallery(cases, pairs, folders, True),
        settings=settings,
    )


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader('lisa_ros.evaluation'),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters['number'] = _number
    environment.filters['quantity'] = _quantity
    environment.globals['COLUMNS'] = COLUMNS
    return environment


def _render(template: str, **context: object) -> str:
    return _environment().get_template(template).render(context)


def _number(value: float | None, form: str = '.3f') -> str:
    """Return a formatted number; a dash for None and NaN."""
    return '–' if value is None or math.isnan(value) else format(value, form)


def _quantity(value: float | Mapping) -> str:
    """Return a number, or percentiles in one line."""
    if isinstance(value, Mapping):
        return ', '.join(f'{name} {_number(number)}' for name, number in value.items())
    return _number(value, 'd' if isinstance(value, int) else '.1f')


def _cards(figures: Mapping, seconds: Mapping | None) -> list[Card]:
    low, high = figures.get('giou_interval') or (None, None)
    notes = {
        'giou': f'95 %: {_number(low)} to {_number(high)}',
        'ciou': 'sum of I / sum of U',
        'p@0.5': 'share with an IoU of 0.5 or more',
        'boundary_f': 'agreement of outlines',
        't_acc': 'share of present objects found',
        'n_acc': 'share of absent objects not found',
    }
    cards = [Card(COLUMNS[key], _number(figures.get(key)), note) for key, note in notes.items()]
    if seconds:
        note = f'median for a new image; p99 {seconds["p99"]:.2f}'
        cards.append(Card('seconds', _number(seconds['p50'], '.2f'), note))
    return cards


def _gallery(
    cases: Sequence[Mapping],
    runs_of_cases: Sequence[Sequence[Mapping]],
    folders: Sequence[Path],
    is_comparison: bool,
) -> Gallery:
    """Return the gallery of the worst cases; in a comparison, of those that changed most.

    Args:
        cases: all cases of the report.
        runs_of_cases: for each case, the same case in each run.
        folders: report folder of each run.
        is_comparison: whether the cases have a key "change".
    """

    def sort_key(entry: tuple[Mapping, Sequence[Mapping]]) -> float:
        case, _ = entry
        if is_comparison:
            return -abs(case['change'])
        return -1.0 if case['iou'] is None else case['iou']

    chosen = sorted(zip(cases, runs_of_cases, strict=True), key=sort_key)[:MAX_IMAGES]
    tiles = [_tile(f'c{index}', case, runs, folders) for index, (case, runs) in enumerate(chosen)]
    return Gallery(
        tiles,
        list(dict.fromkeys(case['category'] for case in cases)),
        {**_CHANGE_SORT_ORDERS, **_SORT_ORDERS} if is_comparison else _SORT_ORDERS,
        len(cases),
        is_comparison,
    )


def _tile(
    element_id: str, case: Mapping, runs: Sequence[Mapping], folders: Sequence[Path]
) -> Tile:
    answers = dict.fromkeys(run['answer'] for run in runs)
    return Tile(
        element_id,
        case,
        max(case['scores'], default=None),
        ' → '.join(_number(run['iou'], '.2f') for run in runs),
        tuple(filter(None, answers)),
        tuple(_images(runs, folders)),
    )


def _images(runs: Sequence[Mapping], folders: Sequence[Path]) -> Iterable[tuple[str, str]]:
    """Yield alternative text and data URL of each run's image; skip missing files."""
    for run, folder in zip(runs, folders, strict=True):
        path = path_inside(folder, run['image']) if run['image'] else None
        if path and path.is_file() and path.stat().st_size <= _LARGEST_IMAGE:
            data = path.read_bytes()
            if data.startswith(_JPEG_START):  # nothing else is embedded
                encoded = base64.b64encode(data).decode()
                yield run['query'], f'data:image/jpeg;base64,{encoded}'
