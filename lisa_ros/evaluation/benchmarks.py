# SPDX-License-Identifier: Apache-2.0
"""Evaluate a model on ReasonSeg, refCOCO and similar data sets, or on labelled images.

There are two modes, whose figures cannot be compared with each other:

    generate        the model writes its answer, as for a user; masks below its threshold are none
    teacher_forced  the answer "[SEG]." is given and its mask is compared, as in the paper's code

Questions are those of LISA's own evaluation (utils/dataset.py) in both, unless others are given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from lisa_ros.datasets.annotations import AnnotatedQuery, ImageWithQueries, read_image
from lisa_ros.datasets.json_io import ErrorHandler, raise_error
from lisa_ros.datasets.lisa_templates import TEACHER_FORCED_ANSWER, validation_question
from lisa_ros.errors import DataError
from lisa_ros.evaluation.answering import answer_query, teacher_forced_answer
from lisa_ros.evaluation.cases import Case, Mode, case_from_result
from lisa_ros.evaluation.error_overlay import overlay_path, write_error_overlay
from lisa_ros.files.text import encodable
from lisa_ros.perception.segmenter import Segmenter

# The paper's figures of its own models (arXiv 2308.00692), gIoU and cIoU in percent: table 1,
# ReasonSeg (test: overall), and table 2, which has only cIoU. Its code is teacher forced.
PUBLISHED: dict[str, dict[str, tuple[float | None, float]]] = {
    'ReasonSeg val': {
        'LISA-7B': (44.4, 46.0),
        'LISA-7B (fine-tuned)': (52.9, 54.0),
        'LISA-13B': (48.9, 46.9),
        'LISA-13B (fine-tuned)': (56.2, 62.9),
    },
    'ReasonSeg test': {
        'LISA-7B': (36.8, 34.1),
        'LISA-7B (fine-tuned)': (47.3, 48.4),
        'LISA-13B': (44.8, 45.8),
        'LISA-13B (fine-tuned)': (51.7, 51.1),
    },
    **{
        name: {'LISA-7B': (None, base), 'LISA-7B (fine-tuned)': (None, tuned)}
        for name, base, tuned in (
            ('refcoco val', 74.1, 74.9), ('refcoco testA', 76.5, 79.1),
            ('refcoco testB', 71.1, 72.3), ('refcoco+ val', 62.4, 65.1),
            ('refcoco+ testA', 67.4, 70.8), ('refcoco+ testB', 56.5, 58.1),
            ('refcocog val', 66.4, 67.9), ('refcocog test', 68.5, 70.6),
        )
    },
}  # fmt: skip


def published(data: str) -> dict[str, tuple[float | None, float]]:
    """Return the published figures for a data set as `datasets.registry` names it, if any.

    They are for whole splits with the questions of LISA's evaluation, and for the first query of
    each image on ReasonSeg.
    """
    kind, *parts = data.split(':')
    if kind == 'refer' and len(parts) in (1, 2):
        name = f'{Path(parts[0]).name} {parts[1] if len(parts) > 1 else "train"}'
    else:
        name = f'{Path(data).absolute().parent.name} {Path(data).name}'
    return PUBLISHED.get(name, {})


@dataclass(frozen=True)
class DatasetOptions:
    """How a data set is evaluated."""

    mode: Mode = Mode.GENERATE  # or TEACHER_FORCED
    question: Callable[[AnnotatedQuery], str] = validation_question  # the text for the model
    first_only: bool = False  # only the first query of each image, as the original on ReasonSeg
    overlays: Path | None = None  # folder for overlays of the answers' errors


def evaluate_dataset(
    segmenter: Segmenter,
    images: Sequence[ImageWithQueries],
    options: DatasetOptions,
    broken: ErrorHandler = raise_error,
) -> Iterator[Case]:
    """Yield a case for each query of each image.

    Args:
        segmenter: the model.
        images: of a data set (`datasets.registry`).
        options: how to evaluate them.
        broken: called with the error if an image cannot be read; the image is skipped if it
            returns.

    Raises:
        DataError: an image or its labels cannot be read.
        SettingsError: the model cannot be teacher forced.
    """
    for image in tqdm(images, desc=options.mode.value, unit='image'):
        yield from _evaluate_or_skip(segmenter, image, options, broken)


def _evaluate_or_skip(
    segmenter: Segmenter, image: ImageWithQueries, options: DatasetOptions, broken: ErrorHandler
) -> list[Case]:
    """Return the cases of an image, or none of them if it cannot be read."""
    try:
        return _evaluate_image(segmenter, image, options)
    except DataError as error:
        broken(error)
        return []


def _evaluate_image(
    segmenter: Segmenter, annotated: ImageWithQueries, options: DatasetOptions
) -> list[Case]:
    """Return the cases of an image.

    Raises:
        DataError: it or its labels cannot be read.
    """
    cases = []
    image = read_image(annotated.path)
    group = annotated.name or encodable(annotated.path.stem)
    for number, query in enumerate(annotated.queries[: 1 if options.first_only else None]):
        query.check(*image.shape[:2])
        target, text = query.ground_truth(*image.shape[:2]), options.question(query)
        if options.mode is Mode.TEACHER_FORCED:
            result = teacher_forced_answer(segmenter, image, text, TEACHER_FORCED_ANSWER)
        else:
            result = answer_query(segmenter, image, text)
        overlay = options.overlays and overlay_path(options.overlays, group, number)
        if overlay:
            write_error_overlay(overlay, image, result, target)
        cases.append(
            case_from_result(
                result,
                target,
                group=group,
                number=number,
                category='long' if query.is_sentence else 'short',  # ReasonSeg's own categories
                expression=query.text,
                image=overlay,
            )
        )
    return cases
