# SPDX-License-Identifier: Apache-2.0
"""One number for how sure an answer's mask is, 0..1.

A calibrated checkpoint brings four numbers with it (`LisaConfig.calibration`), and a curve that
straightens what they give (`LisaConfig.calibration_curve`). Then the score is the probability that
the mask has an IoU of at least 0.5 with what was asked for: of ten masks with a score of 0.8 eight
are right, as measured on its validation pictures (`lisa_ros.evaluation.calibration`). Without
them, as with the released LISA, the score is the probability of [SEG] times the mask's certainty:
it ranks masks, but is no probability.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lisa_ros.results import ScoreFeatures

RIGHT = 0.5  # the IoU from which on a mask counts as right
_NEVER = 1e-4  # logits are taken of probabilities at least so far from 0 and 1


def score(
    evidence: ScoreFeatures,
    calibration: Sequence[float] = (),
    curve: Sequence[tuple[float, float]] = (),
) -> float:
    """Return the score of a mask, 0 of an empty one.

    Args:
        evidence: what speaks for it.
        calibration: weights of `features`, by logistic regression; none: not calibrated.
        curve: (regression's probability, score) knots in rising order, straight in between; none:
            the regression's probability is the score.
    """
    if evidence.mean_mask_prob == 0:
        return 0.0
    if not calibration:
        return evidence.seg_prob * evidence.mean_mask_prob
    total = float(np.dot(calibration, features(evidence)))
    probability = 1 / (1 + math.exp(-max(-30.0, min(30.0, total))))
    return float(np.interp(probability, *zip(*curve, strict=True))) if curve else probability


def features(evidence: ScoreFeatures) -> np.ndarray:
    """Return what the regression weighs, (4,): 1, then words, certainty and guessed IoU."""
    return np.array(
        [1.0, _logit(evidence.text_prob), _logit(evidence.mean_mask_prob), evidence.predicted_iou]
    )


def _logit(p: float) -> float:
    p = min(max(p, _NEVER), 1 - _NEVER)
    return math.log(p / (1 - p))
