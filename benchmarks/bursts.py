# SPDX-License-Identifier: Apache-2.0
"""How many bursts of answers arrive at once, with the room that Fast DDS has and with ours.

    python benchmarks/bursts.py            # ROS_DOMAIN_ID picks the graph

A burst is what a node says on three topics about a dozen pictures: 36 masks of 320 x 240 pixels,
reliable, depth 10. Another process acknowledges the last one of each topic. What did not come
whole comes again when the writer's next heartbeat asks for it, in up to three seconds.
The receiver has the default in both rows (`lisa_ros/ros/fastdds.py` says why).
"""

from __future__ import annotations

import argparse
import array
import os
import subprocess
import sys
import time
from pathlib import Path

import rclpy
from rclpy.publisher import Publisher
from sensor_msgs.msg import Image
from std_msgs.msg import String
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))

from lisa_ros.ros import fastdds  # found by the line above

TOPICS, IMAGES, LATE = ('mask', 'confidence', 'segmentation'), 12, 1.0  # [s]


def receive() -> None:
    """Acknowledge every image."""
    rclpy.init()
    node = rclpy.create_node('receiver')
    told = node.create_publisher(String, 'told', 50)

    def listen(topic: str) -> None:
        def tell(message: Image) -> None:
            told.publish(String(data=f'{topic} {message.header.frame_id}'))

        node.create_subscription(Image, topic, tell, 10)

    for topic in TOPICS:
        listen(topic)
    rclpy.spin(node)


def send(bursts: int, room: bool) -> None:
    """Publish bursts and print how long they took, and how many of them came late."""
    if room and not fastdds.configure_shared_memory():
        raise SystemExit('transports are chosen by the environment already')
    rclpy.init()
    node = rclpy.create_node('sender')
    publishers = [node.create_publisher(Image, topic, 10) for topic in TOPICS]
    heard: list[str] = []
    node.create_subscription(String, 'told', lambda message: heard.append(message.data), 50)
    while not all(one.get_subscription_count() for one in publishers):
        rclpy.spin_once(node, timeout_sec=0.1)
    time.sleep(1)
    image = Image(height=240, width=320, encoding='mono8', step=320)
    image.data = array.array('B', bytes(image.height * image.step))
    spent, refused = [], 0
    for burst in tqdm(range(bursts), desc='with room' if room else 'default', unit='burst'):
        began = time.perf_counter()
        for number in range(IMAGES):
            image.header.frame_id = f'{burst} {number}'
            for publisher in publishers:
                refused += not _published(publisher, image)
        last = {f'{topic} {burst} {IMAGES - 1}' for topic in TOPICS}
        while not last <= set(heard) and time.perf_counter() < began + 30:
            rclpy.spin_once(node, timeout_sec=0.02)
        spent.append(time.perf_counter() - began)
        heard.clear()
    late = sum(one > LATE for one in spent)
    print(f'{sum(spent)} {late} {max(spent)} {refused}')


def _published(publisher: Publisher, image: Image) -> bool:
    try:
        publisher.publish(image)
    except RuntimeError:  # "cannot publish data": DDS has waited for room in vain
        return False
    return True


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument('--bursts', type=int, default=200)
    options.add_argument('--role', choices=('receive', 'default', 'room'), help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.role == 'receive':
        return receive()
    if given.role:
        return send(given.bursts, given.role == 'room')
    command = [sys.executable, __file__, '--bursts', str(given.bursts), '--role']
    took = {}
    print(f'{"":12}{"bursts":>8}{"late":>8}{"longest [s]":>14}{"all [s]":>10}{"refused":>10}')
    for role in ('default', 'room'):
        receiver = subprocess.Popen([*command, 'receive'])  # noqa: S603
        try:
            told = subprocess.run(  # noqa: S603
                [*command, role], stdout=subprocess.PIPE, text=True, check=True
            )
        finally:
            receiver.kill()
            receiver.wait()
        took[role], late, longest, refused = map(float, told.stdout.split())
        print(
            f'{role:12}{given.bursts:8}{late:8.0f}{longest:14.2f}{took[role]:10.1f}{refused:10.0f}'
        )
    print(f'with room in {took["room"] / took["default"]:.2f} of the time')
    return None


if __name__ == '__main__':
    if os.environ.get('RMW_IMPLEMENTATION', 'rmw_fastrtps_cpp') != 'rmw_fastrtps_cpp':
        raise SystemExit('this is about rmw_fastrtps_cpp')
    main()
