# SPDX-License-Identifier: Apache-2.0
"""The losses of LISA's masks, number for number those of dvlab-research/LISA (model/LISA.py).

Paper: arxiv.org/abs/2308.00692, section 3.2: cross-entropy on words, per-pixel binary
cross-entropy and Dice on masks. The words' part is `TeacherForced.ce_loss`.
Letters: N masks, H x W their pixels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

CE_WEIGHT, BCE_WEIGHT, DICE_WEIGHT = 1.0, 2.0, 0.5  # the paper's

_SCALE, _EPS = 1000, 1e-6  # of the original's Dice, see `dice_loss`


def dice_loss(logits: Tensor, truth: Tensor, num_masks: float) -> Tensor:
    """Return the Dice loss, summed over masks and divided by `num_masks`.

    Sums are scaled by 1/1000 before 1e-6 is added, so that an empty prediction of an empty mask
    costs nothing, while a few stray pixels already cost almost 1.

    Args:
        logits: (N, H, W).
        truth: (N, H, W), 0 or 1, float.
        num_masks: what the sum is divided by.
    """
    inside, truth = logits.sigmoid().flatten(1), truth.flatten(1)
    overlap = 2 * (inside / _SCALE * truth).sum(-1)
    total = (inside / _SCALE).sum(-1) + (truth / _SCALE).sum(-1)
    return (1 - (overlap + _EPS) / (total + _EPS)).sum() / (num_masks + 1e-8)


def sigmoid_ce_loss(logits: Tensor, truth: Tensor, num_masks: float) -> Tensor:
    """Return binary cross-entropy, mean over pixels, summed over masks, by `num_masks`.

    Args:
        logits: (N, H, W).
        truth: (N, H, W), 0 or 1, float.
        num_masks: what the sum is divided by.
    """
    loss = F.binary_cross_entropy_with_logits(logits, truth, reduction='none')
    return loss.flatten(1).mean(1).sum() / (num_masks + 1e-8)
