# SPDX-License-Identifier: Apache-2.0
"""Depth registered to an image: validity, noise, resizing, 3D points.

Depth is in metres along z (REP-118), points are in the camera's optical frame (REP-103: x right,
y down, z forward). Letters: H, W rows and columns of the image. Pure numpy and OpenCV, any thread.
"""

from __future__ import annotations

import cv2
import numpy as np

from lisa_ros.errors import ImageError
from lisa_ros.geometry.camera import Camera

_REGISTER = (
    'publish depth registered to the image (RealSense: align_depth.enable:=true; other '
    'drivers: depth_registration, or depth_image_proc register with fill_upsampling_holes: true)'
)


def is_valid_depth(depth: np.ndarray) -> np.ndarray:
    """Return which values are distances: positive and finite, not NaN. Same shape, bool."""
    return (depth > 0) & (depth < np.inf)


def depth_noise_std(z: np.ndarray) -> np.ndarray:
    """Return the standard deviation of depth at distance z [m] for a Kinect: 1.2 mm and more.

    Nguyen, Izadi and Lovell, "Modeling Kinect Sensor Noise for Improved 3D Reconstruction and
    Tracking", 3DIMPVT 2012, equation 2. Stereo and time-of-flight cameras are close to it at
    tabletop distances.
    """
    return 0.0012 + 0.0019 * (z - 0.4) ** 2


def resize_registered_depth(
    depth: np.ndarray,
    camera: Camera,
    *,
    frame: str = '',
    depth_frame: str = '',
) -> np.ndarray:
    """Return registered depth at the image's size, (H, W) float32, by nearest neighbour.

    Args:
        depth: (h, w) float32 metres, of the image's size or of another size with its aspect ratio.
        camera: of the image.
        frame: frame_id of the image; '' if unknown.
        depth_frame: frame_id of the depth; '' if unknown.

    Raises:
        ImageError: the depth is in another frame or has another aspect ratio.
    """
    height, width = depth.shape
    fault = registration_fault(frame, depth_frame, tuple(camera.size), (width, height))
    if fault:
        raise ImageError(fault)
    if (width, height) == tuple(camera.size):
        return depth
    return cv2.resize(depth, tuple(camera.size), interpolation=cv2.INTER_NEAREST_EXACT)


def registration_fault(
    frame: str,
    depth_frame: str,
    size: tuple[int, int] | None,
    depth_size: tuple[int, int] | None,
) -> str:
    """Return why depth is not registered to an image, with the cure; empty if it may be.

    Args:
        frame: frame_id of the image; '' if unknown.
        depth_frame: frame_id of the depth; '' if unknown.
        size: width and height of the image [pixels]; None: unknown.
        depth_size: width and height of the depth [pixels]; None: unknown.
    """
    if _are_other_frames(frame, depth_frame):
        return f'depth is in frame {depth_frame}, the image in {frame}: {_REGISTER}'
    if size is None or depth_size is None:
        return ''
    (width, height), (depth_width, depth_height) = size, depth_size
    if abs(depth_width * height - width * depth_height) <= max(depth_height, height):
        return ''
    return (
        f'depth is {depth_width} x {depth_height} pixels, the image {width} x {height}: '
        f'not the same aspect ratio; {_REGISTER}'
    )


def calibration_frame_fault(frame: str, info_frame: str) -> str:
    """Return why a camera_info may not be that of an image, with the cure; empty if it may be.

    sensor_msgs/Image: with another frame_id in its CameraInfo "the behavior is undefined".

    Args:
        frame: frame_id of the image; '' if unknown.
        info_frame: frame_id of the camera_info; '' if unknown.
    """
    if not _are_other_frames(frame, info_frame):
        return ''
    return (
        f'camera_info is that of frame {info_frame}, the image is in {frame}; if that is another '
        "camera, positions are wrong: remap camera_info to the topic of this image's camera, or "
        'let the driver give both the same frame_id'
    )


def _are_other_frames(one: str, other: str) -> bool:
    """Return whether two frame_ids are known and differ; ROS 1 began them with a slash."""
    return bool(one and other) and one.lstrip('/') != other.lstrip('/')


def depth_to_points(
    depth: np.ndarray, camera: Camera, out: np.ndarray | None = None
) -> np.ndarray:
    """Return the 3D point of each pixel, (H, W, 3) float32 metres, NaN where depth is invalid.

    Args:
        depth: (H, W) float32 metres.
        camera: of the same pixels.
        out: array to write to and return, (H, W, 3) or (H, W, 4) float32; saves an allocation.

    Raises:
        ImageError: depth and camera differ in size.
    """
    check_size('depth', depth, camera)
    rays = camera.rays()
    if out is None:
        out = np.empty((*depth.shape, 3), np.float32)
    z = np.where(is_valid_depth(depth), depth, np.float32(np.nan))
    np.multiply(rays[..., 0], z, out=out[..., 0])
    np.multiply(rays[..., 1], z, out=out[..., 1])
    out[..., 2] = z
    return out


def check_size(name: str, pixels: np.ndarray, camera: Camera) -> None:
    """Check that (H, W) pixels have the size of the camera's image.

    Raises:
        ImageError: they have another one; the text calls them `name`: depth, image or mask.
    """
    if pixels.shape[::-1] == tuple(camera.size):
        return
    (height, width), size = pixels.shape, f'{camera.size[0]} x {camera.size[1]}'
    if name == 'depth':
        cure = f'the image {size}: publish depth registered to the image'
    else:
        cure = f'its camera has {size}: use the camera_info that is published with the image'
    raise ImageError(f'{name} is {width} x {height} pixels, {cure}')
