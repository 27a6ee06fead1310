# SPDX-License-Identifier: Apache-2.0
"""Measure how many bursts of answers arrive at once, with Fast DDS' shared memory and with ours.

    python benchmarks/bursts.py            # ROS_DOMAIN_ID picks the graph

A burst is what a node publishes on three topics about a dozen images: 36 masks of 320 x 240
pixels, reliable, depth 10. Another process acknowledges the last one of each topic. Messages
that did not arrive whole are sent again when the writer's next heartbeat asks for them, up to
three seconds later. The receiver uses the default in both rows (`lisa_ros/ros/fastdds.py` says
why).
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

TOPICS, IMAGES = ('mask', 'confidence', 'segmentation'), 12
LATE, GIVE_UP = 1.0, 30.0  # seconds from the start of a burst


def receive() -> None:
    """Acknowledge every image."""
    rclpy.init()
    node = rclpy.create_node('receiver')
    acknowledgements = node.create_publisher(String, 'acknowledgements', 50)

    def subscribe(topic: str) -> None:
        def acknowledge(message: Image) -> None:
            acknowledgements.publish(String(data=f'{topic} {message.header.frame_id}'))

        node.create_subscription(Image, topic, acknowledge, 10)

    for topic in TOPICS:
        subscribe(topic)
    rclpy.spin(node)


def send(bursts: int, has_profile: bool) -> None:
    """Publish bursts; print their total time, how many were late, the longest, and refusals."""
    if has_profile and not fastdds.configure_shared_memory():
        raise SystemExit('the environment configures transports already: unset its variables')
    rclpy.init()
    node = rclpy.create_node('sender')
    publishers = [node.create_publisher(Image, topic, 10) for topic in TOPICS]
    acknowledged: list[str] = []
    node.create_subscription(
        String, 'acknowledgements', lambda message: acknowledged.append(message.data), 50
    )
    while not all(publisher.get_subscription_count() for publisher in publishers):
        rclpy.spin_once(node, timeout_sec=0.1)
    time.sleep(1)
    image = Image(height=240, width=320, encoding='mono8', step=320)
    image.data = array.array('B', bytes(image.height * image.step))
    seconds, refused = [], 0
    for burst in tqdm(range(bursts), desc='profile' if has_profile else 'default', unit='burst'):
        start = time.perf_counter()
        for number in range(IMAGES):
            image.header.frame_id = f'{burst} {number}'
            for publisher in publishers:
                refused += not _publish(publisher, image)
        last = {f'{topic} {burst} {IMAGES - 1}' for topic in TOPICS}
        while not last <= set(acknowledged) and time.perf_counter() < start + GIVE_UP:
            rclpy.spin_once(node, timeout_sec=0.02)
        seconds.append(time.perf_counter() - start)
        acknowledged.clear()
    late = sum(duration > LATE for duration in seconds)
    print(f'{sum(seconds)} {late} {max(seconds)} {refused}')


def _publish(publisher: Publisher, image: Image) -> bool:
    """Publish an image; return whether DDS took it."""
    try:
        publisher.publish(image)
    except RuntimeError:  # "cannot publish data": DDS has waited for free memory in vain
        return False
    return True


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--bursts', type=int, default=200, help='bursts in each row (default: 200)'
    )
    parser.add_argument(
        '--role', choices=('receive', 'default', 'profile'), help=argparse.SUPPRESS
    )
    options = parser.parse_args()
    if options.role == 'receive':
        return receive()
    if options.role:
        return send(options.bursts, options.role == 'profile')
    command = [sys.executable, __file__, '--bursts', str(options.bursts), '--role']
    total = {}
    print(f'{"":12}{"bursts":>8}{"late":>8}{"longest [s]":>14}{"all [s]":>10}{"refused":>10}')
    for role in ('default', 'profile'):
        receiver = subprocess.Popen([*command, 'receive'])  # noqa: S603
        try:
            sender = subprocess.run(  # noqa: S603
                [*command, role], stdout=subprocess.PIPE, text=True, check=True
            )
        finally:
            receiver.kill()
            receiver.wait()
        total[role], late, longest, refused = map(float, sender.stdout.split())
        print(
            f'{role:12}{options.bursts:8}{late:8.0f}{longest:14.2f}{total[role]:10.1f}'
            f'{refused:10.0f}'
        )
    print(f'with our profile in {total["profile"] / total["default"]:.2f} of the time')
    return None


if __name__ == '__main__':
    if os.environ.get('RMW_IMPLEMENTATION', 'rmw_fastrtps_cpp') != 'rmw_fastrtps_cpp':
        raise SystemExit('this measures rmw_fastrtps_cpp: unset RMW_IMPLEMENTATION')
    main()
