# SPDX-License-Identifier: Apache-2.0
"""`lisa-ros evaluate`: measure models, and compare reports."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from lisa_ros.commands import evaluate_bag, evaluate_images, evaluate_scenes
from lisa_ros.commands.evaluate_models import unique_names
from lisa_ros.error_text import printable
from lisa_ros.errors import SettingsError


def add(commands: argparse._SubParsersAction) -> None:
    """Add the commands."""
    evaluate = commands.add_parser('evaluate', help='measure how good a model is')
    kinds = evaluate.add_subparsers(required=True, metavar='WHAT')
    for kind in (evaluate_scenes, evaluate_images, evaluate_bag):
        kind.add(kinds)
    _add_compare(kinds)


def _add_compare(kinds: argparse._SubParsersAction) -> None:
    parser = kinds.add_parser('compare', help='compare reports on the same queries')
    parser.add_argument(
        'reports', type=Path, nargs='+', metavar='DIR', help='folders of two or more reports'
    )
    parser.add_argument(
        '--out', type=Path, required=True, metavar='DIR', help='folder for the comparison'
    )
    parser.set_defaults(run=evaluate_compare)


def evaluate_compare(options: argparse.Namespace) -> None:
    """Compare reports query by query; print the differences and write a page."""
    from lisa_ros.evaluation.comparison import ComparedRun, check_differences, compare

    if len(options.reports) < 2:
        raise SettingsError('evaluate compare needs the folders of two or more reports')
    names = unique_names([folder.resolve().name for folder in options.reports])
    runs = [ComparedRun(name, folder) for name, folder in zip(names, options.reports, strict=True)]
    comparison = compare(runs, options.out, f'{len(runs)} runs: {", ".join(names)}')
    for name, row in zip(names, comparison['runs'], strict=True):
        print(printable(f'{name}: {row["title"]}, mode {row["mode"]}'))
    for difference in comparison['differences']:
        _print_difference(difference, comparison['runs'])
    check_differences(comparison)
    print(f'report: {options.out}/report.html')


def _print_difference(difference: Mapping, rows: list[Mapping]) -> None:
    """Print how a run differs from the first one, by category."""
    first, second = rows[0]['name'], rows[difference['run']]['name']
    print(f'\n{second} minus {first}')
    print(
        f'{"":16}{"first":>8}{"this":>8}{"change":>8}{"p":>8}{"better":>8}{"worse":>8}{"count":>8}'
    )
    for category, row in difference['figures'].items():
        before, after = row['giou']
        print(
            f'{printable(category):16}{before:8.3f}{after:8.3f}{row["difference"]:+8.3f}{row["p"]:8.4f}'
            f'{row["better"]:8d}{row["worse"]:8d}{row["count"]:8d}'
        )
