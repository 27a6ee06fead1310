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

from lisa_ros import masks
from lisa_ros.conversions import image_fields, image_to_rgb, mask_fields
from lisa_ros.results import Segmentation, Status


@dataclass(frozen=True)
class Messages:
    """Makes messages of given types."""

    types: Mapping[str, Callable[..., Any]]  # by name, as sensor_msgs/msg/Image; fields by name

    def image(self, header: Any, fields: dict[str, Any]) -> Any:
        """Return the fields of `conversions.image_fields` as an Image."""
        return self.types['sensor_msgs/msg/Image'](header=header, **fields)

    def segmentation(
        self, header: Any, result: Segmentation, centroids: Sequence[np.ndarray | None]
    ) -> Any:
        """Return a result as lisa_ros/msg/Segmentation.

        Args:
            header: of the source image; an empty one if there was no image yet.
            result: its first 254 masks become instances, numbered from 1 as in ~/mask.
            centroids: for each mask (3,) metres in the header's frame, or None where unknown.
        """
        return self.types['lisa_ros/msg/Segmentation'](
            header=header,
            query=result.query,
            answer=result.answer,
            answer_raw=result.answer_raw,
            status=int(result.status),
            reason=result.reason,
            instances=[
                self.instance(header, number, mask, float(score), centroid)
                for number, (mask, score, centroid) in enumerate(
                    zip(result.masks[:254], result.scores[:254], centroids[:254], strict=True), 1
                )
            ],
            stages=list(result.timings),
            seconds=[float(seconds) for seconds in result.timings.values()],
        )

    def instance(
        self, header: Any, number: int, mask: np.ndarray, score: float, centroid: np.ndarray | None
    ) -> Any:
        """Return one mask, (H, W) bool, as lisa_ros/msg/Instance; the rest as `segmentation`."""
        x, y, width, height = masks.box(mask)
        nowhere = (math.nan, math.nan, math.nan)
        px, py, pz = nowhere if centroid is None else (float(value) for value in centroid)
        return self.types['lisa_ros/msg/Instance'](
            id=number,
            score=score,
            box=self.types['sensor_msgs/msg/RegionOfInterest'](
                x_offset=x, y_offset=y, width=width, height=height, do_rectify=False
            ),
            area=masks.area(mask),
            mask=self.image(header, mask_fields(mask)),
            centroid=self.types['geometry_msgs/msg/Point'](x=px, y=py, z=pz),
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


def result_of(message: Any) -> Segmentation:
    """Return the result that a lisa_ros/msg/Segmentation tells.

    Of logits only the sign travels: they are infinite here. Tokens and evidence do not travel.
    """
    found = [mask_of(instance.mask) for instance in message.instances]
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


def mask_of(image: Any) -> np.ndarray:
    """Return the mask of an Instance, (H, W) bool.

    Raises:
        ImageError: it is no image that can be read.
    """
    return image_to_rgb(image)[:, :, 0] > 0
