# SPDX-License-Identifier: Apache-2.0
"""Poses in other frames, at an image's own stamp, by tf2_ros where it is installed.

Threads: `moved` and `up` may be called from any thread but the executor's, which has to
hear /tf meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode
from rclpy.time import Time
from std_msgs.msg import Header

from lisa_ros.errors import TransformError
from lisa_ros.geometry.rotation import matrix_to_quaternion, quaternion_to_matrix

try:
    import tf2_ros
except ImportError:  # not in every install: then ~/target stays unpublished in other frames
    tf2_ros = None


class Transforms:
    """What TF knows; it listens once it is told to, or asked."""

    def __init__(self, node: LifecycleNode, patience: Callable[[], float]):
        """Make one for a node.

        Args:
            node: hears /tf and /tf_static.
            patience: how long a transform at a stamp is waited for, it comes after its image [s].
        """
        self._node, self._patience = node, patience
        self._buffer: Any = None
        self._lock = threading.Lock()  # the sessions of several cameras may be the first

    def listen(self) -> None:
        """Begin to hear transforms, where tf2_ros is installed."""
        with self._lock:
            if tf2_ros is not None and self._buffer is None:
                self._buffer = tf2_ros.Buffer(node=self._node)
                self._listener = tf2_ros.TransformListener(self._buffer, self._node)

    def transform_pose(self, pose: PoseStamped, frame_id: str) -> PoseStamped:
        """Return a pose in another frame, at its own stamp; '' or its own: as it is.

        Raises:
            TransformError: tf2_ros is missing, or it does not know that transform.
        """
        if frame_id in ('', pose.header.frame_id):
            return pose
        turn, shift = self._lookup(frame_id, pose.header)
        at, to = pose.pose.position, pose.pose.orientation
        position = turn @ (at.x, at.y, at.z) + shift
        x, y, z, w = matrix_to_quaternion(turn @ quaternion_to_matrix(to.x, to.y, to.z, to.w))
        there = PoseStamped(header=Header(stamp=pose.header.stamp, frame_id=frame_id))
        there.pose.position.x, there.pose.position.y, there.pose.position.z = position.tolist()
        orientation = there.pose.orientation
        orientation.x, orientation.y, orientation.z, orientation.w = x, y, z, w
        return there

    def gravity_direction(self, gravity_frame: str, header: Header) -> np.ndarray:
        """Return the z axis of a level frame (REP-105: odom, map) in the image's frame, (3,).

        Raises:
            TransformError: as `moved`.
        """
        turn, _ = self._lookup(gravity_frame, header)
        return turn[2]  # rows of image to level are the level axes in the image's frame

    def _lookup(self, target: str, header: Header) -> tuple[np.ndarray, np.ndarray]:
        """Return rotation (3, 3) and translation (3,) [m] from the header's frame to target."""
        if tf2_ros is None:
            raise TransformError(
                f'tf2_ros is not installed, so {header.frame_id} is not known in {target}: '
                'install tf2_ros_py, or leave target_frame and gravity_frame empty'
            )
        self.listen()
        try:
            found = self._buffer.lookup_transform(
                target,
                header.frame_id,
                Time.from_msg(header.stamp),
                Duration(nanoseconds=round(self._patience() * 1e9)),
            ).transform
        except tf2_ros.TransformException as error:
            raise TransformError(
                f"no transform from {header.frame_id} to {target} at the image's stamp: {error}"
            ) from error
        turn, shift = found.rotation, found.translation
        return quaternion_to_matrix(turn.x, turn.y, turn.z, turn.w), np.array(
            [shift.x, shift.y, shift.z]
        )
