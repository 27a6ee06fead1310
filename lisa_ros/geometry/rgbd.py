# SPDX-License-Identifier: Apache-2.0
"""Depth registered to an image: resizing, points and coloured point clouds."""

from __future__ import annotations

import array
import sys
from typing import Any

import cv2
import numpy as np

from lisa_ros.errors import ImageError
from lisa_ros.geometry.camera import Camera


def resize_registered_depth(
    depth: np.ndarray,
    camera: Camera,
    *,
    frame: str = '',
    depth_frame: str = '',
    depth_camera: Camera | None = None,
) -> np.ndarray:
    """Return registered depth on the picture's pixels, (H, W) float32: the nearest, never a mean.

    Args:
        depth: (h, w) float32 metres, of the picture's size or another of the same aspect.
        camera: of the picture.
        frame: frame_id of the picture; '' if unknown.
        depth_frame: frame_id of the depth; '' if unknown.
        depth_camera: what the depth's own camera_info says, if there is one.

    Raises:
        ImageError: the depth is another camera's, or of another aspect.
    """
    height, width = depth.shape
    register = (
        'publish depth registered to the image (RealSense: align_depth.enable:=true; other '
        'drivers: depth_registration, or depth_image_proc register)'
    )
    if frame and depth_frame and frame != depth_frame:
        raise ImageError(f'depth is in frame {depth_frame}, the image in {frame}: {register}')
    if abs(width * camera.size[1] - camera.size[0] * height) > max(height, camera.size[1]):
        raise ImageError(
            f'depth is {width} x {height} pixels, the image {camera.size[0]} x {camera.size[1]}: '
            f'not the same aspect; {register}'
        )
    if depth_camera is not None:
        theirs = np.asarray(depth_camera.scaled(camera.size).k)
        apart = np.abs(theirs - camera.k)[:2]
        if apart.max() > 0.02 * camera.k[0, 0]:
            raise ImageError(
                f'the camera of the depth has fx {theirs[0, 0]:.0f}, cx {theirs[0, 2]:.0f} on '
                f'the image, the image fx {camera.k[0, 0]:.0f}, cx {camera.k[0, 2]:.0f}: '
                f'{register}'
            )
    if (width, height) == tuple(camera.size):
        return depth
    return cv2.resize(depth, tuple(camera.size), interpolation=cv2.INTER_NEAREST_EXACT)


def depth_to_points(
    depth: np.ndarray, camera: Camera, out: np.ndarray | None = None
) -> np.ndarray:
    """Return the point of each pixel, (H, W, 3) float32 metres, NaN where there is none.

    Args:
        depth: (H, W) float32.
        camera: of the same pixels.
        out: where to write, (H, W, 3) or (H, W, 4) float32, so that no frame allocates.

    Raises:
        ImageError: depth and camera differ in size.
    """
    _same_size(depth, camera)
    rays = camera.rays()
    if out is None:
        out = np.empty((*depth.shape, 3), np.float32)
    z = np.where((depth > 0) & (depth < np.inf), depth, np.float32(np.nan))
    np.multiply(rays[..., 0], z, out=out[..., 0])
    np.multiply(rays[..., 1], z, out=out[..., 1])
    out[..., 2] = z
    return out


def depth_to_cloud(
    image: np.ndarray, depth: np.ndarray, camera: Camera, out: np.ndarray | None = None
) -> np.ndarray:
    """Return the organized, coloured cloud of a picture, (H, W, 4) float32: x, y, z, rgb.

    Its bytes are the data of a sensor_msgs/PointCloud2 with point_step 16, is_dense false and the
    fields x, y, z, rgb (0x00RRGGBB in the bits of a float, as PCL and RViz read it).

    Args:
        image: (H, W, 3) uint8 RGB.
        depth: (H, W) float32.
        camera: of the same pixels.
        out: where to write, so that no frame allocates.

    Raises:
        ImageError: image, depth and camera differ in size.
    """
    _same_size(image[..., 0], camera)
    if out is None:
        out = np.empty((*depth.shape, 4), np.float32)
    depth_to_points(depth, camera, out)
    bytes_ = out.view(np.uint8).reshape(*depth.shape, 16)
    order = slice(14, 11, -1) if sys.byteorder == 'little' else slice(13, 16)
    bytes_[..., order] = image
    bytes_[..., 15 if sys.byteorder == 'little' else 12] = 0
    return out


def _same_size(depth: np.ndarray, camera: Camera) -> None:
    if depth.shape[::-1] != tuple(camera.size):
        raise ImageError(
            f'depth is {depth.shape[1]} x {depth.shape[0]} pixels, the image '
            f'{camera.size[0]} x {camera.size[1]}: publish depth registered to the image'
        )


FIELDS = {'x': 0, 'y': 4, 'z': 8, 'rgb': 12}  # name: offset [bytes]


FLOAT32 = 7  # PointField.FLOAT32


STEP = 16  # bytes of a point


def pack_xyzrgb(points: np.ndarray, colours: np.ndarray) -> np.ndarray:
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


def point_cloud2_fields(cloud: np.ndarray) -> dict[str, Any]:
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
