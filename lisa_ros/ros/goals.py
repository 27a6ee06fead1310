# SPDX-License-Identifier: Apache-2.0
"""The action `~/segment`: goals become the session's requests, and their ends become results.

Threads: rclpy's callbacks run on the executor; `execute` is a coroutine that awaits the answer, so
any number of goals may wait. Feedback is published from the session's thread.

How a goal ends: succeeded with FOUND or NOT_FOUND, canceled with CANCELLED if its client asked for
that, aborted with STALE_INPUT or FAILED, or with CANCELLED where the node stops. Goals for which
there is no room, and those that come while the node is not active, are rejected.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.task import Future

from lisa_ros.action import Segment
from lisa_ros.errors import LisaError
from lisa_ros.msg import Segmentation as SegmentationMessage
from lisa_ros.prompts import readable
from lisa_ros.regions import Region
from lisa_ros.results import Event, MaskReady, Segmentation, Status, Token
from lisa_ros.ros import messages
from lisa_ros.session import Frame, Request, Session

# Room for all that may be asked at once: with the usual depth of 10 a burst of goals loses some,
# and their clients wait for ever.
CALLS = QoSProfile(depth=1000, reliability=ReliabilityPolicy.RELIABLE)


@dataclass
class Asker:
    """Who asked, where it is not a topic: what is wanted beside the answer, and who is told."""

    answered: Callable[[Segmentation, SegmentationMessage], None]
    began: Callable[[Frame], None] = lambda frame: None
    heard: Callable[[Event], None] = lambda event: None
    region: Region | None = None  # None: the whole picture
    explain: bool = False
    public: bool = False  # whether the topics tell the answer, too


@dataclass
class _Told:
    """What a goal's client was told so far."""

    goal: ServerGoalHandle
    frame: Frame | None = None
    raw: str = ''
    count: int = 0  # of masks

    def tell(self, stage: str, instances: list[Any] = ()) -> None:
        """Publish feedback."""
        self.goal.publish_feedback(
            Segment.Feedback(stage=stage, text=readable(self.raw), instances=list(instances))
        )

    def began(self, frame: Frame) -> None:
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
            one = messages.make.instance(header, self.count, event.mask, event.score)
            self.tell('answering', [one])


@dataclass
class Goals:
    """The server of the action."""

    node: LifecycleNode
    # of a camera by its name; None while the node is not active; raises a LisaError
    session: Callable[[str], Session | None]
    complain: Callable[[str], None]
    _requests: dict[bytes, tuple[Session, Request]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Offer the action."""
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
        if not session.has_room:
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
        wanted, executor = goal.request, self.node.executor
        try:
            session, fault = self.session(wanted.camera), ''
        except LisaError as error:
            session, fault = None, str(error)
        key = bytes(goal.goal_id.uuid)
        answer, told = Future(executor=executor), _Told(goal)

        def answered(result: Segmentation, message: SegmentationMessage) -> None:
            answer.set_result((result.status, message))
            executor.wake()  # not every rclpy looks at what awaits the future by itself

        own = Frame(messages.stamp_ns(wanted.image.header), wanted.image)
        request = Request(
            wanted.query,
            frame=own if wanted.image.width else None,
            tag=Asker(
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
        fault = fault or _fault(wanted, session)
        if not fault:
            told.tell('queued')
            self._requests[key] = session, request
            if not session.goal(request):
                fault = 'the node stops, or goals_kept of them wait already'
        if fault:
            goal.abort()
            return _failed(wanted.query, fault)
        if goal.is_cancel_requested:  # before it was noted
            session.cancel(request)
        try:
            status, message = await answer  # it comes for sure: a session ends every request
        finally:
            del self._requests[key]
        if status in (Status.FOUND, Status.NOT_FOUND):
            goal.succeed()
        elif status is Status.CANCELLED and goal.is_cancel_requested:
            goal.canceled()
        else:
            goal.abort()
        return Segment.Result(segmentation=message)


def _fault(wanted: Segment.Goal, session: Session | None) -> str:
    """Return why a goal cannot be tried, nothing if it can."""
    if session is None:
        return 'the node is not active'
    if not wanted.max_age >= 0:
        return f'max_age is {wanted.max_age}; expected seconds, or 0 for any age'
    return ''


def _region(region: Any) -> Region | None:
    given = (region.x_offset, region.y_offset, region.width, region.height)
    return given if region.width or region.height else None


def _failed(query: str, reason: str) -> Segment.Result:
    return Segment.Result(
        segmentation=SegmentationMessage(query=query, status=int(Status.FAILED), reason=reason)
    )
