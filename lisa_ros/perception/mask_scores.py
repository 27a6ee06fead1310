# SPDX-License-Identifier: Apache-2.0
"""The confidence of a mask, 0..1, from its score features.

A calibrated checkpoint has four regression weights (`LisaConfig.calibration`) and a curve that
corrects the regression (`LisaConfig.calibration_curve`). Its score is the probability that the
mask's IoU with the ground truth is at least 0.5: of ten masks with a score of 0.8, eight are
right, as measured on its validation images (`lisa_ros.evaluation.calibration`). Without
calibration, as in the released LISA, the score is the probability of [SEG] times the mean
probability of the mask's pixels: it ranks masks, but is not a probability of being right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lisa_ros.results import ScoreFeatures

RIGHT = 0.5  # minimum IoU of a right mask
_MIN_PROB = 1e-4  # probabilities are cut to this distance from 0 and 1 before their logit


def score(
    score_features: ScoreFeatures,
    calibration: Sequence[float] = (),
    curve: Sequence[tuple[float, float]] = (),
) -> float:
    """Return the score of a mask; 0 if it is empty.

    Args:
        score_features: of the mask.
        calibration: weights of `features`, from logistic regression; empty: not calibrated.
        curve: (probability of the regression, score) knots in rising order, linear in between;
            empty: the probability of the regression is the score.
    """
    if score_features.mean_mask_prob == 0:
        return 0.0
    if not calibration:
        return score_features.seg_prob * score_features.mean_mask_prob
    total = float(np.dot(calibration, features(score_features)))
    probability = 1 / (1 + math.exp(-max(-30.0, min(30.0, total))))
    return float(np.interp(probability, *zip(*curve, strict=True))) if curve else probability


def features(score_features: ScoreFeatures) -> np.ndarray:
    """Return the regressors, (4,): 1, logit(text), logit(mean mask), predicted IoU."""
    return np.array(
        [
            1.0,
            _logit(score_features.text_prob),
            _logit(score_features.mean_mask_prob),
            score_features.predicted_iou,
        ]
    )


def _logit(p: float) -> float:
    p = min(max(p, _MIN_PROB), 1 - _MIN_PROB)
    return math.log(p / (1 - p))
