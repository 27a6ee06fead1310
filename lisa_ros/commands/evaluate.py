# SPDX-License-Identifier: Apache-2.0
"""`lisa-ros evaluate` and `lisa-ros calibrate`: measure a model, and calibrate its scores."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lisa_ros.commands import evaluate_bag
from lisa_ros.commands.arguments import (
    MODEL_SETTINGS,
    load_segmenter,
    model_arguments,
    positive_int,
    refuse_broken,
)
from lisa_ros.errors import DataError, SettingsError, raise_error
from lisa_ros.optional_packages import install_command
from lisa_ros.resources import TEST_SETS

if TYPE_CHECKING:  # not at run time: `lisa-ros --help` must not import numpy
    from lisa_ros.evaluation.cases import Case

_MODES = ('generate', 'teacher_forced')


def add(commands: argparse._SubParsersAction) -> None:
    """Add the commands."""
    evaluate = commands.add_parser('evaluate', help='measure how good a model is')
    kinds = evaluate.add_subparsers(required=True, metavar='WHAT')
    _add_scenes(kinds)
    _add_images(kinds)
    evaluate_bag.add(kinds)
    _add_compare(kinds)
    _add_calibrate(commands)


def _add_scenes(kinds: argparse._SubParsersAction) -> None:
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
        type=int,
        default=0,
        metavar='N',
        help='print the first N answers to queries that ask for a reason (default: 0)',
    )
    model_arguments(parser)
    parser.set_defaults(run=evaluate_scenes)


def _add_images(kinds: argparse._SubParsersAction) -> None:
    parser = kinds.add_parser('images', help='on labelled images, such as ReasonSeg or refCOCO')
    parser.add_argument(
        'data', metavar='DATA', help='folder, or a data set as in docs/evaluation.md'
    )
    parser.add_argument(
        '--out', type=Path, required=True, metavar='DIR', help='folder for the report'
    )
    parser.add_argument(
        '--mode',
        default='generate',
        choices=_MODES,
        help='generate: the model writes its answer; teacher_forced: the model is given the '
        'answer "[SEG]." and only its mask is compared, as in the LISA paper (default: generate)',
    )
    parser.add_argument(
        '--ask',
        metavar='TEXT',
        help='question template, for example "find the {}"; {} is replaced by the query '
        "(default: the template of LISA's evaluation)",
    )
    parser.add_argument(
        '--first-only',
        action='store_true',
        help='use only the first query of each image, as in the LISA paper',
    )
    parser.add_argument(
        '--skip-broken',
        action='store_true',
        help='skip images and annotations that cannot be used and list them; exit with 0 even if '
        'queries failed (default: refuse data with such items before the model is loaded)',
    )
    parser.add_argument(
        '--limit', type=positive_int, metavar='N', help='use only the first N images'
    )
    parser.add_argument('--json', action='store_true', help='print one JSON object')
    model_arguments(parser)
    parser.set_defaults(run=evaluate_images)


def _add_compare(kinds: argparse._SubParsersAction) -> None:
    parser = kinds.add_parser('compare', help='compare two reports on the same queries')
    parser.add_argument('first', type=Path, metavar='A', help='folder of a report')
    parser.add_argument('second', type=Path, metavar='B', help='folder of another report')
    parser.add_argument(
        '--out', type=Path, required=True, metavar='DIR', help='folder for the comparison'
    )
    parser.set_defaults(run=evaluate_compare)


def _add_calibrate(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        'calibrate', help='fit the confidence scores of a model to a test set'
    )
    parser.add_argument(
        'folder', type=Path, metavar='MODEL', help='model in lisa_ros format; it is changed'
    )
    parser.add_argument(
        '--test-set',
        type=Path,
        required=True,
        help='folder or zip of the test set to fit to; not the test split: figures measured on '
        'data that was used for the fit are too good',
    )
    parser.add_argument(
        '--plot',
        type=Path,
        metavar='PNG',
        help='file for a reliability plot (default: none is drawn)',
    )
    parser.add_argument(
        '--refine',
        action='store_true',
        help='also enable mask refinement in the model (default: do not change it)',
    )
    parser.add_argument('--device', help='cpu, cuda (default: the GPU if there is one)')
    parser.set_defaults(run=calibrate)


# ---- tabletop scenes


def evaluate_scenes(options: argparse.Namespace) -> None:
    """Evaluate a model on a tabletop test set; print the figures and write a report."""
    from lisa_ros.evaluation import report, tabletop
    from lisa_ros.evaluation.broken_items import BrokenItems

    path = options.test_set or TEST_SETS / f'{options.split}.zip'
    queries = tabletop.read_test_set(path)
    if options.only:
        categories = dict.fromkeys(query.category for query in queries)
        unknown = [category for category in options.only if category not in categories]
        if unknown:
            raise SettingsError(
                f'{path} has no category {unknown[0]!r}; expected one of {", ".join(categories)}'
            )
        queries = [query for query in queries if query.category in options.only]
    overlays = report.ensure_folder(options.out) / 'images' if options.out else None
    broken = BrokenItems()
    queries = tabletop.check_test_set(queries[: options.limit], broken.add)
    refuse_broken(options.skip_broken, str(path), broken.messages, queries)
    segmenter = load_segmenter(options)
    cases = list(tabletop.run_test_set(segmenter, queries, overlays, broken.add, options.batch))
    figures = tabletop.compute_figures(cases)
    _print_examples(cases, options.examples)
    if options.out:
        _write_scenes_report(options, path, cases, figures, broken.messages)
    failed = report.failed_queries(cases)
    if options.json:
        source = {'test_set': str(path)} if options.test_set else {'split': options.split}
        print(json.dumps({'model': options.model, **source, 'failed': len(failed), **figures}))
    else:
        _print_scenes(figures)
    not_used = [*broken.messages, *failed]
    if not_used and not options.skip_broken:
        raise DataError(
            f'{len(not_used)} of {len(cases)} queries failed or could not be used; the first is '
            f'{not_used[0]}; --skip-broken ignores them'
        )


def _write_scenes_report(
    options: argparse.Namespace,
    path: Path,
    cases: Sequence[Case],
    figures: Mapping,
    broken: Sequence[str],
) -> None:
    from lisa_ros.evaluation import report
    from lisa_ros.evaluation.cases import Mode

    run = report.Run(
        title=f'{options.model} on {path.stem}',
        mode=Mode.GENERATE,
        settings={name: getattr(options, name) for name in MODEL_SETTINGS}
        | {'test set': str(path), 'categories': ' '.join(options.only or ['all'])},
        cases=cases,
        broken=broken,
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
        print(f'{dialogue}\n    {case.answer}  ({mark}, IoU {iou})', file=sys.stderr)


def _print_scenes(figures: Mapping) -> None:
    """Print the figures of a tabletop test set as a table."""
    print(f'{"present objects":16}{"gIoU":>8}{"cIoU":>8}{"count":>8}')
    for category, row in figures.items():
        if isinstance(row, dict) and 'giou' in row:
            print(f'{category:16}{row["giou"]:8.3f}{row["ciou"]:8.3f}{row["count"]:8d}')
    if figures['presence_accuracy'] is not None:
        print(f'presence accuracy (present or absent): {figures["presence_accuracy"]:.1%}')
    if figures['explanation_accuracy'] is not None:
        accuracy, count = figures['explanation_accuracy'], figures['explanations']
        print(f'explanations that name object and reason: {accuracy:.1%} of {count}')
        for category, row in figures['explanation'].items():
            print(f'    {category:16}{row["accuracy"]:.1%} of {row["count"]}')
    if figures['ece'] is not None:
        print(f'expected calibration error of the scores: {figures["ece"]:.3f}')


# ---- labelled images


def evaluate_images(options: argparse.Namespace) -> None:
    """Evaluate a model on labelled images; print the figures and write a report."""
    from lisa_ros.datasets import checking
    from lisa_ros.datasets.annotations import AnnotatedQuery
    from lisa_ros.datasets.lisa_templates import validation_question
    from lisa_ros.datasets.llava import TextDialogue
    from lisa_ros.evaluation import benchmarks, report
    from lisa_ros.evaluation.broken_items import BrokenItems
    from lisa_ros.evaluation.cases import Mode

    if options.ask and '{}' not in options.ask:
        raise SettingsError(f'--ask {options.ask!r} must contain {{}}, the place of the query')

    def question(query: AnnotatedQuery) -> str:
        return options.ask.replace('{}', query.text) if options.ask else validation_question(query)

    broken = BrokenItems()
    images = checking.read_checked(options.data, broken.add, options.limit)
    refuse_broken(options.skip_broken, options.data, broken.messages, images)
    if isinstance(images[0], TextDialogue):
        raise SettingsError(f'{options.data}: text dialogues have no masks to compare with')
    report.ensure_folder(options.out)
    mode = Mode(options.mode)
    cases = benchmarks.evaluate_dataset(
        load_segmenter(options),
        images,
        benchmarks.DatasetOptions(mode, question, options.first_only, options.out / 'images'),
        broken.add,
    )
    run = report.Run(
        title=f'{options.model} on {options.data}',
        mode=mode,
        settings={name: getattr(options, name) for name in MODEL_SETTINGS}
        | {
            'data': options.data,
            'first query only': options.first_only,
            'question': options.ask or "of LISA's evaluation",
        },
        cases=list(cases),
        broken=broken.messages,
        published=benchmarks.published(options.data) if _as_in_paper(options) else {},
    )
    content = report.write(run, options.out)
    report.print_summary(content, options.out, options.json)
    not_used = [*content['broken'], *content['failed']]
    if not_used and not options.skip_broken:
        raise DataError(
            f'{len(not_used)} queries failed or could not be used; the first is {not_used[0]}; '
            '--skip-broken ignores them'
        )


def _as_in_paper(options: argparse.Namespace) -> bool:
    """Return whether the evaluation is that of the paper, so that its figures are comparable."""
    one_query_each = options.first_only or options.data.startswith('refer:')
    return one_query_each and not options.ask and options.limit is None


# ---- two reports


def evaluate_compare(options: argparse.Namespace) -> None:
    """Compare two reports query by query; print the differences and write a page."""
    from lisa_ros.evaluation.comparison import compare

    comparison = compare(options.first, options.second, options.out)
    for letter, title, mode in zip('AB', comparison['titles'], comparison['modes'], strict=True):
        print(f'{letter}: {title}, mode {mode}')
    print(f'{"":16}{"A":>8}{"B":>8}{"B - A":>8}{"p":>8}{"better":>8}{"worse":>8}{"count":>8}')
    for category, row in comparison['figures'].items():
        first, second = row['giou']
        print(
            f'{category:16}{first:8.3f}{second:8.3f}{row["difference"]:+8.3f}{row["p"]:8.4f}'
            f'{row["better"]:8d}{row["worse"]:8d}{row["count"]:8d}'
        )
    print(f'report: {options.out}/report.html')


# ---- calibration


def calibrate(options: argparse.Namespace) -> None:
    """Fit score calibration and confidence threshold to a test set; store both in the model."""
    from lisa_ros.evaluation import calibration, report, tabletop
    from lisa_ros.perception import mask_scores
    from lisa_ros.perception.backend import InferenceOptions
    from lisa_ros.perception.segmenter import Segmenter

    calibration.read_config(options.folder)  # fail early: the test set takes minutes
    if options.plot and importlib.util.find_spec('matplotlib') is None:
        raise SettingsError(f'--plot needs matplotlib: {install_command("train")}')
    queries = tabletop.check_test_set(tabletop.read_test_set(options.test_set), raise_error)
    segmenter = Segmenter.load(
        str(options.folder),
        device=options.device,
        precision='fp32',
        options=InferenceOptions(confidence_threshold=0.0, refine=options.refine or None),
    )
    cases = list(tabletop.run_test_set(segmenter, queries))
    failed = report.failed_queries(cases)
    if failed:
        raise DataError(
            f'{options.folder} is not calibrated: {len(failed)} of {len(cases)} queries failed; '
            f'the first is {failed[0]}'
        )
    weights = calibration.fit_weights(cases)
    curve = calibration.fit_isotonic_curve(cases, weights)
    cases = [
        replace(
            case,
            scores=tuple(mask_scores.score(f, weights, curve) for f in case.score_features),
        )
        for case in cases
    ]
    presence_cases = [case for case in cases if case.category in tabletop.PRESENCE]
    threshold = calibration.best_threshold(
        [case.score or 0.0 for case in presence_cases],
        [bool(case.present) for case in presence_cases],
    )
    calibration.save_calibration(options.folder, weights, curve, threshold, refine=options.refine)
    outcomes = calibration.scored_outcomes(cases)
    if options.plot:
        calibration.plot_reliability(
            outcomes, options.plot, f'{options.folder.name}: calibration of scores'
        )
    error = calibration.expected_calibration_error(outcomes)
    print(f'{len(outcomes)} masks, calibration error {error:.3f}, threshold {threshold:.2f}')
