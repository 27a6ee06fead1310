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
from lisa_ros.evaluation import calibration
from lisa_ros.evaluation.metrics import Overlap, ciou, giou, overlap
from lisa_ros.perception.segmenter import Segmenter
from lisa_ros.results import Dialogue, ScoreFeatures

File = Path | zipfile.Path


@dataclass(frozen=True)
class TabletopTestQuery:
    """A request about a picture and the ids of the things that it means; none: not there."""

    image: File
    ids: File  # (H, W) uint8 image of instance ids
    category: str  # explicit, attributes, relations, several, part, use, knowledge, two_step, ...
    text: str
    targets: tuple[int, ...]
    history: tuple[str, ...] = ()  # of a dialogue: what was said first, by the person
    # what sentences of the answer must end in to name the right thing and reason, without the
    # full stop: wordings of which one is enough
    expected_phrases: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Graded:
    """A question with what became of it."""

    question: TabletopTestQuery
    answer: str
    found: bool  # at least one mask came
    overlap: Overlap  # of all masks together with all targets together
    scores: tuple[float, ...]  # of its masks
    evidence: tuple[ScoreFeatures, ...]

    @property
    def explained(self) -> bool:
        """Whether the answer says all that it must, each at the end of a sentence.

        "The pan fries food, but there is no pan here." names thing and reason, and denies them.
        """
        return all(
            any(f'{words}.' in self.answer for words in wordings)
            for wordings in self.question.expected_phrases
        )


def read_test_set(path: Path) -> list[TabletopTestQuery]:
    """Return the questions of an exam, those about one picture side by side.

    exam.json is a list of {"picture": path, "ids": path, "questions": [{"sort", "text",
    "targets", and, if any, "before", "expects"}]}, paths relative to it; see `Question`. What
    "expects" lists is a text that a sentence of the answer must end in, without its full stop, or
    texts of which one is enough.

    Raises:
        DataError: the file is missing or of another form.
    """
    try:
        folder: File = zipfile.Path(path) if path.suffix == '.zip' else path
        pages = json.loads((folder / 'exam.json').read_text())
        return [
            TabletopTestQuery(
                folder / page['picture'],
                folder / page['ids'],
                question['sort'],
                question['text'],
                tuple(question['targets']),
                tuple(question.get('before', ())),
                _wordings(question.get('expects', [])),
            )
            for page in pages
            for question in page['questions']
        ]
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(
            f'{path}: no exam here ({error!r}); `lisa-ros scenes --split test --out FOLDER` '
            'renders scenes with their exam'
        ) from error


def _wordings(expects: list[str | list[str]]) -> tuple[tuple[str, ...], ...]:
    wordings = tuple((said,) if isinstance(said, str) else tuple(said) for said in expects)
    if not isinstance(expects, list) or not all(wordings):
        raise ValueError(f'"expects" is {expects!r}, not a list of texts or of lists of texts')
    return wordings


def run_test_set(segmenter: Segmenter, questions: list[TabletopTestQuery]) -> Iterator[Graded]:
    """Yield each question answered and compared with its truth.

    Raises:
        DataError: a picture cannot be read; the message names it.
    """
    shown, colour, ids = None, None, None
    for question in tqdm(questions, desc='exam', unit='question'):
        if question.image != shown:
            shown = question.image
            colour = _read(question.image, cv2.IMREAD_COLOR)[..., ::-1]
            ids = _read(question.ids, cv2.IMREAD_GRAYSCALE)
        picture, dialogue = np.ascontiguousarray(colour), Dialogue()
        for text in question.history:
            dialogue = dialogue.extended(segmenter.segment(picture, text, dialogue))
        result = segmenter.segment(picture, question.text, dialogue)
        truth = np.isin(ids, question.targets)
        yield Graded(
            question,
            result.answer,
            bool(result.masks.any()),
            overlap(result.masks.any(axis=0), truth),
            tuple(result.scores.tolist()),
            result.score_features,
        )


IMPLICIT = ('use', 'knowledge', 'two_step')  # the sorts that take reasoning
PRESENCE = ('explicit', 'attributes', 'use', 'knowledge')  # those that ask for what is not there


def report(graded: list[Graded]) -> dict:
    """Return the figures by sort of question, of those that have something to find.

    `implicit` is all sorts that take reasoning together. `presence_accuracy` is the share of
    questions of the sorts PRESENCE, present and absent, that got a mask just when there was
    something to find. `explanation_accuracy` is the share of answers, of those that must name a
    thing and a reason, that do; `explanation` has it by sort. `ece` is the expected calibration
    error of the scores, see `calibration`. A figure of no question at all is None.
    """
    figures: dict = {}
    present = [g for g in graded if g.question.targets]
    groups = {sort: (sort,) for sort in dict.fromkeys(g.question.category for g in graded)}
    if any(g.question.category in IMPLICIT for g in graded):
        groups['implicit'] = IMPLICIT
    for name, sorts in groups.items():
        overlaps = [g.overlap for g in present if g.question.category in sorts]
        if overlaps:
            figures[name] = {
                'giou': giou(overlaps),
                'ciou': ciou(overlaps),
                'count': len(overlaps),
            }
    asked = [g for g in graded if g.question.category in PRESENCE]
    figures['presence_accuracy'] = _share([g.found == bool(g.question.targets) for g in asked])
    figures['presence'] = {
        name: _row([g.found == there for g in asked if bool(g.question.targets) == there])
        for name, there in (('present', True), ('absent', False))
    }
    explaining = [g for g in graded if g.question.expected_phrases]
    figures['explanation_accuracy'] = _share([g.explained for g in explaining])
    figures['explanations'] = len(explaining)
    figures['explanation'] = {
        sort: _row([g.explained for g in explaining if g.question.category == sort])
        for sort in dict.fromkeys(g.question.category for g in explaining)
    }
    figures['ece'] = calibration.expected_error(calibration.scored_outcomes(graded))
    return figures


def _row(right: list[bool]) -> dict:
    return {'accuracy': _share(right), 'count': len(right)}


def _share(right: list[bool]) -> float | None:
    return float(np.mean(right)) if right else None


def _read(path: File, flags: int) -> np.ndarray:
    data = np.frombuffer(path.read_bytes(), np.uint8) if path.is_file() else np.empty(0, np.uint8)
    picture = cv2.imdecode(data, flags) if data.size else None
    if picture is None:
        raise DataError(f'{path} is missing or not a picture')
    return picture
