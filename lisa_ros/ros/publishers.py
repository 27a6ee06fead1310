# SPDX-License-Identifier: Apache-2.0
"""What one camera's answers say on topics: every output carries the header of its image.

Two sets of these exist for each camera: ~/mask and its like are the answers, ~/tracked/mask and
its like are carried to every newer image. What takes time is made only while somebody listens.
Publishing may happen on any thread, but of one camera's set on one at a time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped
from rclpy.lifecycle import LifecycleNode
from rclpy.publisher import Publisher
from sensor_msgs.msg import CompressedImage, Image, PointCloud2
from std_msgs.msg import Header

from lisa_ros.errors import ImageError, TransformError
from lisa_ros.geometry.object_3d import Object3D
from lisa_ros.messages import rgbd
from lisa_ros.messages.image import compressed_to_rgb, image_fields, image_to_rgb
from lisa_ros.msg import Segmentation as SegmentationMessage
from lisa_ros.perception import overlay
from lisa_ros.results import Segmentation
from lisa_ros.ros import message_types
from lisa_ros.ros.transforms import Transforms
from lisa_ros.session.frame_buffer import SyncedMessages
from lisa_ros.settings import Settings
from lisa_ros.tracking.tracker import TrackingState


def rgb_image(frame: SyncedMessages) -> np.ndarray:
    """Return the frame's image as RGB, (H, W, 3) uint8.

    Raises:
        ImageError: it cannot be read.
    """
    compressed = isinstance(frame.image, CompressedImage)
    return compressed_to_rgb(frame.image) if compressed else image_to_rgb(frame.image)


@dataclass(frozen=True)
class LocalizedResult:
    """Where a result's things are, or why that is not known."""

    space: rgbd.RgbdFrame | None
    things: Sequence[Object3D | None]
    reason: str = ''
    target: PoseStamped | None = None


class AnswerPublishers:
    """The publishers of one camera's answers, or of what the tracker made of them."""

    def __init__(
        self,
        node: LifecycleNode,
        prefix: str,
        settings: Callable[[], Settings],
        transforms: Transforms,
        complain: Callable[..., None],
    ):
        """Make the publishers.

        Args:
            node: whose they are; they say nothing while it is not active.
            prefix: of their names: ~/, ~/front/ or ~/front/tracked/.
            settings: the present ones.
            transforms: between frames, at an image's stamp.
            complain: takes a line about what is wrong with the inputs, and its cause.
        """
        self._node, self._settings = node, settings
        self._transforms, self._complain = transforms, complain
        self._publishers: list[Publisher] = []
        create = functools.partial(self._create, prefix)
        self._segmentation = create(SegmentationMessage, 'segmentation')
        self._mask = create(Image, 'mask')
        self._confidence = create(Image, 'confidence')
        self._overlay = create(Image, 'overlay')
        self._object_points = create(PointCloud2, 'object_points')
        self._scene_points = create(PointCloud2, 'scene_points')
        self._target = create(PoseStamped, 'target')
        self._vision: dict[str, Publisher] = {}
        if message_types.vision is not None:
            for name, kind in (
                ('detections', 'Detection2DArray'),
                ('detections_3d', 'Detection3DArray'),
            ):
                self._vision[name] = create(getattr(message_types.vision, kind), name)

    def _create(self, prefix: str, kind: type, name: str) -> Publisher:
        made = self._node.create_lifecycle_publisher(kind, prefix + name, 10)
        self._publishers.append(made)
        return made

    def destroy(self) -> None:
        """Free the publishers."""
        for publisher in self._publishers:
            self._node.destroy_lifecycle_publisher(publisher)

    def has_subscribers(self) -> bool:
        """Return whether anybody listens to any of them."""
        return any(map(self._heard, self._publishers))

    def needs_depth(self) -> bool:
        """Return whether anybody listens to one that says where things, or all points, are."""
        return self._heard(self._scene_points) or self._tells_things()

    def _tells_things(self) -> bool:
        told = (self._segmentation, self._object_points, self._target)
        solid = self._vision.get('detections_3d')
        return any(map(self._heard, told)) or (solid is not None and self._heard(solid))

    def _heard(self, publisher: Publisher) -> bool:
        try:
            return publisher.get_subscription_count() > 0
        except RuntimeError:  # rclpy's RCLError is one
            if self._node.context.ok():
                raise
            return False  # after Ctrl-C nobody listens

    def message(
        self,
        frame: SyncedMessages | None,
        result: Segmentation,
        placed: LocalizedResult,
        tracked: TrackingState | None = None,
    ) -> SegmentationMessage:
        """Return what is said on segmentation; of no image the header is empty."""
        header = frame.image.header if frame else Header()
        return message_types.make.segmentation(
            header, result, placed.things, placed.reason, tracked
        )

    def localize(
        self,
        frame: SyncedMessages | None,
        result: Segmentation,
        image: np.ndarray | None = None,
        *,
        always: bool = False,
    ) -> LocalizedResult:
        """Return where a result's things are.

        Args:
            frame: that the result is about.
            result: what was found in it.
            image: the frame's, if it was converted already.
            always: even if nobody listens to a topic that says it.
        """
        nowhere = [None] * len(result.masks)
        if frame is None or not (nowhere or self._heard(self._scene_points)):
            return LocalizedResult(None, nowhere)
        try:
            space = rgbd.rgbd_from_messages(
                rgb_image(frame) if image is None else image,
                frame.image,
                frame.depth,
                frame.camera_info,
                rectified=self._settings().image_is_rectified,
            )
            if not (always or self._tells_things()):
                return LocalizedResult(space, nowhere)  # for the scene's points alone
            things = space.localize(result.masks, self._up(frame))
        except ImageError as error:
            if frame.depth is not None:  # without a depth camera it is no fault
                self._complain(f'no place in 3D: {error}')
            return LocalizedResult(None, nowhere, str(error))
        unseen = [number for number, thing in enumerate(things, 1) if thing is None]
        reason = f'no valid depth on instance {", ".join(map(str, unseen))}' if unseen else ''
        target, missing = self._target_of(frame, things)
        return LocalizedResult(space, things, '; '.join(filter(None, (reason, missing))), target)

    def publish_status(self, message: SegmentationMessage) -> None:
        """Publish a result about no picture."""
        self.publish_safely(self._segmentation, message)

    def publish_safely(self, publisher: Publisher, message: Any) -> None:
        """Publish a message; if DDS does not take it, complain, and lose no other one."""
        try:
            publisher.publish(message)
        except RuntimeError as error:  # rclpy's RCLError is one
            if self._node.context.ok():  # after Ctrl-C there is nobody to tell any more
                line = f'{publisher.topic_name} has lost a message: {error}'
                self._complain(line, f'lost on {publisher.topic_name}')

    def publish(
        self,
        frame: SyncedMessages,
        result: Segmentation,
        placed: LocalizedResult,
        message: Callable[[], SegmentationMessage],
        image: np.ndarray | None = None,
        note: str = '',
    ) -> None:
        """Publish a result about a frame on the topics that somebody listens to.

        Args:
            frame: that it is about.
            result: with masks of the frame's size.
            placed: what `place` says of it.
            message: makes what `message` says of it.
            image: the frame's, if it was converted already.
            note: to be written on the overlay, too.
        """
        header, make = frame.image.header, message_types.make
        self._put(self._segmentation, message)
        self._put(self._mask, lambda: make.label_image(header, result))
        self._put(self._confidence, lambda: make.confidence_image(header, result))
        self._put(self._overlay, lambda: self._draw(header, frame, result, image, note))
        if self._vision:
            self._put(self._vision['detections'], lambda: make.detections(header, result))
            self._put(
                self._vision['detections_3d'],
                lambda: make.detections_3d(header, result, placed.things),
            )
        space, things = placed.space, placed.things
        if space is not None:
            self._put(self._scene_points, lambda: make.cloud(header, space.cloud()))
            self._put(self._object_points, lambda: make.cloud(header, rgbd.objects_cloud(things)))
        if placed.target is not None:
            self._put(self._target, lambda: placed.target)

    def _put(self, publisher: Publisher, make: Callable[[], Any]) -> None:
        """Make a message and publish it, if somebody listens."""
        if self._heard(publisher):
            self.publish_safely(publisher, make())

    def _target_of(
        self, frame: SyncedMessages, things: Sequence[Object3D | None]
    ) -> tuple[PoseStamped | None, str]:
        """Return the pose of the first thing in target_frame, or why it is not known there."""
        thing = things[0] if things else None  # never another one in its place
        if thing is None:
            return None, ''
        there = message_types.make.target(frame.image.header, thing)
        try:
            return self._transforms.transform_pose(there, self._settings().target_frame), ''
        except TransformError as error:
            self._complain(f'no target: {error}', 'no target')
            return None, f'no target: {error}'

    def _up(self, frame: SyncedMessages) -> np.ndarray | None:
        """Return where up is in the image's frame, (3,); None where TF does not know."""
        frame_id = self._settings().gravity_frame
        if not frame_id:
            return None
        try:
            return self._transforms.gravity_direction(frame_id, frame.image.header)
        except TransformError as error:
            self._complain(f'where up is stays a guess: {error}', 'up')
            return None

    def _draw(
        self,
        header: Header,
        frame: SyncedMessages,
        result: Segmentation,
        image: np.ndarray | None,
        note: str,
    ) -> Image:
        settings = self._settings()
        drawn = overlay.overlay(
            rgb_image(frame) if image is None else image,
            result.masks,
            [f'{number}  {score:.2f}' for number, score in enumerate(result.scores, 1)],
            [result.query, ' '.join(filter(None, (result.answer or result.reason, note)))],
            opacity=settings.overlay_opacity,
            least_width=settings.overlay_width,
        )
        return message_types.make.image(header, image_fields(drawn, 'rgb8'))
