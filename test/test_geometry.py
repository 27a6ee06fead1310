# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from lisa_ros.errors import ImageError
from lisa_ros.geometry import centroid

K = np.array([[100.0, 0, 4], [0, 50, 3], [0, 0, 1]])


def test_the_centroid_is_the_mean_of_the_valid_points():
    depth = np.full((6, 8), 2.0, np.float32)
    mask = np.zeros((6, 8), bool)
    mask[5, 6] = mask[5, 2] = mask[0, 0] = True
    depth[0, 0] = np.nan
    assert centroid(depth, mask, K) == pytest.approx([0.0, 2 / 50 * 2.0, 2.0])


def test_no_valid_point_is_none():
    mask = np.ones((6, 8), bool)
    assert centroid(np.full((6, 8), np.nan, np.float32), mask, K) is None
    assert centroid(np.ones((6, 8), np.float32), ~mask, K) is None


def test_sizes_that_differ_are_named():
    with pytest.raises(ImageError, match=r'depth is 4 x 3 pixels, the image 8 x 6'):
        centroid(np.ones((3, 4), np.float32), np.ones((6, 8), bool), K)
