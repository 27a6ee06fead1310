# SPDX-License-Identifier: Apache-2.0
"""The mask losses of LISA, equal to those of dvlab-research/LISA (model/LISA.py).

Paper: arxiv.org/abs/2308.00692, section 3.2: cross-entropy of the text, per-pixel binary
cross-entropy and Dice of the masks. The text loss is `LisaOutput.ce_loss`.
Letters: N masks of H x W pixels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

CE_WEIGHT, BCE_WEIGHT, DICE_WEIGHT = 1.0, 2.0, 0.5  # from the paper

_SCALE, _EPS = 1000, 1e-6  # constants of the original's Dice loss, see `dice_loss`


def dice_loss(logits: Tensor, target: Tensor, num_masks: float) -> Tensor:
    """Return the Dice loss, summed over masks and divided by `num_masks`.

    Sums are divided by 1000 before 1e-6 is added. So an empty prediction of an empty mask has
    loss 0, while a few stray pixels already have a loss of almost 1.

    Args:
        logits: (N, H, W) predicted mask logits.
        target: (N, H, W) float, 0 or 1, the ground truth.
        num_masks: divisor of the sum.
    """
    probability, target = logits.sigmoid().flatten(1), target.flatten(1)
    overlap = 2 * (probability / _SCALE * target).sum(-1)
    total = (probability / _SCALE).sum(-1) + (target / _SCALE).sum(-1)
    return (1 - (overlap + _EPS) / (total + _EPS)).sum() / (num_masks + 1e-8)


def sigmoid_ce_loss(logits: Tensor, target: Tensor, num_masks: float) -> Tensor:
    """Return binary cross-entropy: mean over pixels, summed over masks, divided by `num_masks`.

    Args:
        logits: (N, H, W) predicted mask logits.
        target: (N, H, W) float, 0 or 1, the ground truth.
        num_masks: divisor of the sum.
    """
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction='none')
    return loss.flatten(1).mean(1).sum() / (num_masks + 1e-8)
