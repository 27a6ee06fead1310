# SPDX-License-Identifier: Apache-2.0
"""Chat with a running node, for `lisa-ros chat`; one thread, which spins while it waits."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rclpy
from rclpy.exceptions import NameValidationException
from sensor_msgs.msg import Image

from lisa_ros.chat_ui import Reply
from lisa_ros.error_text import one_line
from lisa_ros.errors import SettingsError
from lisa_ros.messages.image import image_to_rgb
from lisa_ros.messages.stamp import stamp_ns
from lisa_ros.results import ANSWERED
from lisa_ros.ros import fastdds
from lisa_ros.ros.action_client import LisaClient
from lisa_ros.ros.executor import GuardedExecutor
from lisa_ros.ros.initialization import initialize
from lisa_ros.ros.service_guard import guard_services

_NODE_TIMEOUT = 10.0  # longest wait for the node [s]
_OVERLAY_TIMEOUT = 3.0  # longest wait for the overlay after its answer [s]


class NodeChat:
    """A ChatBackend that sends each query to a node as an action goal."""

    def __init__(self, name: str):
        """Join the ROS graph.

        Args:
            name: of the node, such as lisa or /arm/lisa.

        Raises:
            LisaError: there is no such node within ten seconds.
        """
        fastdds.configure_shared_memory()
        initialize(
            ['lisa-ros']
        )  # without signal handlers: Ctrl-C must stop an answer, not the chat
        self._node = rclpy.create_node(f'lisa_chat_{os.getpid()}')
        self._executor = GuardedExecutor(self._node.get_logger())
        guard_services(self._node, self._executor.errors)
        self._last_overlay: Image | None = None
        try:
            self._client = LisaClient(self._node, name)
            self._node.create_subscription(Image, f'{name}/overlay', self._on_overlay, 10)
        except NameValidationException as error:
            raise SettingsError(
                f'{name!r} is not the name of a node: {one_line(error)}; expected one such as '
                'lisa or /arm/lisa'
            ) from error
        self._dialogues = 0
        self.about = f'node {name}'
        self._client.find(_NODE_TIMEOUT)

    def _on_overlay(self, overlay: Image) -> None:
        self._last_overlay = overlay

    def reset(self) -> None:
        """Begin a new dialogue."""
        self._dialogues += 1

    def set_image(self, path: Path) -> None:
        """Raise a SettingsError: the node has a camera of its own."""
        raise SettingsError('the node has its own camera: /image works with --image only')

    def ask(self, text: str, on_text: Callable[[str], None]) -> Reply:
        """Send a goal and wait for its result; Ctrl-C cancels it. See ChatBackend."""
        start, self._last_overlay = time.monotonic(), None
        goal = self._client.segment_async(
            text,
            dialogue=f'chat-{os.getpid()}-{self._dialogues}',
            on_feedback=lambda feedback: on_text(feedback.text),
        )
        try:
            answer = goal.result(timeout=None)
        except KeyboardInterrupt:
            goal.cancel()
            answer = goal.result()
        is_answered = answer.status in ANSWERED
        return Reply(
            answer.status,
            answer.answer,
            answer.reason,
            tuple(map(float, answer.scores)),
            time.monotonic() - start,
            self._wait_for_overlay(stamp_ns(answer.header)) if is_answered else None,
        )

    def _wait_for_overlay(self, stamp: int) -> np.ndarray | None:
        """Return the node's overlay of the answer with this stamp [ns]; None after a timeout."""
        deadline = time.monotonic() + _OVERLAY_TIMEOUT
        while time.monotonic() < deadline:
            overlay = self._last_overlay
            if overlay is not None and stamp_ns(overlay.header) == stamp:
                return image_to_rgb(overlay)
            rclpy.spin_once(self._node, executor=self._executor, timeout_sec=0.05)
        return None
