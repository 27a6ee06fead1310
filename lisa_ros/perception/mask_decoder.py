# SPDX-License-Identifier: Apache-2.0
"""Decode the mask of a [SEG] token: hidden state and image in, scored mask logits out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lisa_ros.model.finite import check_finite
from lisa_ros.model.lisa import LISA
from lisa_ros.model.point_prompts import PointRule, choose_points, similarity
from lisa_ros.perception import mask_scores
from lisa_ros.perception.image_encoder import EncodedImage, ImageEncoder, StageTimer
from lisa_ros.perception.mask_refinement import refine_mask_logits
from lisa_ros.results import ScoreFeatures


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


class MaskDecoder:
    """SAM's mask decoder with its post-processing, refinement and score."""

    def __init__(self, model: LISA, encoder: ImageEncoder):
        self._model, self._encoder = model, encoder

    def decode(
        self, seg: SegToken, encoded: EncodedImage, options: MaskOptions, timer: StageTimer
    ) -> ScoredMask:
        """Decode one mask.

        Args:
            seg: the token.
            encoded: the image; its SAM features are computed here if they are missing.
            options: how; a point rule needs `encoded.image_states`.
            timer: gets the stages "sam", "masks" and "refine".

        Raises:
            ModelError: the state, the image's features or the mask are not finite.
        """
        sam_features = self._encoder.sam_features(encoded, timer)
        with timer.stage('masks'), torch.inference_mode():
            check_finite(seg.state, 'the hidden state of [SEG]')
            prompts = self._model.project_seg(seg.state[None])
            points = self._points(seg, encoded, options.point_rule)
            low_res, predicted_iou = self._model.decode_masks(sam_features, prompts, points)
            check_finite(low_res, 'the mask of [SEG]')
            check_finite(predicted_iou, 'the predicted IoU of a mask')
            full_res = self._model.postprocess(low_res, encoded.sam_shape, encoded.image.shape[:2])
            features = ScoreFeatures(
                text_prob=seg.text_prob,
                seg_prob=seg.seg_prob,
                mean_mask_prob=_mean_mask_prob(full_res[0]),
                predicted_iou=float(predicted_iou[0].float().clamp(0, 1)),
            )
            logits = full_res[0].cpu().numpy()
        if options.refine:
            with timer.stage('refine'):
                cell = max(logits.shape) / max(low_res.shape[-2:])
                logits = refine_mask_logits(encoded.image, logits, cell)
        config = self._model.config
        score = mask_scores.score(features, config.calibration, config.calibration_curve)
        return ScoredMask(logits, score, features)

    def _points(
        self, seg: SegToken, encoded: EncodedImage, rule: PointRule | None
    ) -> Tensor | None:
        """Return the tokens of READ's points, (1, K, C); None: no points."""
        if rule is None or encoded.image_states is None:
            return None
        similarities = similarity(encoded.image_states, seg.state)
        points = choose_points(similarities, encoded.image.shape[:2], rule)
        if points is None:
            return None
        (height, width), (rows, columns) = encoded.image.shape[:2], encoded.sam_shape
        places = points.places * points.places.new_tensor([columns / width, rows / height])
        return self._model.embed_points(places[None], points.labels[None])


def _mean_mask_prob(logits: Tensor) -> float:
    """Return the mean probability of the mask's own pixels, 0.5..1; 0 of an empty mask."""
    inside = logits[logits > 0]
    return float(inside.sigmoid().mean()) if len(inside) else 0.0
