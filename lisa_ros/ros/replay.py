# SPDX-License-Identifier: Apache-2.0
"""Plays a rosbag2 bag as live publishers, where `ros2 bag play` is not installed.

    python -m lisa_ros.ros.replay BAG [--rate 1.0] [--loop]

Topics, messages and stamps are those of the bag, byte by byte: nothing is decoded. When the bag
begins anew its stamps jump back, as with `ros2 bag play --loop`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile

from lisa_ros.bags import opened
from lisa_ros.errors import DataError, LisaError


class Replay:
    """A bag on its way into the graph, on a thread of its own.

    `start` and `stop` may be called from any thread; publishers are made by `start`, so that
    subscribers can be waited for before the first message is a moment old.
    """

    def __init__(
        self,
        node: Node,
        bag: Path,
        rate: float = 1.0,
        loop: bool = False,
        topics: Collection[str] = (),
    ) -> None:
        """Open nothing yet.

        Args:
            node: owner of the publishers.
            bag: rosbag2 folder (mcap or sqlite3) or a bare .mcap file.
            rate: times real time, above 0.
            loop: begin anew at the end.
            topics: those to play; none for all of them.
        """
        self._topics = topics
        self._node, self._bag, self._rate, self._loop = node, bag, rate, loop
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._play, name='replay', daemon=True)
        self._publishers: dict[str, Publisher] = {}
        self.played = 0  # times that the bag came to its end

    def start(self) -> None:
        """Make the publishers and begin to play.

        Raises:
            DataError: no bag, or one that cannot be read.
        """
        with opened(self._bag) as reader:
            for connection in reader.connections:
                if self._topics and connection.topic not in self._topics:
                    continue
                kind = _message_class(connection.msgtype)
                if kind is None:
                    self._node.get_logger().warning(
                        f'{connection.topic} is left out: {connection.msgtype} is not installed'
                    )
                elif connection.topic not in self._publishers:
                    qos = QoSProfile(depth=10)
                    if connection.topic.endswith('tf_static'):
                        qos.durability = DurabilityPolicy.TRANSIENT_LOCAL
                    self._publishers[connection.topic] = self._node.create_publisher(
                        kind, connection.topic, qos
                    )
        self._thread.start()

    def stop(self) -> None:
        """End the thread and remove the publishers."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()
        for publisher in self._publishers.values():
            self._node.destroy_publisher(publisher)

    def wait(self) -> None:
        """Wait until the bag is at its end, or ROS is shut down."""
        while self._thread.is_alive() and self._node.context.ok():
            self._thread.join(0.1)

    def _play(self) -> None:
        while not self._stopped.is_set() and self._node.context.ok():
            self._play_once(self._stopped.wait)
            self.played += 1
            if not self._loop:
                return

    def _play_once(self, wait: Callable[[float], bool]) -> None:
        began = time.monotonic()
        with opened(self._bag) as reader:
            for connection, when, data in reader.messages():
                due = began + (when - reader.start_time) * 1e-9 / self._rate
                if wait(max(0.0, due - time.monotonic())) or not self._node.context.ok():
                    return
                if connection.topic in self._publishers:
                    self._publishers[connection.topic].publish(bytes(data))


def camera_topics(bag: Path) -> dict[str, str]:
    """Return the bag's topics by our names: image, and depth and camera_info where there are some.

    The first colour Image is image, the first 16UC1 or 32FC1 one is depth.

    Raises:
        DataError: no colour image in the bag.
    """
    topics: dict[str, str] = {}
    with opened(bag) as reader:
        for connection in reader.connections:
            kind = connection.msgtype
            if kind == 'sensor_msgs/msg/CameraInfo':
                topics.setdefault('camera_info', connection.topic)
            elif kind == 'sensor_msgs/msg/Image' and connection.msgcount:
                _, _, data = next(reader.messages([connection]))
                encoding = reader.deserialize(data, kind).encoding
                name = 'depth' if encoding in ('16UC1', '32FC1') else 'image'
                topics.setdefault(name, connection.topic)
    if 'image' not in topics:
        raise DataError(f'{bag} holds no colour sensor_msgs/Image')
    return topics


def _message_class(name: str) -> type | None:
    """Return the message class of 'package/msg/Name', None where its package is not installed."""
    package, _, kind = name.split('/')
    try:
        return getattr(importlib.import_module(f'{package}.msg'), kind, None)
    except ModuleNotFoundError:
        return None


def main(args: list[str] | None = None) -> int:
    """Play a bag given on the command line."""
    parser = argparse.ArgumentParser(description='Play a rosbag2 bag as live topics.')
    parser.add_argument('bag', type=Path, help='rosbag2 folder or .mcap file')
    parser.add_argument('--rate', type=float, default=1.0, help='times real time')
    parser.add_argument('--loop', action='store_true', help='begin anew at the end')
    given, ros = parser.parse_known_args(args)
    if given.rate <= 0:
        parser.error(f'--rate is {given.rate}; expected more than 0')
    rclpy.init(args=ros)
    node = Node('lisa_replay')
    replay = Replay(node, given.bag, given.rate, given.loop)
    try:
        replay.start()
    except LisaError as error:
        node.get_logger().fatal(str(error))
        rclpy.try_shutdown()
        return 1
    with contextlib.suppress(KeyboardInterrupt, ExternalShutdownException):
        replay.wait()
    replay.stop()
    rclpy.try_shutdown()
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
