# SPDX-License-Identifier: Apache-2.0
"""Decode the masks of [SEG] tokens: hidden states and images in, scored mask logits out.

Letters: N masks, C channels of a prompt, K tokens of a mask's points, H x W pixels of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lisa_ros.errors import ModelError
from lisa_ros.model.finite import check_finite, finite_rows, non_finite
from lisa_ros.model.lisa import LISA
from lisa_ros.model.point_prompts import PointRule, choose_points, similarity
from lisa_ros.perception import mask_scores
from lisa_ros.perception.image_encoder import EncodedImage, ImageEncoder, StageTimer
from lisa_ros.perception.mask_refinement import refine_mask_logits
from lisa_ros.results import ScoreFeatures

MASKS_AT_ONCE = 16  # in one pass: it bounds the memory


@dataclass(frozen=True)
class SegToken:
    """A [SEG] of an answer, or one that the user typed."""

    state: Tensor  # (D,) hidden state that predicts it
    seg_prob: float = 1.0  # probability of this token; 1 if it was not generated
    text_prob: float = 1.0  # probability of all text up to and with it, without digits


@dataclass(frozen=True)
class ScoredMask:
    """A decoded mask."""

    logits: np.ndarray  # (H, W) float32, on the image's pixels
    score: float  # 0..1
    features: ScoreFeatures


@dataclass(frozen=True)
class MaskOptions:
    """How the masks of an answer are made."""

    refine: bool  # move boundaries to the image's edges
    point_rule: PointRule | None  # how READ prompts SAM; None: with [SEG] alone


@dataclass(frozen=True)
class MaskRequest:
    """A mask to decode."""

    seg: SegToken
    encoded: EncodedImage  # its SAM features are computed if they are missing
    options: MaskOptions  # a point rule needs `encoded.image_states`
    timer: StageTimer  # gets "sam" and "refine", and its share of "masks"

    @property
    def shapes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(height, width) of the image inside of SAM's square, and of the image itself [px]."""
        return self.encoded.sam_shape, self.encoded.image.shape[:2]


@dataclass(frozen=True)
class _SamInput:
    """What SAM's mask decoder gets for a mask."""

    number: int  # of the request
    request: MaskRequest
    features: Tensor  # of the image, (1, C, h, w)
    points: Tensor | None  # (1, K, C)


@dataclass(frozen=True)
class _RawMask:
    """What SAM's mask decoder gives for a mask."""

    logits: np.ndarray  # (H, W) float32
    mean_prob: float  # of its own pixels
    predicted_iou: float
    cell: float  # of SAM's output on the image [px]


class MaskDecoder:
    """SAM's mask decoder with its post-processing, refinement and score."""

    def __init__(self, model: LISA, encoder: ImageEncoder):
        self._model, self._encoder = model, encoder

    def decode(self, request: MaskRequest) -> ScoredMask:
        """Decode one mask.

        Raises:
            ModelError: the state, the image's features or the mask are not finite.
        """
        (mask,) = self.decode_batch([request])
        if isinstance(mask, ModelError):
            raise mask
        return mask

    def decode_batch(self, requests: Sequence[MaskRequest]) -> list[ScoredMask | ModelError]:
        """Decode several masks at once, of one image or of several images of any size.

        Each is the one that is decoded alone, up to rounding (test/test_mask_decoder.py).

        Returns:
            A mask for each request, or why it has none: something is not finite.
        """
        masks: dict[int, ScoredMask | ModelError] = {}
        by_points: dict[int, list[_SamInput]] = {}  # one pass needs prompts of one length
        for number, request in enumerate(requests):
            try:
                item = self._sam_input(number, request)
            except ModelError as error:  # noqa: PERF203  # one fails, the others go on
                masks[number] = error
            else:
                count = 0 if item.points is None else item.points.shape[1]
                by_points.setdefault(count, []).append(item)
        for items in by_points.values():
            for start in range(0, len(items), MASKS_AT_ONCE):
                masks |= self._decode(items[start : start + MASKS_AT_ONCE])
        return [masks[number] for number in range(len(requests))]

    def _sam_input(self, number: int, request: MaskRequest) -> _SamInput:
        """Return what SAM gets for a mask.

        Raises:
            ModelError: the image's features or the state are not finite.
        """
        features = self._encoder.sam_features(request.encoded, request.timer)
        with request.timer.stage('masks'), torch.inference_mode():
            check_finite(request.seg.state, 'the hidden state of [SEG]')
            return _SamInput(number, request, features, self._points(request))

    def _decode(self, items: Sequence[_SamInput]) -> dict[int, ScoredMask | ModelError]:
        """Return masks by their numbers, decoded in one pass."""
        timer = StageTimer(self._encoder.device)
        with timer.stage('masks'):
            raw_masks = self._raw_masks(items)
        share = {name: seconds / len(items) for name, seconds in timer.seconds.items()}
        masks: dict[int, ScoredMask | ModelError] = {}
        for item, raw in zip(items, raw_masks, strict=True):
            item.request.timer.add(share)
            is_error = isinstance(raw, ModelError)
            masks[item.number] = raw if is_error else self._scored(item.request, raw)
        return masks

    @torch.inference_mode()
    def _raw_masks(self, items: Sequence[_SamInput]) -> list[_RawMask | ModelError]:
        """Run SAM's mask decoder once and resize its masks to their images."""
        prompts = self._model.project_seg(torch.stack([item.request.seg.state for item in items]))
        features = [item.features for item in items]
        is_one_image = all(part is features[0] for part in features)
        points = None if items[0].points is None else torch.cat([item.points for item in items])
        low_res, predicted_ious = self._model.decode_masks(
            features[0] if is_one_image else torch.cat(features), prompts, points
        )
        raw_masks: list[_RawMask | ModelError | None] = [None] * len(items)
        by_shape: dict[tuple, list[int]] = {}
        finite_masks, finite_ious = finite_rows(low_res), finite_rows(predicted_ious[:, None])
        for row, item in enumerate(items):
            if not finite_masks[row]:
                raw_masks[row] = non_finite('the mask of [SEG]')
            elif not finite_ious[row]:
                raw_masks[row] = non_finite('the predicted IoU of a mask')
            else:
                by_shape.setdefault(item.request.shapes, []).append(row)
        for shapes, rows in by_shape.items():
            masks = self._model.postprocess(low_res[rows], *shapes)
            ious = predicted_ious[rows].float().clamp(0, 1).tolist()
            logits = masks.cpu().numpy()
            cell = max(logits.shape[1:]) / max(low_res.shape[1:])
            for place, row in enumerate(rows):
                mean_prob = _mean_mask_prob(masks[place])
                raw_masks[row] = _RawMask(logits[place], mean_prob, ious[place], cell)
        return raw_masks

    def _scored(self, request: MaskRequest, raw: _RawMask) -> ScoredMask:
        """Return a mask with refined boundaries, if the request wants that, and its score."""
        features = ScoreFeatures(
            text_prob=request.seg.text_prob,
            seg_prob=request.seg.seg_prob,
            mean_mask_prob=raw.mean_prob,
            predicted_iou=raw.predicted_iou,
        )
        config, logits = self._model.config, raw.logits
        if request.options.refine:
            with request.timer.stage('refine'):
                logits = refine_mask_logits(request.encoded.image, logits, raw.cell)
        score = mask_scores.score(features, config.calibration, config.calibration_curve)
        return ScoredMask(logits, score, features)

    def _points(self, request: MaskRequest) -> Tensor | None:
        """Return the tokens of READ's points, (1, K, C); None: no points."""
        encoded, rule = request.encoded, request.options.point_rule
        if rule is None or encoded.image_states is None:
            return None
        similarities = similarity(encoded.image_states, request.seg.state)
        points = choose_points(similarities, encoded.image.shape[:2], rule)
        if points is None:
            return None
        (rows, columns), (height, width) = request.shapes
        places = points.places * points.places.new_tensor([columns / width, rows / height])
        return self._model.embed_points(places[None], points.labels[None])


def _mean_mask_prob(logits: Tensor) -> float:
    """Return the mean probability of the mask's own pixels, 0.5..1; 0 of an empty mask."""
    inside = logits[logits > 0]
    return float(inside.sigmoid().mean()) if len(inside) else 0.0
