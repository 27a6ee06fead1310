# SPDX-License-Identifier: Apache-2.0
"""The action server `~/segment`: goals become requests, and their ends become results.

Threads: rclpy's callbacks run on the executor's thread. `_execute` is a coroutine that awaits the
answer, so any number of goals may wait. Feedback is published on the camera's delivery thread.

How a goal ends (state of the action, status of the result):

    succeeded   FOUND, NOT_FOUND
    canceled    CANCELLED: its client cancelled it
    aborted     STALE_INPUT, FAILED, TIMED_OUT, UNREACHABLE, REPEATED, or CANCELLED: the node
                deactivated, "stop" ended a continuous goal, the client has left the ROS graph, or
                it has more than `goals_per_client`

A continuous goal is answered again for newer frames until its client cancels it; each answer is
sent as feedback. Goals beyond `goals_kept` and goals to an inactive node are rejected. Nobody
works for a client that has gone: its goals end within 2 s after it has left the graph.
"""

from __future__ import annotations

import copy
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence

from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.executors import Executor
from rclpy.task import Future
from sensor_msgs.msg import RegionOfInterest

from lisa_ros.action import Segment
from lisa_ros.error_text import shortened
from lisa_ros.errors import LisaError, QueryError
from lisa_ros.health.goals import UNKNOWN_CLIENT, Departure, OpenGoal
from lisa_ros.messages.stamp import stamp_ns
from lisa_ros.msg import Instance
from lisa_ros.msg import Segmentation as SegmentationMessage
from lisa_ros.results import (
    ANSWERED,
    Dialogue,
    Event,
    MaskReady,
    Region,
    Segmentation,
    Status,
    Token,
    answer_text,
)
from lisa_ros.ros import message_types
from lisa_ros.ros.camera_pipeline import CameraPipeline
from lisa_ros.ros.cameras import Cameras
from lisa_ros.ros.context import STEADY_CLOCK, NodeContext
from lisa_ros.ros.goal_clients import GoalClients
from lisa_ros.ros.qos import ACTION_SERVICE_QOS
from lisa_ros.session.frame_buffer import SyncedMessages
from lisa_ros.session.request import (
    CancelReason,
    PreviousAnswer,
    Request,
    RequestClient,
    RequestKind,
    length_error,
)
from lisa_ros.session.scheduler import RequestScheduler

_CHECK_PERIOD = 0.25  # of the presence of clients; a goal ends if it is missed twice [s]
_MAX_DEPARTURES = 50  # that are remembered


class _GoalReceiver:
    """An `AnswerReceiver` for a goal: sends feedback to its client, keeps the final message."""

    def __init__(self, goal: ServerGoalHandle, executor: Executor):
        self.ended = Future(executor=executor)  # done when status and message are set
        self.status: Status | None = None
        self.message: SegmentationMessage | None = None
        self.yes_probability = math.nan  # of a yes/no question
        self.frame: SyncedMessages | None = None  # the model has begun to answer about it
        self.turns = Dialogue()  # the earlier turns of its prompt
        self.ticket = 0  # see `PreviousAnswer`
        self._goal, self._executor = goal, executor
        self._answer_raw = ''
        self._mask_count = 0

    def publish_feedback(self, stage: str, instances: Sequence[Instance] = ()) -> None:
        """Publish the stage, the text so far, and new instances."""
        self._goal.publish_feedback(
            Segment.Feedback(
                stage=stage, text=answer_text(self._answer_raw), instances=list(instances)
            )
        )

    def started(self, request: Request, frame: SyncedMessages) -> None:
        """Send the feedback that the model begins."""
        self.frame, self.turns, self.ticket = frame, request.turns, request.ticket
        self.publish_feedback('looking')

    def event(self, event: Event) -> None:
        """Send a token or a mask as feedback."""
        if isinstance(event, Token):
            self._answer_raw += event.text
            self.publish_feedback('answering')
        elif isinstance(event, MaskReady):
            self._mask_count += 1
            header = self.frame.image.header
            instance = message_types.make.instance(
                header, self._mask_count, event.mask, event.score
            )
            self.publish_feedback('answering', [instance])

    def answered(self, result: Segmentation, message: SegmentationMessage) -> None:
        """Wake the coroutine that awaits the answer."""
        # a copy: the goal may end otherwise than its last answer, which is being published
        self.status, self.message = result.status, copy.copy(message)
        if result.yes_probability is not None:
            self.yes_probability = result.yes_probability
        self.ended.set_result(None)
        self._executor.wake()  # some rclpy versions do not wake up when an awaited future is done


class _DeactivatedError(LisaError):
    """The node deactivates: a goal that was accepted before is not started."""


class SegmentActionServer:
    """The server of the action; see the module's docstring for threads and rules."""

    def __init__(self, context: NodeContext, cameras: Cameras, on_departure: Callable[[], None]):
        """Offer the action; it rejects goals while the node is inactive.

        Args:
            context: of the node.
            cameras: that answer goals.
            on_departure: called when a client has left the graph, after `departures` has grown.
        """
        self._on_departure = on_departure
        self._node, self._log, self._cameras = context.node, context.log, cameras
        self._settings = context.settings
        self._requests: dict[bytes, tuple[RequestScheduler, Request]] = {}  # by goal id
        self._server = ActionServer(
            self._node,
            Segment,
            '~/segment',
            execute_callback=self._execute,
            goal_callback=self._on_goal,
            cancel_callback=self._on_cancel,
            goal_service_qos_profile=ACTION_SERVICE_QOS,
            result_service_qos_profile=ACTION_SERVICE_QOS,
            cancel_service_qos_profile=ACTION_SERVICE_QOS,
        )
        action = self._node.resolve_service_name('~/segment')
        self._clients = GoalClients(self._node, self._server, action, self._note_client)
        self._since: dict[bytes, float] = {}  # when a goal came [s, monotonic], by its id
        self._revoked: dict[bytes, CancelReason] = {}  # goals that the server itself ends
        self._departures: deque[Departure] = deque(maxlen=_MAX_DEPARTURES)
        self._missing: set[bytes] = set()  # goals whose client was not there at the last check
        self._node.create_timer(_CHECK_PERIOD, self._check_clients, clock=STEADY_CLOCK)

    def _on_goal(self, goal: Segment.Goal) -> GoalResponse:
        try:
            scheduler = self._cameras.named(goal.camera).scheduler
        except LisaError:
            return GoalResponse.ACCEPT  # aborted in `_execute` with a reason; a rejection has none
        if scheduler is None:
            self._log.error('a goal was rejected: the node is not active')
            return GoalResponse.REJECT
        if not scheduler.accepts_goals:
            self._log.error('a goal was rejected: the queue is full, see goals_kept')
            scheduler.note_rejection()
            return GoalResponse.REJECT
        return GoalResponse.ACCEPT

    def open_goals(self) -> list[OpenGoal]:
        """Return the goals that have not ended; on the executor's thread."""
        now = time.monotonic()
        return [
            OpenGoal(
                self._clients.name(goal_id) or UNKNOWN_CLIENT,
                request.text,
                request.is_continuous,
                now - self._since.get(goal_id, now),
            )
            for goal_id, (_, request) in self._requests.items()
        ]

    @property
    def departures(self) -> list[Departure]:
        """Clients that left the graph with open goals, the newest last."""
        return list(self._departures)

    def _on_cancel(self, goal: ServerGoalHandle) -> CancelResponse:
        self._cancel(bytes(goal.goal_id.uuid), CancelReason.CANCELLED)
        return CancelResponse.ACCEPT

    def _cancel(self, goal_id: bytes, reason: CancelReason) -> None:
        scheduler_and_request = self._requests.get(goal_id)
        if scheduler_and_request is not None:
            scheduler, request = scheduler_and_request
            scheduler.cancel(request, reason)

    def _note_client(self, goal_id: bytes) -> None:
        """Tell a request whose goal it is; end the goal if its client has too many."""
        if goal_id not in self._requests:
            return  # `_answer` looks again when it has registered the goal
        client = self._clients.client(goal_id)
        if client:
            self._requests[goal_id][1].client.identify(client)
        goals = sum(self._clients.client(other) == client for other in self._requests)
        if client and goals > self._settings.value.goals_per_client:
            self._log.warning('a goal was aborted: its client has too many, see goals_per_client')
            scheduler, _ = self._requests[goal_id]
            scheduler.history.add_rejection(CancelReason.CLIENT_LIMIT.value)
            self._revoke(goal_id, CancelReason.CLIENT_LIMIT)

    def _revoke(self, goal_id: bytes, reason: CancelReason) -> None:
        """End a goal, also if it is between two answers."""
        self._revoked[goal_id] = reason
        self._cancel(goal_id, reason)

    def _check_clients(self) -> None:
        """End the goals whose clients have left the ROS graph."""
        if not self._requests:
            self._missing = set()
            return
        gone = self._clients.gone(self._requests)
        ended = (gone & self._missing) - self._revoked.keys()
        for goal_id in ended:
            self._revoke(goal_id, CancelReason.CLIENT_GONE)
        clients = Counter(self._clients.name(goal_id) or UNKNOWN_CLIENT for goal_id in ended)
        for client, goals in clients.items():
            self._log.warning(
                f'a goal was aborted: its client has left the ROS graph ({client}, {goals} goals)'
            )
            self._departures.append(Departure(client, goals, time.monotonic()))
        self._missing = gone
        if ended:
            self._on_departure()

    async def _execute(self, goal: ServerGoalHandle) -> Segment.Result:
        """Wait for the end of a goal and return its result; other callbacks run meanwhile."""
        self._since[bytes(goal.goal_id.uuid)] = time.monotonic()
        try:
            camera = self._cameras.named(goal.request.camera)
            _check_goal(goal.request, camera.scheduler, self._settings.value.max_command_chars)
            status, message, yes_probability = await self._answers(goal, camera)
        except LisaError as error:
            goal.abort()
            status = Status.CANCELLED if isinstance(error, _DeactivatedError) else Status.FAILED
            query = shortened(goal.request.query)
            return Segment.Result(
                segmentation=SegmentationMessage(
                    query=query, status=int(status), reason=str(error)
                ),
                yes_probability=math.nan,
            )
        finally:
            goal_id = bytes(goal.goal_id.uuid)
            self._clients.forget(goal_id)
            self._revoked.pop(goal_id, None)
            del self._since[goal_id]
        is_continuous = goal.request.continuous
        if goal.is_cancel_requested and (is_continuous or status is Status.CANCELLED):
            goal.canceled()
        elif status in ANSWERED:
            goal.succeed()
        else:
            goal.abort()
        return Segment.Result(segmentation=message, yes_probability=yes_probability)

    async def _answers(
        self, goal: ServerGoalHandle, camera: CameraPipeline
    ) -> tuple[Status, SegmentationMessage, float]:
        """Wait for the answer, or for the last one of a continuous goal.

        Returns:
            Its status, its message, and the probability of yes; NaN: none.
        """
        scheduler = camera.scheduler
        answer = await self._answer(goal, camera, scheduler, None)
        status, message = answer.status, answer.message
        while goal.request.continuous and status in ANSWERED and not goal.is_cancel_requested:
            goal.publish_feedback(
                Segment.Feedback(
                    stage='answered', text=message.answer, instances=message.instances
                )
            )
            if scheduler.is_closed:  # the node deactivates
                status, message.reason = Status.CANCELLED, CancelReason.SHUTDOWN.value
                break
            previous = PreviousAnswer(
                answer.frame.arrival, answer.frame.frozen_at, answer.turns, answer.ticket
            )
            answer = await self._answer(goal, camera, scheduler, previous)
            status = answer.status
            if status is not Status.CANCELLED or answer.frame is not None:
                message = answer.message
            else:  # the message stays the last answer: the next had not begun
                message.reason = answer.message.reason
        if goal.request.continuous and goal.is_cancel_requested and status in ANSWERED:
            status, message.reason = Status.CANCELLED, CancelReason.CANCELLED.value
        message.status = int(status)
        return status, message, answer.yes_probability

    async def _answer(
        self,
        goal: ServerGoalHandle,
        camera: CameraPipeline,
        scheduler: RequestScheduler,
        previous: PreviousAnswer | None,
    ) -> _GoalReceiver:
        """Wait for one answer; return its receiver.

        Raises:
            QueryError: the request is not accepted.
            _DeactivatedError: the node deactivates.
        """
        goal_id = bytes(goal.goal_id.uuid)
        receiver = _GoalReceiver(goal, self._node.executor)
        receiver.publish_feedback('queued')
        known_client = self._clients.client(goal_id)
        client = RequestClient(known_client) if known_client else RequestClient()
        request = _make_request(goal.request, camera, receiver, previous, client)
        self._requests[goal_id] = scheduler, request
        try:
            if not scheduler.submit_goal(request):
                if scheduler.is_closed:
                    raise _DeactivatedError(CancelReason.SHUTDOWN.value)
                raise QueryError('the queue is full, see goals_kept')
            if goal.is_cancel_requested:  # cancelled before the request was registered
                scheduler.cancel(request)
            elif goal_id in self._revoked:  # between two answers
                scheduler.cancel(request, self._revoked[goal_id])
            if previous is None:  # its client may have become known before
                self._note_client(goal_id)
            await receiver.ended  # always completes: a scheduler ends every request
            return receiver
        finally:
            del self._requests[goal_id]


def _make_request(
    goal: Segment.Goal,
    camera: CameraPipeline,
    receiver: _GoalReceiver,
    previous: PreviousAnswer | None,
    client: RequestClient,
) -> Request:
    """Return the request of a goal; answers about the camera's own frames go to its topics."""
    has_image = bool(goal.image.width)
    image_stamp = stamp_ns(goal.image.header)
    return Request(
        goal.query,
        RequestKind.GOAL,
        # an answer without masks must not end the tracking of the last one
        camera.client_listener(receiver, is_public=not has_image and not goal.answer_probability),
        frame=SyncedMessages(image_stamp, goal.image) if has_image else None,
        dialogue=goal.dialogue or None,
        client=client,
        is_continuous=goal.continuous,
        previous=previous,
        max_age=float(goal.max_age),
        region=_region(goal.region),
        explain=goal.want_explanation,
        yes_no=goal.answer_probability,
    )


def _check_goal(goal: Segment.Goal, scheduler: RequestScheduler | None, max_chars: int) -> None:
    """Check a goal before it is queued.

    Raises:
        QueryError: the goal is not valid.
        _DeactivatedError: the node is not active any more.
    """
    if scheduler is None:
        raise _DeactivatedError(CancelReason.SHUTDOWN.value)
    for text in (goal.query, goal.dialogue):
        error = length_error(text, max_chars)
        if error:
            raise QueryError(error)
    if not goal.max_age >= 0:  # also NaN
        raise QueryError(f'max_age is {goal.max_age}; expected seconds, or 0 for any age')
    if goal.continuous and goal.image.width:
        raise QueryError('continuous needs camera images: leave out the image of the goal')
    if goal.answer_probability and (goal.continuous or goal.want_explanation):
        raise QueryError(
            'answer_probability gives one yes or no: leave out continuous and want_explanation'
        )


def _region(region: RegionOfInterest) -> Region | None:
    """Return x, y, width and height [px]; None for an empty region: the whole image."""
    values = (region.x_offset, region.y_offset, region.width, region.height)
    return values if region.width or region.height else None
