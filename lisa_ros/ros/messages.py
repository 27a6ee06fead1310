# SPDX-License-Identifier: Apache-2.0
"""Results to messages, field by field. Every message carries the source image's header."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from geometry_msgs.msg import Point
from sensor_msgs.msg import Image, RegionOfInterest
from std_msgs.msg import Header

from lisa_ros import masks
from lisa_ros.conversions import image_fields, mask_fields
from lisa_ros.msg import Instance as InstanceMessage
from lisa_ros.msg import Segmentation as SegmentationMessage
from lisa_ros.results import Segmentation


def stamp_ns(header: Header) -> int:
    """Return a header's stamp as an integer [ns]."""
    return header.stamp.sec * 1_000_000_000 + header.stamp.nanosec


def image(header: Header, fields: dict[str, Any]) -> Image:
    """Return the fields of `conversions.image_fields` as an Image."""
    return Image(header=header, **fields)


def segmentation(
    header: Header, result: Segmentation, centroids: Sequence[np.ndarray | None]
) -> SegmentationMessage:
    """Return a result as lisa_ros/msg/Segmentation.

    Args:
        header: of the source image; an empty one if there was no image yet.
        result: its first 254 masks become instances, numbered from 1 as in ~/mask.
        centroids: for each mask (3,) metres in the header's frame, or None where unknown.
    """
    return SegmentationMessage(
        header=header,
        query=result.query,
        answer=result.answer,
        answer_raw=result.answer_raw,
        status=int(result.status),
        reason=result.reason,
        instances=[
            _instance(header, number, mask, float(score), centroid)
            for number, (mask, score, centroid) in enumerate(
                zip(result.masks[:254], result.scores[:254], centroids[:254], strict=True), 1
            )
        ],
        stages=list(result.timings),
        seconds=[float(seconds) for seconds in result.timings.values()],
    )


def _instance(
    header: Header, number: int, mask: np.ndarray, score: float, centroid: np.ndarray | None
) -> InstanceMessage:
    x, y, width, height = masks.box(mask)
    nowhere = (math.nan, math.nan, math.nan)
    px, py, pz = nowhere if centroid is None else (float(value) for value in centroid)
    return InstanceMessage(
        id=number,
        score=score,
        box=RegionOfInterest(x_offset=x, y_offset=y, width=width, height=height),
        area=masks.area(mask),
        mask=image(header, mask_fields(mask)),
        centroid=Point(x=px, y=py, z=pz),
    )


def label_image(header: Header, result: Segmentation) -> Image:
    """Return all masks in one mono8 Image: 0 background, 1..254 the instance."""
    return image(
        header, image_fields(masks.label_image(result.masks, result.mask_logits), 'mono8')
    )


def confidence_image(header: Header, result: Segmentation) -> Image:
    """Return how sure the model is of each pixel as a mono8 Image, 0..255."""
    return image(header, image_fields(masks.confidence_image(result.mask_logits), 'mono8'))
