# SPDX-License-Identifier: Apache-2.0
"""Plays a rosbag2 bag as live publishers, where `ros2 bag play` is not installed.

    python -m lisa_ros.ros.bag_player BAG [--rate 1.0] [--loop] [--clock]

Topics, messages and stamps are those of the bag, byte by byte: nothing is decoded. When the bag
begins anew its stamps jump back, as with `ros2 bag play --loop`. With --clock the bag's time is
on /clock, for nodes with use_sim_time.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile

from lisa_ros.errors import DataError, LisaError
from lisa_ros.messages.bag import open_bag
from lisa_ros.ros import fastdds


class BagPlayer:
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
        clock: bool = False,
    ) -> None:
        """Open nothing yet.

        Args:
            node: owner of the publishers.
            bag: rosbag2 folder (mcap or sqlite3) or a bare .mcap file.
            rate: times real time, above 0.
            loop: begin anew at the end.
            topics: those to play; none for all of them.
            clock: tell the bag's time on /clock, 50 times in a second of ours and at each message.
        """
        self._topics = topics
        self._node, self._bag, self._rate, self._loop = node, bag, rate, loop
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._play, name='replay', daemon=True)
        self._publishers: dict[str, Publisher] = {}
        self._clock, self._told = clock, None
        self._lap = (
            0,
            math.inf,
        )  # how often the bag was played, when this lap began [s, monotonic]
        self._start = 0  # of the bag's time [ns]
        self.sent: Counter[str] = Counter()  # messages by topic

    @property
    def position(self) -> tuple[int, float]:
        """How often the bag was played to its end, and how far into it this lap is.

        The latter in seconds of the bag's time, minus infinity before the lap has begun.
        """
        laps, began = self._lap  # one read: the thread puts both anew at once
        return laps, (time.monotonic() - began) * self._rate

    @property
    def over(self) -> bool:
        """Whether nothing more will come; False before `start`."""
        return self._thread.ident is not None and not self._thread.is_alive()

    def start(self) -> None:
        """Make the publishers and begin to play.

        Raises:
            DataError: no bag, or one that cannot be read.
        """
        with open_bag(self._bag) as reader:
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
        if self._clock:
            from rosgraph_msgs.msg import Clock

            self._told = Clock
            self._publishers['/clock'] = self._node.create_publisher(Clock, '/clock', 10)
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
            self._lap = (self._lap[0] + 1, math.inf)
            if not self._loop:
                return

    def _play_once(self, wait: Callable[[float], bool]) -> None:
        with open_bag(self._bag) as reader:
            self._start, began = reader.start_time, time.monotonic()
            self._lap = (self._lap[0], began)
            for connection, when, data in reader.messages():
                told = self._clock and connection.topic == '/clock'  # by us
                if told or connection.topic not in self._publishers:
                    continue
                due = began + (when - self._start) * 1e-9 / self._rate
                while (left := due - time.monotonic()) > 0:
                    if wait(min(left, _TICK) if self._clock else left):
                        return
                    self._tell_time()
                if self._stopped.is_set() or not self._node.context.ok():
                    return
                self._tell_time()
                self._publishers[connection.topic].publish(bytes(data))
                self.sent[connection.topic] += 1

    def _tell_time(self) -> None:
        if self._told is not None and self._node.context.ok():
            clock = self._told()
            now = self._start + int(self.position[1] * 1e9)
            clock.clock.sec, clock.clock.nanosec = divmod(now, 1_000_000_000)
            self._publishers['/clock'].publish(clock)


_TICK = 0.02  # between two messages on /clock [s]


def camera_topics(bag: Path, image: str | None = None) -> dict[str, str]:
    """Return the bag's topics by our names: image, and depth and camera_info where there are some.

    The first colour Image is image, else the first CompressedImage; the first 16UC1 or 32FC1 one
    is depth. A topic that is named is image.

    Raises:
        DataError: no colour image in the bag, or not the one that is named.
    """
    compressed = ''
    kinds = {}
    topics: dict[str, str] = {}
    with open_bag(bag) as reader:
        for connection in reader.connections:
            kind = connection.msgtype
            if kind == 'sensor_msgs/msg/CameraInfo':
                topics.setdefault('camera_info', connection.topic)
            elif kind == 'sensor_msgs/msg/Image' and connection.msgcount:
                _, _, data = next(reader.messages([connection]))
                encoding = reader.deserialize(data, kind).encoding
                name = 'depth' if encoding in ('16UC1', '32FC1') else 'image'
                topics.setdefault(name, connection.topic)
            elif kind == 'sensor_msgs/msg/CompressedImage' and connection.topic.endswith(_CODED):
                compressed = compressed or connection.topic
        if not reader.is2:
            raise DataError(f'{bag} is of ROS 1: its messages cannot be played as they are')
        kinds = {connection.topic: connection.msgtype for connection in reader.connections}
    if image is not None:
        topics['image'] = image
    elif compressed:
        topics.setdefault('image', compressed)
    found = kinds.get(topics.get('image'))
    if found is None:
        raise DataError(
            f'{bag} holds no {image or "colour sensor_msgs/Image"}; it has '
            f'{", ".join(sorted(kinds)) or "no topic"}'
        )
    if found.endswith('CompressedImage') and not topics['image'].endswith(_CODED):
        raise DataError(
            f'{topics["image"]} is compressed, and the node finds such a topic by its name, which '
            f'image_transport ends in {_CODED}: evaluate it offline'
        )
    return topics


_CODED = '/compressed'  # how image_transport ends such a topic


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
    parser.add_argument('--clock', action='store_true', help="tell the bag's time on /clock")
    given, ros = parser.parse_known_args(args)
    if given.rate <= 0:
        parser.error(f'--rate is {given.rate}; expected more than 0')
    fastdds.configure_shared_memory()
    rclpy.init(args=ros)
    node = Node('lisa_replay')
    replay = BagPlayer(node, given.bag, given.rate, given.loop, clock=given.clock)
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
