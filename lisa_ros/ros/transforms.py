# SPDX-License-Identifier: Apache-2.0
"""Transform poses to other frames at the stamp of an image, with tf2_ros if installed.

Threads: `transform_pose` and `gravity_direction` wait for a transform; they may be called from any
thread except the executor's, which has to receive /tf meanwhile.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode
from rclpy.time import Time
from std_msgs.msg import Header

from lisa_ros.errors import TransformError
from lisa_ros.geometry.rotation import matrix_to_quaternion, quaternion_to_matrix
from lisa_ros.ros.parameter_declaration import CurrentSettings

try:
    import tf2_ros
except ImportError:  # not in every install: then ~/target is not published in other frames
    tf2_ros = None


class Transforms:
    """A TF buffer that starts to listen when it is first needed."""

    def __init__(self, node: LifecycleNode, settings: CurrentSettings):
        """Make one for a node; it waits `transform_timeout` of the settings for a transform."""
        self._node, self._settings = node, settings
        self._buffer: Any = None
        self._lock = threading.Lock()  # delivery threads of several cameras may be the first

    def listen(self) -> None:
        """Subscribe to /tf and /tf_static if tf2_ros is installed."""
        with self._lock:
            if tf2_ros is not None and self._buffer is None:
                self._buffer = tf2_ros.Buffer(node=self._node)
                self._listener = tf2_ros.TransformListener(self._buffer, self._node)

    def transform_pose(self, pose: PoseStamped, frame_id: str) -> PoseStamped:
        """Return a pose in another frame at its own stamp; an empty frame_id leaves it as it is.

        Raises:
            TransformError: tf2_ros is missing, or it does not know that transform.
        """
        if frame_id in ('', pose.header.frame_id):
            return pose
        rotation, translation = self._lookup(frame_id, pose.header)
        position, orientation = pose.pose.position, pose.pose.orientation
        x, y, z = rotation @ (position.x, position.y, position.z) + translation
        transformed = PoseStamped(header=Header(stamp=pose.header.stamp, frame_id=frame_id))
        position = transformed.pose.position
        position.x, position.y, position.z = float(x), float(y), float(z)
        own_rotation = quaternion_to_matrix(
            orientation.x, orientation.y, orientation.z, orientation.w
        )
        x, y, z, w = matrix_to_quaternion(rotation @ own_rotation)
        orientation = transformed.pose.orientation
        orientation.x, orientation.y, orientation.z, orientation.w = x, y, z, w
        return transformed

    def gravity_direction(self, gravity_frame: str, header: Header) -> np.ndarray:
        """Return the z axis of a level frame (REP-105: odom, map) in the image's frame, (3,).

        Raises:
            TransformError: as `transform_pose`.
        """
        rotation, _ = self._lookup(gravity_frame, header)
        return rotation[2]  # rows of image-to-level are the level axes in the image's frame

    def _lookup(self, target: str, header: Header) -> tuple[np.ndarray, np.ndarray]:
        """Return rotation (3, 3) and translation (3,) [m] from the header's frame to target."""
        if tf2_ros is None:
            raise TransformError(
                f'tf2_ros is not installed, so {header.frame_id} is not known in {target}: '
                'install tf2_ros_py, or leave target_frame and gravity_frame empty'
            )
        self.listen()
        timeout = Duration(nanoseconds=round(self._settings.value.transform_timeout * 1e9))
        try:
            transform = self._buffer.lookup_transform(
                target, header.frame_id, Time.from_msg(header.stamp), timeout
            ).transform
        except tf2_ros.TransformException as error:
            raise TransformError(
                f"no transform from {header.frame_id} to {target} at the image's stamp: {error}"
            ) from error
        quaternion, translation = transform.rotation, transform.translation
        return (
            quaternion_to_matrix(quaternion.x, quaternion.y, quaternion.z, quaternion.w),
            np.array([translation.x, translation.y, translation.z]),
        )
