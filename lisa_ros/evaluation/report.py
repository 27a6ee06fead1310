# SPDX-License-Identifier: Apache-2.0
"""What an evaluation leaves: a page to read, and files to reckon with.

    report.html    all in one file, without a network: figures, plots, every picture worth a look
    report.json    figures and cases; the same run gives the same bytes
    timings.json   seconds by case and stage, and the machine: these differ from run to run
    cases.csv      a row for each case, timings included
    pictures/      overlays: found rightly, wrongly, not

`compare` reads two such folders and writes a page of their differences, pair by pair.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lisa_ros import __version__
from lisa_ros.errors import DataError
from lisa_ros.evaluation import html_report, metrics
from lisa_ros.evaluation.cases import Case, delays, figures
from lisa_ros.evaluation.metrics import Overlap

MAX_IMAGES = 300  # in a page: the worst; files hold them all


@dataclass(frozen=True)
class Run:
    """An evaluation that has ended."""

    title: str
    mode: str  # how answers came about: generate, teacher_forced, offline, live
    settings: Mapping[str, object]  # model, precision, ...
    cases: Sequence[Case]
    broken: Sequence[str] = ()  # what could not be used, and why
    published: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # gIoU, cIoU [%]
    conditions: Mapping[str, object] = field(default_factory=dict)  # drops, delays, memory
    by_bag: Mapping[str, Mapping] = field(default_factory=dict)  # figures of each of several bags


def by_category(cases: Sequence[Case], forced: bool = False) -> dict[str, dict]:
    """Return the figures of each kind of query, `all` first."""
    sorts = list(dict.fromkeys(case.category for case in cases))
    told = {'all': figures(cases, forced)}
    if len(sorts) > 1:
        told |= {sort: figures([c for c in cases if c.category == sort], forced) for sort in sorts}
    return told


def ensure_folder(out: Path) -> Path:
    """Return the folder of a report, made: before a model is loaded, not after it has answered.

    Raises:
        DataError: it cannot be.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f'{out}: cannot be made ({error}); give another --out') from error
    return out


def write(run: Run, out: Path) -> dict:
    """Write everything into a folder; return what report.json has.

    Raises:
        DataError: the folder cannot be written to.
    """
    told = by_category(run.cases, run.mode == 'teacher_forced')
    seconds = {sort: row.pop('seconds', None) for sort, row in told.items()}
    plain = {
        'title': run.title,
        'mode': run.mode,
        'settings': dict(run.settings),
        'figures': told,
        'broken': list(run.broken),
        'published': dict(run.published),
        'by_bag': dict(run.by_bag),
        'cases': [_plain(case, out) for case in run.cases],
    }
    timings = {
        'machine': machine(),
        'conditions': dict(run.conditions),
        'percentiles': seconds,
        'delays': delays(run.cases),
        'cases': {case.name: case.seconds for case in run.cases},
        'to_mask': {case.name: case.time_to_first_mask for case in run.cases},
    }
    for_people = html_report.run_page(plain, timings, out, MAX_IMAGES)
    ensure_folder(out)
    try:
        _write_json(out / 'report.json', plain)
        _write_json(out / 'timings.json', timings)
        _write_csv(out / 'cases.csv', run.cases)
        (out / 'report.html').write_text(for_people, 'utf-8')
    except OSError as error:
        raise DataError(f'{out}: cannot be written to ({error}); give another --out') from error
    return plain


def machine() -> dict[str, str]:
    """Return what was run on what."""
    import torch
    import transformers

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else 'none'
    return {
        'lisa_ros': __version__,
        'torch': torch.__version__,
        'transformers': transformers.__version__,
        'numpy': np.__version__,
        'python': platform.python_version(),
        'system': platform.platform(terse=True),
        'cpu threads': str(torch.get_num_threads()),
        'gpu': gpu,
    }


def peak_memory() -> float:
    """Return the most memory that this process has had, the GPU's apart [MiB]."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux


def _plain(case: Case, out: Path) -> dict:
    picture = case.image
    return {
        'name': case.name,
        'group': case.group,
        'sort': case.category,
        'about': case.about,
        'query': case.query,
        'answer': case.answer,
        'status': case.status,
        'present': case.present,
        'found': case.found,
        'iou': case.iou,
        'intersection': case.overlap and case.overlap.intersection,
        'union': case.overlap and case.overlap.union,
        'boundary': case.boundary,
        'scores': list(case.scores),
        'picture': picture and picture.relative_to(out).as_posix(),
    }


def _write_json(path: Path, plain: dict) -> None:
    path.write_text(json.dumps(plain, indent=1) + '\n', encoding='utf-8')


def _write_csv(path: Path, cases: Sequence[Case]) -> None:
    stages = list(dict.fromkeys(stage for case in cases for stage in case.seconds))
    columns = {
        'name': lambda c: c.name,
        'sort': lambda c: c.sort,
        'query': lambda c: c.query,
        'answer': lambda c: c.answer,
        'status': lambda c: c.status,
        'present': lambda c: '' if c.present is None else int(c.present),
        'found': lambda c: int(c.found),
        'iou': lambda c: '' if c.iou is None else f'{c.iou:.6f}',
        'boundary': lambda c: '' if c.boundary is None else f'{c.boundary:.6f}',
        'score': lambda c: '' if c.score is None else f'{c.score:.4f}',
    }
    with path.open('w', newline='', encoding='utf-8') as file:
        writer = csv.writer(file)
        writer.writerow([*columns, *(f'{stage} [s]' for stage in stages)])
        for case in cases:
            spent = [f'{case.seconds.get(stage, 0.0):.4f}' for stage in stages]
            writer.writerow([*(value(case) for value in columns.values()), *spent])


# ---- two runs side by side

_AS_THEY_ARE = (
    'sort', 'about', 'query', 'answer', 'status', 'present', 'found', 'boundary',
)  # fmt: skip
_KEPT = {'name', 'group', 'sort', 'about', 'query', 'answer', 'iou', 'scores', 'picture'}


def read(folder: Path) -> dict:
    """Return what `write` left in a folder, timings under `timings`.

    Raises:
        DataError: it left nothing there.
    """
    try:
        plain = json.loads((folder / 'report.json').read_text(encoding='utf-8'))
        timings = json.loads((folder / 'timings.json').read_text(encoding='utf-8'))
        for case in plain['cases']:
            if not case.keys() >= _KEPT:
                raise KeyError(*sorted(_KEPT - case.keys()))
        kept = {name: plain[name] for name in ('title', 'mode', 'settings', 'figures', 'broken')}
        names = {case['name']: case for case in plain['cases']}
        return {**kept, 'cases': plain['cases'], 'timings': timings, 'names': names}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f'{folder}: no evaluation here ({error!r}); expected report.json and timings.json as '
            '`lisa-ros evaluate ... --out` writes them'
        ) from error


def cases(kept: dict, folder: Path, before: str) -> list[Case]:
    """Return the cases of what `read` found in a folder, with something before their names."""
    return [
        Case(
            name=before + one['name'],
            group=before + one['group'],
            overlap=None
            if one['intersection'] is None
            else Overlap(one['intersection'], one['union']),
            scores=tuple(one['scores']),
            seconds=kept['timings']['cases'][one['name']],
            time_to_first_mask=kept['timings']['to_mask'][one['name']],
            image=one['picture'] and folder / one['picture'],
            **{name: one[name] for name in _AS_THEY_ARE},
        )
        for one in kept['cases']
    ]


def compare(first: Path, second: Path, out: Path) -> dict:
    """Compare two runs on the same questions; write report.html and compare.json.

    Cases are paired by name and by what they ask for, however it is put; those of one run alone,
    or without a truth, are counted and left out.

    Raises:
        DataError: a folder holds no evaluation, or the two have no question in common.
    """
    one, other = read(first), read(second)
    shared = [name for name in one['names'] if name in other['names']]
    asked = [
        name
        for name in shared
        if one['names'][name]['about'] == other['names'][name]['about']
        and None not in (one['names'][name]['iou'], other['names'][name]['iou'])
    ]
    if not asked:
        raise DataError(
            f'{first} and {second} have no question with a truth in common, and {len(shared)} '
            'of one name: compare runs on the same data'
        )
    sorts = list(dict.fromkeys(one['names'][name]['sort'] for name in asked))
    groups = {'all': asked}
    if len(sorts) > 1:
        groups |= {s: [n for n in asked if one['names'][n]['sort'] == s] for s in sorts}

    def of(run: dict, names: Sequence[str], value: Callable[[dict], float]) -> list[float]:
        return [value(run['names'][name]) for name in names]

    rows = {}
    for sort, names in groups.items():
        pairs = [of(run, names, lambda case: case['iou']) for run in (one, other)]
        change = metrics.paired(*pairs, [one['names'][name]['group'] for name in names])
        rows[sort] = {
            'count': len(names),
            'giou': [float(np.mean(ious)) for ious in pairs],
            'ciou': [
                metrics.ciou([Overlap(c['intersection'], c['union']) for c in cases])
                for cases in ([run['names'][name] for name in names] for run in (one, other))
            ],
            'difference': change.mean,
            'interval': None if change.low != change.low else [change.low, change.high],
            'p': change.p,
            'better': change.better,
            'worse': change.worse,
        }
    plain = {
        'titles': [one['title'], other['title']],
        'modes': [one['mode'], other['mode']],
        'settings': [one['settings'], other['settings']],
        'left_out': [len(run['names']) - len(asked) for run in (one, other)],
        'figures': rows,
        'changes': sorted(
            ([n, other['names'][n]['iou'] - one['names'][n]['iou']] for n in asked),
            key=lambda row: row[1],
        ),
    }
    told = html_report.comparison_page(plain, (one, other), (first, second), MAX_IMAGES)
    ensure_folder(out)
    try:
        _write_json(out / 'compare.json', plain)
        (out / 'report.html').write_text(told, 'utf-8')
    except OSError as error:
        raise DataError(f'{out}: cannot be written to ({error}); give another --out') from error
    return plain


def print_summary(plain: dict, options: argparse.Namespace) -> None:
    """Print the figures of a report, as a table or as one JSON object."""
    if options.json:
        print(json.dumps({name: plain[name] for name in ('title', 'mode', 'figures', 'broken')}))
        return
    print(f'{plain["title"]}, mode {plain["mode"]}')
    print(f'{"":16}{"gIoU":>8}{"95 %":>16}{"cIoU":>8}{"P@0.5":>8}{"count":>8}')
    for sort, row in plain['figures'].items():
        if row['count']:
            sure = ' - '.join(f'{value:.3f}' for value in row['giou_interval'] or ())
            whole, half = (
                '' if row[name] is None else f'{row[name]:.3f}' for name in ('ciou', 'p@0.5')
            )
            print(f'{sort:16}{row["giou"]:8.3f}{sure:>16}{whole:>8}{half:>8}{row["count"]:8d}')
    for one in plain['broken']:
        print(f'not used: {one}')
    print(f'report: {options.out}/report.html')
