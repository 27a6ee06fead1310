# SPDX-License-Identifier: Apache-2.0
"""`lisa-ros evaluate scenes`: evaluate models on rendered tabletop scenes."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lisa_ros.commands.arguments import (
    MODEL_SETTINGS,
    load_segmenter,
    model_arguments,
    refuse_broken,
)
from lisa_ros.commands.evaluate_models import (
    evaluate_models,
    is_several,
    model_of,
    with_model,
)
from lisa_ros.error_text import printable
from lisa_ros.errors import DataError, SettingsError
from lisa_ros.number_arguments import non_negative_int, positive_int
from lisa_ros.resources import TEST_SETS

if TYPE_CHECKING:  # not at run time: `lisa-ros --help` must not import numpy
    from lisa_ros.evaluation.broken_items import BrokenItems
    from lisa_ros.evaluation.cases import Case
    from lisa_ros.evaluation.tabletop import TabletopTestQuery
    from lisa_ros.perception.segmenter import Segmenter


def add(kinds: argparse._SubParsersAction) -> None:
    """Add the command to those of `lisa-ros evaluate`."""
    parser = kinds.add_parser('scenes', help='on rendered tabletop scenes')
    parser.add_argument(
        '--split', default='test', help='name of a bundled test set (default: test)'
    )
    parser.add_argument(
        '--test-set', type=Path, help='folder or zip of a test set, used instead of --split'
    )
    parser.add_argument(
        '--limit', type=positive_int, metavar='N', help='use only the first N queries'
    )
    parser.add_argument(
        '--only',
        nargs='+',
        metavar='CATEGORY',
        help='use only the queries of these categories, for example: --only use knowledge',
    )
    parser.add_argument(
        '--out', type=Path, metavar='DIR', help='folder for the report (default: none is written)'
    )
    parser.add_argument(
        '--batch',
        type=positive_int,
        default=1,
        metavar='N',
        help='answer N queries at once, which a GPU does faster (default: 1)',
    )
    parser.add_argument(
        '--skip-broken',
        action='store_true',
        help='skip images and queries that cannot be used and list them; exit with 0 even if '
        'queries failed',
    )
    parser.add_argument('--json', action='store_true', help='print one JSON object')
    parser.add_argument(
        '--examples',
        type=non_negative_int,
        default=0,
        metavar='N',
        help='print the first N answers to queries that ask for a reason (default: 0)',
    )
    model_arguments(parser, several=True)
    parser.set_defaults(run=evaluate_scenes)


def evaluate_scenes(options: argparse.Namespace) -> None:
    """Evaluate models on a tabletop test set; print the figures and write reports."""
    from lisa_ros.evaluation import report
    from lisa_ros.evaluation.broken_items import BrokenItems

    if is_several(options):
        if options.out is None:
            raise SettingsError('several models need --out DIR, for their reports')
        _read(options, BrokenItems())
        evaluate_models(options, evaluate_one)
        return
    one = with_model(options, model_of(options), options.out)
    cases, broken = evaluate_one(one)
    figures = _figures(cases)
    _print_examples(cases, options.examples)
    failed = report.failed_queries(cases)
    if options.json:
        source = {'test_set': str(options.test_set)} if options.test_set else {}
        source = source or {'split': options.split}
        print(json.dumps({'model': one.model, **source, 'failed': len(failed), **figures}))
    else:
        _print_scenes(figures)
    not_used = [*broken, *failed]
    if not_used and not options.skip_broken:
        raise DataError(
            f'{len(not_used)} of {len(cases)} queries failed or could not be used; the first is '
            f'{not_used[0]}; --skip-broken ignores them'
        )


def evaluate_one(options: argparse.Namespace) -> tuple[list[Case], list[str]]:
    """Evaluate one model; write its report if there is a folder for it.

    Returns:
        The cases, and what could not be used of the test set.
    """
    from lisa_ros.evaluation import report, tabletop
    from lisa_ros.evaluation.broken_items import BrokenItems

    overlays = report.ensure_folder(options.out) / 'images' if options.out else None
    broken = BrokenItems()
    queries = _read(options, broken)
    segmenter = load_segmenter(options)
    if options.out:
        report.remove(options.out)
    cases = list(tabletop.run_test_set(segmenter, queries, overlays, broken.add, options.batch))
    if options.out:
        _write_scenes_report(options, segmenter, cases, broken.messages)
    return cases, list(broken.messages)


def _path(options: argparse.Namespace) -> Path:
    return options.test_set or TEST_SETS / f'{options.split}.zip'


def _read(options: argparse.Namespace, broken: BrokenItems) -> list[TabletopTestQuery]:
    """Return the queries that can be used; `broken` gets the others.

    Raises:
        SettingsError: there is no such category.
        DataError: there is no test set, or a query that cannot be used without --skip-broken.
    """
    from lisa_ros.evaluation import tabletop

    path = _path(options)
    queries = tabletop.read_test_set(path)
    if options.only:
        categories = dict.fromkeys(query.category for query in queries)
        unknown = [category for category in options.only if category not in categories]
        if unknown:
            raise SettingsError(
                f'{path} has no category {unknown[0]!r}; expected one of {", ".join(categories)}'
            )
        queries = [query for query in queries if query.category in options.only]
    queries = tabletop.check_test_set(queries[: options.limit], broken.add)
    refuse_broken(options.skip_broken, str(path), broken.messages, queries)
    return queries


def _figures(cases: Sequence[Case]) -> dict:
    from lisa_ros.evaluation import tabletop

    return tabletop.compute_figures(cases)


def _write_scenes_report(
    options: argparse.Namespace,
    segmenter: Segmenter,
    cases: Sequence[Case],
    broken: Sequence[str],
) -> None:
    from lisa_ros.evaluation import report
    from lisa_ros.evaluation.cases import Mode
    from lisa_ros.evaluation.resources import used_resources

    path, figures = _path(options), _figures(cases)
    run = report.Run(
        title=f'{options.model} on {path.stem}',
        mode=Mode.GENERATE,
        settings={name: getattr(options, name) for name in MODEL_SETTINGS}
        | {'test set': str(path), 'categories': ' '.join(options.only or ['all'])},
        cases=cases,
        broken=broken,
        conditions=used_resources(segmenter),
        more_figures={
            **_present_figures(figures),
            'present or absent, correct': figures['presence_accuracy'],
            'explanations with object and reason, correct': figures['explanation_accuracy'],
            'expected calibration error of the scores': figures['ece'],
        },
    )
    report.write(run, options.out)
    print(f'report: {options.out}/report.html', file=sys.stderr)


def _present_figures(figures: Mapping) -> dict[str, float]:
    """Return the printed gIoU and cIoU, which cover only queries whose object is present."""
    rows = {name: row for name, row in figures.items() if isinstance(row, dict) and 'giou' in row}
    return {
        f'{label} of present objects, {name}': row[key]
        for key, label in (('giou', 'gIoU'), ('ciou', 'cIoU'))
        for name, row in rows.items()
    }


def _print_examples(cases: Sequence[Case], count: int) -> None:
    """Print the first `count` answers to queries that ask for a reason, to stderr."""
    for case in [case for case in cases if case.expected_phrases][:count]:
        expected = ' ... '.join(wordings[0] for wordings in case.expected_phrases)
        mark = 'right' if case.explained else f'WRONG, expected: {expected}'
        dialogue = ' / '.join((*case.history, case.expression))
        iou = '-' if case.iou is None else f'{case.iou:.2f}'
        print(printable(dialogue), file=sys.stderr)
        print(printable(f'    {case.answer}  ({mark}, IoU {iou})'), file=sys.stderr)


def _print_scenes(figures: Mapping) -> None:
    """Print the figures of a tabletop test set as a table."""
    print(f'{"present objects":16}{"gIoU":>8}{"cIoU":>8}{"count":>8}')
    for category, row in figures.items():
        if isinstance(row, dict) and 'giou' in row:
            print(f'{printable(category):16}{row["giou"]:8.3f}{row["ciou"]:8.3f}{row["count"]:8d}')
    if figures['presence_accuracy'] is not None:
        print(f'presence accuracy (present or absent): {figures["presence_accuracy"]:.1%}')
    if figures['explanation_accuracy'] is not None:
        accuracy, count = figures['explanation_accuracy'], figures['explanations']
        print(f'explanations that name object and reason: {accuracy:.1%} of {count}')
        for category, row in figures['explanation'].items():
            print(f'    {printable(category):16}{row["accuracy"]:.1%} of {row["count"]}')
    if figures['ece'] is not None:
        print(f'expected calibration error of the scores: {figures["ece"]:.3f}')
