# SPDX-License-Identifier: Apache-2.0
"""RGB-D frames from messages: object positions, clouds, and errors that name the mismatch."""

from types import SimpleNamespace

import numpy as np
import pytest
from test_image_messages import info, region

from lisa_ros.errors import ImageError
from lisa_ros.geometry.point_cloud import pack_xyzrgb
from lisa_ros.geometry.rotation import matrix_to_quaternion, quaternion_to_matrix
from lisa_ros.messages.camera_info import image_size_fault
from lisa_ros.messages.image import image_fields
from lisa_ros.messages.rgbd import objects_cloud, rgbd_from_messages

IMAGE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
K = [50.0, 0, 31.5, 0, 50, 23.5, 0, 0, 1]
INFO = info(K, width=64, height=48)


def message(pixels, encoding, frame='camera'):
    header = SimpleNamespace(frame_id=frame)
    return SimpleNamespace(header=header, **image_fields(pixels, encoding))


RGB = message(IMAGE, 'rgb8')
DEPTH = np.full((48, 64), 2, np.float32)  # [m]


def test_masks_are_localized_and_give_clouds():
    frame = rgbd_from_messages(IMAGE, RGB, message(DEPTH, '32FC1'), INFO)
    mask = np.zeros((2, 48, 64), bool)
    mask[0, 10:20, 30:50] = True
    located, missing = frame.localize(mask)
    assert missing is None
    assert located.centroid == pytest.approx([(39.5 - 31.5) / 50 * 2, (14.5 - 23.5) / 50 * 2, 2])
    assert frame.cloud().shape == (48, 64, 4)
    np.testing.assert_array_equal(
        objects_cloud([missing, located, located])[200:],
        pack_xyzrgb(located.points, located.colours),
    )
    assert objects_cloud([None]).shape == (0, 4)


@pytest.mark.parametrize(
    ('depth', 'camera_info', 'error'),
    [
        (None, INFO, 'no depth came with the image'),
        (message(DEPTH, '32FC1'), None, 'no camera_info'),
        (message(DEPTH, '32FC1', 'depth_camera'), INFO, 'depth is in frame depth_camera'),
        (message(DEPTH[:, :40].copy(), '32FC1'), INFO, 'not the same aspect'),
        (message(DEPTH, '32FC1'), info(K, width=640, height=480), 'the image has 64 x 48'),
        (
            message(DEPTH, '32FC1'),
            info(K, width=64, height=48, d=[0.1] * 5, distortion_model='thin_prism'),
            "distortion model 'thin_prism' is not supported",
        ),
    ],
)
def test_a_mismatch_is_an_error_that_names_it(depth, camera_info, error):
    with pytest.raises(ImageError, match=error):
        rgbd_from_messages(IMAGE, RGB, depth, camera_info)


@pytest.mark.parametrize(
    ('changes', 'text'),
    [
        (
            {'width': 64, 'height': 48, 'binning_x': 2, 'binning_y': 2},
            r'32 x 24 pixels \(width 64, height 48, binning 2 x 2\), the image has 64 x 48: '
            'set binning to 0 in the driver',
        ),
        (
            {'width': 64, 'height': 48, 'roi': region(8, 4, 40, 40)},
            r'40 x 40 pixels \(width 64, height 48, roi 40 x 40 at \(8, 4\)\), .*: set roi to 0',
        ),
        (
            {'width': 64, 'height': 96, 'binning_x': 2, 'binning_y': 2},
            r'32 x 48 pixels \(width 64, height 96, binning 2 x 2\), .*: use the camera_info .*, '
            'or correct these values in the driver',
        ),
        (
            {'width': 640, 'height': 480},
            '640 x 480 pixels, the image has 64 x 48: use the camera_info that is published',
        ),
    ],
)
def test_a_camera_info_of_another_size_says_where_it_comes_from(changes, text):
    k = [50.0, 0, changes['width'] / 2, 0, 50, changes['height'] / 2, 0, 0, 1]
    with pytest.raises(ImageError, match=text):
        rgbd_from_messages(IMAGE, RGB, message(DEPTH, '32FC1'), info(k, **changes))
    assert not image_size_fault(info(k, width=0, height=0), (64, 48))
    halved = info(k, width=128, height=96, binning_x=2, binning_y=2)
    assert not image_size_fault(halved, (64, 48))


@pytest.mark.parametrize(
    ('gap', 'text'), [(-2.0, 'taken 2.000 s before it'), (0.25, 'taken 0.250 s after it')]
)
def test_depth_of_another_time_is_an_error_that_says_by_how_much(gap, text):
    with pytest.raises(ImageError, match=rf'{text}; expected at most depth_tolerance: synchron'):
        rgbd_from_messages(IMAGE, RGB, None, INFO, depth_gap=gap)


def test_depth_of_another_size_is_resized_to_the_image():
    half_size = message(DEPTH[::2, ::2].copy(), '32FC1')
    assert rgbd_from_messages(IMAGE, RGB, half_size, INFO).depth.shape == (48, 64)


def test_a_camera_info_without_a_size_gets_that_of_the_image():
    no_size = info(K, width=0, height=0)
    frame = rgbd_from_messages(IMAGE, RGB, message(DEPTH, '32FC1'), no_size)
    assert frame.camera.size == (64, 48)


@pytest.mark.parametrize('axis', [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.6, 0, 0.8)])
@pytest.mark.parametrize('angle', [0.0, 0.5, 3.1, np.pi])
def test_a_quaternion_rotates_as_its_matrix(axis, angle):
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    matrix = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    *vector, w = matrix_to_quaternion(matrix)
    assert w >= 0
    expected = np.array([*(np.array(axis) * np.sin(angle / 2)), np.cos(angle / 2)])
    assert np.abs(np.dot([*vector, w], expected)) == pytest.approx(1)


def test_a_quaternion_that_was_rounded_is_a_rotation():
    assert quaternion_to_matrix(0, 0, 0.71, 0.71) @ [2, 0, 0] == pytest.approx([0, 2, 0])
    np.testing.assert_array_equal(quaternion_to_matrix(0, 0, 0, 0), np.eye(3))
