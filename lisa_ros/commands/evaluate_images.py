# SPDX-License-Identifier: Apache-2.0
"""`lisa-ros evaluate images`: evaluate models on labelled images."""

from __future__ import annotations

import argparse
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
from lisa_ros.errors import DataError, SettingsError
from lisa_ros.number_arguments import positive_int

if TYPE_CHECKING:  # not at run time: `lisa-ros --help` must not import numpy
    from lisa_ros.datasets.annotations import ImageWithQueries
    from lisa_ros.evaluation.broken_items import BrokenItems

_MODES = ('generate', 'teacher_forced')


def add(kinds: argparse._SubParsersAction) -> None:
    """Add the command to those of `lisa-ros evaluate`."""
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
    model_arguments(parser, several=True)
    parser.set_defaults(run=evaluate_images)


def evaluate_images(options: argparse.Namespace) -> None:
    """Evaluate models on labelled images; print the figures and write reports."""
    from lisa_ros.evaluation import report
    from lisa_ros.evaluation.broken_items import BrokenItems

    if options.ask and '{}' not in options.ask:
        raise SettingsError(f'--ask {options.ask!r} must contain {{}}, the place of the query')
    if is_several(options):
        _read(options, BrokenItems())
        evaluate_models(options, evaluate_one)
        return
    content = evaluate_one(with_model(options, model_of(options), options.out))
    report.print_summary(content, options.out, options.json)
    not_used = [*content['broken'], *content['failed']]
    if not_used and not options.skip_broken:
        raise DataError(
            f'{len(not_used)} queries failed or could not be used; the first is {not_used[0]}; '
            '--skip-broken ignores them'
        )


def evaluate_one(options: argparse.Namespace) -> dict:
    """Evaluate one model; write its report and return the content of report.json."""
    from lisa_ros.datasets.annotations import AnnotatedQuery
    from lisa_ros.datasets.lisa_templates import validation_question
    from lisa_ros.evaluation import benchmarks, report
    from lisa_ros.evaluation.broken_items import BrokenItems
    from lisa_ros.evaluation.cases import Mode
    from lisa_ros.evaluation.resources import used_resources

    def question(query: AnnotatedQuery) -> str:
        return options.ask.replace('{}', query.text) if options.ask else validation_question(query)

    broken = BrokenItems()
    images = _read(options, broken)
    report.ensure_folder(options.out)
    mode = Mode(options.mode)
    segmenter = load_segmenter(options)
    report.remove(options.out)
    cases = benchmarks.evaluate_dataset(
        segmenter,
        images,
        benchmarks.DatasetOptions(mode, question, options.first_only, options.out / 'images'),
        broken.add,
    )
    cases = list(cases)
    # published figures cover all queries of the split
    is_whole = not broken.messages and not report.failed_queries(cases)
    run = report.Run(
        title=f'{options.model} on {options.data}',
        mode=mode,
        settings={name: getattr(options, name) for name in MODEL_SETTINGS}
        | {
            'data': options.data,
            'first query only': options.first_only,
            'question': options.ask or "of LISA's evaluation",
        },
        cases=cases,
        broken=broken.messages,
        published=benchmarks.published(options.data) if is_whole and _as_in_paper(options) else {},
        conditions=used_resources(segmenter),
    )
    return report.write(run, options.out)


def _read(options: argparse.Namespace, broken: BrokenItems) -> list[ImageWithQueries]:
    """Return the images that can be used; `broken` gets the others.

    Raises:
        DataError: there are none, or broken ones without --skip-broken.
        SettingsError: the data has no masks.
    """
    from lisa_ros.datasets import checking
    from lisa_ros.datasets.llava import TextDialogue

    images = checking.read_checked(options.data, broken.add, options.limit, explained=False)
    refuse_broken(options.skip_broken, options.data, broken.messages, images)
    if isinstance(images[0], TextDialogue):
        raise SettingsError(f'{options.data}: text dialogues have no masks to compare with')
    return images


def _as_in_paper(options: argparse.Namespace) -> bool:
    """Return whether the evaluation is that of the paper, so that its figures are comparable.

    The paper asks all queries of a refer split, and the first one of each image of ReasonSeg.
    """
    is_refer = options.data.startswith('refer:')
    return options.first_only != is_refer and not options.ask and options.limit is None
