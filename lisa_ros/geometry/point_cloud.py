# SPDX-License-Identifier: Apache-2.0
"""Coloured point clouds: x, y, z, rgb as four float32 values per point, as PCL and RViz read them.

The colour is 0x00RRGGBB in the bits of the fourth float. Points are metres in the camera's optical
frame (REP-103). Letters: M points; H, W rows and columns of the image. Any thread.
"""

from __future__ import annotations

import sys

import numpy as np

from lisa_ros.geometry.camera import Camera
from lisa_ros.geometry.rgbd import check_size, depth_to_points

# bytes of the rgb float that hold red, green and blue, and the one that is zero
_RGB_BYTES = slice(14, 11, -1) if sys.byteorder == 'little' else slice(13, 16)
_ZERO_BYTE = 15 if sys.byteorder == 'little' else 12


def pack_xyzrgb(points: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Return points with their colours in one array, (M, 4) float32: x, y, z, rgb.

    Args:
        points: (M, 3) float32 metres.
        colours: (M, 3) uint8 RGB.
    """
    cloud = np.empty((len(points), 4), np.float32)
    cloud[:, :3] = points
    _write_rgb(cloud, colours)
    return cloud


def depth_to_cloud(
    image: np.ndarray, depth: np.ndarray, camera: Camera, out: np.ndarray | None = None
) -> np.ndarray:
    """Return the organized, coloured cloud of an image, (H, W, 4) float32: x, y, z, rgb.

    x, y and z are NaN where depth is invalid. The bytes are the data of a sensor_msgs/PointCloud2
    with point_step 16 and is_dense false.

    Args:
        image: (H, W, 3) uint8 RGB.
        depth: (H, W) float32 metres.
        camera: of the same pixels.
        out: array to write to and return, (H, W, 4) float32; saves an allocation.

    Raises:
        ImageError: image, depth and camera differ in size.
    """
    check_size('image', image[..., 0], camera)
    if out is None:
        out = np.empty((*depth.shape, 4), np.float32)
    depth_to_points(depth, camera, out)
    _write_rgb(out, image)
    return out


def _write_rgb(cloud: np.ndarray, colours: np.ndarray) -> None:
    """Write (..., 3) uint8 RGB colours into the fourth value of a (..., 4) float32 cloud."""
    point_bytes = cloud.view(np.uint8)  # (..., 16)
    point_bytes[..., _RGB_BYTES] = colours
    point_bytes[..., _ZERO_BYTE] = 0
