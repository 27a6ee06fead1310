# SPDX-License-Identifier: Apache-2.0
"""Build an image with registered depth and camera from messages; locate masks in 3D.

Messages are read field by field, see image.py; no ROS import. Positions are metres in the image's
optical frame (REP-103). Any thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lisa_ros.errors import ImageError
from lisa_ros.geometry.camera import Camera
from lisa_ros.geometry.object_3d import Object3D, localize_object
from lisa_ros.geometry.point_cloud import depth_to_cloud, pack_xyzrgb
from lisa_ros.geometry.rgbd import resize_registered_depth
from lisa_ros.images.pixel_limit import DEFAULT_MAX_IMAGE_PIXELS
from lisa_ros.messages.camera_info import camera_from_info, image_size_fault
from lisa_ros.messages.image import depth_to_metres


@dataclass(frozen=True, eq=False)
class RgbdFrame:
    """An image with the depth of each pixel."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    depth: np.ndarray  # (H, W) float32 metres, NaN where invalid
    camera: Camera  # of the same pixels

    def localize(self, masks: np.ndarray, up: np.ndarray | None = None) -> list[Object3D | None]:
        """Return the object of each mask in 3D, None where `localize_object` finds none.

        Args:
            masks: (N, H, W) bool.
            up: (3,) away from gravity, in the optical frame; None: unknown.
        """
        return [localize_object(self.image, self.depth, mask, self.camera, up) for mask in masks]

    def cloud(self) -> np.ndarray:
        """Return the organized cloud of the whole image, (H, W, 4) float32: x, y, z, rgb."""
        return depth_to_cloud(self.image, self.depth, self.camera)


def rgbd_from_messages(
    image: np.ndarray,
    image_message: Any,
    depth: Any,
    info: Any,
    *,
    rectified: bool = False,
    max_pixels: int = DEFAULT_MAX_IMAGE_PIXELS,
    depth_gap: float | None = None,
) -> RgbdFrame:
    """Return an image with its depth and camera.

    Args:
        image: (H, W, 3) uint8 RGB, the pixels of `image_message`.
        image_message: its `header.frame_id` must be that of the depth.
        depth: depth registered to the image (REP-118), as `depth_to_metres` reads it, or None.
        info: sensor_msgs/CameraInfo of the image, or None.
        rectified: the image is rectified, see `camera_from_info`.
        max_pixels: limit of the depth's width times height.
        depth_gap: without depth, by how much the nearest depth image is later [s]; None: there is
            none.

    Raises:
        ImageError: a message is missing or too large; the depth encoding or its data, the camera's
            calibration or its distortion model cannot be used; or sizes or frames differ. The
            text names the cure.
    """
    if depth is None and depth_gap is not None:
        side = 'after' if depth_gap > 0 else 'before'
        raise ImageError(
            f'no depth came with the image: the nearest was taken {abs(depth_gap):.3f} s {side} '
            'it; expected at most depth_tolerance: synchronize both streams of the camera, or '
            'raise depth_tolerance'
        )
    if depth is None:
        raise ImageError('no depth came with the image: remap depth to a registered depth topic')
    if info is None:
        raise ImageError(
            'there is depth, but no camera_info has come: remap camera_info to its topic, and let '
            'the camera publish there'
        )
    height, width = image.shape[:2]
    camera = camera_from_info(info, rectified)
    fault = image_size_fault(info, (width, height))
    if fault:
        raise ImageError(fault)
    if 0 in camera.size:  # the driver does not publish the size
        camera = Camera(camera.k, (width, height), camera.distortion, camera.distortion_model)
    metres = resize_registered_depth(
        depth_to_metres(depth, max_pixels),
        camera,
        frame=image_message.header.frame_id,
        depth_frame=depth.header.frame_id,
    )
    camera.rays()  # raises here if the distortion model is not supported
    return RgbdFrame(image, metres, camera)


def objects_cloud(objects: Sequence[Object3D | None]) -> np.ndarray:
    """Return the points of all objects in one cloud, (M, 4) float32: x, y, z, rgb."""
    clouds = [pack_xyzrgb(o.points, o.colours) for o in objects if o is not None]
    return np.concatenate(clouds) if clouds else np.empty((0, 4), np.float32)
