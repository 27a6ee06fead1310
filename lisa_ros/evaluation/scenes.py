# SPDX-License-Identifier: Apache-2.0
"""The exam on rendered tables: requests with known masks, answered as a user gets them.

An exam is a folder, or a zip of one, with `exam.json` (see `read_exam`) and the pictures and id
images that it names. That of the test split comes with the package; `lisa-ros scenes` writes one
for every split.
Answers are generated, not teacher forced: what counts is what a robot would have been told.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from lisa_ros.errors import DataError
from lisa_ros.evaluation.metrics import Overlap, ciou, giou, overlap
from lisa_ros.segmenter import Segmenter

OWN_EXAMS = Path(__file__).parents[1] / 'samples' / 'exams'  # <split>.zip

File = Path | zipfile.Path


@dataclass(frozen=True)
class Question:
    """A request about a picture and the ids of the things that it means; none: not there."""

    picture: File
    ids: File  # (H, W) uint8 image of instance ids
    sort: str  # explicit, implicit or unseen_objects
    text: str
    targets: tuple[int, ...]


@dataclass(frozen=True)
class Graded:
    """A question with what became of it."""

    question: Question
    answer: str
    found: bool  # at least one mask came
    overlap: Overlap  # of all masks together with all targets together


def read_exam(path: Path) -> list[Question]:
    """Return the questions of an exam, those about one picture side by side.

    exam.json is a list of {"picture": path, "ids": path, "questions": [{"sort", "text",
    "targets"}]}, paths relative to it.

    Raises:
        DataError: the file is missing or of another form.
    """
    try:
        folder: File = zipfile.Path(path) if path.suffix == '.zip' else path
        pages = json.loads((folder / 'exam.json').read_text())
        return [
            Question(
                folder / page['picture'],
                folder / page['ids'],
                question['sort'],
                question['text'],
                tuple(question['targets']),
            )
            for page in pages
            for question in page['questions']
        ]
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(
            f'{path}: no exam here ({error!r}); `lisa-ros scenes --split test --out FOLDER` '
            'renders scenes with their exam'
        ) from error


def sit(segmenter: Segmenter, questions: list[Question]) -> Iterator[Graded]:
    """Yield each question answered and compared with its truth.

    Raises:
        DataError: a picture cannot be read; the message names it.
    """
    shown, colour, ids = None, None, None
    for question in tqdm(questions, desc='exam', unit='question'):
        if question.picture != shown:
            shown = question.picture
            colour = _read(question.picture, cv2.IMREAD_COLOR)[..., ::-1]
            ids = _read(question.ids, cv2.IMREAD_GRAYSCALE)
        result = segmenter.segment(np.ascontiguousarray(colour), question.text)
        truth = np.isin(ids, question.targets)
        yield Graded(
            question,
            result.answer,
            bool(result.masks.any()),
            overlap(result.masks.any(axis=0), truth),
        )


def report(graded: list[Graded]) -> dict:
    """Return the figures by sort of question, of those that have something to find.

    `presence_accuracy` is the share of explicit and implicit questions, present and absent, that
    got a mask just when there was something to find. A figure of no question at all is None.
    """
    figures: dict = {}
    for sort in dict.fromkeys(g.question.sort for g in graded):
        overlaps = [g.overlap for g in graded if g.question.sort == sort and g.question.targets]
        if overlaps:
            figures[sort] = {
                'giou': giou(overlaps),
                'ciou': ciou(overlaps),
                'count': len(overlaps),
            }
    asked = [g for g in graded if g.question.sort in ('explicit', 'implicit')]
    right = [g.found == bool(g.question.targets) for g in asked]
    figures['presence_accuracy'] = float(np.mean(right)) if right else None
    figures['presence'] = {
        name: {'accuracy': float(np.mean(share)) if share else None, 'count': len(share)}
        for name, share in (
            ('present', [r for r, g in zip(right, asked, strict=True) if g.question.targets]),
            ('absent', [r for r, g in zip(right, asked, strict=True) if not g.question.targets]),
        )
    }
    return figures


def _read(path: File, flags: int) -> np.ndarray:
    data = np.frombuffer(path.read_bytes(), np.uint8) if path.is_file() else np.empty(0, np.uint8)
    picture = cv2.imdecode(data, flags) if data.size else None
    if picture is None:
        raise DataError(f'{path} is missing or not a picture')
    return picture
