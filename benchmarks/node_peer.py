# SPDX-License-Identifier: Apache-2.0
"""A peer of the node in the ROS graph: it asks commands, sends frames and calls services.

Threads: one thread calls all methods; callbacks run while it waits in one of them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from lisa_ros.msg import Segmentation
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import String

from lisa_ros.ros.executor import GuardedExecutor
from lisa_ros.ros.qos import COMMAND_QOS

NODE = '/lisa'
START_TIMEOUT, ANSWER_TIMEOUT = 60.0, 40.0  # enough on a busy machine [s]
RESPONSE_TIMEOUT = 5.0  # until a call of a service is repeated [s]
_STATE_AFTER = {
    'configure': 'inactive',
    'activate': 'active',
    'deactivate': 'inactive',
    'cleanup': 'unconfigured',
}


class NodePeer:
    """See the module's docstring for threads; rclpy must be initialized."""

    def __init__(
        self,
        on_answer: Callable[[Segmentation], None] = lambda message: None,
        on_diagnostics: Callable[[DiagnosticArray], None] = lambda message: None,
        *,
        is_camera: bool = True,
    ):
        """Join the graph.

        Args:
            on_answer: called with each message on ~/segmentation.
            on_diagnostics: called with each message on /diagnostics.
            is_camera: whether `publish_frame` will be used.
        """
        self.node = Node('peer')
        self._executor = GuardedExecutor(self.node.get_logger())
        self._executor.add_node(self.node)
        self._on_answer = on_answer
        self._asked: dict[str, Segmentation | None] = {}  # the answer to each text of `ask`
        self.node.create_subscription(
            Segmentation, f'{NODE}/segmentation', self._receive, COMMAND_QOS
        )
        self.node.create_subscription(DiagnosticArray, '/diagnostics', on_diagnostics, 10)
        self._commands = self.node.create_publisher(String, f'{NODE}/command', COMMAND_QOS)
        create = self.node.create_publisher
        if is_camera:
            self.images = create(Image, 'image', qos_profile_sensor_data)
            self.depths = create(Image, 'depth', qos_profile_sensor_data)
            self.infos = create(CameraInfo, 'camera_info', qos_profile_sensor_data)
        self._clients: dict[str, Any] = {}  # by name of the service

    def _receive(self, message: Segmentation) -> None:
        if message.query in self._asked:
            self._asked[message.query] = message
        self._on_answer(message)

    def ask(self, text: str, timeout: float = ANSWER_TIMEOUT) -> Segmentation:
        """Send a command and return its answer.

        Raises:
            TimeoutError: none came within `timeout` [s].
        """
        self._asked = {text: None}
        self.command(text)
        self.wait(lambda: self._asked[text] is not None, timeout, f'the answer to {text!r}')
        return self._asked.pop(text)

    def command(self, text: str) -> None:
        """Send a command."""
        self._commands.publish(String(data=text))

    def publish_frame(self, image: Image, depth: Image, info: CameraInfo) -> None:
        """Publish a frame with the present time as its stamp; the image comes last."""
        stamp = self.node.get_clock().now().to_msg()
        for publisher, message in (
            (self.depths, depth),
            (self.infos, info),
            (self.images, image),
        ):
            message.header.stamp = stamp
            publisher.publish(message)

    def take(self, callbacks: int = 4) -> None:
        """Run callbacks that are due, at most this many; wait for none."""
        for _ in range(callbacks):
            self._executor.spin_once(timeout_sec=0)

    def spin(self, seconds: float) -> None:
        """Run callbacks for a time [s]."""
        end = time.monotonic() + seconds
        self.wait(lambda: time.monotonic() >= end, seconds + 1)

    def wait(
        self, is_done: Callable[[], bool], timeout: float, what: str = 'the end of a pause'
    ) -> None:
        """Run callbacks until a condition holds.

        Raises:
            TimeoutError: it does not within `timeout` [s]; `what` names it.
        """
        deadline = time.monotonic() + timeout
        while not is_done():
            if time.monotonic() > deadline:
                raise TimeoutError(f'waited {timeout:g} s for {what}')
            self._executor.spin_once(timeout_sec=0.01)

    def wait_until_active(self) -> None:
        """Wait until the node takes commands and images of this peer, and its answers come here.

        Raises:
            TimeoutError: it does not.
        """

        def is_active() -> bool:
            counts = (
                self._commands.get_subscription_count(),
                self.node.count_subscribers('image'),
                self.node.count_publishers(f'{NODE}/segmentation'),
            )
            return all(counts)

        self.wait(is_active, START_TIMEOUT, 'an active node')
        self.spin(0.5)  # the node has to discover this peer, too (ros2/rmw_fastrtps#842)

    def close(self) -> None:
        """Leave the graph."""
        self._executor.shutdown()
        self.node.destroy_node()

    def wait_for_listeners(self) -> None:
        """Wait until a camera and, beside this peer, a listener have joined the node.

        Raises:
            TimeoutError: they do not.
        """

        def have_joined() -> bool:
            listeners = self.node.count_subscribers(f'{NODE}/tracked/scene_points')
            return listeners > 0 and self.node.count_publishers('image') > 1  # this peer's, too

        self.wait(have_joined, START_TIMEOUT, 'camera and listener')
        self.spin(1.0)  # the node has to discover them, too

    def client(self, service_type: type, name: str) -> Any:
        """Return a client of a service of the node.

        Raises:
            TimeoutError: there is no such service.
        """
        if name not in self._clients:
            client = self.node.create_client(service_type, f'{NODE}/{name}')
            self._clients[name] = client
            self.wait(client.service_is_ready, START_TIMEOUT, f'the service {name}')
            self.spin(0.5)
        return self._clients[name]

    def call(self, service_type: type, name: str, **fields: Any) -> Any:
        """Call a service of the node and return its response.

        Fast DDS may drop the response to a client that the node has just discovered
        (ros2/rmw_fastrtps#842). The call is then repeated; for a transition, see `change_state`.

        Raises:
            TimeoutError: there is no response.
        """
        client, request = self.client(service_type, name), service_type.Request(**fields)
        futures: list[Any] = []
        called_at = 0.0

        def has_response() -> bool:
            nonlocal called_at
            if time.monotonic() - called_at > RESPONSE_TIMEOUT:
                futures.append(client.call_async(request))
                called_at = time.monotonic()
            return any(future.done() for future in futures)

        self.wait(has_response, START_TIMEOUT, f'the response of {name}')
        return next(future.result() for future in futures if future.done())

    def state(self) -> str:
        """Return the lifecycle state of the node.

        Raises:
            TimeoutError: there is no response.
        """
        return self.call(GetState, 'get_state').current_state.label

    def change_state(self, label: str) -> bool:
        """Request a transition; return whether it succeeded.

        It cannot be repeated. If the response is lost (see `call`), the state tells.

        Raises:
            TimeoutError: it does not end.
        """
        transition = Transition(label=label)
        client = self.client(ChangeState, 'change_state')
        future = client.call_async(ChangeState.Request(transition=transition))
        end = time.monotonic() + START_TIMEOUT
        while time.monotonic() < end:
            with contextlib.suppress(TimeoutError):
                self.wait(future.done, RESPONSE_TIMEOUT, label)
                return future.result().success
            if self.state() == _STATE_AFTER[label]:
                return True
        raise TimeoutError(f'waited {START_TIMEOUT:g} s for the transition {label}')
