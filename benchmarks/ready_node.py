# SPDX-License-Identifier: Apache-2.0
"""The least that a node in Python takes: a subscriber that answers with ready messages.

    python benchmarks/ready_node.py [--width 1280 --height 720]

To each command it publishes messages with the sizes of an answer, which it made at its start. It
looks at no image, has no model, and is no lifecycle node. `node_latency.py` measures it beside
the node.
"""

from __future__ import annotations

import argparse
import array
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import rclpy
from lisa_ros.msg import Instance, Segmentation, StageTime
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from sensor_msgs.msg import Image
from std_msgs.msg import String

from lisa_ros import native_settings
from lisa_ros.ros import fastdds
from lisa_ros.ros.qos import COMMAND_QOS, sensor_qos


def grey_image(width: int, height: int) -> Image:
    """Return a black mono8 Image."""
    data = array.array('B', bytes(width * height))
    return Image(height=height, width=width, step=width, encoding='mono8', data=data)


def main() -> None:
    """Run until SIGINT."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--width', type=int, default=1280, help='[px] (default: 1280)')
    parser.add_argument('--height', type=int, default=720, help='[px] (default: 720)')
    options = parser.parse_args()
    native_settings.apply()
    fastdds.configure_shared_memory()
    rclpy.init()
    node = Node('lisa')
    whole = grey_image(options.width, options.height)
    instance = Instance(mask=grey_image(options.width // 2, options.height // 2))
    answer = Segmentation(
        status=Segmentation.FOUND, instances=[instance], timings=[StageTime(stage='model')]
    )
    outputs = [
        (node.create_publisher(Segmentation, '~/segmentation', COMMAND_QOS), answer),
        (node.create_publisher(Image, '~/mask', 10), whole),
        (node.create_publisher(Image, '~/confidence', 10), whole),
    ]

    def answer_command(command: String) -> None:
        for publisher, message in outputs:
            publisher.publish(message)

    node.create_subscription(Image, 'image', lambda message: None, sensor_qos())
    node.create_subscription(String, '~/command', answer_command, COMMAND_QOS)
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        rclpy.try_shutdown()


if __name__ == '__main__':
    main()
