# SPDX-License-Identifier: Apache-2.0
"""The mask losses of LISA's paper for batches of images of one shape."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lisa_ros.model.lisa import LISA, LisaOutput
from lisa_ros.training.losses import dice_loss, sigmoid_ce_loss
from lisa_ros.training.tabletop.batches import QueryBatch


def mask_losses(
    lisa: LISA, output: LisaOutput, batch: QueryBatch
) -> tuple[Tensor, Tensor, Tensor]:
    """Return BCE and Dice of the masks, and the squared error of SAM's predicted IoU.

    They are computed on the pixels of SAM's square, without its padding.
    """
    count = len(batch.masks)
    if count == 0:
        return (output.mask_logits.sum(),) * 3
    height, width = batch.valid_size
    logits = lisa.postprocess(output.mask_logits, (height, width), (height, width))
    truth = batch.masks[:, :height, :width].float()
    return (
        sigmoid_ce_loss(logits, truth, count),
        dice_loss(logits, truth, count),
        F.mse_loss(output.mask_iou.float(), _mask_iou(logits, truth)),
    )


@torch.no_grad()
def _mask_iou(logits: Tensor, truth: Tensor) -> Tensor:
    """Return the IoU (N,) of masks, logits > 0, with their ground truth, both (N, H, W)."""
    predicted = (logits > 0).float()
    intersection = (predicted * truth).sum((1, 2))
    union = predicted.sum((1, 2)) + truth.sum((1, 2)) - intersection
    return intersection / union.clamp(min=1)
