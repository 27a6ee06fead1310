# SPDX-License-Identifier: Apache-2.0
"""Convert results to messages and back, for classes of rclpy or rosbags; no ROS import.

Every message carries the header of the source image. Positions in 3D are metres in its frame.
Letters: N masks, H, W rows and columns of the image, M points. Any thread.
"""

from __future__ import annotations

import array
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np

from lisa_ros.errors import ImageError
from lisa_ros.geometry.object_3d import Object3D
from lisa_ros.geometry.oriented_box import Box
from lisa_ros.geometry.rotation import matrix_to_quaternion
from lisa_ros.messages.image import image_fields, image_to_rgb, mask_fields
from lisa_ros.messages.point_cloud import FLOAT32, POINT_FIELDS, point_cloud2_fields
from lisa_ros.perception import masks
from lisa_ros.perception.answer_phrases import object_names
from lisa_ros.perception.overlay import colour
from lisa_ros.results import Segmentation, Status
from lisa_ros.tracking.tracker import TrackingState

# Names of the values 0 to 16 of ~/mask: the background, then the objects in the order of the
# answer. There are few because Nav2's semantic layer logs an error for each name that is not
# configured; it ignores values without a name.
LABELS = ('background', *(f'target_{number}' for number in range(1, 17)))


_JPEG_OPTIONS = [cv2.IMWRITE_JPEG_QUALITY, 85]
_PNG_OPTIONS = [cv2.IMWRITE_PNG_COMPRESSION, 1]  # fast; masks become small all the same
_MIN_SIDE = 0.001  # of a box; viewers and planners refuse 0, as of a flat face [m]
_TEXT_HEIGHT = 0.03  # of a name [m]


class MessageType(Protocol):
    """A message class, or a function that creates a message."""

    def __call__(self, **fields: Any) -> Any:
        """Return a message with these fields; the others have their defaults."""


@dataclass(frozen=True)
class MessageFactory:
    """Creates messages of the given classes."""

    # a constructor for each name such as 'sensor_msgs/msg/Image'; it takes fields by keyword
    types: Mapping[str, MessageType]

    def image(self, header: Any, fields: dict[str, Any]) -> Any:
        """Return an Image with the fields of `image_fields` or `mask_fields`."""
        return self.types['sensor_msgs/msg/Image'](header=header, **fields)

    def cloud(self, header: Any, points: np.ndarray) -> Any:
        """Return a PointCloud2 of points (M, 4) or an organized cloud (H, W, 4): x, y, z, rgb."""
        make_field = self.types['sensor_msgs/msg/PointField']
        fields = [
            make_field(name=name, offset=offset, datatype=FLOAT32, count=1)
            for name, offset in POINT_FIELDS.items()
        ]
        make = self.types['sensor_msgs/msg/PointCloud2']
        return make(header=header, fields=fields, **point_cloud2_fields(points))

    def segmentation(
        self,
        header: Any,
        result: Segmentation,
        objects: Sequence[Object3D | None] = (),
        place_reason: str = '',
        tracked: TrackingState | None = None,
    ) -> Any:
        """Return a result as lisa_ros/msg/Segmentation.

        Args:
            header: of the source image; an empty header if there was no image.
            result: its first 254 masks become instances, numbered from 1 as in ~/mask.
            objects: the object of each mask in the header's frame, None if unknown; or empty.
            place_reason: why 3D positions are unknown; empty if all are known.
            tracked: the state of the tracker that the masks come from; None for an answer.
        """
        count = min(len(result.masks), masks.MAX_MASKS)
        objects, names = objects or [None] * count, object_names(result)
        return self.types['lisa_ros/msg/Segmentation'](
            header=header,
            query=result.query,
            answer=result.answer,
            answer_raw=result.answer_raw,
            status=int(result.status),
            reason=result.reason,
            instances=[
                self.instance(
                    header,
                    i + 1,
                    result.masks[i],
                    float(result.scores[i]),
                    objects[i],
                    name=names[i],
                    tracked=tracked is None or bool(tracked.tracked[i]),
                    drift=0.0 if tracked is None else float(tracked.drift[i]),
                )
                for i in range(count)
            ],
            place_reason=place_reason,
            age=0.0 if tracked is None else float(tracked.age),
            timings=[
                self.types['lisa_ros/msg/StageTime'](stage=stage, seconds=float(seconds))
                for stage, seconds in result.timings.items()
            ],
        )

    def instance(
        self,
        header: Any,
        number: int,
        mask: np.ndarray,
        score: float,
        located: Object3D | None = None,
        *,
        name: str = '',
        tracked: bool = True,
        drift: float = 0.0,
    ) -> Any:
        """Return one mask as lisa_ros/msg/Instance.

        Args:
            header: of the source image.
            number: of the mask in ~/mask, 1..254.
            mask: (H, W) bool; the message carries the part inside its bounding box.
            score: of the mask, 0..1.
            located: the object in the header's frame; None if unknown.
            name: of the object; empty while the answer is not complete.
            tracked: whether the tracker still sees the object.
            drift: of the tracker, 0..1.
        """
        x, y, width, height = masks.bounding_box(mask)
        cropped = mask[y : y + height, x : x + width]
        unknown = np.full(3, math.nan)
        box = located.box if located else Box(unknown, np.eye(3), unknown)
        return self.types['lisa_ros/msg/Instance'](
            id=number,
            name=name,
            score=score,
            image_height=mask.shape[0],
            image_width=mask.shape[1],
            box=self.types['sensor_msgs/msg/RegionOfInterest'](
                x_offset=x, y_offset=y, width=width, height=height, do_rectify=False
            ),
            area=masks.area(mask),
            mask=self.image(header, mask_fields(cropped)),
            centroid=self.point(located.centroid if located else unknown),
            box_pose=self.pose(box.centre, box.rotation),
            box_size=self._box_size(box),
            nearest=self.point(located.nearest if located else unknown),
            depth_confidence=located.confidence if located else 0.0,
            tracked=tracked,
            drift=drift,
        )

    def point(self, position: np.ndarray) -> Any:
        """Return a position, (3,) metres, as geometry_msgs/Point."""
        x, y, z = map(float, position)
        return self.types['geometry_msgs/msg/Point'](x=x, y=y, z=z)

    def vector(self, lengths: np.ndarray) -> Any:
        """Return lengths, (3,) metres, as geometry_msgs/Vector3."""
        x, y, z = map(float, lengths)
        return self.types['geometry_msgs/msg/Vector3'](x=x, y=y, z=z)

    def _box_size(self, box: Box) -> Any:
        return self.vector(np.maximum(box.extent, _MIN_SIDE))  # NaN stays

    def pose(self, position: np.ndarray, rotation: np.ndarray) -> Any:
        """Return a position, (3,) metres, and a (3, 3) rotation matrix as geometry_msgs/Pose."""
        x, y, z, w = matrix_to_quaternion(rotation)
        orientation = self.types['geometry_msgs/msg/Quaternion'](x=x, y=y, z=z, w=w)
        return self.types['geometry_msgs/msg/Pose'](
            position=self.point(position), orientation=orientation
        )

    def label_image(self, header: Any, result: Segmentation) -> Any:
        """Return all masks in one mono8 Image: 0 is the background, 1..254 the instance."""
        labels = masks.label_image(result.masks, result.mask_logits)
        return self.image(header, image_fields(labels, 'mono8'))

    def confidence_image(self, header: Any, result: Segmentation) -> Any:
        """Return the mask probability of each pixel as a mono8 Image: 0..255 for 0..1."""
        return self.image(
            header, image_fields(masks.confidence_image(result.mask_logits), 'mono8')
        )

    def compressed_image(self, header: Any, pixels: np.ndarray, file_format: str) -> Any:
        """Return pixels as sensor_msgs/CompressedImage, as image_transport compresses them.

        Args:
            header: of the source image.
            pixels: (H, W) uint8, or (H, W, 3) uint8 RGB.
            file_format: jpeg or png.
        """
        is_colour = pixels.ndim == 3
        options = _JPEG_OPTIONS if file_format == 'jpeg' else _PNG_OPTIONS
        _, encoded = cv2.imencode(
            f'.{file_format}', pixels[:, :, ::-1] if is_colour else pixels, options
        )
        return self.types['sensor_msgs/msg/CompressedImage'](
            header=header,
            format=f'rgb8; {file_format} compressed bgr8'
            if is_colour
            else f'mono8; {file_format} compressed ',
            data=array.array('B', encoded.tobytes()),
        )

    def target(self, header: Any, located: Object3D) -> Any:
        """Return an object as geometry_msgs/PoseStamped: centroid, and its longest axis as x."""
        pose = self.pose(located.centroid, located.axes)
        return self.types['geometry_msgs/msg/PoseStamped'](header=header, pose=pose)

    def detections(self, header: Any, result: Segmentation) -> Any:
        """Return the bounding boxes of the masks as vision_msgs/Detection2DArray [px]."""
        detections, names = [], object_names(result)
        for i, mask in enumerate(result.masks[: masks.MAX_MASKS]):
            x, y, width, height = masks.bounding_box(mask)
            if not width:
                continue  # an empty mask: the tracker has lost the object
            position = self.types['vision_msgs/msg/Point2D'](x=x + width / 2, y=y + height / 2)
            centre = self.types['vision_msgs/msg/Pose2D'](position=position, theta=0.0)
            detections.append(
                self.types['vision_msgs/msg/Detection2D'](
                    header=header,
                    id=str(i + 1),
                    results=[self._hypothesis(names[i], result.scores[i])],
                    bbox=self.types['vision_msgs/msg/BoundingBox2D'](
                        center=centre,
                        size_x=float(width),
                        size_y=float(height),
                    ),
                )
            )
        make_array = self.types['vision_msgs/msg/Detection2DArray']
        return make_array(header=header, detections=detections)

    def detections_3d(
        self, header: Any, result: Segmentation, objects: Sequence[Object3D | None]
    ) -> Any:
        """Return the boxes of the located objects as vision_msgs/Detection3DArray."""
        names = object_names(result)
        detections = [
            self.types['vision_msgs/msg/Detection3D'](
                header=header,
                id=str(i + 1),
                results=[self._hypothesis(names[i], result.scores[i], located)],
                bbox=self.types['vision_msgs/msg/BoundingBox3D'](
                    center=self.pose(located.box.centre, located.box.rotation),
                    size=self._box_size(located.box),
                ),
            )
            for i, located in enumerate(objects[: masks.MAX_MASKS])
            if located is not None
        ]
        make_array = self.types['vision_msgs/msg/Detection3DArray']
        return make_array(header=header, detections=detections)

    def markers(
        self, header: Any, result: Segmentation, objects: Sequence[Object3D | None]
    ) -> Any:
        """Return boxes and names of the located objects as visualization_msgs/MarkerArray.

        The first marker removes those of the answer before.
        """
        make, names = self.types['visualization_msgs/msg/Marker'], object_names(result)
        markers = [make(header=header, action=make.DELETEALL)]
        for i, located in enumerate(objects[: masks.MAX_MASKS]):
            if located is None:
                continue
            red, green, blue = (channel / 255 for channel in colour(i))
            common = {'header': header, 'id': i + 1, 'action': make.ADD}
            box = self.pose(located.box.centre, located.box.rotation)
            markers.append(
                make(
                    **common,
                    ns='boxes',
                    type=make.CUBE,
                    pose=box,
                    scale=self._box_size(located.box),
                    color=self.types['std_msgs/msg/ColorRGBA'](r=red, g=green, b=blue, a=0.4),
                )
            )
            markers.append(
                make(
                    **common,
                    ns='names',
                    type=make.TEXT_VIEW_FACING,
                    pose=box,
                    scale=self.vector(np.array([0.0, 0.0, _TEXT_HEIGHT])),
                    color=self.types['std_msgs/msg/ColorRGBA'](r=1.0, g=1.0, b=1.0, a=1.0),
                    text=f'{names[i]} {result.scores[i]:.2f}',
                )
            )
        return self.types['visualization_msgs/msg/MarkerArray'](markers=markers)

    def _hypothesis(self, name: str, score: float, located: Object3D | None = None) -> Any:
        """Return an object's name as class, its score and, if known, its pose."""
        hypothesis = self.types['vision_msgs/msg/ObjectHypothesisWithPose']()
        hypothesis.hypothesis.class_id = name
        hypothesis.hypothesis.score = float(score)
        if located is not None:
            hypothesis.pose.pose = self.pose(located.centroid, located.axes)
        return hypothesis

    def label_info(self, header: Any) -> Any:
        """Return the names of the values of ~/mask as vision_msgs/LabelInfo."""
        make_class = self.types['vision_msgs/msg/VisionClass']
        classes = [make_class(class_id=i, class_name=name) for i, name in enumerate(LABELS)]
        return self.types['vision_msgs/msg/LabelInfo'](
            header=header, class_map=classes, threshold=0.0
        )


def result_from_message(message: Any) -> Segmentation:
    """Return the result of a lisa_ros/msg/Segmentation; its masks have the size of the image.

    The message carries no logits and no details: the logits are plus or minus infinity here, and
    `details` is None.

    Raises:
        ImageError: a mask cannot be read, see `mask_from_message`; the images of the masks have
            different sizes; or the status is unknown.
    """
    _check_sizes_and_status(message)
    instance_masks = [mask_from_message(instance) for instance in message.instances]
    full_masks = np.stack(instance_masks) if instance_masks else np.zeros((0, 0, 0), bool)
    return Segmentation(
        query=message.query,
        answer=message.answer,
        answer_raw=message.answer_raw,
        masks=full_masks,
        mask_logits=np.where(full_masks, np.inf, -np.inf).astype(np.float32),
        scores=np.array([instance.score for instance in message.instances], np.float32),
        status=Status(message.status),
        reason=message.reason,
        timings={time.stage: float(time.seconds) for time in message.timings},
        names=tuple(instance.name for instance in message.instances),
    )


def _check_sizes_and_status(message: Any) -> None:
    """Check what `result_from_message` assumes about a lisa_ros/msg/Segmentation."""
    sizes = {(instance.image_width, instance.image_height) for instance in message.instances}
    if len(sizes) > 1:
        sizes_text = ', '.join(f'{width} x {height}' for width, height in sorted(sizes))
        raise ImageError(
            f'the instances of a Segmentation have images of {sizes_text} pixels; expected one '
            'size: the publishing node must set image_width and image_height of each instance'
        )
    if message.status not in set(Status):
        statuses = ', '.join(str(int(status)) for status in Status)
        raise ImageError(
            f'a Segmentation has the status {message.status}; expected one of {statuses}: build '
            'the publishing node and this one with the same lisa_ros'
        )


def mask_from_message(instance: Any) -> np.ndarray:
    """Return the full-size mask of a lisa_ros/msg/Instance, (image_height, image_width) bool.

    The message carries only the part inside the bounding box; it is pasted back here.

    Raises:
        ImageError: the mask is not a readable image of the size of the box, or the box does not
            lie in the image.
    """
    box, size = instance.box, (instance.image_height, instance.image_width)
    full = np.zeros(size, bool)
    if not box.width or not box.height:
        return full
    cropped = image_to_rgb(instance.mask)[:, :, 0] > 0
    window = full[box.y_offset : box.y_offset + box.height, box.x_offset :][:, : box.width]
    if not cropped.shape == window.shape == (box.height, box.width):
        raise ImageError(
            f'mask of {cropped.shape[1]} x {cropped.shape[0]} pixels, box of {box.width} x '
            f'{box.height} at ({box.x_offset}, {box.y_offset}), image of {size[1]} x {size[0]}: '
            'expected a mask of the size of its box, and a box inside the image'
        )
    window[:] = cropped
    return full
