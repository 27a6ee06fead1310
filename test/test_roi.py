# SPDX-License-Identifier: Apache-2.0
"""Crop an image and a dialogue to a region; paste its masks back."""

import numpy as np
import pytest

from lisa_ros.errors import ImageError
from lisa_ros.perception import roi
from lisa_ros.results import Dialogue, MaskReady, Segmentation, Status, Turn

IMAGE = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)


def test_crop_returns_the_pixels_of_the_region():
    part = roi.crop(IMAGE, (2, 1, 5, 3))
    assert part.shape == (3, 5, 3)
    np.testing.assert_array_equal(part[0, 0], IMAGE[1, 2])


@pytest.mark.parametrize('region', [(4, 0, 5, 1), (0, 4, 1, 3), (0, 0, 0, 5), (0, 0, 5, 0)])
def test_a_region_outside_of_the_image_is_an_error(region):
    with pytest.raises(ImageError, match='is not within the image of 8 x 6'):
        roi.crop(IMAGE, region)


def test_masks_are_pasted_at_the_region():
    logits = np.full((1, 2, 2), 5, np.float32)
    result = Segmentation('x', 'Sure.', '[SEG].', logits > 0, logits, np.ones(1), Status.FOUND)
    pasted = roi.paste_result(result, (3, 4, 2, 2), (6, 8))
    assert pasted.masks.shape == (1, 6, 8)
    assert pasted.masks.sum() == 4
    assert pasted.masks[0, 4:6, 3:5].all()
    assert pasted.answer == result.answer
    event = roi.paste_mask(MaskReady(0, logits[0] > 0, logits[0], 0.5), (3, 4, 2, 2), (6, 8))
    np.testing.assert_array_equal(event.mask, pasted.masks[0])


def test_the_boxes_of_a_dialogue_are_those_of_the_region():
    # 320..384, 120..240 of 640 x 480, and an empty mask
    inside = Turn('the mug', '[SEG] [SEG]', ((50, 25, 60, 50), (0, 0, 0, 0)))
    outside = Turn('the pan', '[SEG] [SEG]', ((50, 25, 60, 50), (0, 0, 10, 10)))
    dialogue = Dialogue((inside, outside, Turn('the bowl', 'No.')))
    turns = roi.crop_dialogue(dialogue, (280, 120, 200, 240), (480, 640)).turns
    assert [turn.boxes for turn in turns] == [((20, 0, 52, 50), (0, 0, 0, 0)), (), ()]
    assert [turn.query for turn in turns] == ['the mug', 'the pan', 'the bowl']
    whole = roi.crop_dialogue(dialogue, (0, 0, 640, 480), (480, 640)).turns
    assert [turn.boxes for turn in whole[:2]] == [inside.boxes, outside.boxes]


def test_the_masks_of_a_dialogue_are_cropped_with_the_image():
    shown = np.zeros((1, 6, 8), bool)
    shown[0, 4, 3] = True
    part = roi.crop_dialogue(Dialogue(shown=shown), (3, 4, 2, 2), (6, 8)).shown
    assert part.tolist() == [[[True, False], [False, False]]]
    assert roi.crop_dialogue(Dialogue(), (3, 4, 2, 2), (6, 8)) == Dialogue()


@pytest.mark.parametrize('size', [(3, 4), (12, 16)], ids=['smaller', 'larger'])
def test_masks_of_an_image_of_another_size_are_left_out(size):
    dialogue = Dialogue(shown=np.ones((1, *size), bool))
    assert roi.crop_dialogue(dialogue, (3, 4, 2, 2), (6, 8)).shown is None
