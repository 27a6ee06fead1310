# SPDX-License-Identifier: Apache-2.0
"""Coloured point clouds as the fields of a sensor_msgs/PointCloud2; needs no ROS. Any thread."""

from __future__ import annotations

import array
import sys
from typing import Any

import numpy as np

POINT_FIELDS = {'x': 0, 'y': 4, 'z': 8, 'rgb': 12}  # name and offset in a point [bytes]
FLOAT32 = 7  # sensor_msgs/PointField.FLOAT32, the type of each field
_POINT_STEP = 16  # size of a point [bytes]


def point_cloud2_fields(cloud: np.ndarray) -> dict[str, Any]:
    """Return the fields of a sensor_msgs/PointCloud2 except `header` and `fields`.

    Args:
        cloud: (M, 4) float32, or (H, W, 4) of an organized cloud, NaN where a point is missing;
            its bytes are copied once. `data` is an array('B'), which rclpy takes without a check.
    """
    height, width = cloud.shape[:2] if cloud.ndim == 3 else (1, len(cloud))
    values = array.array('B')
    values.frombytes(
        memoryview(np.ascontiguousarray(cloud, np.float32)).cast('B') if width else b''
    )
    return {
        'height': height,
        'width': width,
        'is_bigendian': sys.byteorder == 'big',
        'point_step': _POINT_STEP,
        'row_step': _POINT_STEP * width,
        'data': values,
        'is_dense': cloud.ndim == 2,
    }
