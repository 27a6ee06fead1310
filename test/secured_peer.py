# SPDX-License-Identifier: Apache-2.0
"""A node for the tests of DDS security: python secured_peer.py ROLE --ros-args --enclave NAME.

camera: publishes an image ten times a second.
client: asks again and again, and prints each query that was answered, with its number of masks.
intruder:NODE:QUERY: tries for five seconds to command and to read; prints what it could do.
"""

import json
import sys
import time

import numpy as np
import rclpy
from lisa_ros.action import Segment
from lisa_ros.msg import Segmentation
from rclpy.action import ActionClient
from rclpy.executors import ExternalShutdownException
from rclpy.qos import qos_profile_sensor_data
from ros_graph import image
from sensor_msgs.msg import Image
from std_msgs.msg import String
from std_srvs.srv import Trigger

TRY_SECONDS = 5.0


def say(**values):
    print(json.dumps(values), flush=True)


def camera():
    node = rclpy.create_node('camera')
    publisher = node.create_publisher(Image, 'image', qos_profile_sensor_data)
    pixels = np.full((48, 64, 3), 90, np.uint8)

    def publish():
        stamp = node.get_clock().now().to_msg()
        publisher.publish(image(pixels, stamp=(stamp.sec, stamp.nanosec)))

    node.create_timer(0.1, publish)
    rclpy.spin(node)


def client():
    node = rclpy.create_node('client')
    commands = node.create_publisher(String, 'lisa/command', 10)
    node.create_subscription(
        Segmentation, 'lisa/segmentation', lambda message: say(answered=message.query), 10
    )
    node.create_subscription(Image, 'lisa/mask', lambda message: say(mask=message.width), 10)
    node.create_timer(1.0, lambda: commands.publish(String(data='the client asks')))
    rclpy.spin(node)


def attempt(results, name, create):
    """Note whether a publisher, subscription or client could be created."""
    try:
        created = create()
    except Exception as error:  # noqa: BLE001  # rclpy has many
        results[name] = f'refused: {type(error).__name__}'
        return None
    results[name] = 'created'
    return created


def intruder(name, query):
    results, received = {}, []
    node = rclpy.create_node(name)
    commands = attempt(
        results, 'command', lambda: node.create_publisher(String, '/lisa/command', 10)
    )
    for topic, kind in (('segmentation', Segmentation), ('mask', Image)):
        attempt(
            results,
            topic,
            lambda topic=topic, kind=kind: node.create_subscription(
                kind, f'/lisa/{topic}', received.append, 10
            ),
        )
    action = attempt(results, 'segment', lambda: ActionClient(node, Segment, '/lisa/segment'))
    stop = attempt(results, 'stop', lambda: node.create_client(Trigger, '/lisa/stop'))
    end = time.monotonic() + TRY_SECONDS
    goal = Segment.Goal(query=query)
    sent = False
    while time.monotonic() < end:
        if commands:
            commands.publish(String(data=query))
        if action and action.server_is_ready() and not sent:
            action.send_goal_async(goal)
            sent = True
        rclpy.spin_once(node, timeout_sec=0.2)
    say(
        **results,
        received=len(received),
        sees_action=bool(action and action.server_is_ready()),
        sees_stop=bool(stop and stop.service_is_ready()),
        sees_subscribers=commands.get_subscription_count() if commands else 0,
    )


def main():
    rclpy.init()
    role, *name = sys.argv[1].split(':')
    try:
        {'camera': camera, 'client': client, 'intruder': intruder}[role](*name)
    except (KeyboardInterrupt, ExternalShutdownException):
        return


if __name__ == '__main__':
    main()
