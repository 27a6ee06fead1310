# SPDX-License-Identifier: Apache-2.0
"""Results to messages of rclpy, see lisa_ros/messages/segmentation.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from geometry_msgs.msg import Point, Pose, PoseStamped, Quaternion, Vector3
from sensor_msgs.msg import Image, PointCloud2, PointField, RegionOfInterest
from std_msgs.msg import Header

from lisa_ros.messages.segmentation import MessageFactory
from lisa_ros.msg import Instance, Segmentation

try:
    import vision_msgs.msg as vision
except ImportError:  # not in every install: then there are no detections and no label_info
    vision = None

_TYPES = (
    *(Point, Pose, PoseStamped, Quaternion, Vector3),
    *(Image, PointCloud2, PointField, RegionOfInterest),
    *(Instance, Segmentation),
)
_VISION = (
    *('BoundingBox2D', 'BoundingBox3D', 'Detection2D', 'Detection2DArray', 'Detection3D'),
    *('Detection3DArray', 'LabelInfo', 'ObjectHypothesisWithPose', 'Point2D', 'Pose2D'),
    'VisionClass',
)


def _named(kind: Any) -> str:
    """Return a type's name as sensor_msgs/msg/Image."""
    return f'{kind.__module__.split(".")[0]}/msg/{kind.__name__}'


def _quickly(kind: Any) -> Callable[..., Any]:
    """Return a constructor that does not check `data` byte by byte (common_interfaces#176)."""

    def made(data: Any, **fields: Any) -> Any:
        message = kind(**fields)
        message.data = data
        return message

    return made


make = MessageFactory(
    {_named(kind): kind for kind in _TYPES}
    | {_named(kind): _quickly(kind) for kind in (Image, PointCloud2)}
    | {f'vision_msgs/msg/{name}': getattr(vision, name) for name in (_VISION if vision else ())}
)


def stamp_ns(header: Header) -> int:
    """Return a header's stamp as an integer [ns]."""
    return header.stamp.sec * 1_000_000_000 + header.stamp.nanosec
