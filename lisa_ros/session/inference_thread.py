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

A backend that does not return in time: `STOP_GRACE` after `answer_timeout` the watchdog (a thread
of its own) ends the job as TIMED_OUT with the masks that were ready, and ignores whatever the
backend still yields. It also interrupts a backend in a process of its own. A thread cannot be
ended: while the backend holds it, the watchdog ends every command and goal as FAILED, with a
reason that names the cure. When the backend returns, the thread goes on as before. Whatever a
backend raises, SystemExit and the like included, ends one request and not the thread.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import math
import sys
import threading
import time
import traceback
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from lisa_ros.errors import LisaError
from lisa_ros.perception.backend import (
    STOP_GRACE,
    Backend,
    InferenceOptions,
    Query,
    SupervisedBackend,
)
from lisa_ros.perception.health import HealthState, ModelFailure, ModelHealth, newest_failure
from lisa_ros.perception.roi import stream_in_region
from lisa_ros.perception.stopping import Deadline, EarlyEnd, PartialAnswer
from lisa_ros.results import Dialogue, Done, Event, Segmentation, Status, unanswered
from lisa_ros.session.delivery import ErrorLog
from lisa_ros.session.frame_buffer import SyncedMessages
from lisa_ros.session.request import CancelReason, Request
from lisa_ros.session.watchdog import Watchdog

_PREEMPT_AHEAD = 0.1  # background work gives way this long before a command or goal is due [s]
_INTERRUPT_MARGIN = 0.2  # a supervised backend ends an answer itself, after STOP_GRACE [s]
_RETURN_GRACE = 0.5  # how long a backend may take to return after it was interrupted [s]
_CRASH_PAUSE = 0.1  # after an exception that no request has caused [s]


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


@dataclass(eq=False)
class _Run:
    """A job that the backend answers, or has been given up on."""

    queue: RequestQueue
    job: InferenceJob
    options: InferenceOptions
    partial: PartialAnswer
    deadline: float  # when it is given up [s, monotonic]
    started_at: float = field(default_factory=time.monotonic)  # [s, monotonic]
    is_claimed: bool = False  # somebody ends the job: the thread, or who gave it up

    @property
    def seconds(self) -> float:
        """How long it has run [s]."""
        return time.monotonic() - self.started_at


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
        self._supervised = backend if isinstance(backend, SupervisedBackend) else None
        self._options, self._log = options, log
        self._queues: list[RequestQueue] = []  # the first one is served next
        self._running: _Run | None = None
        self._failure: ModelFailure | None = None  # the last one that happened on this thread
        self._closed = False
        self._thread = threading.Thread(target=self._run, name='lisa-inference', daemon=True)
        self._watchdog = Watchdog(self._on_expired, log)

    def start(self) -> None:
        """Start the thread."""
        self._watchdog.start()
        self._thread.start()

    def close(self, timeout: float = 10.0) -> bool:
        """End the thread after the running request; False if it still runs after `timeout` [s].

        It does not wait for a backend that was given up.
        """
        with self.changed:
            self._closed = True
            is_hung = self._running is not None and self._running.is_claimed
            self.changed.notify_all()
        self._watchdog.close()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(min(timeout, _RETURN_GRACE) if is_hung else timeout)
        return not self._thread.is_alive()

    @property
    def health(self) -> ModelHealth:
        """The state of the model and of the thread."""
        with self.changed:
            run, own_failure = self._running, self._failure
        health = ModelHealth(HealthState.OK, time.monotonic())
        if self._supervised is not None:
            health = self._supervised.health
        health = dataclasses.replace(health, failure=newest_failure(health.failure, own_failure))
        if not self._thread.is_alive():
            cause = 'the inference thread has ended: restart the node'
            return dataclasses.replace(health, state=HealthState.DEAD, cause=cause)
        if run is None or health.state is not HealthState.OK:
            return health
        if run.is_claimed:
            state, cause = HealthState.HUNG, self._hung_reason(run)
            return dataclasses.replace(health, state=state, since=run.started_at, cause=cause)
        return dataclasses.replace(health, state=HealthState.BUSY, since=run.started_at)

    def abandon(self, reason: CancelReason) -> None:
        """Give up the running job, which ends as CANCELLED at once, whatever the backend does.

        A backend in a process of its own is interrupted; another one keeps the thread until it
        returns. No effect while nothing runs.
        """
        with self.changed:
            run = self._running
            if run is None:
                return
            run.deadline = time.monotonic()
            is_claimed = self._claim(run)
            self._interrupt(run, reason.value)
        if is_claimed:
            self._complete(run, run.partial.result(EarlyEnd(Status.CANCELLED, reason.value)))
        self._watchdog.watch(run.deadline)  # other requests must not wait for the backend

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
        if self._running is None or self._running.is_claimed:
            if self._seconds_until_due() is not None:
                self.changed.notify_all()
        elif self._running.job.request.kind.is_background and self._is_urgent_soon():
            self._running.job.request.cancellation.cancel(CancelReason.PREEMPTED)

    def _run(self) -> None:
        while not self._closed:
            try:
                self._serve_next()
            except BaseException:  # noqa: BLE001, PERF203  # only `close` may end this thread
                self._survive()

    def _serve_next(self) -> None:
        """Wait for a job and answer it."""
        run = self._wait_for_job()
        if run is None:
            return
        self._watchdog.watch(run.deadline)
        result = self._answer(run)
        self._watchdog.call_off()
        if self._claim(run):
            self._complete(run, result)
        self._forget()

    def _survive(self) -> None:
        """End the running job after an exception that neither backend nor image has raised."""
        run = self._running
        result = self._failed('' if run is None else run.job.request.text)
        if run is None:
            with self.changed:
                self.changed.wait(_CRASH_PAUSE)  # it may be raised again at once
            return
        self._watchdog.call_off()
        with contextlib.suppress(BaseException):  # logged
            if self._claim(run):
                self._complete(run, result)
        self._forget()

    def _forget(self) -> None:
        """Note that the backend has returned."""
        with self.changed:
            self._running = None
            self.changed.notify_all()  # the watchdog may wait for it

    def _claim(self, run: _Run) -> bool:
        """Decide who ends a job: True for the first caller."""
        with self.changed:
            is_first, run.is_claimed = not run.is_claimed, True
        return is_first

    def _complete(self, run: _Run, result: Segmentation) -> None:
        if result.status in (Status.TIMED_OUT, Status.UNREACHABLE):
            self._note_failure(result.reason)
        try:
            run.queue.complete(run.job, result)
        except Exception:  # noqa: BLE001  # e.g. masks that are no (N, H, W) array
            run.queue.complete(run.job, self._failed(run.job.request.text))

    def _wait_for_job(self) -> _Run | None:
        """Wait for the next job; None when the thread closes."""
        with self.changed:
            while not self._closed:
                queue_and_job = self._take(Urgency.URGENT)
                if queue_and_job is None and not self._is_urgent_soon():
                    queue_and_job = self._take(Urgency.BACKGROUND)
                if queue_and_job is not None:
                    self._running = self._make_run(*queue_and_job)
                    return self._running
                self.changed.wait(self._seconds_until_due())
        return None

    def _make_run(self, queue: RequestQueue, job: InferenceJob) -> _Run:
        options = self._options
        grace = STOP_GRACE
        if self._supervised is not None:
            grace += _INTERRUPT_MARGIN
        limit = options.answer_timeout
        deadline = Deadline(None if limit is None else limit + grace)
        partial = PartialAnswer(job.request.text, (0, 0))
        return _Run(queue, job, options, partial, deadline.at)

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

    def _answer(self, run: _Run) -> Segmentation:
        """Decode the image and run the model; pass each event to the queue at once."""
        request, start = run.job.request, time.monotonic()
        query = Query(
            request.text, run.job.dialogue, request.explain, request.region, request.yes_no
        )
        try:
            image = self._decoder.rgb_image(run.job.frame)
            decode_seconds = time.monotonic() - start
            for event in stream_in_region(
                self._backend, image, query, run.options, request.cancellation
            ):
                if isinstance(event, Done):
                    timings = {'convert': decode_seconds, **event.result.timings}
                    return dataclasses.replace(event.result, timings=timings)
                if not self._pass_on(run, event):
                    return unanswered(query.text, Status.CANCELLED, '')  # it was given up
            raise AssertionError('a backend ends its stream with Done')
        except LisaError as error:
            return unanswered(query.text, Status.FAILED, str(error))
        except BaseException:  # noqa: BLE001  # also SystemExit: the next request is answered
            return self._failed(query.text)

    def _pass_on(self, run: _Run, event: Event) -> bool:
        """Give an event to the queue; False if the job was given up."""
        with self.changed:
            if run.is_claimed:
                return False
            run.partial.add(event)
            run.queue.event(run.job, event)
        return True

    def _failed(self, text: str) -> Segmentation:
        """Log the exception that is being handled; return the FAILED result of its request."""
        error = sys.exc_info()[1]
        self._log.error(traceback.format_exc())
        reason = f'internal error: {type(error).__name__}: {error}'
        self._note_failure(reason)
        return unanswered(text, Status.FAILED, reason)

    def _note_failure(self, cause: str) -> None:
        with self.changed:
            self._failure = ModelFailure(cause, time.monotonic())

    # ---- the watchdog

    def _is_late(self, run: _Run) -> bool:
        return time.monotonic() >= run.deadline

    def _on_expired(self) -> None:
        """Give up a job whose backend does not return, on the watchdog's thread."""
        with self.changed:
            run = self._running
            if run is None or not self._is_late(run):
                return  # it has just returned
            is_claimed = self._claim(run)
            is_cancelled = run.job.request.cancellation.is_set()
            reason = self._hung_reason(run)
            self._interrupt(run, reason)
        if is_claimed:
            status = Status.CANCELLED if is_cancelled else Status.TIMED_OUT
            self._complete(run, run.partial.result(EarlyEnd(status, reason)))
        self._refuse_while_hung(run)

    def _interrupt(self, run: _Run, cause: str) -> None:
        """Make the backend return, if it can, lock held."""
        run.job.request.cancellation.cancel(CancelReason.TIMED_OUT)
        if self._supervised is not None:
            self._supervised.interrupt(cause)

    def _refuse_while_hung(self, run: _Run) -> None:
        """End commands and goals as FAILED until the backend returns."""
        with self.changed:
            self.changed.wait_for(lambda: self._running is not run, _RETURN_GRACE)
            if self._running is run:
                self._log.error(self._hung_reason(run))
            while self._running is run and not self._closed:
                queue_and_job = self._take(Urgency.URGENT)
                if queue_and_job is None:
                    due_in = self._next_due_at(Urgency.URGENT) - time.monotonic()
                    self.changed.wait(None if due_in == math.inf else max(0.0, due_in))
                    continue
                queue, job = queue_and_job
                text = job.request.text
                queue.complete(job, unanswered(text, Status.FAILED, self._hung_reason(run)))

    def _hung_reason(self, run: _Run) -> str:
        cure = (
            'its process was ended'
            if self._supervised is not None
            else 'restart the node; the parameter isolation:=process lets the node end such a '
            'model by itself'
        )
        return f'the model has not returned for {run.seconds:.1f} s: {cure}'
