# SPDX-License-Identifier: Apache-2.0
"""Play a rosbag2 bag on live topics, for systems without `ros2 bag play`.

    python -m lisa_ros.ros.bag_player BAG [--rate 1.0] [--loop] [--clock]

Topics, messages and stamps are those of the bag, byte by byte: nothing is decoded. When the bag
starts again, its stamps jump back, as with `ros2 bag play --loop`. With --clock the bag time is
published on /clock, for nodes with use_sim_time.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import math
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import rclpy
from rclpy.logging import get_logger
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile
from rosbags.interfaces import Connection

from lisa_ros import stop_signals
from lisa_ros.errors import DataError, ErrorHandler, LisaError, raise_error
from lisa_ros.messages.bag import open_bag
from lisa_ros.messages.bag_reader import BagReader
from lisa_ros.messages.compressed_format import CompressedFormat
from lisa_ros.number_arguments import positive_float
from lisa_ros.ros import fastdds
from lisa_ros.ros.initialization import initialize

_CLOCK_PERIOD = 0.02  # between two messages on /clock [s]
_COMPRESSED_SUFFIX = '/compressed'  # of the topics of image_transport
_TRANSPORTS = ('compressed', 'compressedDepth')  # those that the node subscribes to


@dataclass(frozen=True)
class _Lap:
    """One playback of the bag; replaced as a whole, so other threads read consistent values."""

    number: int = 0
    start: float = math.inf  # [s, time.monotonic]; infinity: not started


class BagPlayer:
    """Publishes a bag from a thread of its own.

    Threads: any thread may call `start` and `stop` and read the properties. `start` creates all
    publishers before the first message is played.
    """

    def __init__(
        self,
        node: Node,
        bag: Path,
        rate: float = 1.0,
        loop: bool = False,
        topics: Collection[str] = (),
        clock: bool = False,
        on_error: ErrorHandler | None = None,
    ) -> None:
        """Store the arguments; the bag is opened by `start`.

        Args:
            node: owner of the publishers.
            bag: rosbag2 folder (mcap or sqlite3) or a bare .mcap file.
            rate: playback speed, 1.0 is real time; above 0.
            loop: start again at the end.
            topics: topics to play; empty: all.
            clock: publish the bag time on /clock, every 20 ms and at each message.
            on_error: called for each part of the bag that cannot be read, also from the thread; if
                it returns, the part is not played. None: log a warning.
        """
        self._node, self._bag, self._rate, self._loop = node, bag, rate, loop
        self._topics, self._clock = topics, clock
        self._on_error = on_error or self._warn
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._play, name='replay', daemon=True)
        self._publishers: dict[str, Publisher] = {}
        self._clock_type: type | None = None
        self._lap = _Lap()
        self._bag_start = 0  # [ns]
        self.sent: Counter[str] = Counter()  # messages by topic

    @property
    def position(self) -> tuple[int, float]:
        """Number of finished laps, and bag time in this lap [s]; minus infinity before the lap."""
        lap = self._lap
        return lap.number, (time.monotonic() - lap.start) * self._rate

    @property
    def is_finished(self) -> bool:
        """Whether nothing more will be published; False before `start`."""
        return self._thread.ident is not None and not self._thread.is_alive()

    def start(self) -> None:
        """Create the publishers and start to play.

        Raises:
            DataError: there is no bag, or it cannot be read.
        """
        with open_bag(self._bag, self._on_error) as reader:
            if not reader.connections:
                raise DataError(
                    f'{self._bag}: nothing in it can be read; it has {reader.describe_topics()}, '
                    'expected topics of ROS 2'
                )
            for connection in reader.connections:
                if not self._topics or connection.topic in self._topics:
                    self._add_publisher(connection)
        if self._clock:
            from rosgraph_msgs.msg import Clock

            self._clock_type = Clock
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

    def _add_publisher(self, connection: Connection) -> None:
        message_type = _message_class(connection.msgtype)
        if message_type is None:
            self._node.get_logger().warning(
                f'{connection.topic} is not played: the message type {connection.msgtype} is not '
                'installed'
            )
        elif connection.topic not in self._publishers:
            qos = QoSProfile(depth=10)
            if _is_latched(connection):
                qos.durability = DurabilityPolicy.TRANSIENT_LOCAL
            self._publishers[connection.topic] = self._node.create_publisher(
                message_type, connection.topic, qos
            )

    def _warn(self, error: DataError) -> None:
        self._node.get_logger().warning(f'not played: {error}')

    @property
    def _ended(self) -> bool:
        return self._stopped.is_set() or not self._node.context.ok()

    def _play(self) -> None:
        while not self._ended:
            try:
                self._play_lap()
            except DataError as error:  # the bag was removed, or changed
                self._node.get_logger().error(f'the bag is not played to its end: {error}')
                return
            self._lap = _Lap(self._lap.number + 1)
            if not self._loop:
                return

    def _play_lap(self) -> None:
        with open_bag(self._bag, self._on_error) as reader:
            self._bag_start = reader.start_time
            lap = self._lap = _Lap(self._lap.number, time.monotonic())
            for connection, bag_time, data in reader.messages():
                is_own_clock = self._clock and connection.topic == '/clock'
                if is_own_clock or connection.topic not in self._publishers:
                    continue
                self._wait_until(lap.start + (bag_time - self._bag_start) * 1e-9 / self._rate)
                if self._ended:
                    return
                self._publish_clock()
                self._publishers[connection.topic].publish(bytes(data))
                self.sent[connection.topic] += 1

    def _wait_until(self, due: float) -> None:
        """Wait until a time [s, time.monotonic], or until `stop`; publish the clock meanwhile."""
        while (remaining := due - time.monotonic()) > 0:
            timeout = min(remaining, _CLOCK_PERIOD) if self._clock else remaining
            if self._stopped.wait(timeout):
                return
            self._publish_clock()

    def _publish_clock(self) -> None:
        if self._clock_type is not None and self._node.context.ok():
            message = self._clock_type()
            now = self._bag_start + int(self.position[1] * 1e9)
            message.clock.sec, message.clock.nanosec = divmod(now, 1_000_000_000)
            self._publishers['/clock'].publish(message)


def camera_topics(
    bag: Path, image: str | None = None, on_error: ErrorHandler = raise_error
) -> dict[str, str]:
    """Return the bag's topics as a dict with the keys image, depth and camera_info, if present.

    image is the first colour Image, else the first CompressedImage; depth is the first Image of
    encoding 16UC1 or 32FC1, else the first CompressedImage of depth; camera_info is the first
    CameraInfo.

    Args:
        bag: rosbag2 folder or a bare .mcap file.
        image: topic to use as image; None: choose as above.
        on_error: called for each part of the bag that cannot be read; if it returns, the part is
            left out.

    Raises:
        DataError: the bag cannot be played, has no colour image or lacks the given topic.
    """
    with open_bag(bag, on_error) as reader:
        if not reader.is2:
            raise DataError(f'{bag} is a ROS 1 bag, whose messages cannot be played: convert it')
        topics: dict[str, str] = {}
        compressed: dict[str, str] = {}
        for connection in reader.connections:
            if connection.msgtype == 'sensor_msgs/msg/CameraInfo':
                topics.setdefault('camera_info', connection.topic)
            elif connection.msgtype == 'sensor_msgs/msg/Image' and connection.msgcount:
                encoding = _first_text(reader, connection, 'encoding')
                name = 'depth' if encoding in ('16UC1', '32FC1') else 'image'
                topics.setdefault(name, connection.topic)
            elif _is_compressed(connection) and connection.msgcount:
                text = _first_text(reader, connection, 'format')
                name = 'depth' if CompressedFormat.parse(text).is_depth else 'image'
                compressed.setdefault(name, connection.topic)
        types = {connection.topic: connection.msgtype for connection in reader.connections}
    topics = {**compressed, **topics}
    if image is not None:
        topics['image'] = image
    _check_image_topic(bag, image, topics.get('image'), types)
    return topics


def node_inputs(topics: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return what the node's inputs are remapped to, and its parameters, for a bag's topics.

    The parameters are image_transport and depth_transport; remapped names are without them.
    """
    inputs, parameters = dict(topics), {}
    for name in ('image', 'depth'):
        base, _, transport = inputs.get(name, '').rpartition('/')
        if transport in _TRANSPORTS:
            inputs[name], parameters[f'{name}_transport'] = base, transport
    return inputs, parameters


def _is_latched(connection: Connection) -> bool:
    """Return whether a subscriber that comes later gets the last message, as when recorded."""
    profiles = getattr(connection.ext, 'offered_qos_profiles', ())
    return connection.topic.endswith('tf_static') or any(
        profile.durability.name == 'TRANSIENT_LOCAL' for profile in profiles
    )


def _first_text(reader: BagReader, connection: Connection, field: str) -> str:
    """Return a text field of the first message that can be read; '' without one."""
    for _, _, data in reader.messages([connection]):
        with contextlib.suppress(DataError, AttributeError):
            return getattr(reader.deserialize(data, connection.msgtype), field)
    return ''


def _is_compressed(connection: Connection) -> bool:
    """Return whether a connection is a CompressedImage that image_transport would find."""
    return (
        connection.msgtype == 'sensor_msgs/msg/CompressedImage'
        and connection.topic.rpartition('/')[2] in _TRANSPORTS
    )


def _check_image_topic(
    bag: Path, requested: str | None, topic: str | None, types: dict[str, str]
) -> None:
    """Check that the node can subscribe to the image topic.

    Raises:
        DataError: the topic is missing, or its name is not one that image_transport uses.
    """
    message_type = types.get(topic)
    if message_type is None:
        raise DataError(
            f'{bag} holds no {requested or "colour sensor_msgs/Image"}; it has '
            f'{", ".join(sorted(types)) or "no topic"}'
        )
    if message_type.endswith('CompressedImage') and not topic.endswith(_COMPRESSED_SUFFIX):
        raise DataError(
            f'{topic} is compressed, but its name does not end in {_COMPRESSED_SUFFIX} as '
            'image_transport requires: evaluate the bag offline (without --live)'
        )


def _message_class(name: str) -> type | None:
    """Return the message class of 'package/msg/Name'; None if its package is not installed."""
    parts = re.fullmatch(r'(\w+)/msg/(\w+)', name)
    if parts is None:
        return None  # some recorders write other names
    try:
        return getattr(importlib.import_module(f'{parts[1]}.msg'), parts[2], None)
    except ModuleNotFoundError:
        return None


def main(args: list[str] | None = None) -> int:
    """Play a bag given on the command line."""
    parser = argparse.ArgumentParser(description='Play a rosbag2 bag as live topics.')
    parser.add_argument('bag', type=Path, help='rosbag2 folder or .mcap file')
    parser.add_argument(
        '--rate',
        type=positive_float,
        default=1.0,
        help='playback speed, 1 is real time (default: 1)',
    )
    parser.add_argument('--loop', action='store_true', help='start again at the end of the bag')
    parser.add_argument('--clock', action='store_true', help='publish the bag time on /clock')
    options, ros_args = parser.parse_known_args(args)
    fastdds.configure_shared_memory()
    stop_signals.install()
    try:
        initialize([sys.argv[0], *ros_args])
        player = BagPlayer(
            Node('lisa_replay'), options.bag, options.rate, options.loop, clock=options.clock
        )
        player.start()
    except LisaError as error:
        get_logger('lisa_replay').fatal(str(error))
        rclpy.try_shutdown()
        return 1
    stop_signals.on_stop(rclpy.try_shutdown)
    player.wait()
    player.stop()
    rclpy.try_shutdown()
    stop_signals.ignore()
    return 0


if __name__ == '__main__':
    stop_signals.end(main())
