# SPDX-License-Identifier: Apache-2.0
"""One evaluated query: every evaluation yields `Case`s, and every report reads them."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lisa_ros.evaluation import metrics
from lisa_ros.evaluation.metrics import Overlap
from lisa_ros.results import BROKEN, ScoreFeatures, Segmentation


class Mode(enum.Enum):
    """How the answers of a run are produced; figures of two modes cannot be compared."""

    GENERATE = 'generate'  # the model writes its answer
    TEACHER_FORCED = 'teacher_forced'  # the answer is given, only its masks are predicted
    OFFLINE = 'offline'  # as GENERATE, frame by frame of a bag
    LIVE = 'live'  # a node answers while a bag is played


@dataclass(frozen=True)
class Case:
    """A query, its answer and how good the answer is."""

    name: str  # unique within a run; two runs are paired by it
    group: str  # image or frame; queries about the same one are not independent
    category: str  # kind of query, such as "explicit"
    expression: str  # what to find, in the data set's words, before it is put into a question
    query: str  # the question as the model got it
    answer: str
    status: str  # name of a results.Status
    present: bool | None  # whether there is something to find; None: no ground truth
    found: bool  # whether the answer has at least one mask pixel
    overlap: Overlap | None  # union of all masks against the ground truth; None without one
    boundary_f: float | None  # boundary F of the same two masks; None without ground truth
    scores: tuple[float, ...]  # one for each mask, 0..1
    score_features: tuple[ScoreFeatures, ...] = ()  # one for each mask, if the model gives them
    timings: dict[str, float] = field(default_factory=dict)  # seconds by stage, in the order run
    time_to_first_mask: float | None = None  # [s]; None without a mask
    token_count: int | None = None  # of the answer as generated; None: unknown, or not generated
    reason: str = ''  # why the answer is incomplete or missing
    history: tuple[str, ...] = ()  # earlier queries of the same dialogue
    # What the answer must say: for each part, wordings of which one must end a sentence.
    expected_phrases: tuple[tuple[str, ...], ...] = ()
    image: Path | None = None  # overlay of the answer's errors

    @property
    def iou(self) -> float | None:
        """IoU with the ground truth, 1 where both masks are empty; None without ground truth."""
        return self.overlap and self.overlap.iou

    @property
    def score(self) -> float | None:
        """Highest score of the masks; None without a mask."""
        return max(self.scores, default=None)

    @property
    def total_time(self) -> float:
        """Sum of the stages, and no less than the time to the first mask [s].

        That also contains what runs between the stages.
        """
        return max(sum(self.timings.values()), self.time_to_first_mask or 0.0)

    @property
    def explained(self) -> bool:
        """Whether the answer contains all expected phrases, each at the end of a sentence.

        "The pan fries food, but there is no pan here." names the object, its use, and that it is
        absent. True without expected phrases.
        """
        return all(
            any(f'{phrase}.' in self.answer for phrase in wordings)
            for wordings in self.expected_phrases
        )


def case_from_result(
    result: Segmentation,
    ground_truth: np.ndarray | None,
    *,
    group: str,
    number: int | str,
    category: str,
    expression: str,
    history: Sequence[str] = (),
    expected_phrases: Sequence[Sequence[str]] = (),
    image: Path | None = None,
) -> Case:
    """Compare an answer with the ground truth; one that is BROKEN is compared with nothing.

    Args:
        result: the answer.
        ground_truth: (H, W) bool, or uint8 of 0, 1 and IGNORED_PIXEL; None: unknown.
        group: image or frame that the query is about.
        number: of the query among those about this group; the case is named GROUP.NUMBER.
        category: kind of query.
        expression: what to find, in the data set's words.
        history: earlier queries of the same dialogue.
        expected_phrases: what the answer must say, see `Case`.
        image: overlay of the answer's errors.
    """
    if result.status in BROKEN:
        ground_truth = None
    predicted = union_mask(result)
    has_truth = ground_truth is not None
    return Case(
        name=f'{group}.{number}',
        group=group,
        category=category,
        expression=expression,
        query=result.query.strip(),
        answer=result.answer,
        status=result.status.name,
        present=bool((ground_truth == 1).any()) if has_truth else None,
        found=bool(predicted.any()),
        overlap=metrics.overlap(predicted, ground_truth) if has_truth else None,
        boundary_f=metrics.boundary_f(predicted, ground_truth) if has_truth else None,
        scores=tuple(map(float, result.scores)),
        score_features=result.score_features,
        timings=dict(result.timings),
        time_to_first_mask=result.time_to_first_mask,
        token_count=result.token_count,
        reason=result.reason,
        history=tuple(history),
        expected_phrases=tuple(map(tuple, expected_phrases)),
        image=image,
    )


def union_mask(result: Segmentation) -> np.ndarray:
    """Return where any mask of an answer is, (H, W) bool."""
    return result.masks.any(axis=0)
