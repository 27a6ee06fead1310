# SPDX-License-Identifier: Apache-2.0
"""Write the report of an evaluation: a page for people, and files for programs.

    report.html    one file that needs no network: figures, plots, the worst answers as images
    report.json    figures and cases; the same run gives the same bytes
    timings.json   seconds by case and stage, and the machine: these differ from run to run
    cases.csv      a row for each case, timings included
    images/        overlays of true positive, false positive and false negative pixels

`comparison.compare` reads such folders and writes a page of their differences.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import numpy as np

from lisa_ros import __version__
from lisa_ros.error_text import printable
from lisa_ros.errors import OutputError
from lisa_ros.evaluation import html_report
from lisa_ros.evaluation.cases import Case, Mode
from lisa_ros.evaluation.report_files import case_to_json, write_csv, write_json
from lisa_ros.evaluation.summary import figures_by_category, latencies
from lisa_ros.files.output import check_output_folder
from lisa_ros.results import BROKEN


@dataclass(frozen=True)
class Run:
    """A finished evaluation."""

    title: str
    mode: Mode
    settings: Mapping[str, object]  # model, precision, ...
    cases: Sequence[Case]
    broken: Sequence[str] = ()  # files or bags that could not be used, each with the reason
    published: Mapping[str, tuple[float | None, float]] = field(default_factory=dict)  # g/cIoU [%]
    conditions: Mapping[str, object] = field(default_factory=dict)  # dropped frames, memory, ...
    by_bag: Mapping[str, Mapping] = field(default_factory=dict)  # figures of each of several bags
    more_figures: Mapping[str, float | None] = field(default_factory=dict)  # of this data set only


def ensure_folder(out: Path) -> Path:
    """Create the folder of a report; call it before a model is loaded, to fail early.

    Raises:
        OutputError: it cannot be created, or files cannot be written into it.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f'{out}: cannot be created ({error}); give another --out') from error
    check_output_folder(out)
    return out


def remove(out: Path) -> None:
    """Remove the figures of an earlier report, if there are any; its images stay.

    Call it before a run overwrites images: then an interrupted run does not leave them beside the
    figures of an earlier model.

    Raises:
        OutputError: they cannot be removed.
    """
    try:
        for name in ('report.json', 'timings.json', 'cases.csv', 'report.html'):
            (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f'{out}: cannot be written to ({error}); give another --out') from error


def write(run: Run, out: Path) -> dict:
    """Write all files of a report into a folder.

    Returns:
        The content of report.json.

    Raises:
        OutputError: the folder cannot be written to.
    """
    figures = figures_by_category(run.cases, run.mode is Mode.TEACHER_FORCED)
    seconds = {category: row.pop('seconds', None) for category, row in figures.items()}
    report = {
        'title': run.title,
        'mode': run.mode.value,
        'settings': dict(run.settings),
        'figures': figures,
        'more_figures': dict(run.more_figures),
        'broken': list(run.broken),
        'failed': failed_queries(run.cases),
        'published': dict(run.published),
        'by_bag': dict(run.by_bag),
        'cases': [case_to_json(case, out) for case in run.cases],
    }
    timings = {
        'machine': machine(),
        'conditions': dict(run.conditions),
        'percentiles': seconds,
        'delays': latencies(run.cases),
        'cases': {case.name: case.timings for case in run.cases},
        'to_mask': {case.name: case.time_to_first_mask for case in run.cases},
    }
    page = html_report.run_page(report, timings, out)
    ensure_folder(out)
    try:
        write_json(out / 'report.json', report)
        write_json(out / 'timings.json', timings)
        write_csv(out / 'cases.csv', run.cases)
        (out / 'report.html').write_text(page, 'utf-8', 'backslashreplace')
    except OSError as error:
        raise OutputError(f'{out}: cannot be written to ({error}); give another --out') from error
    return report


def failed_queries(cases: Sequence[Case]) -> list[str]:
    """Return the name and the reason of each case that the model could not answer."""
    broken = [status.name for status in BROKEN]
    return [f'{case.name}: {case.reason}' for case in cases if case.status in broken]


def machine() -> dict[str, str]:
    """Return the versions and the hardware of this run.

    PyTorch is not imported for this: a model that does not use it has no threads and no GPU of it.
    """
    torch = sys.modules.get('torch')
    has_gpu = torch is not None and torch.cuda.is_available()
    return {
        'lisa_ros': __version__,
        **{name: metadata.version(name) for name in ('torch', 'transformers')},
        'numpy': np.__version__,
        'python': platform.python_version(),
        'system': platform.platform(terse=True),
        'cpu threads': str(torch.get_num_threads()) if torch else 'as the model chooses',
        'gpu': torch.cuda.get_device_name() if has_gpu else 'none',
    }


def print_summary(report: dict, out: Path, as_json: bool = False) -> None:
    """Print the figures of a report.

    Args:
        report: what `write` returned.
        out: folder of the report.
        as_json: print one JSON object instead of a table.
    """
    if as_json:
        keys = ('title', 'mode', 'figures', 'broken', 'failed')
        print(json.dumps({key: report[key] for key in keys}))
        return
    print(printable(f'{report["title"]}, mode {report["mode"]}'))
    print(f'{"":16}{"gIoU":>8}{"95 %":>16}{"cIoU":>8}{"P@0.5":>8}{"count":>8}')
    for category, row in report['figures'].items():
        if row['count']:
            interval = ' - '.join(f'{end:.3f}' for end in row['giou_interval'] or ())
            ciou, precision = (
                '' if row[name] is None else f'{row[name]:.3f}' for name in ('ciou', 'p@0.5')
            )
            print(
                f'{printable(category):16}{row["giou"]:8.3f}{interval:>16}{ciou:>8}{precision:>8}'
                f'{row["count"]:8d}'
            )
    for reason in report['broken']:
        print(printable(f'not used: {reason}'))
    for reason in report['failed']:
        print(printable(f'failed: {reason}'))
    print(f'report: {out}/report.html')
