# SPDX-License-Identifier: Apache-2.0
"""Renders the HTML page of several runs: a row for each, plots, and the answers side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lisa_ros.evaluation.comparison_plots import (
    colour_of,
    iou_curves,
    letter_of,
    quality_plot,
    stage_plot,
)
from lisa_ros.evaluation.html_report import (
    MAX_IMAGES,
    SORT_ORDERS,
    AnswerCell,
    Gallery,
    Tile,
    answer_cell,
    categories,
    render,
)

_DASH = '–'


def page(comparison: Mapping, reports: Sequence[Mapping | None], folders: Sequence[Path]) -> str:
    """Return the page of several runs.

    Args:
        comparison: the content of compare.json.
        reports: of the runs, as `report_files.read_report` returns them; None: there is none.
        folders: of the reports.
    """
    rows = comparison['runs']
    return render(
        'comparison.html',
        comparison=comparison,
        letters=[letter_of(index) for index in range(len(rows))],
        colours=[colour_of(index) for index in range(len(rows))],
        modes={row['mode'] for row in rows if not row['failure']},
        machines=_machines(rows),
        quality=quality_plot(rows),
        curves=iou_curves(reports),
        stages=stage_plot(rows),
        gallery=_gallery(comparison, reports, folders),
    )


def _machines(rows: Sequence[Mapping]) -> int:
    """Return the number of different systems, GPUs and library versions of the runs."""
    return len(
        {
            tuple(value for name, value in row['machine'].items() if name != 'cpu threads')
            for row in rows
            if not row['failure']
        }
    )


def _gallery(
    comparison: Mapping, reports: Sequence[Mapping | None], folders: Sequence[Path]
) -> Gallery:
    """Return the queries on which the runs differ most, with the answer of each run."""
    cases = {
        name: case
        for report in reversed(reports)
        if report
        for name, case in report['names'].items()
    }
    if comparison['first'] is not None:  # in the order of the first run
        cases = {**reports[comparison['first']]['names'], **cases}
    values = {name: _values(name, comparison, reports) for name in cases}
    chosen = sorted(cases, key=lambda name: -values[name]['spread'])
    chosen = chosen[: MAX_IMAGES // max(1, sum(report is not None for report in reports))]
    tiles = [
        Tile(
            f'c{index}',
            {**cases[name], 'iou': values[name]['mean']},
            None,
            tuple(_cells(name, reports, folders)),
            values[name],
        )
        for index, name in enumerate(chosen)
    ]
    names = categories(list(cases.values()))
    choice = 'those on which the runs differ most'
    return Gallery(tiles, names, _orders(comparison), len(cases), choice)


def _values(
    name: str, comparison: Mapping, reports: Sequence[Mapping | None]
) -> dict[str, float | None]:
    """Return what a query is sorted by: the spread of the IoUs, and each run minus the first."""
    ious = [report['names'].get(name, {}).get('iou') if report else None for report in reports]
    known = [iou for iou in ious if iou is not None]
    first = comparison['first'] is not None and ious[comparison['first']]
    return {
        'spread': max(known) - min(known) if known else 0.0,
        'mean': sum(known) / len(known) if known else None,
        **{
            f'gain{difference["run"]}': iou - first
            for difference in comparison['differences']
            if (iou := ious[difference['run']]) is not None and isinstance(first, int | float)
        },
    }


def _orders(comparison: Mapping) -> dict[str, str]:
    orders = {'spread -1': 'largest difference first'}
    for difference in comparison['differences']:
        run, first = letter_of(difference['run']), letter_of(comparison['first'])
        orders[f'gain{difference["run"]} -1'] = f'{run} better than {first} first'
        orders[f'gain{difference["run"]} 1'] = f'{run} worse than {first} first'
    return orders | {key: SORT_ORDERS[key] for key in ('iou 1', 'iou -1', 'name 1')}


def _cells(
    name: str, reports: Sequence[Mapping | None], folders: Sequence[Path]
) -> list[AnswerCell]:
    """Return the answer to a query of each run that has a report."""
    cells = []
    for index, (report, folder) in enumerate(zip(reports, folders, strict=True)):
        if report is None:
            continue
        letter, colour = letter_of(index), colour_of(index)
        case = report['names'].get(name)
        cells.append(
            answer_cell(case, folder, letter, colour)
            if case
            else AnswerCell(letter, colour, _DASH, 'not asked', '')
        )
    return cells
