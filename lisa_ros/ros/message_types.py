# SPDX-License-Identifier: Apache-2.0
"""Message classes of rclpy for the factory in lisa_ros/messages/segmentation.py."""

from __future__ import annotations

import array
from typing import Any

from geometry_msgs.msg import Point, Pose, PoseStamped, Quaternion, Vector3
from sensor_msgs.msg import CompressedImage, Image, PointCloud2, PointField, RegionOfInterest
from std_msgs.msg import ColorRGBA

from lisa_ros.messages.segmentation import MessageFactory, MessageType
from lisa_ros.msg import Instance, Segmentation, StageTime

try:
    import vision_msgs.msg as vision
except ImportError:  # optional package: without it no detections and no label_info
    vision = None

try:
    import visualization_msgs.msg as visualization
except ImportError:  # optional package: without it no markers
    visualization = None

_TYPES = (
    *(Point, Pose, PoseStamped, Quaternion, Vector3, ColorRGBA),
    *(Image, PointCloud2, PointField, RegionOfInterest),
    *(Instance, Segmentation, StageTime),
)
_VISION = (
    *('BoundingBox2D', 'BoundingBox3D', 'Detection2D', 'Detection2DArray', 'Detection3D'),
    *('Detection3DArray', 'LabelInfo', 'ObjectHypothesisWithPose', 'Point2D', 'Pose2D'),
    'VisionClass',
)
_VISUALIZATION = ('Marker', 'MarkerArray')


def type_name(message_class: type) -> str:
    """Return the name of a message class, such as sensor_msgs/msg/Image."""
    return f'{message_class.__module__.split(".")[0]}/msg/{message_class.__name__}'


def _without_data_check(message_class: type) -> MessageType:
    """Return a constructor that does not check `data` byte by byte (common_interfaces#176)."""

    def make_message(data: array.array, **fields: Any) -> Any:
        message = message_class(**fields)
        message.data = data
        return message

    return make_message


make = MessageFactory(
    {type_name(message_class): message_class for message_class in _TYPES}
    | {
        type_name(large): _without_data_check(large)
        for large in (Image, CompressedImage, PointCloud2)
    }
    | {f'vision_msgs/msg/{name}': getattr(vision, name) for name in (_VISION if vision else ())}
    | {
        f'visualization_msgs/msg/{name}': getattr(visualization, name)
        for name in (_VISUALIZATION if visualization else ())
    }
)
