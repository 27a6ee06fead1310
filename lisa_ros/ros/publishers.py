# SPDX-License-Identifier: Apache-2.0
"""The output topics of one camera; every message carries the header of its image.

A camera has the same topics twice: ~/mask and so on for answers, ~/tracked/mask and so on for the
masks that the tracker has moved to newer images. Messages that take time to build are built only
if their topic has a subscriber.

Threads: any. Answers come from the delivery thread, answers from memory from the executor's.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped
from rclpy.event_handler import PublisherEventCallbacks
from rclpy.lifecycle import LifecycleNode, LifecyclePublisher
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CompressedImage, Image, PointCloud2
from std_msgs.msg import Header, String

from lisa_ros.errors import ImageError, SettingsError, TransformError
from lisa_ros.geometry.object_3d import SCATTERED_DEPTH_CURE, Object3D
from lisa_ros.geometry.rgbd import is_valid_depth
from lisa_ros.health.outcomes import Outcomes
from lisa_ros.messages import rgbd
from lisa_ros.messages.image import image_fields
from lisa_ros.msg import Segmentation as SegmentationMessage
from lisa_ros.perception import masks, overlay
from lisa_ros.results import Segmentation
from lisa_ros.ros import message_types
from lisa_ros.ros.context import NodeContext
from lisa_ros.ros.image_decoder import rgb_image
from lisa_ros.ros.qos import COMMAND_QOS, creation_fault, latched_qos, output_qos_overrides
from lisa_ros.ros.transforms import stamped_header
from lisa_ros.session.frame_buffer import SyncedMessages
from lisa_ros.tracking.tracker import TrackingState

_POSITION = '3D position'
_SCATTERED_SHARE = 0.2  # of a mask with valid depth


def create_output(
    node: LifecycleNode, message_type: type, topic: str, qos: QoSProfile | int = 10
) -> LifecyclePublisher:
    """Return a lifecycle publisher whose QoS the user can override.

    Args:
        node: the publisher's.
        message_type: class of the messages.
        topic: its name, which may be relative.
        qos: default profile, or its depth.

    Raises:
        SettingsError: an override is not valid.
    """
    profile = copy.copy(qos)  # rclpy writes overrides into it
    try:
        return node.create_lifecycle_publisher(
            message_type,
            topic,
            profile,
            # The subscriber logs a QoS that does not fit. A handler of each output would cost the
            # executor time for each message of a camera.
            event_callbacks=PublisherEventCallbacks(use_default_callbacks=False),
            qos_overriding_options=output_qos_overrides(),
        )
    except Exception as error:  # rclpy has an exception type for each wrong override
        name = node.resolve_topic_name(topic)
        raise SettingsError(creation_fault('publisher', name, error)) from error


@dataclass(frozen=True)
class LocalizedResult:
    """The 3D positions of a result's objects, or why they are unknown."""

    rgbd_frame: rgbd.RgbdFrame | None
    objects: Sequence[Object3D | None]  # one for each mask
    reason: str = ''  # why a position or the target is unknown
    target: PoseStamped | None = None  # of the first object, in target_frame


class AnswerPublishers:
    """The publishers of one camera's answers, or of its tracked masks."""

    def __init__(self, context: NodeContext, prefix: str):
        """Make lifecycle publishers: they publish while the node is active.

        Args:
            context: the node, its settings and logs.
            prefix: of the topic names: ~/, ~/front/ or ~/front/tracked/.
        """
        self._node, self._context = context.node, context
        self._publishers: list[Publisher] = []
        self.positions = Outcomes()  # of 3D positions
        create = functools.partial(self._create, prefix)
        self._segmentation = create(SegmentationMessage, 'segmentation', COMMAND_QOS)
        self._mask = create(Image, 'mask')
        self._confidence = create(Image, 'confidence')
        self._overlay = create(Image, 'overlay')
        self._object_points = create(PointCloud2, 'object_points')
        self._scene_points = create(PointCloud2, 'scene_points')
        self._target = create(PoseStamped, 'target')
        self._compressed_mask = create(CompressedImage, 'mask/compressed')
        self._compressed_overlay = create(CompressedImage, 'overlay/compressed')
        self._markers = None
        if message_types.visualization is not None:
            self._markers = create(message_types.visualization.MarkerArray, 'markers')
        self._detections = self._detections_3d = None
        if message_types.vision is not None:
            vision = message_types.vision
            self._detections = create(vision.Detection2DArray, 'detections')
            self._detections_3d = create(vision.Detection3DArray, 'detections_3d')

    def _create(
        self, prefix: str, message_type: type, name: str, qos: QoSProfile | int = 10
    ) -> Publisher:
        publisher = create_output(self._node, message_type, prefix + name, qos)
        self._publishers.append(publisher)
        return publisher

    def destroy(self) -> None:
        """Free the publishers."""
        for publisher in self._publishers:
            self._node.destroy_lifecycle_publisher(publisher)

    # ---- subscribers

    def has_subscribers(self) -> bool:
        """Return whether any of the topics has a subscriber."""
        return any(map(self._is_subscribed, self._publishers))

    def needs_depth(self) -> bool:
        """Return whether any subscribed topic needs 3D positions."""
        return self._is_subscribed(self._scene_points) or self._needs_positions()

    def _needs_positions(self) -> bool:
        publishers = [self._segmentation, self._object_points, self._target]
        publishers += [item for item in (self._detections_3d, self._markers) if item is not None]
        return any(map(self._is_subscribed, publishers))

    def _is_subscribed(self, publisher: Publisher) -> bool:
        try:
            return publisher.get_subscription_count() > 0
        except RuntimeError:  # rclpy's RCLError is one
            if self._node.context.ok():
                raise
            return False  # ROS is shut down: no subscribers

    # ---- from a result to messages

    def localize(
        self,
        frame: SyncedMessages | None,
        result: Segmentation,
        image: np.ndarray | None = None,
        *,
        always: bool = False,
        lost: Collection[int] = (),
    ) -> LocalizedResult:
        """Return the 3D positions of a result's objects.

        Args:
            frame: the frame that the result is about.
            result: its masks have the frame's size.
            image: the frame's colour image, if it is decoded already, (H, W, 3) uint8 RGB.
            always: compute positions even if no topic with positions is subscribed.
            lost: numbers of instances without a mask, from 1: no position is expected of them.
        """
        unknown: list[Object3D | None] = [None] * len(result.masks)
        if frame is None or not (unknown or self._is_subscribed(self._scene_points)):
            return LocalizedResult(None, unknown)
        try:
            rgbd_frame = rgbd.rgbd_from_messages(
                self._rgb_image(frame) if image is None else image,
                frame.image,
                frame.depth,
                frame.camera_info,
                rectified=self._context.settings.value.image_is_rectified,
                max_pixels=self._context.settings.value.max_image_pixels,
                depth_gap=frame.depth_gap,
            )
            if not (always or self._needs_positions()):
                return LocalizedResult(rgbd_frame, unknown)  # only for ~/scene_points
            objects = rgbd_frame.localize(result.masks, self._gravity_direction(frame))
        except ImageError as error:
            if frame.depth is not None:  # without a depth camera this is expected
                self.positions.note(_POSITION, str(error))
                self._context.log.error(f'no 3D position: {error}')
            return LocalizedResult(None, unknown, str(error))
        self.positions.note(_POSITION)
        target, target_error = self._target_pose(frame, objects)
        missing = [
            number
            for number, located in enumerate(objects, 1)
            if located is None and number not in lost
        ]
        reasons = [*_missing_places(rgbd_frame.depth, result.masks, missing), target_error]
        return LocalizedResult(rgbd_frame, objects, '; '.join(filter(None, reasons)), target)

    def message(
        self,
        frame: SyncedMessages | None,
        result: Segmentation,
        localized: LocalizedResult,
        tracking_state: TrackingState | None = None,
    ) -> SegmentationMessage:
        """Return the message for ~/segmentation; without a frame its header is empty."""
        header = frame.image.header if frame else Header()
        return message_types.make.segmentation(
            header, result, localized.objects, localized.reason, tracking_state
        )

    # ---- publishing

    def publish_status(self, message: SegmentationMessage) -> None:
        """Publish the message of a result without masks, on ~/segmentation only."""
        self.publish_safely(self._segmentation, message)

    def publish_safely(self, publisher: Publisher, message: Any) -> None:
        """Publish a message; if DDS refuses it, log an error and continue."""
        try:
            publisher.publish(message)
        except RuntimeError as error:  # rclpy's RCLError is one
            if self._node.context.ok():  # else ROS is shut down, and the loss is expected
                line = f'{publisher.topic_name} has lost a message: {error}'
                self._context.log.error(line, f'lost on {publisher.topic_name}')

    def publish(
        self,
        frame: SyncedMessages,
        result: Segmentation,
        localized: LocalizedResult,
        message: Callable[[], SegmentationMessage],
        image: np.ndarray | None = None,
        note: str = '',
    ) -> None:
        """Publish a result on every topic that somebody subscribes to.

        Args:
            frame: the frame that the result is about.
            result: its masks have the frame's size.
            localized: what `localize` returned for it.
            message: builds the message for ~/segmentation.
            image: the frame's colour image, if it is decoded already, (H, W, 3) uint8 RGB.
            note: text drawn on the overlay after the answer.
        """
        header, make = frame.image.header, message_types.make
        self._publish_if_subscribed(self._segmentation, message)
        self._publish_image(
            header,
            (self._mask, self._compressed_mask),
            lambda: masks.label_image(result.masks, result.mask_logits),
            'png',
        )
        self._publish_if_subscribed(
            self._confidence, lambda: make.confidence_image(header, result)
        )
        self._publish_image(
            header,
            (self._overlay, self._compressed_overlay),
            lambda: self._drawn_overlay(frame, result, image, note),
            'jpeg',
        )
        self._publish_detections(header, result, localized.objects)
        self._publish_positions(header, localized)

    def _publish_image(
        self,
        header: Header,
        publishers: tuple[Publisher, Publisher],
        draw: Callable[[], np.ndarray],
        file_format: str,
    ) -> None:
        """Publish an image raw and compressed; it is drawn once, if one of them is subscribed.

        Args:
            header: of the source image.
            publishers: of the raw and of the compressed image.
            draw: returns the image, (H, W) uint8 or (H, W, 3) uint8 RGB.
            file_format: of the compressed image, jpeg or png.
        """
        raw, compressed = publishers
        wants_raw, wants_compressed = map(self._is_subscribed, publishers)
        if not (wants_raw or wants_compressed):
            return
        pixels, make = draw(), message_types.make
        if wants_raw:
            encoding = 'rgb8' if pixels.ndim == 3 else 'mono8'
            self.publish_safely(raw, make.image(header, image_fields(pixels, encoding)))
        if wants_compressed:
            self.publish_safely(compressed, make.compressed_image(header, pixels, file_format))

    def _publish_detections(
        self, header: Header, result: Segmentation, objects: Sequence[Object3D | None]
    ) -> None:
        make = message_types.make
        if self._detections is not None:
            self._publish_if_subscribed(self._detections, lambda: make.detections(header, result))
            self._publish_if_subscribed(
                self._detections_3d, lambda: make.detections_3d(header, result, objects)
            )
        if self._markers is not None:
            self._publish_if_subscribed(
                self._markers, lambda: make.markers(header, result, objects)
            )

    def _publish_positions(self, header: Header, localized: LocalizedResult) -> None:
        make, rgbd_frame = message_types.make, localized.rgbd_frame
        if rgbd_frame is not None:
            self._publish_if_subscribed(
                self._scene_points, lambda: make.cloud(header, rgbd_frame.cloud())
            )
        # empty without a place: who keeps the last cloud would take it for that of this answer
        self._publish_if_subscribed(
            self._object_points, lambda: make.cloud(header, rgbd.objects_cloud(localized.objects))
        )
        if localized.target is not None:
            self._publish_if_subscribed(self._target, lambda: localized.target)

    def _publish_if_subscribed(self, publisher: Publisher, make: Callable[[], Any]) -> None:
        if self._is_subscribed(publisher):
            self.publish_safely(publisher, make())

    def _target_pose(
        self, frame: SyncedMessages, objects: Sequence[Object3D | None]
    ) -> tuple[PoseStamped | None, str]:
        """Return the pose of the first object in target_frame, or why it is unknown there."""
        first = objects[0] if objects else None  # if its position is unknown, there is no target
        if first is None:
            return None, ''
        pose = message_types.make.target(stamped_header(frame), first)
        target_frame = self._context.settings.value.target_frame
        try:
            return self._context.transforms.transform_pose(pose, target_frame), ''
        except TransformError as error:
            self._context.log.error(f'no target: {error}', 'no target')
            return None, f'no target: {error}'

    def _gravity_direction(self, frame: SyncedMessages) -> np.ndarray | None:
        """Return the upward direction in the image's frame, (3,); None if TF does not know it."""
        gravity_frame = self._context.settings.value.gravity_frame
        if not gravity_frame:
            return None
        try:
            return self._context.transforms.gravity_direction(gravity_frame, stamped_header(frame))
        except TransformError as error:
            self._context.log.error(f'the upward direction is only estimated: {error}', 'up')
            return None

    def _rgb_image(self, frame: SyncedMessages) -> np.ndarray:
        return rgb_image(frame, self._context.settings.value.max_image_pixels)

    def _drawn_overlay(
        self, frame: SyncedMessages, result: Segmentation, image: np.ndarray | None, note: str
    ) -> np.ndarray:
        """Return the image with the masks and the text, (H, W, 3) uint8 RGB."""
        settings = self._context.settings.value
        return overlay.overlay(
            self._rgb_image(frame) if image is None else image,
            result.masks,
            [f'{number}  {score:.2f}' for number, score in enumerate(result.scores, 1)],
            [result.query, ' '.join(filter(None, (result.answer or result.reason, note)))],
            opacity=settings.overlay_opacity,
            min_width=settings.overlay_width,
        )


def _missing_places(depth: np.ndarray, masks: np.ndarray, missing: Sequence[int]) -> list[str]:
    """Return why instances have no 3D position, a text for each cause.

    Args:
        depth: (H, W) float32 metres.
        masks: (N, H, W) bool, of all instances.
        missing: numbers of the instances without a position, from 1.
    """
    numbers: dict[str, list[str]] = {}  # by cause
    for number in missing:
        valid = is_valid_depth(depth[masks[number - 1]])
        cause = 'no valid depth on instance {}'
        if valid.any():
            cause = 'the depth on instance {} is noise, and forms no surface'
            if valid.mean() < _SCATTERED_SHARE:
                cause = (
                    'valid depth on instance {} only at scattered pixels, which form no surface: '
                    f'{SCATTERED_DEPTH_CURE}'
                )
        numbers.setdefault(cause, []).append(str(number))
    return [cause.format(', '.join(instances)) for cause, instances in numbers.items()]


class CameraPublishers:
    """All publishers of one camera."""

    def __init__(self, context: NodeContext, prefix: str):
        """Make all publishers; `prefix` of the topic names is ~/ or ~/front/."""
        self._node = context.node
        self.answers = AnswerPublishers(context, prefix)
        self.tracked = AnswerPublishers(context, f'{prefix}tracked/')
        create = functools.partial(create_output, self._node)
        self._explanation = create(String, f'{prefix}explanation')
        self._label_info = None
        if message_types.vision is not None:
            label_info = message_types.vision.LabelInfo
            self._label_info = create(label_info, f'{prefix}label_info', latched_qos())

    def destroy(self) -> None:
        """Free the publishers."""
        self.answers.destroy()
        self.tracked.destroy()
        for publisher in (self._explanation, self._label_info):
            if publisher is not None:
                self._node.destroy_lifecycle_publisher(publisher)

    def publish_label_info(self) -> None:
        """Publish the names of the values of ~/mask; the message is latched."""
        if self._label_info is not None:
            header = Header(stamp=self._node.get_clock().now().to_msg())
            self._label_info.publish(message_types.make.label_info(header))

    def publish_explanation(self, text: str) -> None:
        """Publish the text of an answer on ~/explanation."""
        self.answers.publish_safely(self._explanation, String(data=text))
