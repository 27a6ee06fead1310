# SPDX-License-Identifier: Apache-2.0
"""Send messages from one node to another over the middleware; runs in a process of its own.

The nodes have contexts of their own, so that they must discover each other.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.publisher import Publisher
from std_msgs.msg import String, UInt8MultiArray

from lisa_ros.errors import LisaError
from lisa_ros.ros import fastdds
from lisa_ros.ros.initialization import initialize

_DISCOVERY = 5.0  # longest wait for the other node [s]
_MESSAGES = 20
_LARGE = 640 * 480 * 3  # an image [bytes]
_WAIT = 1.0  # for a message [s]


def main(arguments: list[str]) -> Iterator[dict[str, object]]:
    """Yield the time until discovery and the latencies [s], or an `error`."""
    fastdds.configure_shared_memory()
    try:
        initialize(['lisa-ros'])
    except LisaError as error:
        yield {'error': str(error)}
        return
    pair = _NodePair(f'lisa_doctor_{os.getpid()}')
    seconds = pair.discover()
    if seconds is None:
        yield {'error': f'two nodes did not find each other within {_DISCOVERY:g} s'}
        return
    small = pair.latencies(pair.small, String(data='x'))
    large = pair.latencies(pair.large, UInt8MultiArray(data=bytes(_LARGE)))
    yield {
        'discovery': seconds,
        'sent': _MESSAGES,
        'small': len(small),
        'large': len(large),
        'small_latency': statistics.median(small or [0.0]),
        'large_latency': statistics.median(large or [0.0]),
    }


class _NodePair:
    """A node that sends, and one that receives."""

    def __init__(self, name: str):
        context = rclpy.Context()
        context.init()
        self._sender = rclpy.create_node(f'{name}_sender')
        self._receiver = rclpy.create_node(f'{name}_receiver', context=context)
        self._executor = SingleThreadedExecutor(context=context)
        self._executor.add_node(self._receiver)
        self._arrivals: list[float] = []  # [s, monotonic]
        self.small = self._publisher(String, f'/{name}/small')
        self.large = self._publisher(UInt8MultiArray, f'/{name}/large')

    def _publisher(self, message_type: type, topic: str) -> Publisher:
        """Return a publisher of the sender, to which the receiver subscribes."""

        def note(_: object) -> None:
            self._arrivals.append(time.monotonic())

        self._receiver.create_subscription(message_type, topic, note, 10)
        return self._sender.create_publisher(message_type, topic, 10)

    def discover(self) -> float | None:
        """Return the time until both know each other [s]; None: they do not."""
        start = time.monotonic()
        publishers = (self.small, self.large)
        while not all(publisher.get_subscription_count() for publisher in publishers):
            self._executor.spin_once(timeout_sec=0.02)
            if time.monotonic() - start > _DISCOVERY:
                return None
        return time.monotonic() - start

    def latencies(self, publisher: Publisher, message: object) -> list[float]:
        """Send messages one by one; return their latencies [s], until one is lost."""
        durations: list[float] = []
        for _ in range(_MESSAGES):
            self._arrivals.clear()
            sent = time.monotonic()
            publisher.publish(message)
            while not self._arrivals and time.monotonic() - sent < _WAIT:
                self._executor.spin_once(timeout_sec=0.05)
            if not self._arrivals:
                break  # the others are lost, too
            durations.append(self._arrivals[0] - sent)
        return durations
