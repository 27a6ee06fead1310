# SPDX-License-Identifier: Apache-2.0
"""Collect the tokens and masks of one answer and build its result."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from lisa_ros.perception.mask_decoder import ScoredMask
from lisa_ros.perception.masks import MAX_MASKS, SAME_OBJECT_IOU, iou, shows_one_of
from lisa_ros.perception.repetition import repeated_tail
from lisa_ros.perception.stopping import EarlyEnd
from lisa_ros.results import (
    LisaDetails,
    MaskReady,
    ScoreFeatures,
    Segmentation,
    Status,
    answer_text,
)

_MAX_REPEATS = 3  # of an object after the same words, see `add_mask`
_LOOP = 'the answer was cut off: the model repeated the same words without end'
_ONLY_SHOWN = 'the model found only an object that was shown before'
_REPEATS_LEFT_OUT = 'further masks of an object that the answer repeats were left out'
_SHOWN_LEFT_OUT = 'a mask of an object that was shown before was left out'


class AnswerBuilder:
    """An answer under construction; it measures the time to the first mask from its creation."""

    def __init__(
        self,
        query: str,
        shape: tuple[int, int],
        threshold: float,
        excluded_masks: Sequence[np.ndarray] = (),
    ):
        """Begin an answer.

        Args:
            query: as the user typed it.
            shape: (H, W) of the image [px].
            threshold: leave out masks with a lower score [0..1].
            excluded_masks: (H, W) bool each; leave out masks of the same objects.
        """
        self.token_ids: list[int] = []  # append each generated token
        self.query = query
        self._shape, self._threshold = shape, threshold
        self._excluded_masks = excluded_masks
        self._has_left_out = False  # whether a mask was left out for `excluded_masks`
        self._new_mask_at = 0  # number of tokens up to the last mask of another object
        self._mask_at = 0  # number of tokens up to the last mask
        # by the words before a mask: the first mask of an object, (H, W) bool, and its repeats
        self._repeats: dict[tuple[int, ...], tuple[np.ndarray, int]] = {}
        self._has_left_out_repeats = False
        self._start = time.perf_counter()
        self._time_to_first_mask: float | None = None  # [s]
        self._masks: list[np.ndarray] = []  # each (H, W) bool
        self._logits: list[np.ndarray] = []  # each (H, W) float32
        self._scores: list[float] = []
        self._score_features: list[ScoreFeatures] = []
        self._names: list[str] = []

    @property
    def is_full(self) -> bool:
        """Whether the answer has as many masks as a label image can number."""
        return len(self._logits) >= MAX_MASKS

    @property
    def repeated_count(self) -> int:
        """How many tokens at the end only repeat the ones before, see repetition.py."""
        return repeated_tail(self.token_ids[self._new_mask_at :])

    def add_mask(self, mask: ScoredMask, name: str = '') -> MaskReady | None:
        """Add a mask; return its event, or None if the mask is left out.

        A model that repeats itself shows the same object again and again, after the same words,
        until `repeated_count` ends its answer: only the first of these masks are kept.

        Args:
            mask: of an object.
            name: as the model calls it; '': it does not.
        """
        words, self._mask_at = tuple(self.token_ids[self._mask_at :]), len(self.token_ids)
        if mask.score < self._threshold:
            return None
        pixels = mask.logits > 0
        if any(iou(pixels, excluded) > SAME_OBJECT_IOU for excluded in self._excluded_masks):
            self._has_left_out = True
            return None
        if self._is_another_object(pixels):
            self._new_mask_at = len(self.token_ids)
        if self._is_repeated(words, pixels):
            self._has_left_out_repeats = True
            return None
        if self._time_to_first_mask is None:
            self._time_to_first_mask = time.perf_counter() - self._start
        self._masks.append(pixels)
        self._logits.append(mask.logits)
        self._scores.append(mask.score)
        self._score_features.append(mask.features)
        self._names.append(name)
        return MaskReady(len(self._logits) - 1, pixels, mask.logits, mask.score, name)

    def _is_repeated(self, words: tuple[int, ...], pixels: np.ndarray) -> bool:
        """Return whether the same words have shown an object more than `_MAX_REPEATS` times."""
        if not words or not pixels.any():  # no words: a typed [SEG]
            return False
        first, count = self._repeats.get(words, (pixels, -1))
        is_same = count < 0 or iou(pixels, first) > SAME_OBJECT_IOU
        first, count = (first, count + 1) if is_same else (pixels, 0)
        self._repeats[words] = first, count
        return count > _MAX_REPEATS

    def _is_another_object(self, pixels: np.ndarray) -> bool:
        """Return whether no mask of this answer shows the object of a mask, (H, W) bool."""
        return bool(pixels.any()) and not shows_one_of(pixels, self._masks)

    def result(
        self,
        answer_raw: str,
        timings: dict[str, float],
        early_end: EarlyEnd | None,
        *,
        cut_reason: str = '',
    ) -> Segmentation:
        """Return the result.

        Args:
            answer_raw: the decoded tokens, [SEG] included, without </s> and without repeated ones.
            timings: seconds by stage.
            early_end: how the answer was stopped before its end; None: it is complete.
            cut_reason: why it has no end; '': it has one. Without a mask it says nothing of the
                image.
        """
        empty = np.zeros((0, *self._shape), np.float32)
        logits = np.stack(self._logits) if self._logits else empty
        masks = np.stack(self._masks) if self._masks else empty > 0
        status = Status.FOUND if masks.any() else Status.NOT_FOUND
        reason = ''
        if self._has_left_out:
            reason = _SHOWN_LEFT_OUT if self._masks else _ONLY_SHOWN
        elif self._has_left_out_repeats:
            reason = _REPEATS_LEFT_OUT
        if cut_reason:
            reason = cut_reason
            status = Status.FOUND if status is Status.FOUND else Status.FAILED
        if self.repeated_count:
            reason = _LOOP
            status = Status.FOUND if status is Status.FOUND else Status.REPEATED
        if early_end is not None:
            status, reason = early_end.status, early_end.reason
        return Segmentation(
            query=self.query,
            answer=answer_text(answer_raw),
            answer_raw=answer_raw,
            masks=masks,
            mask_logits=logits,
            scores=np.asarray(self._scores, np.float32),
            status=status,
            reason=reason,
            timings=timings,
            time_to_first_mask=self._time_to_first_mask,
            details=LisaDetails(tuple(self.token_ids), tuple(self._score_features)),
            token_count=len(self.token_ids),
            names=tuple(self._names) if any(self._names) else (),
        )
