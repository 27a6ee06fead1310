# SPDX-License-Identifier: Apache-2.0
"""A client of the action `~/segment`, for planners and scripts; import it as `lisa_ros.client`.

Threads: `segment` waits. Where the node is spun by somebody else it waits for that thread, so it
must not be called from one of its callbacks: there, `segment_async`. Where nobody spins the node,
the client spins it meanwhile.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from rclpy.action import ActionClient
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.task import Future
from std_msgs.msg import Header

from lisa_ros.action import Segment
from lisa_ros.errors import LisaError, QueryError
from lisa_ros.messages.segmentation import result_from_message
from lisa_ros.msg import Segmentation as SegmentationMessage
from lisa_ros.results import Status
from lisa_ros.ros.action_server import CALLS

Feedback = Callable[[Segment.Feedback], None]

_DISCOVERY = (
    0.2  # until a server that was just found has found our ears, too [s] (rmw_fastrtps#842)
)


@dataclass(frozen=True)
class Answer:
    """How a goal ended."""

    status: Status
    reason: str  # why it was CANCELLED, FAILED or had STALE_INPUT
    answer: str
    header: Header  # of the image that it is about
    masks: np.ndarray  # (N, H, W) bool
    scores: np.ndarray  # (N,) float32, 0..1
    message: SegmentationMessage  # all of it, with boxes and centroids


class GoalFuture:
    """A goal on its way."""

    def __init__(self, client: LisaClient, sent: Future):
        self.future = Future()  # of an Answer; may be awaited in a callback that is a coroutine
        self._client, self._goal = client, None
        self._cancelled = False
        self._ended = threading.Event()
        self.future.add_done_callback(lambda _: self._ended.set())
        sent.add_done_callback(self._accepted)

    def done(self) -> bool:
        """Return whether it has ended."""
        return self._ended.is_set()

    def cancel(self) -> None:
        """Ask the node to stop; the answer then says how it ended."""
        self._cancelled = True
        if self._goal is not None:
            self._goal.cancel_goal_async()

    def result(self, timeout: float | None = 60.0) -> Answer:
        """Wait for the end.

        Raises:
            QueryError: the goal was rejected.
            LisaError: it has not ended within `timeout` [s]; it goes on, `cancel` stops it.
        """
        if not self._client.wait(self._ended, timeout):
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
                    'the node rejected the goal: it is not active, or goals_kept wait already'
                )
            )
            return
        if self._cancelled:
            goal.cancel_goal_async()
        goal.get_result_async().add_done_callback(self._answered)

    def _answered(self, got: Future) -> None:
        try:
            message = got.result().result.segmentation
            result = result_from_message(message)
        except Exception as error:  # noqa: BLE001  # of whatever kind: who waits is told
            self.future.set_exception(LisaError(f'the node ended the goal without one: {error}'))
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
            )
        )


class LisaClient:
    """Asks a lisa node; one for each node that asks."""

    def __init__(self, node: Node, name: str = 'lisa'):
        """Make a client.

        Args:
            node: the asking one.
            name: of the lisa node, relative to this node's namespace or with its own.
        """
        self._node, self._name = node, name
        self._client = ActionClient(
            node,
            Segment,
            f'{name}/segment',
            goal_service_qos_profile=CALLS,
            result_service_qos_profile=CALLS,
            cancel_service_qos_profile=CALLS,
        )
        self._found = False

    def segment(
        self,
        query: str,
        *,
        timeout: float = 60.0,
        on_feedback: Feedback | None = None,
        **goal: Any,
    ) -> Answer:
        """Ask, and wait for the answer.

        Args:
            query: what to find.
            timeout: for the node to be there and to answer [s]; a goal that takes longer is
                cancelled.
            on_feedback: called with each feedback.
            **goal: other fields of Segment.Goal, as dialogue or max_age.

        Raises:
            LisaError: no node is there, or no answer came in time.
            QueryError: the goal was rejected, is none, or would not end by itself.
        """
        if goal.get('continuous'):
            raise QueryError('a continuous goal ends when it is cancelled: use segment_async')
        began = time.monotonic()
        pending = self.segment_async(query, timeout=timeout, on_feedback=on_feedback, **goal)
        try:
            return pending.result(max(0.0, timeout - (time.monotonic() - began)))
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
        """Ask, and come back at once, or as soon as the node is there.

        Arguments as `segment`; `timeout` is for the node to be there.

        Raises:
            LisaError: no node is there.
            QueryError: a field that the goal does not have, or of another type.
        """
        self.find(timeout)
        heard = None if on_feedback is None else lambda message: on_feedback(message.feedback)
        try:
            if not goal.keys() <= Segment.Goal.get_fields_and_field_types().keys():
                raise TypeError(f'it has no such field as one of {", ".join(goal)}')
            sent = self._client.send_goal_async(Segment.Goal(query=query, **goal), heard)
        except (AssertionError, AttributeError, TypeError) as error:  # rclpy's own checks
            raise QueryError(
                f'that is no goal: {error}; image is a sensor_msgs/Image, region a '
                'sensor_msgs/RegionOfInterest, the others are as in lisa_ros/action/Segment'
            ) from error
        return GoalFuture(self, sent)

    def find(self, timeout: float) -> None:
        """Wait until the node is there.

        Raises:
            LisaError: it is not, after `timeout` [s].
        """
        if self._found:
            return
        if not self._client.wait_for_server(timeout):
            raise LisaError(
                f'no action {self._name}/segment within {timeout:g} s: does the node run, and is '
                'its name right?'
            )
        time.sleep(_DISCOVERY)
        self._found = True

    def wait(self, event: threading.Event, timeout: float | None) -> bool:
        """Wait for an event, and spin the node meanwhile if nobody else does."""
        known = self._node.executor  # also that of an earlier rclpy.spin_once, which has let it go
        if known is not None and self._node in known.get_nodes():
            return event.wait(timeout)
        executor = SingleThreadedExecutor(context=self._node.context)
        executor.add_node(self._node)
        until = None if timeout is None else time.monotonic() + timeout
        try:
            while not event.is_set():
                if until is not None and time.monotonic() > until:
                    return False
                executor.spin_once(timeout_sec=0.05)
        finally:
            executor.remove_node(self._node)
            executor.shutdown()
        return True

    def destroy(self) -> None:
        """Free what DDS holds for it."""
        self._client.destroy()
