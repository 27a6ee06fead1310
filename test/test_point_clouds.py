# SPDX-License-Identifier: Apache-2.0
"""Points to sensor_msgs/PointCloud2: packing, organized clouds, the bytes of sensor_msgs_py."""

import struct

import numpy as np
import pytest

from lisa_ros.geometry.point_cloud import pack_xyzrgb
from lisa_ros.messages.point_cloud import POINT_FIELDS, point_cloud2_fields

POINTS = np.array([[0.5, -1, 2], [3, 4, 5], [np.nan, 0, 0]], np.float32)
COLOURS = np.array([[255, 128, 1], [0, 0, 0], [9, 8, 7]], np.uint8)


def test_a_point_has_16_bytes_with_the_colour_in_the_last_float():
    fields = point_cloud2_fields(pack_xyzrgb(POINTS, COLOURS))
    assert (fields['height'], fields['width']) == (1, 3)
    assert (fields['point_step'], fields['row_step']) == (16, 48)
    assert fields['is_dense']
    data = fields['data'].tobytes()
    assert struct.unpack_from('<fffI', data) == (0.5, -1, 2, 0xFF8001)


def test_an_organized_cloud_keeps_rows_and_columns():
    cloud = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
    fields = point_cloud2_fields(cloud)
    assert (fields['height'], fields['width'], fields['row_step']) == (2, 3, 48)
    assert not fields['is_dense']
    assert struct.unpack_from('<f', fields['data'], fields['row_step'] + 16) == (16.0,)


def test_a_cloud_may_have_no_points():
    fields = point_cloud2_fields(np.empty((0, 4), np.float32))
    assert (fields['width'], fields['row_step'], len(fields['data'])) == (0, 0, 0)


@pytest.mark.ros
def test_sensor_msgs_py_makes_the_same_bytes():
    point_cloud2 = pytest.importorskip(
        'sensor_msgs_py.point_cloud2', reason='needs sensor_msgs_py, which has no wheel'
    )
    from std_msgs.msg import Header

    from lisa_ros.ros import message_types

    generator = np.random.default_rng(0)
    cloud = pack_xyzrgb(
        generator.normal(size=(1000, 3)).astype(np.float32),
        generator.integers(0, 256, (1000, 3), dtype=np.uint8),
    )
    header = Header(frame_id='camera')
    packed = message_types.make.cloud(header, cloud)
    reference = point_cloud2.create_cloud(header, packed.fields, cloud)
    reference.is_dense = True  # sensor_msgs_py always sets false; this cloud has no NaN
    assert packed == reference
    points = point_cloud2.read_points_numpy(packed, ['x', 'y', 'z'])
    np.testing.assert_array_equal(points, cloud[:, :3])
    assert [field.name for field in packed.fields] == list(POINT_FIELDS)
    # sensor_msgs_py swaps width and height of organized clouds; the bytes are the same
    organized = message_types.make.cloud(header, cloud.reshape(20, 50, 4))
    reference = point_cloud2.create_cloud(header, packed.fields, cloud.reshape(20, 50, 4))
    assert (organized.height, organized.width) == (20, 50)
    assert organized.data == reference.data
