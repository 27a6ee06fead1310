# SPDX-License-Identifier: Apache-2.0
"""Points to sensor_msgs/PointCloud2, by field: no ROS import, no sensor_msgs_py.

A point is 16 bytes: x, y, z in metres and rgb, 0x00RRGGBB in the bits of a float, as PCL, RViz and
`sensor_msgs_py.point_cloud2.create_cloud` with these four FLOAT32 fields have it. Any thread.
"""

from __future__ import annotations

import array
import sys
from typing import Any

import numpy as np

FIELDS = {'x': 0, 'y': 4, 'z': 8, 'rgb': 12}  # name: offset [bytes]
FLOAT32 = 7  # PointField.FLOAT32
STEP = 16  # bytes of a point


def packed(points: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Return points with their colours in one array, (M, 4) float32.

    Args:
        points: (M, 3) float32 metres.
        colours: (M, 3) uint8 RGB.
    """
    cloud = np.empty((len(points), 4), np.float32)
    cloud[:, :3] = points
    red, green, blue = colours.astype(np.uint32).T
    cloud.view(np.uint32)[:, 3] = red << 16 | green << 8 | blue
    return cloud


def cloud_fields(cloud: np.ndarray) -> dict[str, Any]:
    """Return the fields of a sensor_msgs/PointCloud2 but its header and its PointFields.

    Args:
        cloud: (M, 4) float32, or (H, W, 4) of an organized cloud, NaN where there is no point;
            its bytes are copied once. `data` comes as array('B'), which rclpy takes as it is.
    """
    height, width = cloud.shape[:2] if cloud.ndim == 3 else (1, len(cloud))
    data = array.array('B')
    data.frombytes(memoryview(np.ascontiguousarray(cloud, np.float32)).cast('B') if width else b'')
    return {
        'height': height,
        'width': width,
        'is_bigendian': sys.byteorder == 'big',
        'point_step': STEP,
        'row_step': STEP * width,
        'data': data,
        'is_dense': cloud.ndim == 2,
    }
