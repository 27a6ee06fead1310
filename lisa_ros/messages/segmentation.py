# SPDX-License-Identifier: Apache-2.0
"""Results to messages and back, field by field, of whatever make: rclpy's or those of rosbags.

Every message carries the source image's header.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lisa_ros.geometry import rgbd
from lisa_ros.geometry.object_3d import Object3D
from lisa_ros.geometry.rotation import matrix_to_quaternion
from lisa_ros.messages.image import image_fields, image_to_rgb, mask_fields
from lisa_ros.perception import masks
from lisa_ros.results import Segmentation, Status
from lisa_ros.tracking.tracker import TrackingState

# What the values of ~/mask are called: the background, then the answer's things in their order. Of
# more things than have a name Nav2's layer takes no notice; and it logs an error for every name
# that its user has not configured, so they are few.
LABELS = ('background', *(f'target_{number}' for number in range(1, 17)))


@dataclass(frozen=True)
class MessageFactory:
    """Makes messages of given types."""

    types: Mapping[str, Callable[..., Any]]  # by name, as sensor_msgs/msg/Image; fields by name

    def image(self, header: Any, fields: dict[str, Any]) -> Any:
        """Return the fields of `conversions.image_fields` as an Image."""
        return self.types['sensor_msgs/msg/Image'](header=header, **fields)

    def cloud(self, header: Any, points: np.ndarray) -> Any:
        """Return (M, 4) or organized (H, W, 4) points of `clouds` as a PointCloud2."""
        field = self.types['sensor_msgs/msg/PointField']
        fields = [
            field(name=name, offset=offset, datatype=rgbd.FLOAT32, count=1)
            for name, offset in rgbd.FIELDS.items()
        ]
        make = self.types['sensor_msgs/msg/PointCloud2']
        return make(header=header, fields=fields, **rgbd.point_cloud2_fields(points))

    def segmentation(
        self,
        header: Any,
        result: Segmentation,
        things: Sequence[Object3D | None] = (),
        place_reason: str = '',
        tracked: TrackingState | None = None,
    ) -> Any:
        """Return a result as lisa_ros/msg/Segmentation.

        Args:
            header: of the source image; an empty one if there was no image yet.
            result: its first 254 masks become instances, numbered from 1 as in ~/mask.
            things: for each mask its place in the header's frame, None where unknown; or nothing.
            place_reason: why places are unknown.
            tracked: what the result's masks were carried to, if they were.
        """
        count = min(len(result.masks), 254)
        things = things or [None] * count
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
                    things[i],
                    tracked=tracked is None or bool(tracked.tracked[i]),
                    drift=0.0 if tracked is None else float(tracked.drift[i]),
                )
                for i in range(count)
            ],
            place_reason=place_reason,
            age=0.0 if tracked is None else float(tracked.age),
            stages=list(result.timings),
            seconds=[float(seconds) for seconds in result.timings.values()],
        )

    def instance(
        self,
        header: Any,
        number: int,
        mask: np.ndarray,
        score: float,
        thing: Object3D | None = None,
        *,
        tracked: bool = True,
        drift: float = 0.0,
    ) -> Any:
        """Return one mask, (H, W) bool, as lisa_ros/msg/Instance; the rest as `segmentation`."""
        x, y, width, height = masks.bounding_box(mask)
        nowhere = np.full(3, math.nan)
        return self.types['lisa_ros/msg/Instance'](
            id=number,
            score=score,
            box=self.types['sensor_msgs/msg/RegionOfInterest'](
                x_offset=x, y_offset=y, width=width, height=height, do_rectify=False
            ),
            area=masks.area(mask),
            mask=self.image(header, mask_fields(mask)),
            centroid=self.point(thing.centroid if thing else nowhere),
            box_pose=self.pose(
                *((thing.box.centre, thing.box.rotation) if thing else (nowhere, np.eye(3)))
            ),
            box_size=self.vector(thing.box.extent if thing else nowhere),
            nearest=self.point(thing.nearest if thing else nowhere),
            depth_confidence=thing.confidence if thing else 0.0,
            tracked=tracked,
            drift=drift,
        )

    def point(self, position: np.ndarray) -> Any:
        """Return (3,) metres as geometry_msgs/Point."""
        x, y, z = map(float, position)
        return self.types['geometry_msgs/msg/Point'](x=x, y=y, z=z)

    def vector(self, lengths: np.ndarray) -> Any:
        """Return (3,) metres as geometry_msgs/Vector3."""
        x, y, z = map(float, lengths)
        return self.types['geometry_msgs/msg/Vector3'](x=x, y=y, z=z)

    def pose(self, position: np.ndarray, rotation: np.ndarray) -> Any:
        """Return (3,) metres and (3, 3), whose columns are the axes, as geometry_msgs/Pose."""
        x, y, z, w = matrix_to_quaternion(rotation)
        turned = self.types['geometry_msgs/msg/Quaternion'](x=x, y=y, z=z, w=w)
        return self.types['geometry_msgs/msg/Pose'](
            position=self.point(position), orientation=turned
        )

    def label_image(self, header: Any, result: Segmentation) -> Any:
        """Return all masks in one mono8 Image: 0 background, 1..254 the instance."""
        labels = masks.label_image(result.masks, result.mask_logits)
        return self.image(header, image_fields(labels, 'mono8'))

    def confidence_image(self, header: Any, result: Segmentation) -> Any:
        """Return how sure the model is of each pixel as a mono8 Image, 0..255."""
        return self.image(
            header, image_fields(masks.confidence_image(result.mask_logits), 'mono8')
        )

    def target(self, header: Any, thing: Object3D) -> Any:
        """Return centroid and principal axes, the longest as x, as geometry_msgs/PoseStamped."""
        make = self.types['geometry_msgs/msg/PoseStamped']
        return make(header=header, pose=self.pose(thing.centroid, thing.axes))

    def detections(self, header: Any, result: Segmentation) -> Any:
        """Return the masks' boxes as vision_msgs/Detection2DArray [pixels of the image]."""
        found = []
        for i, mask in enumerate(result.masks[:254]):
            x, y, width, height = masks.bounding_box(mask)
            if not width:
                continue  # lost by the tracker
            middle = self.types['vision_msgs/msg/Point2D'](x=x + width / 2, y=y + height / 2)
            centre = self.types['vision_msgs/msg/Pose2D'](position=middle, theta=0.0)
            found.append(
                self.types['vision_msgs/msg/Detection2D'](
                    header=header,
                    id=str(i + 1),
                    results=[self._hypothesis(i, result)],
                    bbox=self.types['vision_msgs/msg/BoundingBox2D'](
                        center=centre,
                        size_x=float(width),
                        size_y=float(height),
                    ),
                )
            )
        make = self.types['vision_msgs/msg/Detection2DArray']
        return make(header=header, detections=found)

    def detections_3d(
        self, header: Any, result: Segmentation, things: Sequence[Object3D | None]
    ) -> Any:
        """Return the boxes of the things whose place is known as vision_msgs/Detection3DArray."""
        make = self.types['vision_msgs/msg/Detection3DArray']
        found = [
            self.types['vision_msgs/msg/Detection3D'](
                header=header,
                id=str(i + 1),
                results=[self._hypothesis(i, result, thing)],
                bbox=self.types['vision_msgs/msg/BoundingBox3D'](
                    center=self.pose(thing.box.centre, thing.box.rotation),
                    size=self.vector(thing.box.extent),
                ),
            )
            for i, thing in enumerate(things[:254])
            if thing is not None
        ]
        return make(header=header, detections=found)

    def _hypothesis(self, index: int, result: Segmentation, thing: Object3D | None = None) -> Any:
        """Return class (as ~/label_info names the mask's number), score and, if known, pose."""
        made = self.types['vision_msgs/msg/ObjectHypothesisWithPose']()
        number = index + 1
        made.hypothesis.class_id = LABELS[number] if number < len(LABELS) else f'target_{number}'
        made.hypothesis.score = float(result.scores[index])
        if thing is not None:
            made.pose.pose = self.pose(thing.centroid, thing.axes)
        return made

    def label_info(self, header: Any) -> Any:
        """Return what the values of ~/mask are as vision_msgs/LabelInfo."""
        one = self.types['vision_msgs/msg/VisionClass']
        names = [one(class_id=i, class_name=name) for i, name in enumerate(LABELS)]
        return self.types['vision_msgs/msg/LabelInfo'](
            header=header, class_map=names, threshold=0.0
        )


def result_from_message(message: Any) -> Segmentation:
    """Return the result that a lisa_ros/msg/Segmentation tells.

    Of logits only the sign travels: they are infinite here. Tokens and evidence do not travel.
    """
    found = [mask_from_message(instance.mask) for instance in message.instances]
    together = np.stack(found) if found else np.zeros((0, 0, 0), bool)
    return Segmentation(
        query=message.query,
        answer=message.answer,
        answer_raw=message.answer_raw,
        token_ids=(),
        masks=together,
        mask_logits=np.where(together, np.inf, -np.inf).astype(np.float32),
        scores=np.array([instance.score for instance in message.instances], np.float32),
        status=Status(message.status),
        reason=message.reason,
        timings=dict(zip(message.stages, map(float, message.seconds), strict=True)),
    )


def mask_from_message(image: Any) -> np.ndarray:
    """Return the mask of an Instance, (H, W) bool.

    Raises:
        ImageError: it is no image that can be read.
    """
    return image_to_rgb(image)[:, :, 0] > 0
