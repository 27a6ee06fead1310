# SPDX-License-Identifier: Apache-2.0
"""Compare two reports query by query."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lisa_ros.errors import DataError
from lisa_ros.evaluation import html_report, metrics
from lisa_ros.evaluation.metrics import Overlap
from lisa_ros.evaluation.report import ensure_folder
from lisa_ros.evaluation.report_files import read_report, write_json


def compare(first: Path, second: Path, out: Path) -> dict:
    """Compare two runs on the same queries; write report.html and compare.json.

    Cases are paired by name and expression, so the question around the expression may differ.
    Cases of only one run, or without ground truth, are counted and left out.

    Args:
        first: folder of a report.
        second: folder of the report to compare with it.
        out: folder for the comparison.

    Returns:
        The content of compare.json.

    Raises:
        DataError: a folder holds no report, the two have no query in common, or `out` is one of
            them.
    """
    if out.resolve() in (first.resolve(), second.resolve()):
        raise DataError(
            f'{out} is a report to compare, and its page would be overwritten; give another --out'
        )
    runs = read_report(first), read_report(second)
    names = _common_cases(runs, (first, second))
    comparison = {
        'titles': [run['title'] for run in runs],
        'modes': [run['mode'] for run in runs],
        'settings': [run['settings'] for run in runs],
        'left_out': [len(run['names']) - len(names) for run in runs],
        'figures': {
            category: _figures(runs, members)
            for category, members in _by_category(runs[0], names).items()
        },
        'changes': sorted(
            ([name, _iou(runs[1], name) - _iou(runs[0], name)] for name in names),
            key=lambda row: row[1],
        ),
    }
    page = html_report.comparison_page(comparison, runs, (first, second))
    ensure_folder(out)
    try:
        write_json(out / 'compare.json', comparison)
        (out / 'report.html').write_text(page, 'utf-8')
    except OSError as error:
        raise DataError(f'{out}: cannot be written to ({error}); give another --out') from error
    return comparison


def _iou(run: dict, name: str) -> float | None:
    return run['names'][name]['iou']


def _common_cases(runs: Sequence[dict], folders: Sequence[Path]) -> list[str]:
    """Return the names of the cases that can be compared.

    Raises:
        DataError: there are none.
    """
    first, second = (run['names'] for run in runs)
    shared = [name for name in first if name in second]
    comparable = [
        name
        for name in shared
        if first[name]['expression'] == second[name]['expression']
        and None not in (first[name]['iou'], second[name]['iou'])
    ]
    if not comparable:
        raise DataError(
            f'{folders[0]} and {folders[1]} have no query with ground truth in common, and '
            f'{len(shared)} with the same name: compare runs on the same data'
        )
    return comparable


def _by_category(run: dict, names: Sequence[str]) -> dict[str, list[str]]:
    """Return all names under `all`, then those of each category if there are two."""
    groups = {'all': list(names)}
    categories = list(dict.fromkeys(run['names'][name]['category'] for name in names))
    if len(categories) > 1:
        for category in categories:
            groups[category] = [n for n in names if run['names'][n]['category'] == category]
    return groups


def _figures(runs: Sequence[dict], names: Sequence[str]) -> dict:
    """Return the figures of both runs on some cases, and their difference."""
    ious = [[_iou(run, name) for name in names] for run in runs]
    change = metrics.compare_paired(*ious, [runs[0]['names'][name]['group'] for name in names])
    return {
        'count': len(names),
        'giou': [float(np.mean(values)) for values in ious],
        'ciou': [_ciou(run, names) for run in runs],
        'difference': change.mean,
        'interval': None if np.isnan(change.low) else [change.low, change.high],
        'p': change.p,
        'better': change.better,
        'worse': change.worse,
    }


def _ciou(run: dict, names: Sequence[str]) -> float:
    cases = (run['names'][name] for name in names)
    return metrics.ciou([Overlap(case['intersection'], case['union']) for case in cases])
