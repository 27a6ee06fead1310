# SPDX-License-Identifier: Apache-2.0
"""The JSON and CSV files of a report: write them, and read them back."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

from lisa_ros.errors import DataError
from lisa_ros.evaluation.cases import Case
from lisa_ros.evaluation.metrics import Overlap

# Keys of reports that earlier versions wrote, and their names now.
_OLD_CASE_KEYS = {
    'sort': 'category',
    'about': 'expression',
    'boundary': 'boundary_f',
    'picture': 'image',
}
_REQUIRED_CASE_KEYS = {
    'name', 'group', 'category', 'expression', 'query', 'answer', 'iou', 'scores', 'image',
}  # fmt: skip


def case_to_json(case: Case, out: Path) -> dict:
    """Return a case as report.json has it; without timings, which differ from run to run.

    Args:
        case: the case.
        out: folder of the report, which contains the case's image.
    """
    return {
        'name': case.name,
        'group': case.group,
        'category': case.category,
        'expression': case.expression,
        'query': case.query,
        'answer': case.answer,
        'status': case.status,
        'reason': case.reason,
        'present': case.present,
        'found': case.found,
        'iou': case.iou,
        'intersection': case.overlap and case.overlap.intersection,
        'union': case.overlap and case.overlap.union,
        'boundary_f': case.boundary_f,
        'scores': list(case.scores),
        'history': list(case.history),
        'expected_phrases': [list(wordings) for wordings in case.expected_phrases],
        'image': case.image and case.image.relative_to(out).as_posix(),
    }


def read_report(folder: Path) -> dict:
    """Return the content of report.json, with that of timings.json under `timings`.

    `names` has the cases by name. Reports of earlier versions get the keys of today.

    Raises:
        DataError: the folder holds no report.
    """
    try:
        report = json.loads((folder / 'report.json').read_text(encoding='utf-8'))
        timings = json.loads((folder / 'timings.json').read_text(encoding='utf-8'))
        cases = [_with_new_keys(case) for case in report['cases']]
        for case in cases:
            if not case.keys() >= _REQUIRED_CASE_KEYS:
                raise KeyError(*sorted(_REQUIRED_CASE_KEYS - case.keys()))
        copied = {
            name: report[name] for name in ('title', 'mode', 'settings', 'figures', 'broken')
        }
        names = {case['name']: case for case in cases}
        return {**copied, 'cases': cases, 'timings': timings, 'names': names}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f'{folder}: no evaluation here ({error!r}); expected report.json and timings.json as '
            '`lisa-ros evaluate ... --out` writes them'
        ) from error


def read_cases(report: dict, folder: Path, prefix: str) -> list[Case]:
    """Return the cases of a report.

    Args:
        report: as `read_report` returned it.
        folder: where it was read from.
        prefix: put before the names and groups of the cases.
    """
    return [
        Case(
            name=prefix + case['name'],
            group=prefix + case['group'],
            category=case['category'],
            expression=case['expression'],
            query=case['query'],
            answer=case['answer'],
            status=case['status'],
            present=case['present'],
            found=case['found'],
            overlap=_overlap(case),
            boundary_f=case['boundary_f'],
            scores=tuple(case['scores']),
            timings=report['timings']['cases'][case['name']],
            time_to_first_mask=report['timings']['to_mask'][case['name']],
            reason=case.get('reason', ''),
            history=tuple(case.get('history', ())),
            expected_phrases=tuple(map(tuple, case.get('expected_phrases', ()))),
            image=case['image'] and folder / case['image'],
        )
        for case in report['cases']
    ]


def write_json(path: Path, content: dict) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')


def write_csv(path: Path, cases: Sequence[Case]) -> None:
    """Write a row for each case, with the seconds of each stage."""
    stages = list(dict.fromkeys(stage for case in cases for stage in case.timings))
    with path.open('w', newline='', encoding='utf-8') as file:
        writer = csv.writer(file)
        writer.writerow([*_COLUMNS, *(f'{stage} [s]' for stage in stages)])
        for case in cases:
            seconds = [f'{case.timings.get(stage, 0.0):.4f}' for stage in stages]
            writer.writerow([*(value(case) for value in _COLUMNS.values()), *seconds])


def _decimals(value: float | None, digits: int) -> str:
    return '' if value is None else f'{value:.{digits}f}'


_COLUMNS = {
    'name': lambda case: case.name,
    'category': lambda case: case.category,
    'query': lambda case: case.query,
    'answer': lambda case: case.answer,
    'status': lambda case: case.status,
    'present': lambda case: '' if case.present is None else int(case.present),
    'found': lambda case: int(case.found),
    'iou': lambda case: _decimals(case.iou, 6),
    'boundary_f': lambda case: _decimals(case.boundary_f, 6),
    'score': lambda case: _decimals(case.score, 4),
}


def _with_new_keys(case: dict) -> dict:
    return {_OLD_CASE_KEYS.get(key, key): value for key, value in case.items()}


def _overlap(case: dict) -> Overlap | None:
    if case['intersection'] is None:
        return None
    return Overlap(case['intersection'], case['union'])
