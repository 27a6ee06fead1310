# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from golden import arrays, texts

from lisa_ros.training.losses import dice_loss, sigmoid_ce_loss

pytestmark = pytest.mark.parity
WANTED = texts(256)['loss_functions']


def golden_pair() -> tuple[torch.Tensor, torch.Tensor]:
    golden = arrays(256)
    return torch.from_numpy(golden['loss_in_logits']), torch.from_numpy(golden['loss_in_gt'])


@pytest.mark.parametrize('index', [0, 1])
def test_both_losses_are_the_originals(index):
    logits, truth = golden_pair()
    masks = WANTED['num_masks'][index]
    dice, bce = dice_loss(logits, truth, masks), sigmoid_ce_loss(logits, truth, masks)
    assert dice.item() == pytest.approx(WANTED['dice'][index], rel=1e-6)
    assert bce.item() == pytest.approx(WANTED['bce'][index], rel=1e-6)


def test_stray_pixels_on_an_empty_mask_cost_almost_one():
    logits, truth = golden_pair()
    loss = dice_loss(logits[:1], torch.zeros_like(truth[:1]), 1)
    assert loss.item() == pytest.approx(WANTED['dice_empty_gt'], rel=1e-6)


def test_nothing_predicted_on_an_empty_mask_costs_nothing():
    empty = torch.zeros(1, 40, 50)
    loss = dice_loss(empty - 30, empty, 1)
    assert loss.item() == pytest.approx(WANTED['dice_saturated_neg'], abs=1e-6)
