# SPDX-License-Identifier: Apache-2.0
"""Evaluation on a tabletop test set: queries about rendered scenes, with ground-truth masks.

A test set is a folder, or a zip file of it, with queries.json and the images that it names; see
`lisa_ros.tabletop.test_sets` for the format. The test set of the split "test" is part of the
package. `lisa-ros scenes` writes one for every split.

The model generates its answers freely, without teacher forcing.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lisa_ros.errors import DataError, ImageError
from lisa_ros.evaluation import calibration
from lisa_ros.evaluation.answering import answer_query
from lisa_ros.evaluation.cases import Case, case_from_result
from lisa_ros.evaluation.error_overlay import write_error_overlay
from lisa_ros.evaluation.metrics import ciou, giou
from lisa_ros.images.image_file import decode_rgb
from lisa_ros.images.mask_file import read_mask
from lisa_ros.perception.segmenter import Segmenter
from lisa_ros.results import ANSWERED, Dialogue, Segmentation, Status
from lisa_ros.tabletop.queries import IMPLICIT
from lisa_ros.tabletop.test_sets import QUERIES_FILE

File = Path | zipfile.Path


@dataclass(frozen=True)
class TabletopTestQuery:
    """A query about an image, with its ground truth."""

    image: File
    ids: File  # (H, W) uint8 image of instance ids
    category: str  # of tabletop.queries.CATEGORIES, or "unseen_objects"
    text: str
    targets: tuple[int, ...]  # values of the id image; empty if the object is absent
    history: tuple[str, ...] = ()  # earlier queries of the dialogue
    # phrases (object and reason) that the answer must contain, each with its alternatives; a
    # phrase counts only at the end of a sentence, and is given without the full stop
    expected_phrases: tuple[tuple[str, ...], ...] = ()


def read_test_set(path: Path) -> list[TabletopTestQuery]:
    """Return the queries of a test set, grouped by image.

    Args:
        path: a folder or a zip file, see `lisa_ros.tabletop.test_sets`. An expected phrase may
            also be a text instead of a list of alternatives.

    Raises:
        DataError: queries.json is missing or has another format.
    """
    try:
        folder: File = zipfile.Path(path) if path.suffix == '.zip' else path
        images = json.loads((folder / QUERIES_FILE).read_text())
        return [
            TabletopTestQuery(
                folder / image['image'],
                folder / image['ids'],
                query['category'],
                query['text'],
                tuple(query['targets']),
                tuple(query.get('history', ())),
                _alternatives(query.get('expected_phrases', [])),
            )
            for image in images
            for query in image['queries']
        ]
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(
            f'{path}: expected a test set with {QUERIES_FILE} ({error!r}); {_cure(path)}'
        ) from error


def _cure(path: Path) -> str:
    """Return how to make the test set that is missing at a path."""
    if (path / 'exam.json').is_file():
        return (
            'exam.json has a format that is not read any more: run `lisa-ros scenes` again with '
            'the same --out; scenes that are rendered already are kept'
        )
    return '`lisa-ros scenes --split test --out FOLDER` renders scenes and writes one'


def _alternatives(expected_phrases: list[str | list[str]]) -> tuple[tuple[str, ...], ...]:
    """Return the alternatives of each phrase.

    Raises:
        ValueError: `expected_phrases` is not a list of texts or of non-empty lists of texts.
    """
    alternatives = tuple(
        (phrase,) if isinstance(phrase, str) else tuple(phrase) for phrase in expected_phrases
    )
    if not isinstance(expected_phrases, list) or not all(alternatives):
        raise ValueError(
            f'"expected_phrases" is {expected_phrases!r}, not a list of texts or of lists of texts'
        )
    return alternatives


def run_test_set(
    segmenter: Segmenter, queries: Sequence[TabletopTestQuery], overlays: Path | None = None
) -> Iterator[Case]:
    """Answer each query of a test set and compare the answer with the ground truth.

    Args:
        segmenter: the model.
        queries: of `read_test_set`.
        overlays: folder for images that show the errors of each mask; None: write none.

    Raises:
        DataError: an image cannot be read; the message names it.
    """
    image, query_number = None, 0
    for query in tqdm(queries, desc='test set', unit='query'):
        if image is None or str(image.path) != str(query.image):  # zipfile.Path has no ==
            image, query_number = _TestImage.read(query), 0
        yield _evaluate_query(segmenter, image, query, query_number, overlays)
        query_number += 1


@dataclass(frozen=True)
class _TestImage:
    """An image with its instance ids."""

    path: File
    pixels: np.ndarray  # (H, W, 3) uint8 RGB
    ids: np.ndarray  # (H, W) uint8

    @classmethod
    def read(cls, query: TabletopTestQuery) -> _TestImage:
        """Read the image of a query.

        Raises:
            DataError: it cannot be read.
        """
        try:
            pixels = decode_rgb(_read(query.image), str(query.image))
            ids = read_mask(_read(query.ids), str(query.ids)).ids()
        except ImageError as error:
            raise DataError(str(error)) from error
        return cls(query.image, pixels, ids)


def _evaluate_query(
    segmenter: Segmenter,
    image: _TestImage,
    query: TabletopTestQuery,
    query_number: int,
    overlays: Path | None,
) -> Case:
    """Return the case of a query; `query_number` counts those about one image."""
    result = _answer(segmenter, image, query)
    target = np.isin(image.ids, query.targets)
    group = Path(image.path.name).stem
    overlay = overlays and overlays / f'{group}.{query_number}.jpg'
    if overlay:
        write_error_overlay(overlay, image.pixels, result, target)
    return case_from_result(
        result,
        target,
        group=group,
        number=query_number,
        category=query.category,
        expression=query.text,
        history=query.history,
        expected_phrases=query.expected_phrases,
        image=overlay,
    )


def _answer(segmenter: Segmenter, image: _TestImage, query: TabletopTestQuery) -> Segmentation:
    """Return the answer to a query after its history; FAILED if an earlier query failed."""
    dialogue = Dialogue()
    for text in query.history:
        earlier = answer_query(segmenter, image.pixels, text, dialogue)
        if earlier.status is Status.FAILED:
            reason = f'the earlier query {text!r} failed: {earlier.reason}'
            return replace(earlier, query=query.text, reason=reason)
        if earlier.status in ANSWERED:  # as in the node
            dialogue = dialogue.extended(earlier)
    return answer_query(segmenter, image.pixels, query.text, dialogue)


# categories that also have queries for absent objects
PRESENCE = ('explicit', 'attributes', 'use', 'knowledge')


def compute_figures(cases: Sequence[Case]) -> dict:
    """Return gIoU, cIoU and count by category, and the figures over all categories.

    gIoU and cIoU are over the cases whose object is present; the key `implicit` joins the
    categories of IMPLICIT. The other keys are None if no case counts for them:

        presence_accuracy     share of cases that have a mask exactly if the object is present;
                              over the categories of PRESENCE
        explanation_accuracy  share of answers with all expected phrases; over the cases that
                              expect some. `explanation` has it by category
        ece                   expected calibration error of the scores, see `calibration`
    """
    cases = [case for case in cases if case.overlap is not None]  # the others failed
    return {
        **_mask_figures(cases),
        **_presence_figures([case for case in cases if case.category in PRESENCE]),
        **_explanation_figures([case for case in cases if case.expected_phrases]),
        'ece': calibration.expected_calibration_error(calibration.scored_outcomes(cases)),
    }


def _mask_figures(cases: Sequence[Case]) -> dict:
    """Return gIoU and cIoU by category, over the cases whose object is present."""
    groups = {category: (category,) for category in dict.fromkeys(c.category for c in cases)}
    if any(case.category in IMPLICIT for case in cases):
        groups['implicit'] = IMPLICIT
    present = [case for case in cases if case.present]
    figures = {}
    for name, categories in groups.items():
        overlaps = [case.overlap for case in present if case.category in categories]
        if overlaps:
            figures[name] = {
                'giou': giou(overlaps),
                'ciou': ciou(overlaps),
                'count': len(overlaps),
            }
    return figures


def _presence_figures(cases: Sequence[Case]) -> dict:
    """Return the share of present and of absent objects that are recognized as such."""
    correct = [(case.present, case.found == case.present) for case in cases]
    return {
        'presence_accuracy': _mean([is_correct for _, is_correct in correct]),
        'presence': {
            'present': _accuracy([is_correct for present, is_correct in correct if present]),
            'absent': _accuracy([is_correct for present, is_correct in correct if not present]),
        },
    }


def _explanation_figures(cases: Sequence[Case]) -> dict:
    """Return the share of answers that contain all expected phrases."""
    categories = dict.fromkeys(case.category for case in cases)
    return {
        'explanation_accuracy': _mean([case.explained for case in cases]),
        'explanations': len(cases),
        'explanation': {
            category: _accuracy([case.explained for case in cases if case.category == category])
            for category in categories
        },
    }


def _accuracy(correct: list[bool]) -> dict:
    return {'accuracy': _mean(correct), 'count': len(correct)}


def _mean(correct: list[bool]) -> float | None:
    return float(np.mean(correct)) if correct else None


def _read(path: File) -> bytes:
    """Return the content of a file."""
    try:
        return path.read_bytes()
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f'{path} is missing or cannot be read ({error})') from error
