# SPDX-License-Identifier: Apache-2.0
"""Collect the tokens and masks of one answer and build its result."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from lisa_ros.perception.mask_decoder import ScoredMask
from lisa_ros.perception.masks import MAX_MASKS, iou
from lisa_ros.perception.stopping import EarlyEnd
from lisa_ros.results import (
    LisaDetails,
    MaskReady,
    ScoreFeatures,
    Segmentation,
    Status,
    answer_text,
)

# IoU above which two masks show one object; a mask of two objects and a mask of one of them have
# an IoU of about 0.5
SAME_OBJECT_IOU = 0.6
_LOOP = 'the answer was cut off: the model repeated the same words without end'
_REPEATED = 'the model found only an object that was shown before'


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
        self.progress = 0  # tokens up to the last mask of an object that no mask showed before
        self.repeated = 0  # tokens at the end that only repeat the ones before
        self._query, self._shape, self._threshold = query, shape, threshold
        self._excluded_masks = excluded_masks
        self._has_repeated = False  # whether a mask was left out for `excluded_masks`
        self._start = time.perf_counter()
        self._time_to_first_mask: float | None = None  # [s]
        self._logits: list[np.ndarray] = []  # each (H, W) float32
        self._scores: list[float] = []
        self._score_features: list[ScoreFeatures] = []

    @property
    def is_full(self) -> bool:
        """Whether the answer has as many masks as a label image can number."""
        return len(self._logits) >= MAX_MASKS

    def add_mask(self, mask: ScoredMask) -> MaskReady | None:
        """Add a mask; return its event, or None if the mask is left out."""
        if mask.score < self._threshold:
            return None
        pixels = mask.logits > 0
        if any(iou(pixels, excluded) > SAME_OBJECT_IOU for excluded in self._excluded_masks):
            self._has_repeated = True
            return None
        if self._time_to_first_mask is None:
            self._time_to_first_mask = time.perf_counter() - self._start
        if all(iou(pixels, other > 0) <= SAME_OBJECT_IOU for other in self._logits):
            self.progress = len(self.token_ids)
        self._logits.append(mask.logits)
        self._scores.append(mask.score)
        self._score_features.append(mask.features)
        return MaskReady(len(self._logits) - 1, pixels, mask.logits, mask.score)

    def result(
        self, answer_raw: str, timings: dict[str, float], early_end: EarlyEnd | None
    ) -> Segmentation:
        """Return the result.

        Args:
            answer_raw: the decoded tokens, [SEG] included, without </s> and without repeated ones.
            timings: seconds by stage.
            early_end: how the answer was stopped before its end; None: it is complete.
        """
        empty = np.zeros((0, *self._shape), np.float32)
        logits = np.stack(self._logits) if self._logits else empty
        masks = logits > 0
        status = Status.FOUND if masks.any() else Status.NOT_FOUND
        reason = _REPEATED if self._has_repeated else ''
        if self.repeated:
            reason = _LOOP
            status = Status.FOUND if status is Status.FOUND else Status.REPEATED
        if early_end is not None:
            status, reason = early_end.status, early_end.reason
        return Segmentation(
            query=self._query,
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
        )
