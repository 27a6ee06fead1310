# SPDX-License-Identifier: Apache-2.0
"""Transform poses to other frames at the stamp of an image, with tf2_ros if installed.

An image without a stamp (0) has no time of its own, and tf2 takes 0 as "the newest": for a robot
that drives, that is when the answer comes, seconds after the image. `stamped_header` gives such an
image the time of its arrival. A header that still has no stamp gets static transforms only.

Threads: `missing` and `axis_doubt` return at once, on any thread. `transform_pose` and
`gravity_direction` wait for a transform; they may be called from any thread except the executor's,
which has to receive /tf meanwhile.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped, Transform
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode
from rclpy.time import Time
from std_msgs.msg import Header

from lisa_ros.errors import TransformError
from lisa_ros.geometry.rotation import matrix_to_quaternion, quaternion_to_matrix
from lisa_ros.health.outcomes import Outcomes
from lisa_ros.messages.stamp import stamp_ns
from lisa_ros.ros.parameter_declaration import CurrentSettings
from lisa_ros.session.frame_buffer import SyncedMessages

try:
    import tf2_ros
except ImportError:  # not in every install: then ~/target is not published in other frames
    tf2_ros = None


_MARGIN = 10.0  # by which transforms are kept longer than an answer takes [s]
_LONGEST_ANSWER = 300.0  # that is counted on, also without a limit of `answer_timeout` [s]
_ANY_TIME = Time(nanoseconds=1)  # at which tf2 knows static transforms only
_STRAIGHT_UP = 0.9  # share of the upward direction along the optical axis: within 26 degrees
_PLAY_WITH_CLOCK = (  # TF keeps its newest transforms, those of the first lap
    'if a bag is played in a loop, set use_sim_time and play it with --clock; else the image was '
    'longer under way than TF keeps transforms'
)
_PUBLISH_IT = (
    'start robot_state_publisher, static_transform_publisher or, for a map, the localization; or '
    'correct target_frame, gravity_frame or map_frame'
)


def stamped_header(frame: SyncedMessages) -> Header:
    """Return the header of a frame's image; if the camera left the stamp 0, with its arrival."""
    header = frame.image.header
    if stamp_ns(header):
        return header
    return Header(stamp=Time(nanoseconds=frame.stamp).to_msg(), frame_id=header.frame_id)


class Transforms:
    """A TF buffer that starts to listen when it is first needed."""

    def __init__(self, node: LifecycleNode, settings: CurrentSettings):
        """Make one for a node; it waits `transform_timeout` of the settings for a transform."""
        self._node, self._settings = node, settings
        self._buffer: Any = None
        self.lookups = Outcomes()  # of transforms, by frames
        self._lock = threading.Lock()  # delivery threads of several cameras may be the first

    @property
    def is_used(self) -> bool:
        """Whether the parameters ask for a transform."""
        settings = self._settings.value
        return bool(settings.target_frame or settings.gravity_frame or settings.map_frame)

    def listen(self) -> None:
        """Subscribe to /tf and /tf_static if tf2_ros is installed."""
        with self._lock:
            if tf2_ros is not None and self._buffer is None:
                self._buffer = tf2_ros.Buffer(self._history(), self._node)
                self._listener = tf2_ros.TransformListener(self._buffer, self._node)

    def _history(self) -> Duration:
        """Return how long transforms are kept: an answer's image is older than the answer took.

        tf2's own 10 s are shorter than many answers. A later `answer_timeout` does not change it.
        """
        longest = min(self._settings.value.answer_timeout or _LONGEST_ANSWER, _LONGEST_ANSWER)
        return Duration(nanoseconds=round((longest + _MARGIN) * 1e9))

    def transform_pose(self, pose: PoseStamped, frame_id: str) -> PoseStamped:
        """Return a pose in another frame at its own stamp; an empty frame_id leaves it as it is.

        Raises:
            TransformError: tf2_ros is missing, or it does not know that transform; or the stamp
                is 0, and the transform is not static.
        """
        if _plain(frame_id) in ('', _plain(pose.header.frame_id)):
            return pose
        rotation, translation = self._lookup(frame_id, pose.header)
        position, orientation = pose.pose.position, pose.pose.orientation
        x, y, z = rotation @ (position.x, position.y, position.z) + translation
        header = Header(stamp=pose.header.stamp, frame_id=_plain(frame_id))
        transformed = PoseStamped(header=header)
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

    def missing(self, frames: Sequence[str], targets: Sequence[str]) -> str:
        """Return which transform TF does not know now, with the cure; empty if none is missing.

        Args:
            frames: frame_ids of images; without any, nothing is missing yet.
            targets: the frames to transform to.
        """
        for frame, target in itertools.product(map(_plain, frames), map(_plain, targets)):
            if frame == target:
                continue
            if tf2_ros is None:
                return _not_installed(frame, target)
            buffer = self._buffer
            if buffer is not None and not buffer.can_transform(target, frame, Time()):
                return f'TF has no transform from {frame} to {target}: {_PUBLISH_IT}'
        return ''

    def axis_doubt(self, frames: Sequence[str], level_frames: Sequence[str]) -> str:
        """Return why a frame of images may not be optical, with the cure; empty: no doubt.

        Simulators stamp images with a body frame, whose z axis points up.

        Args:
            frames: frame_ids of images.
            level_frames: frames whose z axes point up (REP-105: odom, map). Frames of images are
                left out: a camera that does not move may be the map.
        """
        buffer = self._buffer
        if tf2_ros is None or buffer is None:
            return ''
        optical = list(map(_plain, frames))
        levels = [level for level in map(_plain, level_frames) if level not in optical]
        for frame, level in itertools.product(optical, levels):
            try:
                transform = buffer.lookup_transform(level, frame, Time()).transform
            except (tf2_ros.TransformException, ValueError):  # `missing` tells it
                continue
            if _rotation(transform)[2, 2] > _STRAIGHT_UP:
                return (
                    f'seen from {level}, the camera would look straight up: {frame} may not be an '
                    'optical frame (REP-103: z forward): let the driver put the optical frame '
                    "into its images' headers"
                )
        return ''

    def _lookup(self, target: str, header: Header) -> tuple[np.ndarray, np.ndarray]:
        """Return rotation (3, 3) and translation (3,) [m] from the header's frame to target."""
        subject = f'{header.frame_id} to {target}'
        try:
            transform = self._waited_for(target, header)
        except TransformError as error:
            self.lookups.note(subject, str(error))
            raise
        self.lookups.note(subject)
        return transform

    def _waited_for(self, target: str, header: Header) -> tuple[np.ndarray, np.ndarray]:
        """Return rotation and translation, after `transform_timeout` at most."""
        if tf2_ros is None:
            raise TransformError(_not_installed(header.frame_id, target))
        self.listen()
        timeout = Duration(nanoseconds=round(self._settings.value.transform_timeout * 1e9))
        has_stamp = stamp_ns(header) != 0
        try:
            transform = self._buffer.lookup_transform(
                _plain(target),
                _plain(header.frame_id),
                Time.from_msg(header.stamp) if has_stamp else _ANY_TIME,
                timeout,
            ).transform
        except (tf2_ros.TransformException, ValueError, OverflowError) as error:  # a wrong stamp
            frames = f'from {header.frame_id} to {target}'
            if not has_stamp:
                raise TransformError(
                    f'no static transform {frames}, and the image has no stamp to look up another '
                    f'({error}): let the driver stamp its images'
                ) from error
            raise TransformError(
                f"no transform {frames} at the image's stamp: {error}; {_cure(error)}"
            ) from error
        translation = transform.translation
        return _rotation(transform), np.array([translation.x, translation.y, translation.z])


def _rotation(transform: Transform) -> np.ndarray:
    """Return the rotation of a transform, (3, 3)."""
    quaternion = transform.rotation
    return quaternion_to_matrix(quaternion.x, quaternion.y, quaternion.z, quaternion.w)


def _plain(frame_id: str) -> str:
    """Return a frame_id as tf2 accepts it: ROS 1 began them with a slash."""
    return frame_id.lstrip('/')


def _cure(error: Exception) -> str:
    is_past = isinstance(error, tf2_ros.ExtrapolationException) and 'the past' in str(error)
    return _PLAY_WITH_CLOCK if is_past else _PUBLISH_IT


def _not_installed(frame: str, target: str) -> str:
    return (
        f'tf2_ros is not installed, so {frame} is not known in {target}: install tf2_ros_py, or '
        'leave target_frame, gravity_frame and map_frame empty'
    )
