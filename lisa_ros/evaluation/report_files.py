# SPDX-License-Identifier: Apache-2.0
"""The JSON and CSV files of a report: write them, and read them back."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lisa_ros.error_text import short_repr
from lisa_ros.errors import DataError
from lisa_ros.evaluation import html_report
from lisa_ros.evaluation.cases import Case
from lisa_ros.evaluation.csv_cells import Cell, number_cell, write_rows
from lisa_ros.evaluation.metrics import Overlap
from lisa_ros.files.access import access_problem, path_inside
from lisa_ros.files.json_schema import (
    ANYTHING,
    INTEGER,
    NUMBER,
    SCALAR,
    TEXT,
    TRUTH,
    ListOf,
    MapOf,
    Record,
    check_json,
    optional,
)
from lisa_ros.files.text import encodable, read_json

# Keys of reports that earlier versions wrote, and their names now.
_OLD_CASE_KEYS = {
    'sort': 'category',
    'about': 'expression',
    'boundary': 'boundary_f',
    'picture': 'image',
}
_CASE = Record(
    {
        'name': TEXT,
        'group': TEXT,
        'category': TEXT,
        'expression': TEXT,
        'query': TEXT,
        'answer': TEXT,
        'status': TEXT,
        'present': optional(TRUTH),
        'found': TRUTH,
        'iou': optional(NUMBER),
        'intersection': optional(NUMBER),
        'union': optional(NUMBER),
        'boundary_f': optional(NUMBER),
        'scores': ListOf(NUMBER),
        'image': optional(TEXT),
    },
    {
        'reason': TEXT,
        'history': ListOf(TEXT),
        'expected_phrases': ListOf(ListOf(TEXT)),
        'tokens': optional(INTEGER),
    },
)
_FIGURES = Record({'count': INTEGER}, dict.fromkeys(html_report.COLUMNS, optional(NUMBER)))
_REPORT = Record(
    {
        'title': TEXT,
        'mode': TEXT,
        'settings': MapOf(SCALAR),
        'figures': MapOf(_FIGURES),
        'broken': ListOf(TEXT),
        'cases': ListOf(MapOf(ANYTHING)),
    }
)
_TIMINGS = Record(
    {
        'machine': MapOf(SCALAR),
        'cases': MapOf(MapOf(NUMBER)),
        'to_mask': MapOf(optional(NUMBER)),
    },
    {'conditions': MapOf(ANYTHING)},
)


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
        'tokens': case.token_count,
        'history': list(case.history),
        'expected_phrases': [list(wordings) for wordings in case.expected_phrases],
        'image': case.image and case.image.relative_to(out).as_posix(),
    }


def read_report(folder: Path) -> dict:
    """Return the content of report.json, with that of timings.json under `timings`.

    `names` has the cases by name. Reports of earlier versions get the keys of today. A report may
    come from other people: every value that is used is checked, and images must be in the folder.

    Raises:
        DataError: the folder holds no report, or a value in it is not valid; the message names the
            file and the key.
    """
    for name in ('report.json', 'timings.json'):
        problem = access_problem(folder / name)
        if problem:
            raise DataError(
                f'{folder}: no evaluation here ({name}: {problem}); expected report.json and '
                'timings.json as `lisa-ros evaluate ... --out` writes them'
            )
    path = folder / 'report.json'
    report, timings = read_json(path), read_json(folder / 'timings.json')
    check_json(path, report, _REPORT)
    check_json(path, report['figures'], Record({'all': _FIGURES}), 'figures')
    _check_interval(path, report['figures']['all'].get('giou_interval'))
    check_json(folder / 'timings.json', timings, _TIMINGS)
    names: dict[str, dict] = {}
    for index, entry in enumerate(report['cases']):
        case = {_OLD_CASE_KEYS.get(key, key): value for key, value in entry.items()}
        _check_case(path, f'cases[{index}]', case)
        if names.setdefault(case['name'], case) is not case:
            raise DataError(
                f'{path}: cases[{index}].name is {case["name"]!r}, as that of another case; '
                'evaluate again with this version, which names each case by its own image'
            )
    copied = {name: report[name] for name in ('title', 'mode', 'settings', 'figures', 'broken')}
    return {**copied, 'cases': list(names.values()), 'timings': timings, 'names': names}


def _check_interval(path: Path, interval: object) -> None:
    """Check the interval of gIoU; None: there is none.

    Raises:
        DataError: it is not valid.
    """
    key = 'figures.all.giou_interval'
    if interval is None:
        return
    check_json(path, interval, ListOf(NUMBER), key)
    if len(interval) != 2:
        raise DataError(f'{path}: {key} has {len(interval)} numbers; expected both ends')


def _check_case(path: Path, key: str, case: dict) -> None:
    """Check the values of a case; `key` is where it is in the file.

    Raises:
        DataError: one is not valid.
    """
    check_json(path, case, _CASE, key)
    if case['iou'] is not None and None in (case['intersection'], case['union']):
        raise DataError(f'{path}: {key} has an iou, but not both intersection and union')
    if case['image'] is not None and path_inside(path.parent, case['image']) is None:
        raise DataError(
            f'{path}: {key}.image is {short_repr(case["image"])}; expected the path of an image '
            'inside the folder of the report, without links out of it'
        )


def read_cases(report: dict, folder: Path, prefix: str) -> list[Case]:
    """Return the cases of a report.

    Args:
        report: as `read_report` returned it.
        folder: where it was read from.
        prefix: put before the names and groups of the cases.

    Raises:
        DataError: timings.json lacks a case.
    """
    for name in report['names']:
        if not all(name in report['timings'][key] for key in ('cases', 'to_mask')):
            raise DataError(f'{folder}/timings.json: lacks the case {short_repr(name)}')
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
            token_count=case.get('tokens'),
            reason=case.get('reason', ''),
            history=tuple(case.get('history', ())),
            expected_phrases=tuple(map(tuple, case.get('expected_phrases', ()))),
            image=case['image'] and folder / case['image'],
        )
        for case in report['cases']
    ]


def write_json(path: Path, content: dict) -> None:
    """Write a JSON file, which `read_json` can read: its texts are made encodable."""
    text = json.dumps(encodable_texts(content), indent=1)
    path.write_text(text + '\n', encoding='utf-8')


def encodable_texts(content: object) -> object:
    """Return a JSON value with all texts, keys included, as `encodable` returns them."""
    match content:
        case str():
            return encodable(content)
        case Mapping():
            return {encodable_texts(k): encodable_texts(v) for k, v in content.items()}
        case list() | tuple():
            return [encodable_texts(item) for item in content]
    return content


def write_csv(path: Path, cases: Sequence[Case]) -> None:
    """Write a row for each case, with the seconds of each stage that it had."""
    stages = list(dict.fromkeys(stage for case in cases for stage in case.timings))
    header = [*_COLUMNS, *(f'{stage} [s]' for stage in stages)]
    rows = (
        [
            *(value(case) for value in _COLUMNS.values()),
            *(number_cell(case.timings.get(stage), 4) for stage in stages),
        ]
        for case in cases
    )
    write_rows(path, [header, *rows])


_COLUMNS: dict[str, Callable[[Case], Cell]] = {
    'name': lambda case: case.name,
    'category': lambda case: case.category,
    'query': lambda case: case.query,
    'answer': lambda case: case.answer,
    'status': lambda case: case.status,
    'present': lambda case: '' if case.present is None else int(case.present),
    'found': lambda case: int(case.found),
    'iou': lambda case: number_cell(case.iou, 6),
    'boundary_f': lambda case: number_cell(case.boundary_f, 6),
    'score': lambda case: number_cell(case.score, 4),
    'tokens': lambda case: '' if case.token_count is None else case.token_count,
    'first mask [s]': lambda case: number_cell(case.time_to_first_mask, 4),
}


def _overlap(case: dict) -> Overlap | None:
    if case['intersection'] is None:
        return None
    return Overlap(case['intersection'], case['union'])
