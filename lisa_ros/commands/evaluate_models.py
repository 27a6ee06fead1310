# SPDX-License-Identifier: Apache-2.0
"""Several models in one `lisa-ros evaluate`: one after another, then all in one report.

    out/MODEL/report.html ...   of each model
    out/report.html ...         of all, see `evaluation.comparison`

Each model runs in a process of its own. One that cannot be loaded, or whose process dies, is named
in the report of all; the others are evaluated.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from lisa_ros.errors import DataError, LisaError
from lisa_ros.settings import Settings


class EvaluateOne(Protocol):
    """Evaluates one model; a function of a module, which another process imports."""

    def __call__(self, options: argparse.Namespace) -> object:
        """Evaluate `options.model` and write its report into `options.out`."""


def is_several(options: argparse.Namespace) -> bool:
    """Return whether --model was given more than once."""
    return len(options.model or ()) > 1


def model_of(options: argparse.Namespace) -> str:
    """Return the only model."""
    (model,) = options.model or [Settings.model]
    return model


def with_model(options: argparse.Namespace, model: str, out: Path | None) -> argparse.Namespace:
    """Return the options with one model and its folder."""
    return argparse.Namespace(**{**vars(options), 'model': model, 'out': out})


def evaluate_models(options: argparse.Namespace, evaluate_one: EvaluateOne) -> None:
    """Evaluate several models, compare them, print a row for each and write the report.

    Args:
        options: of the command, with `model`, `out`, `json` and `skip_broken`.
        evaluate_one: evaluates one of them.

    Raises:
        LisaError: of the first model that could not be evaluated; the report is written.
        DataError: queries failed or could not be used, without `skip_broken`.
        OutputError: another run uses the folder.
    """
    from lisa_ros.evaluation import report
    from lisa_ros.files.folder_lock import hold_folder

    with hold_folder(report.ensure_folder(options.out)):
        _evaluate_models(options, evaluate_one)


def _evaluate_models(options: argparse.Namespace, evaluate_one: EvaluateOne) -> None:
    from lisa_ros.evaluation import report
    from lisa_ros.evaluation.comparison import ComparedRun, compare
    from lisa_ros.evaluation.isolated_run import run_isolated
    from lisa_ros.evaluation.result_bag import remove_answers

    out = options.out
    names = unique_names([_name(model) for model in options.model])
    for folder in (out, *(out / name for name in names)):
        remove_answers(folder)  # while its report.json shows whose they are
        report.remove(folder)  # of an earlier run: a model that fails now must have none
    runs, errors = [], []
    for name, model in zip(names, options.model, strict=True):
        print(f'model {len(runs) + 1} of {len(names)}: {model}', file=sys.stderr)
        own = with_model(options, model, report.ensure_folder(out / name))
        error = None
        try:
            run_isolated(evaluate_one, own)
        except LisaError as own_error:
            error = own_error
            errors.append((model, own_error))
            print(f'{model} was not evaluated: {own_error}', file=sys.stderr)
        runs.append(ComparedRun(name, own.out, '' if error is None else str(error)))
    comparison = compare(runs, out, f'{len(runs)} models: {", ".join(names)}')
    if options.json:
        print(json.dumps(_summary(comparison)))
    else:
        _print_table(comparison['runs'])
    print(f'report: {out}/report.html', file=sys.stderr)
    if errors:
        model, error = errors[0]
        raise type(error)(
            f'{len(errors)} of {len(runs)} models could not be evaluated; the first is {model}: '
            f'{error}'
        )
    _check_all_used(comparison['runs'], options.skip_broken)


def _check_all_used(rows: Sequence[Mapping], skip_broken: bool) -> None:
    """Check that each model has answered all queries.

    Raises:
        DataError: one has not, without `skip_broken`.
    """
    incomplete = [row for row in rows if row['failed'] or row['broken']]
    if incomplete and not skip_broken:
        row = incomplete[0]
        raise DataError(
            f'{row["name"]}: {row["failed"]} queries failed, and {row["broken"]} items could not '
            'be used; its own report names them; --skip-broken ignores them'
        )


def _summary(comparison: Mapping) -> dict:
    """Return what --json prints of a comparison: all but the single queries."""
    differences = [
        {key: value for key, value in difference.items() if key != 'changes'}
        for difference in comparison['differences']
    ]
    return {**comparison, 'differences': differences}


_COLUMNS = {
    'gIoU': lambda row: _number(row['figures'].get('giou'), '.3f'),
    'cIoU': lambda row: _number(row['figures'].get('ciou'), '.3f'),
    'found': lambda row: _number(row['figures'].get('t_acc'), '.0%'),
    'denied': lambda row: _number(row['figures'].get('n_acc'), '.0%'),
    'to mask': lambda row: _number((row['seconds_to_mask'] or {}).get('p50'), '.2f'),
    'to answer': lambda row: _number((row['seconds_to_answer'] or {}).get('p50'), '.2f'),
    'tokens': lambda row: _number(row['tokens'], '.0f'),
    'MiB': lambda row: _number(row['peak_memory'], '.0f'),
    'GPU MiB': lambda row: _number(row['peak_gpu_memory'], '.0f'),
    'load': lambda row: _number(row['load_seconds'], '.1f'),
    'failed': lambda row: str(row['failed']),
}


def _number(value: float | None, form: str) -> str:
    return '-' if value is None else format(value, form)


def _print_table(rows: Sequence[Mapping]) -> None:
    """Print a row for each model; seconds are medians."""
    width = max(len(row['name']) for row in rows) + 1
    print(' ' * width + ''.join(f'{name:>10}' for name in _COLUMNS))
    for row in rows:
        if row['failure']:
            print(f'{row["name"]:{width}}  not evaluated: {row["failure"]}')
        else:
            cells = ''.join(f'{value(row):>10}' for value in _COLUMNS.values())
            print(f'{row["name"]:{width}}{cells}')


def _name(model: str) -> str:
    """Return the last part of a model's path, as the name of a folder on any system."""
    name = re.sub(r'[^\w.+-]', '_', Path(model).name)
    return name if name.strip('.') else 'model'


def unique_names(names: Sequence[str]) -> list[str]:
    """Return a folder name for each model or bag, made unique with its number."""
    counts = Counter(names)
    unique: dict[str, None] = {}  # in order
    for number, name in enumerate(names, 1):
        candidate = name if counts[name] == 1 else f'{name}_{number}'
        while candidate in unique or (candidate != name and candidate in counts):
            candidate += '_'
        unique[candidate] = None
    return list(unique)
