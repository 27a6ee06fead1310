# SPDX-License-Identifier: Apache-2.0
"""The inference thread: the one thread that uses the model, for all cameras of a node.

Order: commands and goals of all cameras come before background work (standing queries and
requeries). Within each, the cameras take turns, one request at a time. Running background work is
cancelled when a command or goal is due within 0.1 s, and is asked again afterwards. The frame of a
request is frozen when the model starts it, so it is the newest frame.

Threads: every method may be called from any thread and returns at once, except `close`. The
backend runs on the inference thread and nowhere else. `changed` is the one lock of the thread and
of all its queues; a queue calls `wake` with it held when something new is due. Nothing polls: the
thread sleeps until it is woken or until the next due time.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import threading
import time
import traceback
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lisa_ros.errors import LisaError
from lisa_ros.perception.backend import Backend, InferenceOptions, Query
from lisa_ros.perception.roi import stream_in_region
from lisa_ros.results import Dialogue, Done, Event, Segmentation, Status
from lisa_ros.session.delivery import ErrorLog
from lisa_ros.session.frame_buffer import SyncedMessages
from lisa_ros.session.request import CancelReason, Request, unanswered

_PREEMPT_AHEAD = 0.1  # background work gives way this long before a command or goal is due [s]


class Urgency(enum.Enum):
    """Priority of a request, highest first."""

    URGENT = enum.auto()  # commands and goals
    BACKGROUND = enum.auto()  # standing queries and requeries


@dataclass(frozen=True)
class InferenceJob:
    """A request with its frame and dialogue, frozen when the model begins."""

    request: Request
    frame: SyncedMessages
    dialogue: Dialogue
    dialogue_ticket: int  # for `DialogueStore.append`


class RequestQueue(Protocol):
    """The methods of a camera's `RequestScheduler` that the inference thread calls."""

    def due_at(self, urgency: Urgency) -> float:
        """Return the earliest time to take a request [s, monotonic], with `changed` held.

        Infinite if there is no such request, or if it depends on a message still to come.
        """

    def take(self, urgency: Urgency) -> InferenceJob | None:
        """Take the due request, with `changed` held; None if the request failed at once."""

    def event(self, job: InferenceJob, event: Event) -> None:
        """Take a token or mask of a job."""

    def complete(self, job: InferenceJob, result: Segmentation) -> None:
        """Take the result of a job.

        A result that breaks the protocol raises an exception before anything has changed; then
        the job can be completed with another result.
        """


class FrameDecoder(Protocol):
    """Decodes the messages of a frame."""

    def rgb_image(self, frame: SyncedMessages) -> np.ndarray:
        """Return a frame's colour image, (H, W, 3) uint8 RGB.

        Raises:
            ImageError: the encoding or the size is not supported.
        """


class InferenceThread:
    """Owns a backend; the module's docstring has the rules and threads."""

    def __init__(
        self, backend: Backend, decoder: FrameDecoder, options: InferenceOptions, log: ErrorLog
    ):
        """Make a thread; `start` starts it.

        Args:
            backend: the model; nothing else may use it.
            decoder: converts frames to RGB images, on this thread.
            options: how queries are answered, used until `set_options`.
            log: receives the tracebacks of bugs.
        """
        self.changed = threading.Condition()
        self._backend, self._decoder = backend, decoder
        self._options, self._log = options, log
        self._queues: list[RequestQueue] = []  # the first one is served next
        self._running: InferenceJob | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, name='lisa-inference', daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self, timeout: float = 10.0) -> bool:
        """End the thread after the running request; False if it still runs after `timeout` [s]."""
        with self.changed:
            self._closed = True
            self.changed.notify_all()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def set_options(self, options: InferenceOptions) -> None:
        """Use other options, starting with the next request."""
        self._options = options

    def add_queue(self, queue: RequestQueue) -> None:
        """Serve another camera."""
        with self.changed:
            self._queues.append(queue)
            self.wake()

    def remove_queue(self, queue: RequestQueue) -> None:
        """Stop serving a camera; no effect if it is not served."""
        with self.changed:
            self._queues = [served for served in self._queues if served is not queue]

    def wake(self) -> None:
        """Wake the thread if a request is due, or preempt background work; `changed` held."""
        if self._running is None:
            if self._seconds_until_due() is not None:
                self.changed.notify_all()
        elif self._running.request.kind.is_background and self._is_urgent_soon():
            self._running.request.cancellation.cancel(CancelReason.PREEMPTED)

    def _run(self) -> None:
        while (next_job := self._wait_for_job()) is not None:
            queue, job = next_job
            result = self._answer(queue, job)
            try:
                queue.complete(job, result)
            except Exception as error:  # noqa: BLE001  # e.g. masks that are no (N, H, W) array
                queue.complete(job, self._failed(job, error))
            with self.changed:
                self._running = None

    def _wait_for_job(self) -> tuple[RequestQueue, InferenceJob] | None:
        """Wait for the next job; return it with its queue. None when the thread closes."""
        with self.changed:
            while not self._closed:
                queue_and_job = self._take(Urgency.URGENT)
                if queue_and_job is None and not self._is_urgent_soon():
                    queue_and_job = self._take(Urgency.BACKGROUND)
                if queue_and_job is not None:
                    _, self._running = queue_and_job
                    return queue_and_job
                self.changed.wait(self._seconds_until_due())
        return None

    def _take(self, urgency: Urgency) -> tuple[RequestQueue, InferenceJob] | None:
        """Take a job of this urgency, lock held; None if none is due."""
        while (queue := self._due_queue(urgency)) is not None:
            self._queues.remove(queue)
            self._queues.append(queue)  # the other cameras come first now
            job = queue.take(urgency)
            if job is not None:
                return queue, job
        return None

    def _due_queue(self, urgency: Urgency) -> RequestQueue | None:
        """Return the first queue with a request that is due now, lock held."""
        now = time.monotonic()
        return next((queue for queue in self._queues if queue.due_at(urgency) <= now), None)

    def _next_due_at(self, urgency: Urgency) -> float:
        """Return the earliest `due_at` of all queues [s, monotonic], lock held."""
        return min((queue.due_at(urgency) for queue in self._queues), default=math.inf)

    def _is_urgent_soon(self) -> bool:
        """Return whether a command or goal is due within 0.1 s: background work must wait."""
        return self._next_due_at(Urgency.URGENT) - time.monotonic() <= _PREEMPT_AHEAD

    def _seconds_until_due(self) -> float | None:
        """Return the time until the next request is due [s]; None: none is due yet."""
        due_at = self._next_due_at(Urgency.URGENT)
        if not self._is_urgent_soon():
            due_at = min(due_at, self._next_due_at(Urgency.BACKGROUND))
        return None if due_at == math.inf else max(0.0, due_at - time.monotonic())

    def _answer(self, queue: RequestQueue, job: InferenceJob) -> Segmentation:
        """Decode the image and run the model; pass each event to the queue at once."""
        request, start = job.request, time.monotonic()
        query = Query(request.text, job.dialogue, request.explain, request.region)
        try:
            image = self._decoder.rgb_image(job.frame)
            decode_seconds = time.monotonic() - start
            for event in stream_in_region(
                self._backend, image, query, self._options, request.cancellation
            ):
                if isinstance(event, Done):
                    timings = {'convert': decode_seconds, **event.result.timings}
                    return dataclasses.replace(event.result, timings=timings)
                queue.event(job, event)
            raise AssertionError('a backend ends its stream with Done')
        except LisaError as error:
            return unanswered(query.text, Status.FAILED, str(error))
        except Exception as error:  # noqa: BLE001  # a bug: logged, and the next request is answered
            return self._failed(job, error)

    def _failed(self, job: InferenceJob, error: Exception) -> Segmentation:
        """Log the exception that is being handled; return the FAILED result of its job."""
        self._log.error(traceback.format_exc())
        reason = f'internal error: {type(error).__name__}: {error}'
        return unanswered(job.request.text, Status.FAILED, reason)
