# SPDX-License-Identifier: Apache-2.0
"""The action `~/segment`: goals become the session's requests, and their ends become results.

Threads: rclpy's callbacks run on the executor; `execute` is a coroutine that awaits the answer, so
any number of goals may wait. Feedback is published from the session's thread.

How a goal ends: succeeded with FOUND or NOT_FOUND, canceled with CANCELLED if its client asked for
that, aborted with STALE_INPUT or FAILED, or with CANCELLED where the node stops. A continuous one
is answered about ever newer frames, each answer as feedback, until its client cancels it. Goals
for which there is no room, and those that come while the node is not active, are rejected.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.task import Future

from lisa_ros.action import Segment
from lisa_ros.errors import LisaError, QueryError
from lisa_ros.msg import Segmentation as SegmentationMessage
from lisa_ros.perception.roi import Region
from lisa_ros.results import Event, MaskReady, Segmentation, Status, Token, answer_text
from lisa_ros.ros import message_types
from lisa_ros.session.frame_buffer import SyncedMessages
from lisa_ros.session.request import Request
from lisa_ros.session.scheduler import RequestScheduler

_ANSWERED = (Status.FOUND, Status.NOT_FOUND)
# Room for all that may be asked at once: with the usual depth of 10 a burst of goals loses some,
# and their clients wait for ever.
CALLS = QoSProfile(depth=1000, reliability=ReliabilityPolicy.RELIABLE)


@dataclass
class RequestListener:
    """Who asked, where it is not a topic: what is wanted beside the answer, and who is told."""

    answered: Callable[[Segmentation, SegmentationMessage], None]
    began: Callable[[SyncedMessages], None] = lambda frame: None
    heard: Callable[[Event], None] = lambda event: None
    region: Region | None = None  # None: the whole picture
    explain: bool = False
    public: bool = False  # whether the topics tell the answer, too


@dataclass
class _Feedback:
    """What a goal's client was told so far."""

    goal: ServerGoalHandle
    frame: SyncedMessages | None = None
    raw: str = ''
    count: int = 0  # of masks

    def tell(self, stage: str, instances: list[Any] = ()) -> None:
        """Publish feedback."""
        self.goal.publish_feedback(
            Segment.Feedback(stage=stage, text=answer_text(self.raw), instances=list(instances))
        )

    def began(self, frame: SyncedMessages) -> None:
        """The model begins."""
        self.frame = frame
        self.tell('looking')

    def heard(self, event: Event) -> None:
        """A word or a mask has come."""
        if isinstance(event, Token):
            self.raw += event.text
            self.tell('answering')
        elif isinstance(event, MaskReady):
            self.count += 1
            header = self.frame.image.header
            one = message_types.make.instance(header, self.count, event.mask, event.score)
            self.tell('answering', [one])


@dataclass
class SegmentActionServer:
    """The server of the action."""

    node: LifecycleNode
    # of a camera by its name; None while the node is not active; raises a LisaError
    session: Callable[[str], RequestScheduler | None]
    complain: Callable[[str], None]
    _requests: dict[bytes, tuple[RequestScheduler, Request]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Offer the action."""
        # with use_sim_time, a bag that is paused would hold a ROS timer back
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._server = ActionServer(
            self.node,
            Segment,
            '~/segment',
            execute_callback=self._execute,
            goal_callback=self._offered,
            cancel_callback=self._cancelled,
            goal_service_qos_profile=CALLS,
            result_service_qos_profile=CALLS,
            cancel_service_qos_profile=CALLS,
        )

    def _offered(self, goal: Segment.Goal) -> GoalResponse:
        try:
            session = self.session(goal.camera)
        except LisaError:
            return GoalResponse.ACCEPT  # to be told why it fails
        if session is None:
            self.complain('a goal was rejected: the node is not active')
            return GoalResponse.REJECT
        if not session.accepts_goals:
            self.complain('a goal was rejected: goals_kept of them wait already')
            return GoalResponse.REJECT
        return GoalResponse.ACCEPT

    def _cancelled(self, goal: ServerGoalHandle) -> CancelResponse:
        waiting = self._requests.get(bytes(goal.goal_id.uuid))
        if waiting is not None:
            session, request = waiting
            session.cancel(request)
        return CancelResponse.ACCEPT

    async def _execute(self, goal: ServerGoalHandle) -> Segment.Result:
        """Wait for the answer to a goal; other callbacks go on meanwhile."""
        wanted = goal.request
        try:
            session = self.session(wanted.camera)
            _check(wanted, session)
            began = time.monotonic()
            status, message = await self._answer(goal, session)
            while wanted.continuous and status in _ANSWERED and not goal.is_cancel_requested:
                goal.publish_feedback(
                    Segment.Feedback(
                        stage='answered', text=message.answer, instances=message.instances
                    )
                )
                await self._pause(goal, session, message_types.stamp_ns(message.header), began)
                if goal.is_cancel_requested or session.closed:
                    status = Status.CANCELLED
                    message.status = int(status)
                    break
                began = time.monotonic()
                status, message = await self._answer(goal, session)
        except LisaError as error:
            goal.abort()
            return _failed(wanted.query, str(error))
        if goal.is_cancel_requested and (wanted.continuous or status is Status.CANCELLED):
            goal.canceled()
        elif status in _ANSWERED:
            goal.succeed()
        else:
            goal.abort()
        return Segment.Result(segmentation=message)

    async def _answer(
        self, goal: ServerGoalHandle, session: RequestScheduler
    ) -> tuple[Status, SegmentationMessage]:
        """Wait for one answer.

        Raises:
            QueryError: there is no room for the request.
        """
        wanted, executor = goal.request, self.node.executor
        key = bytes(goal.goal_id.uuid)
        answer, told = Future(executor=executor), _Feedback(goal)

        def answered(result: Segmentation, message: SegmentationMessage) -> None:
            answer.set_result((result.status, message))
            executor.wake()  # not every rclpy looks at what awaits the future by itself

        own = SyncedMessages(message_types.stamp_ns(wanted.image.header), wanted.image)
        request = Request(
            wanted.query,
            frame=own if wanted.image.width else None,
            tag=RequestListener(
                answered,
                told.began,
                told.heard,
                region=_region(wanted.region),
                explain=wanted.want_explanation,
                public=not wanted.image.width,
            ),
            dialogue=wanted.dialogue or None,
            max_age=float(wanted.max_age),
            patient=True,
        )
        told.tell('queued')
        self._requests[key] = session, request
        try:
            if not session.submit_goal(request):
                raise QueryError('the node stops, or goals_kept of them wait already')
            if goal.is_cancel_requested:  # before it was noted
                session.cancel(request)
            return await answer  # it comes for sure: a session ends every request
        finally:
            del self._requests[key]

    async def _pause(
        self, goal: ServerGoalHandle, session: RequestScheduler, stamp: int, since: float
    ) -> None:
        """Wait for another frame and until `watch_rate` allows it, or for the end of the goal.

        Args:
            goal: the goal.
            session: that answers it.
            stamp: of the frame that it was answered about last [ns].
            since: when that was asked [s, monotonic].
        """
        while not goal.is_cancel_requested and not session.closed:
            over = Future(executor=self.node.executor)
            timer = self.node.create_timer(
                min(0.05, 1 / session.watch_rate),
                lambda over=over: over.done() or over.set_result(None),
                clock=self._steady,
            )
            await over
            self.node.destroy_timer(timer)
            frame = session.newest_frame()
            waited = time.monotonic() - since >= 1 / session.watch_rate
            if waited and frame is not None and frame.stamp != stamp:
                return


def _check(wanted: Segment.Goal, session: RequestScheduler | None) -> None:
    """Raise a QueryError that says why a goal cannot be tried, if it cannot."""
    if session is None:
        raise QueryError('the node is not active')
    if not wanted.max_age >= 0:
        raise QueryError(f'max_age is {wanted.max_age}; expected seconds, or 0 for any age')
    if wanted.continuous and wanted.image.width:
        raise QueryError('continuous is about a camera: a picture of its own is answered once')


def _region(region: Any) -> Region | None:
    given = (region.x_offset, region.y_offset, region.width, region.height)
    return given if region.width or region.height else None


def _failed(query: str, reason: str) -> Segment.Result:
    return Segment.Result(
        segmentation=SegmentationMessage(query=query, status=int(Status.FAILED), reason=reason)
    )
