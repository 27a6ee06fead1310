# SPDX-License-Identifier: Apache-2.0
"""The mask losses against values of the original."""

import pytest
import torch
from golden import arrays, texts

from lisa_ros.training.losses import dice_loss, sigmoid_ce_loss

pytestmark = pytest.mark.parity
EXPECTED = texts(256)['loss_functions']


def golden_pair() -> tuple[torch.Tensor, torch.Tensor]:
    golden = arrays(256)
    return torch.from_numpy(golden['loss_in_logits']), torch.from_numpy(golden['loss_in_gt'])


@pytest.mark.parametrize('index', [0, 1])
def test_both_losses_equal_the_original(index):
    logits, target = golden_pair()
    num_masks = EXPECTED['num_masks'][index]
    dice, bce = dice_loss(logits, target, num_masks), sigmoid_ce_loss(logits, target, num_masks)
    assert dice.item() == pytest.approx(EXPECTED['dice'][index], rel=1e-6)
    assert bce.item() == pytest.approx(EXPECTED['bce'][index], rel=1e-6)


def test_stray_pixels_on_an_empty_mask_have_a_loss_of_almost_one():
    logits, target = golden_pair()
    loss = dice_loss(logits[:1], torch.zeros_like(target[:1]), 1)
    assert loss.item() == pytest.approx(EXPECTED['dice_empty_gt'], rel=1e-6)


def test_an_empty_prediction_of_an_empty_mask_has_loss_zero():
    empty = torch.zeros(1, 40, 50)
    loss = dice_loss(empty - 30, empty, 1)
    assert loss.item() == pytest.approx(EXPECTED['dice_saturated_neg'], abs=1e-6)
