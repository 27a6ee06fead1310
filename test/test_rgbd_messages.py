# SPDX-License-Identifier: Apache-2.0
"""A frame's messages become a space, or it is said what does not fit."""

from types import SimpleNamespace

import numpy as np
import pytest
from test_image_messages import info

from lisa_ros.errors import ImageError
from lisa_ros.geometry.rgbd import pack_xyzrgb
from lisa_ros.geometry.rotation import matrix_to_quaternion
from lisa_ros.messages.image import image_fields
from lisa_ros.messages.rgbd import objects_cloud, rgbd_from_messages

IMAGE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
K = [50.0, 0, 31.5, 0, 50, 23.5, 0, 0, 1]
INFO = info(K, width=64, height=48)


def message(pixels, encoding, frame='camera'):
    header = SimpleNamespace(frame_id=frame)
    return SimpleNamespace(header=header, **image_fields(pixels, encoding))


RGB = message(IMAGE, 'rgb8')
FAR = np.full((48, 64), 2, np.float32)


def test_masks_of_a_space_are_things_and_it_has_a_cloud():
    there = rgbd_from_messages(IMAGE, RGB, message(FAR, '32FC1'), INFO)
    mask = np.zeros((2, 48, 64), bool)
    mask[0, 10:20, 30:50] = True
    one, none = there.localize(mask)
    assert none is None
    assert one.centroid == pytest.approx([(39.5 - 31.5) / 50 * 2, (14.5 - 23.5) / 50 * 2, 2])
    assert there.cloud().shape == (48, 64, 4)
    np.testing.assert_array_equal(
        objects_cloud([none, one, one])[200:], pack_xyzrgb(one.points, one.colours)
    )
    assert objects_cloud([None]).shape == (0, 4)


@pytest.mark.parametrize(
    ('depth', 'camera_info', 'says'),
    [
        (None, INFO, 'no depth came with the image'),
        (message(FAR, '32FC1'), None, 'no camera_info'),
        (message(FAR, '32FC1', 'depth_camera'), INFO, 'depth is in frame depth_camera'),
        (message(FAR[:, :40].copy(), '32FC1'), INFO, 'not the same aspect'),
        (message(FAR, '32FC1'), info(K, width=640, height=480), 'the image has 64 x 48'),
        (
            message(FAR, '32FC1'),
            info(K, width=64, height=48, d=[0.1] * 5, distortion_model='thin_prism'),
            "distortion model 'thin_prism' is not supported",
        ),
    ],
)
def test_what_does_not_fit_is_named(depth, camera_info, says):
    with pytest.raises(ImageError, match=says):
        rgbd_from_messages(IMAGE, RGB, depth, camera_info)


def test_depth_of_another_size_is_brought_to_the_picture():
    assert rgbd_from_messages(
        IMAGE, RGB, message(FAR[::2, ::2].copy(), '32FC1'), INFO
    ).depth.shape == (48, 64)


def test_a_camera_info_without_a_size_is_the_picture_s():
    known = rgbd_from_messages(
        IMAGE, RGB, message(FAR, '32FC1'), info(K, width=0, height=0)
    ).camera
    assert known.size == (64, 48)


@pytest.mark.parametrize('axis', [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.6, 0, 0.8)])
@pytest.mark.parametrize('angle', [0.0, 0.5, 3.1, np.pi])
def test_a_quaternion_turns_as_its_matrix_does(axis, angle):
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    matrix = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    *vector, w = matrix_to_quaternion(matrix)
    assert w >= 0
    expected = np.array([*(np.array(axis) * np.sin(angle / 2)), np.cos(angle / 2)])
    assert np.abs(np.dot([*vector, w], expected)) == pytest.approx(1)
