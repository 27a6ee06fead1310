# SPDX-License-Identifier: Apache-2.0
"""A talk with a running node, for `lisa-ros chat`; one thread, which spins while it waits."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rclpy
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import Image

from lisa_ros.chat_ui import Reply
from lisa_ros.errors import SettingsError
from lisa_ros.messages.image import image_to_rgb
from lisa_ros.results import Status
from lisa_ros.ros import fastdds
from lisa_ros.ros.action_client import LisaClient
from lisa_ros.ros.message_types import stamp_ns

_START = 10.0  # how long the node may take to be found [s]
_LATE = 3.0  # how much later than the answer its picture may come [s]


class NodeChat:
    """A node as the partner of a talk."""

    def __init__(self, name: str):
        """Join the graph.

        Args:
            name: of the node, such as lisa or /arm/lisa.

        Raises:
            LisaError: no such node within ten seconds.
        """
        fastdds.configure_shared_memory()
        # Ctrl-C is to stop an answer, not the talk
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
        self._node = rclpy.create_node(f'lisa_chat_{os.getpid()}')
        self._client = LisaClient(self._node, name)
        self._picture: Image | None = None
        self._node.create_subscription(Image, f'{name}/overlay', self._saw, 10)
        self._talks = 0
        self.about = f'node {name}'
        self._client.find(_START)

    def _saw(self, picture: Image) -> None:
        self._picture = picture

    def reset(self) -> None:
        """Begin another dialogue."""
        self._talks += 1

    def look_at(self, path: Path) -> None:
        """Refuse: it has a camera of its own."""
        raise SettingsError('the node looks through its camera: /image is for --image')

    def ask(self, text: str, so_far: Callable[[str], None]) -> Reply:
        """Send a goal; Ctrl-C cancels it."""
        began, self._picture = time.monotonic(), None
        pending = self._client.segment_async(
            text,
            dialogue=f'chat-{os.getpid()}-{self._talks}',
            on_feedback=lambda feedback: so_far(feedback.text),
        )
        try:
            answer = pending.result(timeout=None)
        except KeyboardInterrupt:
            pending.cancel()
            answer = pending.result()
        answered = answer.status in (Status.FOUND, Status.NOT_FOUND)
        return Reply(
            answer.status,
            answer.answer,
            answer.reason,
            tuple(map(float, answer.scores)),
            time.monotonic() - began,
            self._overlay(stamp_ns(answer.header)) if answered else None,
        )

    def _overlay(self, stamp: int) -> np.ndarray | None:
        """Return the node's picture of an answer, if it comes."""
        until = time.monotonic() + _LATE
        while time.monotonic() < until:
            if self._picture is not None and stamp_ns(self._picture.header) == stamp:
                return image_to_rgb(self._picture)
            rclpy.spin_once(self._node, timeout_sec=0.05)
        return None
