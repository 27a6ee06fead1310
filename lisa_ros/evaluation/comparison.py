# SPDX-License-Identifier: Apache-2.0
"""Compare runs on the same queries: what each is worth and costs, and the others with the first.

    report.html    one file that needs no network: a row and a colour for each run, plots, and the
                   answers side by side
    compare.json   the figures of the page
    compare.csv    a row for each run
    cases.csv      a row for each query, with the IoU of each run

The figures of a run cover all of its queries. Differences are paired: they cover the queries that
both runs have answered, and have ground truth.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lisa_ros.errors import DataError, OutputError
from lisa_ros.evaluation import html_comparison, metrics
from lisa_ros.evaluation.comparison_files import write_case_csv, write_run_csv
from lisa_ros.evaluation.metrics import Overlap
from lisa_ros.evaluation.report import ensure_folder
from lisa_ros.evaluation.report_files import read_cases, read_report, write_json
from lisa_ros.evaluation.resources import (
    LOAD_TIME,
    PEAK_GPU_MEMORY,
    PEAK_MEMORY,
    measured_resources,
)
from lisa_ros.evaluation.summary import costs


@dataclass(frozen=True)
class ComparedRun:
    """One of several runs: the report of a model, or why there is none."""

    name: str  # for people: the model
    folder: Path  # of its report
    failure: str = ''  # why there is no report; '': there is one


def compare(runs: Sequence[ComparedRun], out: Path, title: str) -> dict:
    """Compare runs with the first one that has a report; write the files above.

    Cases are paired by name and expression, so the question around the expression may differ. A
    run without a report, or without a query in common with the first one, is named with the cause.

    Args:
        runs: in the order of the page.
        out: folder for the comparison.
        title: of the page.

    Returns:
        The content of compare.json.

    Raises:
        DataError: a report is damaged, or `out` is one of the reports.
        OutputError: the folder cannot be written to.
    """
    _check_out(runs, out)
    reports = [None if run.failure else read_report(run.folder) for run in runs]
    rows = [_row(run, report) for run, report in zip(runs, reports, strict=True)]
    first = next((index for index, report in enumerate(reports) if report), None)
    comparison = {
        'title': title,
        'runs': rows,
        'first': first,
        'differences': [
            _difference(runs, reports, first, index)
            for index, report in enumerate(reports)
            if report and index != first
        ],
    }
    page = html_comparison.page(comparison, reports, [run.folder for run in runs])
    ensure_folder(out)
    try:
        write_json(out / 'compare.json', comparison)
        write_run_csv(out / 'compare.csv', rows)
        write_case_csv(out / 'cases.csv', [run.name for run in runs], reports)
        (out / 'report.html').write_text(page, 'utf-8', 'backslashreplace')
    except OSError as error:
        raise OutputError(f'{out}: cannot be written to ({error}); give another --out') from error
    return comparison


def check_differences(comparison: Mapping) -> None:
    """Check that each run was compared with the first one.

    Raises:
        DataError: one has no query in common with it.
    """
    for difference in comparison['differences']:
        if difference['problem']:
            raise DataError(difference['problem'])


def _check_out(runs: Iterable[ComparedRun], out: Path) -> None:
    """Check that the comparison overwrites no report.

    Raises:
        DataError: it would.
    """
    if out.resolve() in [run.folder.resolve() for run in runs]:
        raise DataError(
            f'{out} is a report to compare, and its page would be overwritten; give another --out'
        )


def _row(run: ComparedRun, report: Mapping | None) -> dict:
    """Return what a run is worth and what it costs."""
    if report is None:
        return {'name': run.name, 'failure': run.failure}
    resources = measured_resources(report['timings'])
    return {
        'name': run.name,
        'failure': '',
        'title': report['title'],
        'mode': report['mode'],
        'settings': report['settings'],
        'machine': report['timings']['machine'],
        'figures': report['figures']['all'],
        'broken': len(report['broken']),
        **costs(read_cases(report, run.folder, '')),
        'load_seconds': resources.get(LOAD_TIME),
        'peak_memory': resources.get(PEAK_MEMORY),
        'peak_gpu_memory': resources.get(PEAK_GPU_MEMORY),
    }


def _difference(
    runs: Sequence[ComparedRun], reports: Sequence[Mapping], first: int, second: int
) -> dict:
    """Return how a run differs from the first one, by category."""
    pair = reports[first], reports[second]
    names = _common_cases(*pair)
    problem = ''
    if not names:
        shared = sum(name in pair[1]['names'] for name in pair[0]['names'])
        problem = (
            f'{runs[first].folder} and {runs[second].folder} have no query with ground truth in '
            f'common, and {shared} with the same name: compare runs on the same data'
        )
    return {
        'run': second,
        'problem': problem,
        'left_out': [len(report['names']) - len(names) for report in pair],
        'figures': {
            category: _paired_figures(pair, members)
            for category, members in _by_category(pair[0], names).items()
            if members
        },
        'changes': sorted(
            ([name, _iou(pair[1], name) - _iou(pair[0], name)] for name in names),
            key=lambda row: row[1],
        ),
    }


def _iou(report: Mapping, name: str) -> float | None:
    return report['names'][name]['iou']


def _common_cases(first: Mapping, second: Mapping) -> list[str]:
    """Return the names of the cases that can be compared."""
    first, second = first['names'], second['names']
    return [
        name
        for name in first
        if name in second
        and first[name]['expression'] == second[name]['expression']
        and None not in (first[name]['iou'], second[name]['iou'])
    ]


def _by_category(report: Mapping, names: Sequence[str]) -> dict[str, list[str]]:
    """Return all names under `all`, then those of each category if there are two."""
    groups = {'all': list(names)}
    categories = list(dict.fromkeys(report['names'][name]['category'] for name in names))
    if len(categories) > 1:
        for category in categories:
            groups[category] = [n for n in names if report['names'][n]['category'] == category]
    return groups


def _paired_figures(reports: Sequence[Mapping], names: Sequence[str]) -> dict:
    """Return the figures of both runs on some cases, and their difference."""
    ious = [[_iou(report, name) for name in names] for report in reports]
    groups = [reports[0]['names'][name]['group'] for name in names]
    change = metrics.compare_paired(*ious, groups)
    return {
        'count': len(names),
        'giou': [float(np.mean(values)) for values in ious],
        'ciou': [_ciou(report, names) for report in reports],
        'difference': change.mean,
        'interval': None if np.isnan(change.low) else [change.low, change.high],
        'p': change.p,
        'better': change.better,
        'worse': change.worse,
    }


def _ciou(report: Mapping, names: Sequence[str]) -> float | None:
    """Return cIoU of some cases; None where all masks are empty."""
    cases = (report['names'][name] for name in names)
    value = metrics.ciou([Overlap(case['intersection'], case['union']) for case in cases])
    return None if np.isnan(value) else value
