# SPDX-License-Identifier: Apache-2.0
"""A region of a picture is looked at alone, and its masks lie where it was."""

import numpy as np
import pytest
from test_scheduler import found

from lisa_ros.errors import ImageError
from lisa_ros.perception import roi
from lisa_ros.results import Dialogue, MaskReady

PICTURE = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)


def test_a_region_is_a_part_of_the_picture():
    part = roi.crop(PICTURE, (2, 1, 5, 3))
    assert part.shape == (3, 5, 3)
    np.testing.assert_array_equal(part[0, 0], PICTURE[1, 2])


@pytest.mark.parametrize('region', [(4, 0, 5, 1), (0, 4, 1, 3), (0, 0, 0, 5), (0, 0, 5, 0)])
def test_a_region_that_is_not_within_the_picture_is_named(region):
    with pytest.raises(ImageError, match='is not within the picture of 8 x 6'):
        roi.crop(PICTURE, region)


def test_masks_of_a_region_lie_where_it_was():
    result = roi.paste_result(found('x'), (3, 4, 2, 2), (6, 8))
    assert result.masks.shape == (1, 6, 8)
    assert result.masks.sum() == 4
    assert result.masks[0, 4:6, 3:5].all()
    assert result.answer == found('x').answer
    early = MaskReady(0, np.ones((2, 2), bool), np.ones((2, 2), np.float32), 0.5)
    whole = roi.paste_mask(early, (3, 4, 2, 2), (6, 8))
    np.testing.assert_array_equal(whole.mask, result.masks[0])


def test_what_a_dialogue_has_shown_is_cropped_with_the_picture():
    shown = np.zeros((1, 6, 8), bool)
    shown[0, 4, 3] = True
    part = roi.crop_dialogue(Dialogue(shown=shown), (3, 4, 2, 2)).shown
    assert part.tolist() == [[[True, False], [False, False]]]
    assert roi.crop_dialogue(Dialogue(), (3, 4, 2, 2)) == Dialogue()
