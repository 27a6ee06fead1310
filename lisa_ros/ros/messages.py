# SPDX-License-Identifier: Apache-2.0
"""Results to messages of rclpy, see lisa_ros/messages.py."""

from __future__ import annotations

from geometry_msgs.msg import Point
from sensor_msgs.msg import Image, RegionOfInterest
from std_msgs.msg import Header

from lisa_ros.messages import Messages
from lisa_ros.msg import Instance, Segmentation

_make = Messages(
    {
        'geometry_msgs/msg/Point': Point,
        'lisa_ros/msg/Instance': Instance,
        'lisa_ros/msg/Segmentation': Segmentation,
        'sensor_msgs/msg/Image': Image,
        'sensor_msgs/msg/RegionOfInterest': RegionOfInterest,
    }
)
image, segmentation, instance = _make.image, _make.segmentation, _make.instance
label_image, confidence_image = _make.label_image, _make.confidence_image


def stamp_ns(header: Header) -> int:
    """Return a header's stamp as an integer [ns]."""
    return header.stamp.sec * 1_000_000_000 + header.stamp.nanosec
