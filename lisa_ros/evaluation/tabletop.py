# SPDX-License-Identifier: Apache-2.0
"""Evaluation on a tabletop test set: queries about rendered scenes, with ground-truth masks.

A test set is a folder, or a zip file of it, with queries.json and the images that it names; see
`lisa_ros.tabletop.test_sets` for the format. The test set of the split "test" is part of the
package. `lisa-ros scenes` writes one for every split.

The model generates its answers freely, without teacher forcing.
"""

from __future__ import annotations

import itertools
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lisa_ros.datasets.annotations import unique_names
from lisa_ros.datasets.json_io import image_path, read_or_skip
from lisa_ros.errors import DataError, ErrorHandler, ImageError, raise_error
from lisa_ros.evaluation import calibration
from lisa_ros.evaluation.answering import answer_queries, answer_query
from lisa_ros.evaluation.cases import Case, case_from_result
from lisa_ros.evaluation.error_overlay import overlay_path, write_error_overlay
from lisa_ros.evaluation.metrics import ciou, giou
from lisa_ros.files.access import describe_error
from lisa_ros.files.json_schema import INTEGER, TEXT, ListOf, Record, Value, check_json
from lisa_ros.files.text import File, read_bytes, read_json
from lisa_ros.images.image_file import decode_rgb
from lisa_ros.images.mask_file import read_mask
from lisa_ros.perception.segmenter import Segmenter
from lisa_ros.results import ANSWERED, BROKEN, Dialogue, Segmentation
from lisa_ros.tabletop.queries import IMPLICIT
from lisa_ros.tabletop.test_sets import QUERIES_FILE

_IMAGES = ListOf(
    Record(
        {
            'image': TEXT,
            'ids': TEXT,
            'queries': ListOf(
                Record(
                    {'category': TEXT, 'text': TEXT, 'targets': ListOf(INTEGER)},
                    {'history': ListOf(TEXT)},
                )
            ),
        }
    )
)


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
    group: str = ''  # name of the image, unique in the test set


def read_test_set(path: Path) -> list[TabletopTestQuery]:
    """Return the queries of a test set, grouped by image.

    Args:
        path: a folder or a zip file, see `lisa_ros.tabletop.test_sets`. An expected phrase may
            also be a text instead of a list of alternatives.

    Raises:
        DataError: queries.json is missing or has another format.
    """
    try:
        return _read_queries(path)
    except (DataError, OSError, zipfile.BadZipFile) as error:
        raise DataError(
            f'{path}: expected a test set with {QUERIES_FILE} ({describe_error(path, error)}); '
            f'{_cure(path)}'
        ) from error


def _cure(path: Path) -> str:
    """Return how to make the test set that is missing at a path."""
    if (path / 'exam.json').is_file():
        return (
            'exam.json has a format that is not read any more: run `lisa-ros scenes` again with '
            'the same --out; scenes that are rendered already are kept'
        )
    return '`lisa-ros scenes --split test --out FOLDER` renders scenes and writes one'


def _read_queries(path: Path) -> list[TabletopTestQuery]:
    """Return the queries of a test set; see `read_test_set`."""
    folder: File = zipfile.Path(path) if path.suffix == '.zip' else path
    file = folder / QUERIES_FILE
    images = read_json(file)
    check_json(file, images, _IMAGES)
    names = unique_names([Path(image['image']) for image in images], Path())
    return [
        TabletopTestQuery(
            _file(folder, image['image']),
            _file(folder, image['ids']),
            query['category'],
            query['text'],
            tuple(query['targets']),
            tuple(query.get('history', ())),
            _alternatives(file, query.get('expected_phrases', [])),
            name,
        )
        for image, name in zip(images, names, strict=True)
        for query in image['queries']
    ]


def _file(folder: File, name: str) -> File:
    """Return the path of an image in a test set.

    Raises:
        DataError: it leads out of the folder.
    """
    if isinstance(folder, zipfile.Path):
        return folder / name  # inside the archive, whatever the name
    return image_path(folder / QUERIES_FILE, 'an entry', folder, name)


def _alternatives(
    file: File, expected_phrases: list[str | list[str]]
) -> tuple[tuple[str, ...], ...]:
    """Return the alternatives of each phrase.

    Raises:
        DataError: `expected_phrases` is not a list of texts or of non-empty lists of texts.
    """
    schema = ListOf(Value((str, list), 'a text or a list of texts'))
    check_json(file, expected_phrases, schema, 'expected_phrases')
    alternatives = tuple(
        (phrase,) if isinstance(phrase, str) else tuple(phrase) for phrase in expected_phrases
    )
    check_json(file, list(map(list, alternatives)), ListOf(ListOf(TEXT)), 'expected_phrases')
    if not all(alternatives):
        raise DataError(f'{file}: expected_phrases has an empty list; expected a text in each')
    return alternatives


def check_test_set(
    queries: Sequence[TabletopTestQuery], on_error: ErrorHandler
) -> list[TabletopTestQuery]:
    """Return the queries whose images and targets can be used; call it before a long run.

    Args:
        queries: of `read_test_set`.
        on_error: called for each image that cannot be read, and for each query whose targets are
            not in its image; if it returns, they are left out.

    Raises:
        DataError: `on_error` raised it.
    """
    usable = []
    for _, of_image in itertools.groupby(queries, key=lambda query: query.group):
        of_image = list(of_image)  # noqa: PLW2901
        image = read_or_skip(partial(_TestImage.read, of_image[0]), on_error)
        if image is not None:
            usable += [
                query
                for query in of_image
                if read_or_skip(partial(_has_targets, image, query), on_error)
            ]
    return usable


def _has_targets(image: _TestImage, query: TabletopTestQuery) -> bool:
    """Return True if a target is in the image, or the object is absent.

    Raises:
        DataError: there are targets, and none of them is in the image.
    """
    if query.targets and not np.isin(image.ids, query.targets).any():
        raise DataError(
            f'{query.ids}: has none of the targets {list(query.targets)} of {query.text!r}; '
            'correct them, or write [] if it is not there'
        )
    return True


def run_test_set(
    segmenter: Segmenter,
    queries: Sequence[TabletopTestQuery],
    overlays: Path | None = None,
    on_error: ErrorHandler = raise_error,
    batch_size: int = 1,
) -> Iterator[Case]:
    """Answer each query of a test set and compare the answer with the ground truth.

    Args:
        segmenter: the model.
        queries: of `read_test_set`.
        overlays: folder for images that show the errors of each mask; None: write none.
        on_error: called for each image that cannot be read, and for each query whose targets are
            not in its image; if it returns, they are left out.
        batch_size: queries that are answered at once.

    Raises:
        DataError: an image cannot be read, and `on_error` raised it; the message names it.
    """
    asked = _with_images(tqdm(queries, desc='test set', unit='query'), on_error)
    while batch := list(itertools.islice(asked, batch_size)):
        for item, result in zip(batch, _answers(segmenter, batch), strict=True):
            yield _case(item, result, overlays)


@dataclass(frozen=True)
class _Asked:
    """A query with its image."""

    query: TabletopTestQuery
    image: _TestImage
    number: int  # of the query, among those about its image


def _with_images(queries: Iterable[TabletopTestQuery], on_error: ErrorHandler) -> Iterator[_Asked]:
    """Yield the queries that can be used, with their images."""
    image, group, number = None, None, 0
    for query in queries:
        if query.group != group:
            image = read_or_skip(partial(_TestImage.read, query), on_error)
            group, number = query.group, 0
        if image is not None and read_or_skip(partial(_has_targets, image, query), on_error):
            yield _Asked(query, image, number)
        number += 1


@dataclass(frozen=True)
class _TestImage:
    """An image with its instance ids."""

    pixels: np.ndarray  # (H, W, 3) uint8 RGB
    ids: np.ndarray  # (H, W) uint8

    @classmethod
    def read(cls, query: TabletopTestQuery) -> _TestImage:
        """Read the image of a query.

        Raises:
            DataError: it cannot be read, or its ids have another size.
        """
        try:
            pixels = decode_rgb(read_bytes(query.image), str(query.image))
            ids = read_mask(read_bytes(query.ids), str(query.ids)).ids()
        except ImageError as error:
            raise DataError(str(error)) from error
        if ids.shape != pixels.shape[:2]:
            raise DataError(
                f'{query.ids}: has {ids.shape[1]} x {ids.shape[0]} pixels, its image '
                f'{pixels.shape[1]} x {pixels.shape[0]}; scale both to the same size'
            )
        return cls(pixels, ids)


def _case(asked: _Asked, result: Segmentation, overlays: Path | None) -> Case:
    """Return the case of a query."""
    query, image = asked.query, asked.image
    target = np.isin(image.ids, query.targets)
    overlay = overlays and overlay_path(overlays, query.group, asked.number)
    if overlay:
        write_error_overlay(overlay, image.pixels, result, target)
    return case_from_result(
        result,
        target,
        group=query.group,
        number=asked.number,
        category=query.category,
        expression=query.text,
        history=query.history,
        expected_phrases=query.expected_phrases,
        image=overlay,
    )


def _answers(segmenter: Segmenter, batch: Sequence[_Asked]) -> list[Segmentation]:
    """Return the answers to queries: those without a history at once, if there are several."""
    together = [item for item in batch if not item.query.history]
    if len(together) < 2:
        return [_answer(segmenter, item.image, item.query) for item in batch]
    answers = iter(
        answer_queries(segmenter, [(item.image.pixels, item.query.text) for item in together])
    )
    return [
        _answer(segmenter, item.image, item.query) if item.query.history else next(answers)
        for item in batch
    ]


def _answer(segmenter: Segmenter, image: _TestImage, query: TabletopTestQuery) -> Segmentation:
    """Return the answer to a query after its history; FAILED if an earlier query failed."""
    dialogue = Dialogue()
    for text in query.history:
        earlier = answer_query(segmenter, image.pixels, text, dialogue)
        if earlier.status in BROKEN:
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
