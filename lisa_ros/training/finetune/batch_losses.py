# SPDX-License-Identifier: Apache-2.0
"""Losses and masks of a fine-tuning batch, computed as the original does (model/LISA.py).

Masks are compared at the size of their image.

Letters: B images, n masks of one image of H x W pixels.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from lisa_ros.model.lisa import LISA, LisaOutput
from lisa_ros.perception.masks import IGNORED_PIXEL
from lisa_ros.training.finetune.batches import FinetuneBatch
from lisa_ros.training.losses import BCE_WEIGHT, CE_WEIGHT, DICE_WEIGHT, dice_loss, sigmoid_ce_loss

LOSS_WEIGHTS = {'ce': CE_WEIGHT, 'bce': BCE_WEIGHT, 'dice': DICE_WEIGHT}


def compute_losses(lisa: LISA, batch: FinetuneBatch) -> dict[str, Tensor]:
    """Return the losses `ce`, `bce` and `dice` of the original, before LOSS_WEIGHTS.

    All masks of the batch have the same weight, whatever their size; pixels of IGNORED_PIXEL do
    not count. The dialogues about an image share one pass of the vision encoders and the image's
    positions in the language model.
    """
    output = lisa(batch.inputs, packed=True)
    count = len(output.mask_logits)
    bce = dice = output.ce_loss.new_zeros(())
    for logits, target in _masks_to_compare(_image_mask_logits(lisa, output, batch), batch):
        bce = bce + sigmoid_ce_loss(logits, target, count)
        dice = dice + dice_loss(logits, target, count)
    return {'ce': output.ce_loss, 'bce': bce, 'dice': dice}


def predict_masks(lisa: LISA, batch: FinetuneBatch) -> list[np.ndarray]:
    """Return the masks that the model predicts for the given answers, B x (n, H, W) bool."""
    output = lisa(batch.inputs, packed=True)
    return [(logits > 0).cpu().numpy() for logits in _image_mask_logits(lisa, output, batch)]


def _image_mask_logits(lisa: LISA, output: LisaOutput, batch: FinetuneBatch) -> list[Tensor]:
    """Return mask logits at the size of each image, B x (n, H, W)."""
    image_index = batch.inputs.image_index[output.seg_query]
    return [
        lisa.postprocess(output.mask_logits[image_index == image], resized, masks.shape[1:])
        for image, (resized, masks) in enumerate(
            zip(batch.resized, batch.ground_truth, strict=True)
        )
    ]


def _masks_to_compare(
    image_logits: list[Tensor], batch: FinetuneBatch
) -> list[tuple[Tensor, Tensor]]:
    """Return (logits, target) pairs for the mask losses, without pixels of IGNORED_PIXEL.

    A pair holds all masks of an image, (n, H, W); or one mask without its ignored pixels, (1, P).
    """
    pairs = []
    for logits, masks in zip(image_logits, batch.ground_truth, strict=True):
        if not (masks == IGNORED_PIXEL).any():
            pairs.append((logits, masks.float()))
            continue
        for mask_logits, mask in zip(logits, masks, strict=True):
            counts = mask != IGNORED_PIXEL
            if counts.any():
                pairs.append((mask_logits[counts][None], mask[counts][None].float()))
    return pairs
