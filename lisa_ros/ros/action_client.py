# SPDX-License-Identifier: Apache-2.0
"""Client of the action `~/segment`, for planners and scripts; import it as `lisa_ros.client`.

Threads: `segment` blocks. If an executor spins the client's node, `segment` waits for that
executor's thread, so do not call it from a callback of the node: use `segment_async` there. If
nothing spins the node, the client spins it while it waits.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from rclpy.action import ActionClient
from rclpy.expand_topic_name import expand_topic_name
from rclpy.node import Node
from rclpy.task import Future
from std_msgs.msg import Header

from lisa_ros.action import Segment
from lisa_ros.errors import LisaError, QueryError
from lisa_ros.messages.segmentation import result_from_message
from lisa_ros.msg import Segmentation as SegmentationMessage
from lisa_ros.results import Status
from lisa_ros.ros.executor import GuardedExecutor
from lisa_ros.ros.qos import ACTION_SERVICE_QOS

Feedback = Callable[[Segment.Feedback], None]

_DISCOVERY_DELAY = 0.2  # for a new server to discover this client, too (rmw_fastrtps#842) [s]
_LOOK_PERIOD = 1.0  # at which servers are looked for again; a node needs longer to start [s]
_SPIN_PERIOD = 0.05  # at which a wait checks its timeout [s]


@dataclass(frozen=True)
class Answer:
    """The result of a goal."""

    status: Status
    reason: str  # why there is no full answer, or why a mask was left out; else empty
    answer: str  # plain text, without [SEG]
    header: Header  # of the source image
    masks: np.ndarray  # (N, H, W) bool, of the size of the source image; (0, 0, 0) without masks
    scores: np.ndarray  # (N,) float32, 0..1
    message: SegmentationMessage  # with boxes, centroids and timings
    yes_probability: float = math.nan  # 0..1 of a goal with answer_probability; NaN: none


class GoalFuture:
    """A goal that was sent. Its methods may be called from any thread."""

    def __init__(self, client: LisaClient, sent: Future):
        self.future = Future()  # of an Answer; a coroutine callback may await it
        self._client, self._goal = client, None
        self._servers = client.servers()  # those that may have the goal
        self._cancelled = False
        self._ended = threading.Event()
        self.future.add_done_callback(lambda _: self._ended.set())
        sent.add_done_callback(self._accepted)

    def done(self) -> bool:
        """Return whether the goal has ended."""
        return self._ended.is_set()

    def is_lost(self) -> bool:
        """Return whether no node that may have the goal is left in the ROS graph.

        A killed node leaves the graph when its DDS lease ends, after 20 s with Fast DDS. One that
        was started in its place does not have the goal. Where none was seen, it is unknown: false.
        """
        has_left = bool(self._servers) and self._servers.isdisjoint(self._client.servers())
        return has_left and not self.done()

    def wait(self, timeout: float | None) -> bool:
        """Wait for the goal to end, up to `timeout` [s]; None: no limit. Return whether it has."""
        return self._client.wait(self._ended, timeout)

    def cancel(self) -> None:
        """Request to cancel the goal; the status of its answer tells how it ended."""
        self._cancelled = True
        if self._goal is not None:
            self._goal.cancel_goal_async()

    def result(self, timeout: float | None = 60.0) -> Answer:
        """Wait for the goal to end and return its answer.

        Args:
            timeout: [s]; None: no limit.

        Raises:
            QueryError: the node rejected the goal.
            LisaError: no answer within `timeout`; the goal continues, `cancel` stops it.
        """
        if not self.wait(timeout):
            if self.is_lost():
                raise LisaError(
                    f'no answer within {timeout:g} s: the node has left the ROS graph; start it '
                    'again'
                )
            raise LisaError(
                f'no answer within {timeout:g} s; if this is called in a callback of the node, '
                'use segment_async there'
            )
        return self.future.result()

    def _accepted(self, sent: Future) -> None:
        self._goal = goal = sent.result()
        if not goal.accepted:
            self.future.set_exception(
                QueryError(
                    'the node rejected the goal: it is not active, or goals_kept goals are '
                    'waiting already; activate the node, or wait for an answer'
                )
            )
            return
        self._servers |= self._client.servers()  # one that was started meanwhile may have taken it
        if self._cancelled:
            goal.cancel_goal_async()
        goal.get_result_async().add_done_callback(self._answered)

    def _answered(self, response: Future) -> None:
        try:
            answer = response.result().result
            message = answer.segmentation
            result = result_from_message(message)
        except Exception as error:  # noqa: BLE001  # any error must reach the caller that waits
            self.future.set_exception(LisaError(f'the goal ended without an answer: {error}'))
            return
        self.future.set_result(
            Answer(
                result.status,
                result.reason,
                result.answer,
                message.header,
                result.masks,
                result.scores,
                message,
                answer.yes_probability,
            )
        )


class LisaClient:
    """Sends goals to a lisa node. Create one client for each of your nodes."""

    def __init__(self, node: Node, name: str = 'lisa'):
        """Create a client.

        Args:
            node: your node.
            name: of the lisa node: relative to your node's namespace, or absolute.
        """
        self._node, self._name = node, name
        self._client = ActionClient(
            node,
            Segment,
            f'{name}/segment',
            goal_service_qos_profile=ACTION_SERVICE_QOS,
            result_service_qos_profile=ACTION_SERVICE_QOS,
            cancel_service_qos_profile=ACTION_SERVICE_QOS,
        )
        self._found: frozenset[bytes] | None = None  # servers that had time to find this client
        self._looked_at = -math.inf  # when they were compared with the graph [s, monotonic]
        self._spinning = threading.Lock()  # held by the thread that spins the node

    def segment(
        self,
        query: str,
        *,
        timeout: float = 60.0,
        on_feedback: Feedback | None = None,
        **goal: Any,
    ) -> Answer:
        """Send a goal and wait for its answer.

        Args:
            query: what to find.
            timeout: for the node to appear and to answer [s]; then the goal is cancelled, one that
                was not accepted yet as soon as it is and the node is spun.
            on_feedback: called with each feedback, on the thread that spins the node.
            **goal: other fields of Segment.Goal, such as dialogue or max_age.

        Raises:
            LisaError: no node appeared, or no answer came in time.
            QueryError: the goal was rejected, has wrong fields, or is continuous.
        """
        if goal.get('continuous'):
            raise QueryError('a continuous goal ends when it is cancelled: use segment_async')
        start = time.monotonic()
        pending = self.segment_async(query, timeout=timeout, on_feedback=on_feedback, **goal)
        try:
            return pending.result(max(0.0, timeout - (time.monotonic() - start)))
        except LisaError:
            pending.cancel()
            raise

    def segment_async(
        self,
        query: str,
        *,
        timeout: float = 10.0,
        on_feedback: Feedback | None = None,
        **goal: Any,
    ) -> GoalFuture:
        """Send a goal as soon as the node is found, and return without waiting for the answer.

        Args:
            query: what to find.
            timeout: for the node to appear [s].
            on_feedback: called with each feedback, on the thread that spins the node.
            **goal: other fields of Segment.Goal, such as dialogue or max_age.

        Raises:
            LisaError: no node appeared.
            QueryError: a field that Segment.Goal does not have, or a value of a wrong type.
        """
        self.find(timeout)
        callback = None if on_feedback is None else lambda message: on_feedback(message.feedback)
        try:
            unknown = goal.keys() - Segment.Goal.get_fields_and_field_types().keys()
            if unknown:
                raise TypeError(f'no such field: {", ".join(sorted(unknown))}')
            sent = self._client.send_goal_async(Segment.Goal(query=query, **goal), callback)
        except (AssertionError, AttributeError, TypeError) as error:  # from rclpy's type checks
            raise QueryError(
                f'not a valid goal: {error}; expected the fields of lisa_ros/action/Segment: '
                'image is a sensor_msgs/Image, region a sensor_msgs/RegionOfInterest'
            ) from error
        return GoalFuture(self, sent)

    def find(self, timeout: float) -> None:
        """Wait until the node offers the action.

        Args:
            timeout: [s].

        Raises:
            LisaError: no node appeared within `timeout`.
        """
        if self._client.server_is_ready() and self._is_found():
            return
        if not self._client.wait_for_server(timeout):
            raise LisaError(
                f'no action {self._name}/segment within {timeout:g} s: check that the node runs '
                'and has this name'
            )
        servers = self.servers()
        time.sleep(_DISCOVERY_DELAY)
        self._found, self._looked_at = servers, time.monotonic()

    def _is_found(self) -> bool:
        """Return whether the servers in the graph are those that had time to find this client."""
        now = time.monotonic()
        if self._found is None or now - self._looked_at < _LOOK_PERIOD:
            return self._found is not None
        self._looked_at = now
        return self.servers() <= self._found

    def servers(self) -> frozenset[bytes]:
        """Return the ids of the action servers in the ROS graph; one started again has another."""
        return action_servers(self._node, f'{self._name}/segment')

    def wait(self, event: threading.Event, timeout: float | None) -> bool:
        """Wait for an event; spin the node meanwhile if no executor does. False on timeout [s].

        Errors of the node's callbacks are logged: they do not belong to the caller.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while not event.is_set():
            if time.monotonic() > deadline:
                return False
            if self._is_spun or not self._spinning.acquire(blocking=False):
                event.wait(min(_SPIN_PERIOD, max(0.0, deadline - time.monotonic())))
                continue  # another thread may have ended its wait, and spins no more
            try:
                self._spin(event, deadline)
            finally:
                self._spinning.release()
        return True

    @property
    def _is_spun(self) -> bool:
        """Whether an executor has the node."""
        current = self._node.executor  # rclpy.spin_once leaves its executor here without the node
        return current is not None and self._node in current.get_nodes()

    def _spin(self, event: threading.Event, deadline: float) -> None:
        """Spin the node until an event, a time [s, monotonic], or another executor takes it."""
        executor = GuardedExecutor(self._node.get_logger(), self._node.context)
        executor.add_node(self._node)
        try:
            while (
                not event.is_set()
                and time.monotonic() <= deadline
                and self._node.executor is executor
            ):
                executor.spin_once(timeout_sec=_SPIN_PERIOD)
        finally:
            executor.remove_node(self._node)
            executor.shutdown()

    def destroy(self) -> None:
        """Destroy the action client."""
        self._client.destroy()


def action_servers(node: Node, action: str) -> frozenset[bytes]:
    """Return the ids of the servers in the ROS graph that a client of an action may talk to.

    Whether remappings of the node count for its action clients depends on the version of rcl: the
    subscriptions of the client tell its name.

    Args:
        node: that has the client.
        action: name, relative to the node's namespace, or absolute.
    """
    name, namespace = node.get_name(), node.get_namespace()
    names = {expand_topic_name(action, name, namespace), node.resolve_topic_name(action)}
    topics = {f'{full_name}/_action/status' for full_name in names}
    own = {topic for topic, _ in node.get_subscriber_names_and_types_by_node(name, namespace)}
    return frozenset(
        bytes(endpoint.endpoint_gid)
        for topic in topics & own or topics
        for endpoint in node.get_publishers_info_by_topic(topic)
    )
