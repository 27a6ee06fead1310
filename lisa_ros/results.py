# SPDX-License-Identifier: Apache-2.0
"""The data that every package shares: a dialogue goes in, events and a segmentation come out.

Letters: N masks, in the order of the [SEG] tokens of the answer; H x W the image [px]. A [SEG] has
no mask if the score is below the confidence threshold, if the object is one that the dialogue has
already shown, if the answer repeats an object after the same words, or if it already has
`perception.masks.MAX_MASKS` masks.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, field

import numpy as np

from lisa_ros.perception.masks import bounding_box

SEG = '[SEG]'  # the token that asks for a mask, as text

Region = tuple[int, int, int, int]  # x, y, width, height [px], as sensor_msgs/RegionOfInterest


class Status(enum.IntEnum):
    """How a request ended; the numbers are those of `msg/Segmentation.msg`."""

    FOUND = 1  # at least one mask
    NOT_FOUND = 2  # an answer without a mask; no [SEG] of it, if any, has one (see above)
    CANCELLED = 3  # stopped; the result keeps what was ready by then
    FAILED = 4  # an error; `reason` says which
    STALE_INPUT = 5  # the newest image was older than allowed
    SUPERSEDED = 6  # a newer command replaced this one before it started
    REPEATED = 7  # the model repeated the same words without end, and gave no mask before that
    TIMED_OUT = 8  # longer than `answer_timeout`; the result keeps what was ready by then
    UNREACHABLE = 9  # no answer, or a part of one, from the server of the model; see `reason`


ANSWERED = (Status.FOUND, Status.NOT_FOUND)  # the model has answered, with or without a mask
# an error, a model that is too slow, a server that cannot be reached
BROKEN = (Status.FAILED, Status.TIMED_OUT, Status.UNREACHABLE)


@dataclass(frozen=True)
class Turn:
    """One query and its answer, as the next turn of the dialogue sees them."""

    query: str
    answer_raw: str  # as the model generated it: with [SEG], without </s>
    # left, top, right, bottom of each mask, in hundredths of the image's width and height
    boxes: tuple[tuple[int, int, int, int], ...] = field(default=(), compare=False)
    yes_no: bool = False  # a yes/no question, which was answered with one word


@dataclass(frozen=True)
class Dialogue:
    """The turns so far, oldest first. Immutable: `extended` returns a new dialogue."""

    turns: tuple[Turn, ...] = ()
    # (N, H, W) bool, masks of the last turn that had any; an answer about "the other one" must not
    # repeat them
    shown: np.ndarray | None = field(default=None, compare=False, repr=False)

    def extended(self, result: Segmentation) -> Dialogue:
        """Return the dialogue with the query and answer of a result as its last turn."""
        boxes = tuple(map(_box_in_hundredths, result.masks))
        is_yes_no = result.yes_probability is not None
        turn = Turn(result.query, result.answer_raw, boxes, is_yes_no)
        return Dialogue((*self.turns, turn), result.masks if len(result.masks) else self.shown)

    def last(self, count: int) -> Dialogue:
        """Return the dialogue with at most `count` turns, the newest ones."""
        if count == 0:
            return Dialogue()
        return Dialogue(self.turns[-count:], self.shown)


@dataclass(frozen=True)
class ScoreFeatures:
    """What a LISA mask's score is computed from, each 0..1; see perception/mask_scores.py."""

    text_prob: float  # probability of the text up to and with this [SEG], without digits
    seg_prob: float  # probability of the [SEG] itself
    mean_mask_prob: float  # mean probability of the mask's own pixels; 0 of an empty mask
    predicted_iou: float  # IoU with the ground truth, as SAM predicts it


@dataclass(frozen=True)
class LisaDetails:
    """Details of an answer that only the LISA backend provides."""

    token_ids: tuple[int, ...]  # as generated, </s> included
    score_features: tuple[ScoreFeatures, ...] = ()  # of the N masks, in their order


@dataclass(frozen=True)
class Segmentation:
    """The answer to a query. An answer without a mask is not an error."""

    query: str
    answer: str  # for people: without [SEG], without special tokens
    answer_raw: str  # as the model generated it, [SEG] included
    masks: np.ndarray  # (N, H, W) bool, mask_logits > 0
    mask_logits: np.ndarray  # (N, H, W) float32
    scores: np.ndarray  # (N,) float32 in 0..1, confidence of each mask
    status: Status
    reason: str = ''  # why there is no full answer, or why a mask was left out; else empty
    timings: dict[str, float] = field(default_factory=dict)  # seconds by stage, in the order run
    time_to_first_mask: float | None = None  # from the start of the query [s]; None without a mask
    details: LisaDetails | None = None  # None from other backends than LISA
    # of "yes" against "no", 0..1, of a yes/no question; None of others, and without an answer
    yes_probability: float | None = None
    token_count: int | None = None  # of the answer as generated; None: unknown, or not generated
    # of the N masks, as the model calls each object, '' where it does not; empty: it names none
    names: tuple[str, ...] = ()

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The generated token ids, </s> included; empty without `details`."""
        return self.details.token_ids if self.details else ()

    @property
    def score_features(self) -> tuple[ScoreFeatures, ...]:
        """What the N scores were computed from; empty without `details`."""
        return self.details.score_features if self.details else ()


def unanswered(
    query: str, status: Status, reason: str, shape: tuple[int, int] = (0, 0)
) -> Segmentation:
    """Return a result without answer and masks; (H, W) of the image [px], if it is known."""
    logits = np.zeros((0, *shape), np.float32)
    return Segmentation(
        query=query,
        answer='',
        answer_raw='',
        masks=logits > 0,
        mask_logits=logits,
        scores=np.zeros(0, np.float32),
        status=status,
        reason=reason,
    )


@dataclass(frozen=True)
class Token:
    """A piece of the answer, sent as soon as it is generated."""

    text: str  # to append to the answer so far; '' while a character is incomplete
    token_id: int | None = None  # None if the backend does not report it


@dataclass(frozen=True)
class MaskReady:
    """A mask, sent before the text that comes after its [SEG]."""

    index: int  # among the result's masks, from 0
    mask: np.ndarray  # (H, W) bool
    mask_logits: np.ndarray  # (H, W) float32
    score: float  # 0..1
    name: str = ''  # as in `Segmentation.names`


@dataclass(frozen=True)
class Done:
    """The last event of every stream."""

    result: Segmentation


Event = Token | MaskReady | Done


def answer_text(answer_raw: str) -> str:
    """Return the readable text of an answer: [SEG] is removed or replaced by "here".

    "It is [SEG] . It holds a drink." becomes "It is here. It holds a drink."; "Sure, [SEG] ."
    becomes "Sure."; an answer that has only [SEG] tokens becomes "Here."
    """
    seg = re.escape(SEG)
    several = rf'{seg}(?:\s*(?:,\s*)?(?:and\s*)?{seg})*'
    text = re.sub(rf'\b(is|are)\s*{several}', r'\1 here', answer_raw)
    text = re.sub(several, ' ', text)
    text = re.sub(r'\s+', ' ', text)
    text = re.sub(r' ([.,;:!?])', r'\1', text)  # no space before a punctuation mark
    text = re.sub(r'[,;:]+(?=[.,;:!?])', '', text)  # keep the last of adjacent marks
    text = text.strip().lstrip('.,;:!? ')
    return text or ('Here.' if SEG in answer_raw else '')


def _box_in_hundredths(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return the box of a (H, W) bool mask as in `Turn.boxes`; zeros for an empty mask."""
    x, y, width, height = bounding_box(mask)
    if not width:
        return 0, 0, 0, 0
    rows, columns = mask.shape
    return (
        round(100 * x / columns),
        round(100 * y / rows),
        round(100 * (x + width) / columns),
        round(100 * (y + height) / rows),
    )
