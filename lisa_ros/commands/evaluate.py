# SPDX-License-Identifier: Apache-2.0
"""`lisa-ros evaluate` and `lisa-ros calibrate`: how good a model is, and how honest."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

from lisa_ros.commands import evaluate_bag
from lisa_ros.commands.arguments import MODEL_SETTINGS, load, model_arguments, positive_int
from lisa_ros.errors import DataError, SettingsError
from lisa_ros.evaluation.report import print_summary
from lisa_ros.resources import TEST_SETS


def add(commands: argparse._SubParsersAction) -> None:
    """Add the commands."""
    many = commands.add_parser('evaluate', help='how good a model is')
    kinds = many.add_subparsers(required=True, metavar='WHAT')
    tables = kinds.add_parser('scenes', help='on rendered tables with known truth')
    tables.add_argument('--split', default='test', help='an exam of the package (default: test)')
    tables.add_argument('--exam', type=Path, help='a folder or zip with an exam.json of your own')
    tables.add_argument('--limit', type=int, help='only the first questions')
    tables.add_argument(
        '--only', nargs='+', metavar='SORT', help='only questions of these sorts, as use knowledge'
    )
    tables.add_argument('--json', action='store_true', help='print one JSON object')
    tables.add_argument(
        '--examples', type=int, default=0, metavar='N', help='print N answers that give reasons'
    )
    model_arguments(tables)
    tables.set_defaults(run=evaluate_scenes)

    labelled = kinds.add_parser('pictures', help='on labelled pictures, as ReasonSeg or refCOCO')
    labelled.add_argument('data', metavar='DATA', help='a folder, or as docs/evaluation.md names')
    labelled.add_argument('--out', type=Path, required=True, metavar='DIR', help='for the report')
    labelled.add_argument(
        '--mode',
        default='generate',
        choices=('generate', 'teacher_forced'),
        help='teacher_forced: the answer is given, as the paper has it (default: generate)',
    )
    labelled.add_argument(
        '--ask',
        metavar='TEXT',
        help='how a query is put, as "find the {}" (default: as LISA\'s own evaluation does)',
    )
    labelled.add_argument(
        '--first-only', action='store_true', help="each picture's first query, as the paper has it"
    )
    labelled.add_argument(
        '--skip-broken', action='store_true', help='leave out what cannot be read, and say so'
    )
    labelled.add_argument('--limit', type=positive_int, help='only the first pictures')
    labelled.add_argument('--json', action='store_true', help='print one JSON object')
    model_arguments(labelled)
    labelled.set_defaults(run=evaluate_pictures)

    evaluate_bag.add(kinds)

    both = kinds.add_parser('compare', help='two reports on the same questions')
    both.add_argument('first', type=Path, metavar='A')
    both.add_argument('second', type=Path, metavar='B')
    both.add_argument('--out', type=Path, required=True, metavar='DIR', help='for the report')
    both.set_defaults(run=evaluate_compare)

    honest = commands.add_parser('calibrate', help="make a model's scores honest on an exam")
    honest.add_argument('folder', type=Path, metavar='MODEL', help='of our own layout; changed')
    honest.add_argument('--exam', type=Path, required=True, help='a folder or zip, not the test')
    honest.add_argument('--plot', type=Path, metavar='PNG', help='a reliability plot')
    honest.add_argument(
        '--refine', action='store_true', help="note that its masks go to the picture's edges, too"
    )
    honest.add_argument('--device', help='cpu, cuda (default: the GPU where there is one)')
    honest.set_defaults(run=calibrate)


def evaluate_scenes(options: argparse.Namespace) -> None:
    """Ask a model the exam of a split; print its figures."""
    from lisa_ros.evaluation import tabletop

    exam = options.exam or TEST_SETS / f'{options.split}.zip'
    questions = tabletop.read_test_set(exam)
    if options.only:
        sorts = dict.fromkeys(question.category for question in questions)
        unknown = [sort for sort in options.only if sort not in sorts]
        if unknown:
            raise SettingsError(f'no {unknown[0]} in {exam}: its sorts are {", ".join(sorts)}')
        questions = [question for question in questions if question.category in options.only]
    questions = questions[: options.limit]
    graded = list(tabletop.run_test_set(load(options), questions))
    figures = tabletop.report(graded)
    for one in [g for g in graded if g.question.expected_phrases][: options.examples]:
        wanted = ' ... '.join(wordings[0] for wordings in one.question.expected_phrases)
        mark = 'right' if one.explained else f'WRONG, not: {wanted}'
        said = ' / '.join((*one.question.history, one.question.text))
        print(f'{said}\n    {one.answer}  ({mark}, IoU {one.overlap.iou:.2f})', file=sys.stderr)
    if options.json:
        print(json.dumps({'model': options.model, 'split': options.split, **figures}))
        return
    print(f'{"":16}{"gIoU":>8}{"cIoU":>8}{"count":>8}')
    for sort, row in figures.items():
        if isinstance(row, dict) and 'giou' in row:
            print(f'{sort:16}{row["giou"]:8.3f}{row["ciou"]:8.3f}{row["count"]:8d}')
    if figures['presence_accuracy'] is not None:
        print(f'there or not, right: {figures["presence_accuracy"]:.1%}')
    if figures['explanation_accuracy'] is not None:
        count = figures['explanations']
        print(f'thing and reason named rightly: {figures["explanation_accuracy"]:.1%} of {count}')
        for sort, row in figures['explanation'].items():
            print(f'    {sort:16}{row["accuracy"]:.1%} of {row["count"]}')
    if figures['ece'] is not None:
        print(f'expected calibration error of the scores: {figures["ece"]:.3f}')


def evaluate_pictures(options: argparse.Namespace) -> None:
    """Ask a model about labelled pictures; print its figures and leave a report."""
    from lisa_ros.datasets import registry
    from lisa_ros.datasets.annotations import Query
    from lisa_ros.datasets.json_io import raise_error
    from lisa_ros.datasets.lisa_templates import validation_question
    from lisa_ros.datasets.llava import TextDialogue
    from lisa_ros.evaluation import benchmarks, report

    if options.ask and '{}' not in options.ask:
        raise SettingsError(f'--ask {options.ask!r} has no {{}} for what is asked for')

    def question(query: Query) -> str:
        return options.ask.replace('{}', query.text) if options.ask else validation_question(query)

    broken: list[DataError] = []
    note = broken.append if options.skip_broken else raise_error
    pictures = registry.read(options.data, note)
    if isinstance(pictures[0], TextDialogue):
        raise SettingsError(f'{options.data}: talks have no masks to compare with')
    report.ensure_folder(options.out)
    cases = list(
        benchmarks.evaluate_dataset(
            load(options),
            pictures[: options.limit],
            options.mode,
            question=question,
            first_only=options.first_only,
            broken=note,
            out=options.out / 'pictures',
        )
    )
    settings = {name: getattr(options, name) for name in MODEL_SETTINGS}
    run = report.Run(
        title=f'{options.model} on {options.data}',
        mode=options.mode,
        settings={
            **settings,
            'data': options.data,
            'first query only': options.first_only,
            'question': options.ask or "of LISA's evaluation",
        },
        cases=cases,
        broken=[str(error) for error in broken],
        published=benchmarks.published(options.data) if _as_the_paper(options) else {},
    )
    print_summary(report.write(run, options.out), options)


def _as_the_paper(options: argparse.Namespace) -> bool:
    """Return whether a data set is asked as the paper asks it: only then its figures compare."""
    one_of_each = options.first_only or options.data.startswith('refer:')
    return one_of_each and not options.ask and options.limit is None


def evaluate_compare(options: argparse.Namespace) -> None:
    """Hold one evaluation against another, question by question."""
    from lisa_ros.evaluation import report

    plain = report.compare(options.first, options.second, options.out)
    for letter, title, mode in zip('AB', plain['titles'], plain['modes'], strict=True):
        print(f'{letter}: {title}, mode {mode}')
    print(f'{"":16}{"A":>8}{"B":>8}{"B - A":>8}{"p":>8}{"better":>8}{"worse":>8}{"count":>8}')
    for sort, row in plain['figures'].items():
        first, second = row['giou']
        print(
            f'{sort:16}{first:8.3f}{second:8.3f}{row["difference"]:+8.3f}{row["p"]:8.4f}'
            f'{row["better"]:8d}{row["worse"]:8d}{row["count"]:8d}'
        )
    print(f'report: {options.out}/report.html')


def calibrate(options: argparse.Namespace) -> None:
    """Make a model's scores honest on an exam: fit them, choose the threshold, note both."""
    from lisa_ros.evaluation import calibration, tabletop
    from lisa_ros.perception import mask_scores
    from lisa_ros.perception.segmenter import Segmenter

    calibration.read_config(options.folder)  # before the exam, which takes minutes
    if options.plot and importlib.util.find_spec('matplotlib') is None:
        raise SettingsError("--plot needs matplotlib: pip install '.[train]'")
    lisa = Segmenter.load(
        str(options.folder),
        device=options.device,
        precision='fp32',
        confidence_threshold=0.0,
        refine=options.refine or None,
    )
    graded = list(tabletop.run_test_set(lisa, tabletop.read_test_set(options.exam)))
    weights = calibration.fit(graded)
    curve = calibration.fit_isotonic_curve(graded, weights)
    graded = [
        replace(g, scores=tuple(mask_scores.score(e, weights, curve) for e in g.evidence))
        for g in graded
    ]
    asked = [g for g in graded if g.question.category in tabletop.PRESENCE]
    threshold = calibration.best_threshold(
        [max(g.scores, default=0.0) for g in asked], [bool(g.question.targets) for g in asked]
    )
    calibration.save_calibration(options.folder, weights, curve, threshold, refine=options.refine)
    rows = calibration.scored_outcomes(graded)
    if options.plot:
        calibration.plot(rows, options.plot, f'{options.folder.name}: are its scores honest?')
    error = calibration.expected_error(rows)
    print(f'{len(rows)} masks, calibration error {error:.3f}, threshold {threshold:.2f}')
