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

from lisa_ros.action import Segment
from lisa_ros.chat_ui import Reply
from lisa_ros.error_text import one_line
from lisa_ros.errors import LisaError, SettingsError
from lisa_ros.messages.image import image_to_rgb
from lisa_ros.messages.stamp import stamp_ns
from lisa_ros.msg import NodeState
from lisa_ros.results import ANSWERED
from lisa_ros.ros import fastdds
from lisa_ros.ros.action_client import Answer, GoalFuture, LisaClient
from lisa_ros.ros.executor import GuardedExecutor
from lisa_ros.ros.initialization import initialize
from lisa_ros.ros.qos import latched_qos
from lisa_ros.ros.service_guard import guard_services

_NODE_TIMEOUT = 10.0  # longest wait for the node [s]
_STATE_TIMEOUT = 5.0  # longest wait for its ~/state, and then for its overlay topic [s]
_DISCOVERY_DELAY = 0.3  # for the publisher to discover a new subscription, too [s]
_LOSS_PERIOD = 1.0  # at which a wait looks whether the goal is lost [s]
_CANCEL_TIMEOUT = 3.0  # longest wait for the end of a cancelled goal [s]
_OVERLAY_TIMEOUT = 3.0  # longest wait for the overlay after its answer [s]


class NodeChat:
    """A ChatBackend that sends each query to a node as an action goal."""

    def __init__(self, name: str, camera: str = ''):
        """Join the ROS graph.

        Args:
            name: of the node, such as lisa or /arm/lisa.
            camera: that the queries are about; may be empty if the node has only one.

        Raises:
            LisaError: there is no such node within ten seconds.
            SettingsError: it is no name, the node has no such camera, or several and none is
                named.
        """
        fastdds.configure_shared_memory()
        initialize(
            ['lisa-ros']
        )  # without signal handlers: Ctrl-C must stop an answer, not the chat
        self._node = rclpy.create_node(f'lisa_chat_{os.getpid()}')
        self._executor = GuardedExecutor(self._node.get_logger())
        guard_services(self._node, self._executor.errors)
        self._state: NodeState | None = None
        self._last_overlay: Image | None = None
        self._name, self._dialogues, self._queries = name, 0, 0
        try:
            self._client = LisaClient(self._node, name)
            self._node.create_subscription(
                NodeState, f'{name}/state', self._on_state, latched_qos()
            )
        except NameValidationException as error:
            raise SettingsError(
                f'{name!r} is not the name of a node: {one_line(error)}; expected one such as '
                'lisa or /arm/lisa'
            ) from error
        self._client.find(_NODE_TIMEOUT)
        self._spin_until(lambda: self._state is not None, _STATE_TIMEOUT)
        names = [known.name for known in self._state.cameras] if self._state else []
        self._camera = camera or (names[0] if len(names) == 1 else '')
        if any(names) and self._camera not in names:
            given = f'no camera {camera!r}, but' if camera else 'several cameras:'
            raise SettingsError(
                f'node {name} has {given} {", ".join(names)}; choose one: --camera {names[0]}'
            )
        self._subscribe_to_overlay('' if names == [''] else self._camera)
        self.about = f'node {name}' + (f', camera {self._camera}' if self._camera else '')

    def _subscribe_to_overlay(self, camera: str) -> None:
        topic = '/'.join(filter(None, (self._name, camera, 'overlay')))
        try:
            self._node.create_subscription(Image, topic, self._on_overlay, 10)
        except NameValidationException as error:
            raise SettingsError(
                f'{camera!r} is not the name of a camera: {one_line(error)}; expected a name in '
                'the parameter cameras of the node'
            ) from error
        topic = self._node.resolve_topic_name(topic)
        self._spin_until(lambda: self._node.count_publishers(topic) > 0, _STATE_TIMEOUT)
        time.sleep(_DISCOVERY_DELAY)

    def _on_state(self, state: NodeState) -> None:
        self._state = state

    def _on_overlay(self, overlay: Image) -> None:
        self._last_overlay = overlay

    def reset(self) -> None:
        """Begin a new dialogue."""
        self._dialogues += 1

    def set_image(self, path: Path) -> None:
        """Raise a SettingsError: the node has a camera of its own."""
        raise SettingsError('the node has its own camera: /image works with --image only')

    def ask(self, text: str, on_text: Callable[[str], None]) -> Reply:
        """Send a goal and wait for its result; Ctrl-C cancels it. See ChatBackend.

        Raises:
            LisaError: the node has left the ROS graph, or does not end a cancelled goal.
        """
        start, self._last_overlay = time.monotonic(), None
        self._queries += 1
        query = self._queries

        def on_feedback(feedback: Segment.Feedback) -> None:
            if query == self._queries:  # not of an earlier goal that has not ended
                on_text(feedback.text)

        goal = self._client.segment_async(
            text,
            camera=self._camera,
            dialogue=f'chat-{os.getpid()}-{self._dialogues}',
            on_feedback=on_feedback,
        )
        answer = self._wait_for_answer(goal)
        is_answered = answer.status in ANSWERED
        return Reply(
            answer.status,
            answer.answer,
            answer.reason,
            tuple(map(float, answer.scores)),
            time.monotonic() - start,
            self._wait_for_overlay(stamp_ns(answer.header)) if is_answered else None,
        )

    def _wait_for_answer(self, goal: GoalFuture) -> Answer:
        try:
            while not goal.wait(_LOSS_PERIOD):
                if goal.is_lost():
                    raise LisaError(
                        f'node {self._name} has left the ROS graph while it answered: start it '
                        'again'
                    )
        except KeyboardInterrupt:
            goal.cancel()
            if not goal.wait(_CANCEL_TIMEOUT):
                raise LisaError(
                    f'node {self._name} has not stopped within {_CANCEL_TIMEOUT:g} s: it is busy, '
                    'or was killed; check that it runs'
                ) from None
        return goal.result()

    def _wait_for_overlay(self, stamp: int) -> np.ndarray | None:
        """Return the node's overlay of the answer with this stamp [ns]; None after a timeout."""

        def is_there() -> bool:
            overlay = self._last_overlay
            return overlay is not None and stamp_ns(overlay.header) == stamp

        self._spin_until(is_there, _OVERLAY_TIMEOUT)
        return image_to_rgb(self._last_overlay) if is_there() else None

    def _spin_until(self, is_done: Callable[[], bool], timeout: float) -> None:
        """Spin until something is done, up to `timeout` [s]."""
        deadline = time.monotonic() + timeout
        while not is_done() and time.monotonic() < deadline:
            rclpy.spin_once(self._node, executor=self._executor, timeout_sec=0.05)
