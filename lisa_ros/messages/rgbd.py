# SPDX-License-Identifier: Apache-2.0
"""Where an answer's things are: the frame's depth on its picture's pixels, and what masks cut out.

No ROS here: messages are read by field, as conversions.py does. Positions are metres in the
picture's optical frame (REP-103). Any thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lisa_ros.errors import ImageError
from lisa_ros.geometry.camera import Camera
from lisa_ros.geometry.object_3d import Object3D, localize_object
from lisa_ros.geometry.rgbd import depth_to_cloud, pack_xyzrgb, resize_registered_depth
from lisa_ros.messages.image import camera_from_info, depth_to_metres


@dataclass(frozen=True, eq=False)
class RgbdFrame:
    """A picture with its depth, pixel by pixel."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    depth: np.ndarray  # (H, W) float32 metres, NaN where invalid
    camera: Camera

    def localize(self, masks: np.ndarray, up: np.ndarray | None = None) -> list[Object3D | None]:
        """Return what each of (N, H, W) masks shows in space, None where no depth is valid.

        Args:
            masks: bool.
            up: (3,) away from gravity, in the optical frame; None: unknown.
        """
        return [localize_object(self.image, self.depth, mask, self.camera, up) for mask in masks]

    def cloud(self) -> np.ndarray:
        """Return the organized cloud of the whole picture, (H, W, 4) float32, see clouds.py."""
        return depth_to_cloud(self.image, self.depth, self.camera)


def rgbd_from_messages(
    image: np.ndarray, image_message: Any, depth: Any, info: Any, *, rectified: bool = False
) -> RgbdFrame:
    """Return the space that a picture shows.

    Args:
        image: (H, W, 3) uint8 RGB.
        image_message: whose `header.frame_id` the depth's is compared with.
        depth: sensor_msgs/Image of depth registered to the picture (REP-118), or None.
        info: sensor_msgs/CameraInfo of the picture, or None.
        rectified: see `conversions.camera`.

    Raises:
        ImageError: one is missing, or they do not fit together; the message names the cure.
    """
    if depth is None:
        raise ImageError('no depth came with the image: is depth remapped, and registered?')
    if info is None:
        raise ImageError('there is depth, but no camera_info: is camera_info remapped?')
    height, width = image.shape[:2]
    known = camera_from_info(info, rectified)
    if 0 in known.size:  # a driver that says no size
        known = Camera(known.k, (width, height), known.distortion, known.model)
    if known.size != (width, height):
        raise ImageError(
            f'camera_info is of pictures of {known.size[0]} x {known.size[1]} pixels, the image '
            f'has {width} x {height}: take the camera_info that is published beside this image'
        )
    metres = resize_registered_depth(
        depth_to_metres(depth),
        known,
        frame=image_message.header.frame_id,
        depth_frame=depth.header.frame_id,
    )
    known.rays()  # a lens that is not supported is said here
    return RgbdFrame(image, metres, known)


def objects_cloud(things: Sequence[Object3D | None]) -> np.ndarray:
    """Return the points of all things in one cloud, (M, 4) float32, see clouds.py."""
    there = [pack_xyzrgb(one.points, one.colours) for one in things if one is not None]
    return np.concatenate(there) if there else np.empty((0, 4), np.float32)
