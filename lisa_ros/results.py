# SPDX-License-Identifier: Apache-2.0
"""The nouns that cross borders: a query goes in, events and a segmentation come out.

Letters: N masks, one for each [SEG] of the answer in its order, but for those below the confidence
threshold and those after the first 254; H, W the picture's own pixels.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, field

import numpy as np


class Status(enum.IntEnum):
    """How a request ended; the numbers are those of `msg/Segmentation.msg`."""

    FOUND = 1  # at least one mask
    NOT_FOUND = 2  # the model answered in words, without a mask or below the confidence threshold
    CANCELLED = 3  # stopped by whoever asked, or superseded; what was ready by then is kept
    FAILED = 4  # an error; `reason` says which
    STALE_INPUT = 5  # the newest picture was older than was asked for


@dataclass(frozen=True)
class Turn:
    """One question and its answer, as the next turn of the dialogue sees them."""

    query: str
    answer_raw: str  # with [SEG] in it, without </s>: what the model itself has said
    # left, top, right, bottom of each mask, in hundredths of the picture's width and height
    boxes: tuple[tuple[int, int, int, int], ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Dialogue:
    """The turns so far, oldest first. Immutable: `extended` gives the dialogue after an answer."""

    turns: tuple[Turn, ...] = ()
    # (N, H, W) bool, the masks of the last turn that had some: "the other one" is none of them
    shown: np.ndarray | None = field(default=None, compare=False, repr=False)

    def extended(self, result: Segmentation) -> Dialogue:
        """Return the dialogue with this question and answer as its last turn."""
        boxes = tuple(map(_hundredths, result.masks))
        turns = (*self.turns, Turn(result.query, result.answer_raw, boxes))
        return Dialogue(turns, result.masks if len(result.masks) else self.shown)

    def last(self, most: int) -> Dialogue:
        """Return the dialogue without its oldest turns: at most so many are left."""
        if most == 0:
            return Dialogue()
        return Dialogue(self.turns[-most:], self.shown)


@dataclass(frozen=True)
class ScoreFeatures:
    """What speaks for a mask, each 0..1; `confidence.py` makes one score of it."""

    text_prob: (
        float  # probability of all that the model wrote up to and with this [SEG], numbers apart
    )
    seg_prob: float  # probability of the [SEG] itself
    mean_mask_prob: float  # mean probability of the mask's own pixels; 0 of an empty mask
    predicted_iou: float  # SAM's own guess of the mask's IoU with the truth


@dataclass(frozen=True)
class Segmentation:
    """What the model answered. No mask at all is an answer too, not an error."""

    query: str
    answer: str  # for people: without [SEG], without special tokens
    answer_raw: str  # as the model said it, [SEG] included
    token_ids: tuple[int, ...]  # as generated, </s> included
    masks: np.ndarray  # (N, H, W) bool, mask_logits > 0
    mask_logits: np.ndarray  # (N, H, W) float32, on the picture's pixels
    scores: np.ndarray  # (N,) float32 in 0..1, confidence of each mask
    status: Status
    score_features: tuple[ScoreFeatures, ...] = ()  # N, what the scores were made of
    reason: str = ''  # why it was CANCELLED, FAILED or had STALE_INPUT, or a mask was left out
    timings: dict[str, float] = field(default_factory=dict)  # seconds by stage, in the order run
    time_to_first_mask: float | None = (
        None  # seconds from the command to the first mask; None without one
    )


@dataclass(frozen=True)
class Token:
    """A piece of the answer, as soon as it is known."""

    token_id: int
    text: str  # to append to the answer so far; '' while a character is still incomplete


@dataclass(frozen=True)
class MaskReady:
    """A mask, sent before the words that come after its [SEG]."""

    index: int  # its place among the result's masks, from 0
    mask: np.ndarray  # (H, W) bool
    mask_logits: np.ndarray  # (H, W) float32
    score: float  # 0..1


@dataclass(frozen=True)
class Done:
    """The last event of every stream."""

    result: Segmentation


Event = Token | MaskReady | Done


def _hundredths(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return the box of a (H, W) bool mask as `Turn` has it; zeros for an empty one."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return 0, 0, 0, 0
    ends = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    sizes = mask.shape[::-1] * 2
    left, top, right, bottom = (round(100 * e / size) for e, size in zip(ends, sizes, strict=True))
    return left, top, right, bottom


def answer_text(answer_raw: str) -> str:
    """Return an answer for people: no [SEG], no gaps where they stood.

    "It is [SEG] . It holds a drink." becomes "It is here. It holds a drink."; "Sure, [SEG] ."
    becomes "Sure."; an answer of nothing but masks becomes "Here."
    """
    seg = re.escape(SEG)
    several = rf'{seg}(?:\s*(?:,\s*)?(?:and\s*)?{seg})*'
    text = re.sub(rf'\b(is|are)\s*{several}', r'\1 here', answer_raw)
    text = re.sub(several, ' ', text)
    text = re.sub(r'\s+', ' ', text)
    text = re.sub(r' ([.,;:!?])', r'\1', text)  # no space before a mark
    text = re.sub(r'[,;:]+(?=[.,;:!?])', '', text)  # of two marks side by side, the latter
    text = text.strip().lstrip('.,;:!? ')
    return text or ('Here.' if SEG in answer_raw else '')


SEG = '[SEG]'
