# SPDX-License-Identifier: Apache-2.0
"""The request listeners of one camera: they pass results to topics, tracker and client.

Threads: all of it runs on the camera's delivery thread.
"""

from __future__ import annotations

import dataclasses
import time
import traceback
from dataclasses import dataclass
from typing import Protocol

from lisa_ros.error_text import shortened
from lisa_ros.msg import Segmentation as SegmentationMessage
from lisa_ros.perception.answer_phrases import spoken_answer
from lisa_ros.results import ANSWERED, BROKEN, Event, Segmentation, Status, unanswered
from lisa_ros.ros.context import NodeContext
from lisa_ros.ros.publishers import CameraPublishers, LocalizedResult
from lisa_ros.session.frame_buffer import SyncedMessages
from lisa_ros.session.request import Request
from lisa_ros.tracking.worker import TrackingWorker

_REPEATED_INTERVAL = 1.0  # between two log lines of a query that is asked again and again [s]
_OUTCOMES = {Status.TIMED_OUT: 'timed out', Status.UNREACHABLE: 'had no answer'}


class AnswerReceiver(Protocol):
    """A client that waits for its own answer: a goal, or the self-test."""

    def started(self, request: Request, frame: SyncedMessages) -> None:
        """The model began to answer about this frame, at `frame.frozen_at`."""

    def event(self, event: Event) -> None:
        """The model has generated a token or a mask."""

    def answered(self, result: Segmentation, message: SegmentationMessage) -> None:
        """The request has ended; called exactly once."""


@dataclass(frozen=True)
class _Answer:
    """A result with its positions and its message."""

    frame: SyncedMessages | None
    result: Segmentation
    localized: LocalizedResult
    message: SegmentationMessage


class TopicListener:
    """Publishes the answers to a camera's commands; their `RequestListener`."""

    def __init__(
        self,
        context: NodeContext,
        camera: str,
        publishers: CameraPublishers,
        tracking: TrackingWorker[SyncedMessages] | None,
    ):
        """Make a listener.

        Args:
            context: the node, its settings and logs.
            camera: the camera's name, for log lines; may be empty.
            publishers: those of the camera.
            tracking: gets the frames of queries, and the answers; None if tracking is off.
        """
        self._context, self._publishers, self._tracking = context, publishers, tracking
        self._camera, self._log_prefix = camera, f'{camera}: ' if camera else ''

    def started(self, request: Request, frame: SyncedMessages) -> None:
        """Give the tracker the frame, so that it can track the answer later."""
        if self._tracking is not None:
            self._tracking.on_query(frame)

    def event(self, request: Request, event: Event) -> None:
        """Do nothing: topics carry complete answers only."""

    def finished(
        self, request: Request, frame: SyncedMessages | None, result: Segmentation
    ) -> None:
        """Publish the answer, log it and track it."""
        self.publish(request, self.answer(frame, result))

    def answer(self, frame: SyncedMessages | None, result: Segmentation) -> _Answer:
        """Return a result with positions and message; after an internal error a failed one."""
        start = time.monotonic()
        try:
            localized = self._publishers.answers.localize(frame, result, always=True)
            if localized.rgbd_frame is not None:
                seconds = time.monotonic() - start
                result = dataclasses.replace(result, timings={**result.timings, 'place': seconds})
            message = self._publishers.answers.message(frame, result, localized)
        except BaseException as error:  # noqa: BLE001  # a bug: the client gets a failed result
            self._context.node.get_logger().error(traceback.format_exc())
            result = unanswered(result.query, Status.FAILED, f'internal: {error}')
            localized = LocalizedResult(None, ())
            message = SegmentationMessage(
                query=result.query, status=int(result.status), reason=result.reason
            )
        return _Answer(frame, result, localized, message)

    def publish(self, request: Request, answer: _Answer) -> None:
        """Publish an answer on the camera's topics, log it and track it."""
        if not self._context.node.context.ok():
            return  # ROS is shut down: no subscribers
        result = answer.result
        if self._tracking is not None and result.status in ANSWERED:
            self._tracking.on_answer(answer.frame, result)
        self._publish_messages(answer)
        self._log(request, result)  # after the messages: clients wait for these
        if result.status is Status.FOUND and answer.frame is not None:
            self._remember(answer.frame, answer)

    def _publish_messages(self, answer: _Answer) -> None:
        """Publish an answer on the topics that have subscribers."""
        result = answer.result
        if result.status not in ANSWERED and not len(result.masks):
            # The request was not answered: an empty ~/mask would say that nothing was found.
            self._publishers.answers.publish_status(answer.message)
            return
        self._publishers.answers.publish(
            answer.frame, result, answer.localized, lambda: answer.message
        )
        # If a mask was left out, the answer may name an object that no mask shows.
        left_out = result.status is Status.NOT_FOUND and result.reason
        if result.answer:
            self._publishers.publish_explanation(left_out or spoken_answer(result))

    def _remember(self, frame: SyncedMessages, answer: _Answer) -> None:
        """Note where the objects are; an error is logged, as the answer has been published."""
        objects = answer.localized.objects
        try:
            self._context.places.note(frame, answer.result, objects, self._camera)
        except Exception:  # noqa: BLE001  # a bug, or an image that cannot be decoded again
            self._context.log.error(traceback.format_exc(), 'places')

    def _log(self, request: Request, result: Segmentation) -> None:
        query = f'{self._log_prefix}{shortened(result.query)!r}'
        cause = self._log_prefix + result.reason
        if result.status in BROKEN:
            outcome = _OUTCOMES.get(result.status, 'failed')
            self._context.log.error(f'{query} {outcome}: {result.reason}', cause)
            return
        answer = shortened(result.answer) or result.reason
        reason = f', {result.reason}' if result.answer and result.reason else ''
        seconds = time.monotonic() - request.created
        line = f'{query}: {result.status.name}, {answer!r}{reason} ({seconds:.2f} s)'
        if request.kind.is_background or request.is_continuous:
            self._context.log.info(line, f'{query} is asked again', _REPEATED_INTERVAL)
        elif result.status in ANSWERED:
            self._context.node.get_logger().info(line)
        else:
            self._context.log.info(line, cause)


class ClientListener:
    """Passes a request's progress on to its client; its `RequestListener`."""

    def __init__(self, topics: TopicListener, receiver: AnswerReceiver, is_public: bool):
        """Make a listener.

        Args:
            topics: that of the camera.
            receiver: the client.
            is_public: publish the answer on the topics, too.
        """
        self._topics, self._receiver, self._is_public = topics, receiver, is_public

    def started(self, request: Request, frame: SyncedMessages) -> None:
        """Tell the client, and the tracker if the answer is public."""
        self._receiver.started(request, frame)
        if self._is_public:
            self._topics.started(request, frame)

    def event(self, request: Request, event: Event) -> None:
        """Pass a token or a mask on to the client."""
        self._receiver.event(event)

    def finished(
        self, request: Request, frame: SyncedMessages | None, result: Segmentation
    ) -> None:
        """Give the client its answer, then publish it if it is public."""
        answer = self._topics.answer(frame, result)
        self._receiver.answered(answer.result, answer.message)
        if self._is_public:
            self._topics.publish(request, answer)
