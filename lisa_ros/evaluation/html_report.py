# SPDX-License-Identifier: Apache-2.0
"""Renders the HTML page of a report: one file, which also suits the screen of a phone.

The page loads no other files: images are embedded as data URLs, and a script in it sorts and
filters the answers. The Jinja2 templates escape all text, because names, queries and answers are
untrusted input.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
SORT_ORDERS = {
    'iou 1': 'worst first',
    'iou -1': 'best first',
    'score -1': 'highest score first',
    'score 1': 'lowest score first',
    'name 1': 'by name',
}


@dataclass(frozen=True)
class Card:
    """A figure at the top of the page."""

    name: str
    value: str
    note: str


@dataclass(frozen=True)
class AnswerCell:
    """The answer of one run to a query."""

    letter: str  # of the run; '' if there is one run
    colour: str  # of the run
    tag: str  # IoU, or status without one
    words: str
    image: str  # data URL; '': none


@dataclass(frozen=True)
class Tile:
    """A query in the gallery, with the answer of each run."""

    id: str  # of its HTML element
    case: Mapping
    score: float | None
    cells: tuple[AnswerCell, ...]
    # to sort by, beside IoU and score
    values: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def record(self) -> dict:
        """The fields by which the script sorts and filters the tiles."""
        record = {key: self.case[key] for key in ('name', 'category', 'query', 'iou')}
        answer = ' '.join(cell.words for cell in self.cells)
        return {**record, 'answer': answer, 'score': self.score, 'id': self.id, **self.values}


@dataclass(frozen=True)
class Gallery:
    """The answers of a page with their controls."""

    tiles: Sequence[Tile]
    categories: Sequence[str]
    orders: Mapping[str, str]  # label of each sort order, by "KEY DIRECTION" (1 ascending)
    total: int  # cases in the report
    choice: str = 'the worst'  # which ones are shown, if not all


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
    return render(
        'run.html',
        report=report,
        cards=_cards(report['figures']['all'], timings['percentiles']['all']),
        by_bag=dict(by_bag),
        plots=[plot for plot in plots if plot],
        conditions={**timings['delays'], **timings['conditions']},
        gallery=_gallery(cases, folder),
        settings={**report['settings'], **timings['machine']},
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
    environment.filters['percent'] = _percent
    environment.filters['mebibytes'] = _mebibytes
    environment.globals['COLUMNS'] = COLUMNS
    return environment


def render(template: str, **context: object) -> str:
    """Return a page made from a template of this package."""
    return _environment().get_template(template).render(context)


def _number(value: float | None, form: str = '.3f') -> str:
    """Return a formatted number; a dash for None and NaN."""
    return '–' if value is None or math.isnan(value) else format(value, form)


def _percent(share: float | None) -> str:
    return '–' if share is None else f'{share:.0%}'


def _mebibytes(size: float | None) -> str:
    """Return a size [MiB] in a unit that suits it; a dash for None."""
    if size is None:
        return '–'
    return f'{size / 1024:.1f} GiB' if size >= 1024 else f'{size:.0f} MiB'


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


def _gallery(cases: Sequence[Mapping], folder: Path) -> Gallery:
    """Return the gallery of the worst cases of one run."""

    def iou(case: Mapping) -> float:
        return -1.0 if case['iou'] is None else case['iou']

    tiles = [
        Tile(
            f'c{index}',
            case,
            max(case['scores'], default=None),
            (answer_cell(case, folder),),
        )
        for index, case in enumerate(sorted(cases, key=iou)[:MAX_IMAGES])
    ]
    return Gallery(tiles, categories(cases), SORT_ORDERS, len(cases))


def categories(cases: Sequence[Mapping]) -> list[str]:
    """Return the categories of cases, in order of appearance."""
    return list(dict.fromkeys(case['category'] for case in cases))


def answer_cell(case: Mapping, folder: Path, letter: str = '', colour: str = '') -> AnswerCell:
    """Return an answer with its image, if that is in the folder of the report."""
    return AnswerCell(
        letter,
        colour,
        case['status'] if case['iou'] is None else _number(case['iou'], '.2f'),
        case['answer'],
        _data_url(folder, case['image']),
    )


def _data_url(folder: Path, name: str | None) -> str:
    """Return a JPEG file as a data URL; '' for a missing file and for any other one."""
    path = path_inside(folder, name) if name else None
    if not path or not path.is_file() or path.stat().st_size > _LARGEST_IMAGE:
        return ''
    data = path.read_bytes()
    if not data.startswith(_JPEG_START):  # nothing else is embedded
        return ''
    return f'data:image/jpeg;base64,{base64.b64encode(data).decode()}'
