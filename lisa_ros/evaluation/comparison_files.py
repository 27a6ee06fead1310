# SPDX-License-Identifier: Apache-2.0
"""The CSV files of a comparison: a row for each run, and a row for each query."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lisa_ros.evaluation.csv_cells import Cell, number_cell, write_rows

_FIGURES = ('giou', 'ciou', 'p@0.5', 'boundary_f', 't_acc', 'n_acc')  # as in report.json
_COSTS = {  # of `comparison._row`, with digits after the point
    'load_seconds': 3,
    'peak_memory': 1,
    'peak_gpu_memory': 1,
    'tokens': 1,
}


def write_run_csv(path: Path, rows: Iterable[Mapping]) -> None:
    """Write a row for each run.

    Args:
        path: of the file.
        rows: of `comparison.compare`.

    Raises:
        OSError: the file cannot be written.
    """
    header = ['name', 'failure', 'queries', 'failed', *_FIGURES]
    header += ['seconds_to_mask_p50', 'seconds_to_answer_p50', 'seconds_to_answer_p90', *_COSTS]
    write_rows(path, [header, *map(_run_cells, rows)])


def _run_cells(row: Mapping) -> list[Cell]:
    if row['failure']:
        return [row['name'], row['failure']]
    to_mask, to_answer = (row[key] or {} for key in ('seconds_to_mask', 'seconds_to_answer'))
    return [
        row['name'],
        '',
        row['queries'],
        row['failed'],
        *(number_cell(row['figures'].get(name), 6) for name in _FIGURES),
        *(number_cell(seconds, 4) for seconds in (to_mask.get('p50'), to_answer.get('p50'))),
        number_cell(to_answer.get('p90'), 4),
        *(number_cell(row[name], digits) for name, digits in _COSTS.items()),
    ]


def write_case_csv(path: Path, names: Sequence[str], reports: Sequence[Mapping | None]) -> None:
    """Write a row for each query, with the IoU and the status of each run.

    Args:
        path: of the file.
        names: of the runs.
        reports: of the runs, as `report_files.read_report` returns them; None: there is none.

    Raises:
        OSError: the file cannot be written.
    """
    header = ['name', 'category', 'expression']
    header += [f'{column} of {name}' for name in names for column in ('iou', 'status')]
    cases = {
        name: case
        for report in reversed(reports)
        if report
        for name, case in report['names'].items()
    }
    rows = [
        [name, case['category'], case['expression'], *_answer_cells(name, reports)]
        for name, case in cases.items()
    ]
    write_rows(path, [header, *rows])


def _answer_cells(name: str, reports: Sequence[Mapping | None]) -> Iterable[Cell]:
    for report in reports:
        case = report['names'].get(name) if report else None
        yield number_cell(case['iou'] if case else None, 6)
        yield case['status'] if case else ''
