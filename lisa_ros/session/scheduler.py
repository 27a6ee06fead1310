# SPDX-License-Identifier: Apache-2.0
"""The scheduler of one camera's requests: a passive queue that says what is due and when.

Rules:

- A frame is an image with the depth and camera info nearest to its stamp. A request without an
  image of its own gets the newest frame; the frame is frozen when the model begins.
- A request waits for the first image, and up to 0.1 s for the depth and camera info of that image.
- The newest frame must be new enough when the model begins, see image_age.py. So must that of a
  request which a batch has left, when the model begins it alone.
- Goals wait, at most `goals_kept` of them. The clients of goals take turns, and all commands count
  as one client; the goals of one client are begun in the order of arrival.
- Several requests may run at once (`max_batch`), about the same frame unless they have their own.
  A request of a dialogue waits while another one of it runs: its prompt has the other's answer.
- At most one command waits: a newer command replaces it, and the older one ends as SUPERSEDED.
- A running command or goal is finished unless it is cancelled.
- A standing query is asked about every new frame while no command or goal is due. A command or
  goal preempts it, and it is asked again afterwards.
- If listeners are slower than the model, the model waits, so that memory and delay are bounded.
  Background work waits until all results are delivered. Commands and goals wait while 2 or more
  results are undelivered; the results of one batch may be more than that.

Which camera's request the model answers next is decided in job_queues.py.

Threads: every method may be called from any thread and returns at once, except `close`; the lock
is that of the inference thread. `take`, `renew`, `event` and `complete` are for the inference
thread alone. Listeners are called on the camera's delivery thread; after `close`, on the caller's.
What a listener raises is logged; what the model raises ends one request.

No ROS here: messages are opaque, stamps are integers in nanoseconds.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lisa_ros.error_text import shortened
from lisa_ros.perception.stopping import EarlyEnd
from lisa_ros.results import ANSWERED, Dialogue, Event, Segmentation, Status, unanswered
from lisa_ros.session.answering import InferenceJob
from lisa_ros.session.background import BackgroundWork
from lisa_ros.session.delivery import DeliveryThread, ErrorLog
from lisa_ros.session.dialogue_history import MAX_TURNS, DialogueStore
from lisa_ros.session.frame_buffer import FrameBuffer, NewestMessages, SyncedMessages
from lisa_ros.session.image_age import Clock, SystemClock, stale_reason
from lisa_ros.session.inference_batch import Urgency
from lisa_ros.session.inference_thread import InferenceThread
from lisa_ros.session.options import SessionOptions
from lisa_ros.session.request import (
    CancelReason,
    Request,
    RequestCounters,
    RequestKind,
    RequestListener,
    length_error,
)
from lisa_ros.session.request_ends import RequestEnds, with_cancel_reason
from lisa_ros.session.request_history import RequestHistory
from lisa_ros.session.waiting_requests import WaitingRequests


@dataclass(frozen=True)
class Activity:
    """What a camera does at one moment; texts are empty if there is none."""

    active_query: str  # of the command or goal that is being answered; of several the first
    standing_query: str
    waiting: int  # commands and goals


COMMANDS = ''  # key of the dialogue that commands belong to
# Results that wait for their listeners: one is delivered while the model computes the next. More
# would only make a command wait for more deliveries, and each holds an image and masks.
MAX_UNDELIVERED = 2
_FULL = 'the queue was full: send fewer goals at once, or raise goals_kept'
_EMPTY = 'the command is empty: say what to look for, such as "segment the red mug"'


class RequestScheduler:
    """A `RequestQueue`; the module's docstring has the rules and threads."""

    def __init__(
        self,
        inference: InferenceThread,
        listener: RequestListener,
        options: SessionOptions,
        *,
        dialogues: DialogueStore | None = None,
        clock: Clock | None = None,
        log: ErrorLog | None = None,
    ) -> None:
        """Make a scheduler; `start` begins to answer its requests.

        Args:
            inference: the thread that answers.
            listener: receives the events and results of commands, standing queries and requeries.
            options: used until `set_options`; `frames_kept` is read only here.
            dialogues: a store of earlier turns that outlives the scheduler; None: an empty one.
            clock: the clock of stamps and arrivals; None: the system clock.
            log: receives tracebacks of listeners; None: the logger of this module.
        """
        self._inference, self._listener, self._options = inference, listener, options
        self._changed = inference.changed
        self._dialogues = dialogues or DialogueStore()
        self._clock = clock or SystemClock()
        self._delivery = DeliveryThread(
            log or logging.getLogger(__name__), on_delivered=self._on_delivered
        )
        self._ends = RequestEnds(self._delivery)
        self._frames = FrameBuffer(options.frames_kept)
        self._waiting = WaitingRequests(self._frames)
        self._running: list[InferenceJob] = []  # the first to begin first
        self._background = BackgroundWork()
        self._stopped_at = -math.inf  # the last `stop` [s, monotonic]
        self._last_query: tuple[Request, Dialogue] | None = None  # about the camera's own frames
        self._closed = False

    # ---- life

    def start(self) -> None:
        """Begin to answer; requests may have been submitted before."""
        self._delivery.start()
        self._inference.add_queue(self)

    def close(self, timeout: float = 10.0) -> bool:
        """Cancel all requests, deliver their ends and stop the delivery thread.

        Returns:
            Whether all that is done within `timeout` [s]. If not, call it again later.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            self._closed = True
            self._background.clear()
            self._cancel_waiting(list(self._waiting), CancelReason.SHUTDOWN)
            for job in self._running:
                job.request.cancellation.cancel(CancelReason.SHUTDOWN)
            if not self._changed.wait_for(lambda: not self._running, timeout):
                return False
        self._inference.remove_queue(self)
        return self._delivery.close(max(0.0, deadline - time.monotonic()))

    def set_options(self, options: SessionOptions) -> None:
        """Use other options from now on, except for `frames_kept`."""
        with self._changed:
            self._options = options
            self._inference.wake()

    # ---- frames

    def add_image(self, stamp: int, message: Any) -> None:
        """Keep a colour image; `stamp` [ns], 0: the camera does not stamp its images."""
        stamp, arrived_at = stamp or self._arrival_stamp(), self._clock.steady()
        with self._changed:
            self._frames.add_image(stamp, message, arrived_at)
            self.counters.images += 1
            self._inference.wake()

    def add_depth(self, stamp: int, message: Any) -> None:
        """Keep the depth image for the colour image of about this stamp [ns]."""
        with self._changed:
            self._frames.add_depth(stamp or self._arrival_stamp(), message)
            self._inference.wake()

    def add_camera_info(self, stamp: int, message: Any) -> None:
        """Keep the camera info for the colour image of about this stamp [ns]."""
        with self._changed:
            self._frames.add_camera_info(stamp or self._arrival_stamp(), message)
            self._inference.wake()

    def _arrival_stamp(self) -> int:
        """Return the time of arrival as a stamp [ns]; of the computer if ROS has no time yet."""
        return self._clock.now_ns() or time.time_ns()

    def newest_frame(self) -> SyncedMessages | None:
        """Return the newest image with its depth and camera info; None before the first image."""
        return self._frames.newest_frame(self._options.depth_tolerance)

    def newest_messages(self) -> NewestMessages:
        """Return the newest message of each topic, whether their stamps fit or not."""
        return self._frames.newest_messages()

    # ---- requests

    def submit_command(
        self,
        text: str,
        frame: SyncedMessages | None = None,
        listener: RequestListener | None = None,
    ) -> Request:
        """Enqueue a command; it replaces a waiting one. An empty or too long one fails at once.

        Args:
            text: the query.
            frame: the frame to ask about, without earlier turns; None: the newest frame, after the
                turns of earlier commands.
            listener: receives its events and result; None: the camera's own listener.
        """
        error = length_error(text, self._options.max_command_chars)
        error = error if text.strip() else _EMPTY
        request = Request(
            shortened(text) if error else text,
            RequestKind.COMMAND,
            listener or self._listener,
            frame=frame,
            dialogue=COMMANDS if frame is None else None,
        )
        with self._changed:
            self.counters.commands += 1
            is_closed = self._closed
            if not is_closed and not error:
                self._enqueue_command(request)
                self._inference.wake()
        # Without the lock: after `close` the listener runs on this thread.
        if is_closed:
            self._ends.end_unstarted(request, Status.CANCELLED, CancelReason.SHUTDOWN.value)
        elif error:
            result = unanswered(request.text, Status.FAILED, error)
            self._ends.finish(request, self.newest_frame(), result)
        return request

    def _enqueue_command(self, command: Request) -> None:
        """Enqueue a command, lock held; it replaces a waiting one."""
        replaced = self._waiting.add_command(command)
        if replaced is not None:
            reason = f'superseded by {shortened(command.text)!r} before it started'
            self._ends.end_unstarted(replaced, Status.SUPERSEDED, reason)

    def submit_goal(self, request: Request) -> bool:
        """Enqueue a goal; False if `goals_kept` of them wait, or the scheduler is closed."""
        with self._changed:
            self.counters.commands += 1
            if self._closed or not self.accepts_goals:
                self.note_rejection()
                return False
            previous = request.previous
            if previous is not None and previous.started_at < self._stopped_at:
                self._ends.end_unstarted(request, Status.CANCELLED, CancelReason.STOPPED.value)
                return True  # "stop" came between its answers
            self._waiting.add_goal(request)
            self._inference.wake()
        return True

    def note_rejection(self, reason: str = _FULL) -> None:
        """Count a goal that was not accepted, or not kept."""
        self._ends.reject(reason)

    @property
    def accepts_goals(self) -> bool:
        """Whether one more goal may wait."""
        return self.waiting_goals < self.goals_kept

    @property
    def waiting_goals(self) -> int:
        """How many goals wait for their first answer."""
        with self._changed:
            return self._waiting.goal_count

    @property
    def goals_kept(self) -> int:
        """How many goals may wait."""
        return self._options.goals_kept

    @property
    def undelivered(self) -> int:
        """How many results wait for their listeners; with `MAX_UNDELIVERED` the model waits."""
        return self._delivery.undelivered

    def set_standing_query(self, text: str) -> bool:
        """Ask a query about every new frame, at most `watch_rate` times a second, until `stop`.

        It replaces an earlier standing query.

        Returns:
            Whether the text is short enough; if not, nothing changes.
        """
        if length_error(text, self._options.max_command_chars):
            return False
        with self._changed:
            self._stop_background()
            if not self._closed:
                standing = Request(text, RequestKind.STANDING, self._listener)
                self._background.set_standing(standing)
            self._inference.wake()
        return True

    def requery(self) -> None:
        """Ask the last query again about the newest frame, once, as background work.

        The last one is that which was answered last. It has the same earlier turns, and adds no
        turn. No effect if nothing was answered about the camera's own frames yet, or if other
        background work is pending.
        """
        with self._changed:
            if self._last_query is None or self._closed:
                return
            last, dialogue = self._last_query
            request = Request(
                last.text,
                RequestKind.REQUERY,
                self._listener,
                turns=dialogue,
                region=last.region,
                explain=last.explain,
            )
            self._background.add_requery(request)
            self._inference.wake()

    # ---- cancelling

    def stop(self) -> list[str]:
        """End the standing query, all commands and continuous goals; return what was stopped.

        Other goals go on, unless `stop_ends_goals` is set: a client waits for their answer.
        """
        with self._changed:
            self._stopped_at = time.monotonic()
            self._last_query = None  # the tracker may ask for it at this moment
            goals = self._options.stop_ends_goals
            standing = self._background.standing_text
            stopped = [] if standing is None else [f'the standing query {shortened(standing)!r}']
            self._stop_background()
            waiting = [r for r in self._waiting if r.ends_at_stop(goals)]
            for running in (job.request for job in self._running):
                if running.ends_at_stop(goals):
                    running.cancellation.cancel(CancelReason.STOPPED)
                    stopped.append(f'the running {running.description}')
                elif running.kind is RequestKind.REQUERY:
                    stopped.append(f'the repeated query {shortened(running.text)!r}')
            self._cancel_waiting(waiting, CancelReason.STOPPED)
            return stopped + [f'the waiting {request.description}' for request in waiting]

    def activity(self) -> Activity:
        """Return what is being answered, watched and waiting."""
        with self._changed:
            asked = [j.request.text for j in self._running if not j.request.kind.is_background]
            return Activity(
                shortened(asked[0]) if asked else '',
                shortened(self._background.standing_text or ''),
                len(self._waiting),
            )

    def cancel(self, request: Request, reason: CancelReason = CancelReason.CANCELLED) -> bool:
        """Cancel a request that waits or runs; False if it has ended already."""
        with self._changed:
            if request in self._waiting:
                self._cancel_waiting([request], reason)
                return True
            is_running = any(
                job.request.cancellation is request.cancellation for job in self._running
            )
            if is_running:
                request.cancellation.cancel(reason)
        return is_running

    def call_after_delivery(self, call: Callable[[], object]) -> None:
        """Call this after the results that are on their way now, on the delivery thread."""
        self._delivery.post(call)

    def reset_dialogue(self) -> None:
        """Forget all earlier turns; the running answer adds no turn either."""
        self._dialogues.clear()

    def _stop_background(self) -> None:
        """End background work, lock held."""
        self._background.clear()
        for job in self._running:
            if job.request.kind.is_background:
                job.request.cancellation.cancel(CancelReason.STOPPED)

    def _cancel_waiting(self, requests: list[Request], reason: CancelReason) -> None:
        """End waiting requests, lock held."""
        self._waiting.remove(requests)
        for request in requests:
            self._ends.end_unstarted(request, Status.CANCELLED, reason.value)

    # ---- state

    @property
    def counters(self) -> RequestCounters:
        """Counts since the scheduler was made."""
        return self._ends.counters

    @property
    def history(self) -> RequestHistory:
        """The last requests and how they ended."""
        return self._ends.history

    @property
    def is_closed(self) -> bool:
        """Whether it accepts nothing more."""
        return self._closed

    @property
    def is_busy(self) -> bool:
        """Whether a command or goal runs, or waits for more than a newer frame."""
        with self._changed:
            is_running = any(not job.request.kind.is_background for job in self._running)
            return is_running or bool(self._ready())

    @property
    def seconds_waiting(self) -> float:
        """How long the request that is next has waited [s]; 0 if none waits."""
        with self._changed:
            ready = self._ready()
            return time.monotonic() - ready[0].created if ready else 0.0

    @property
    def awaits_first_image(self) -> bool:
        """Whether a request waits for an image, and none has come yet."""
        with self._changed:
            is_asked = any(request.frame is None for request in self._waiting)
            return is_asked and not self.counters.images

    @property
    def seconds_running(self) -> float:
        """How long ago the running request came, of several the first [s]; 0 if none runs."""
        with self._changed:
            created = min((job.request.created for job in self._running), default=math.inf)
        return max(0.0, time.monotonic() - created)

    # ---- for the inference thread

    def due_at(self, urgency: Urgency) -> float:
        """Return the earliest time to take a request [s, monotonic], lock held."""
        is_background = urgency is Urgency.BACKGROUND
        if not (self._background.is_pending if is_background else self._waiting):
            return math.inf
        if self._delivery.undelivered >= (1 if is_background else MAX_UNDELIVERED):
            return math.inf  # until `_on_delivered`
        frame = self.newest_frame()
        if is_background:
            due_at = self._background.due_at(frame, self._options.watch_rate)
            return max(due_at, self._frames.usable_at(frame))
        return self._waiting.due_at(frame, self._options, self._busy_dialogues())

    def _busy_dialogues(self) -> set[str]:
        """Return the keys of the dialogues that are being answered, lock held."""
        return {job.request.dialogue for job in self._running} - {None}

    def _ready(self) -> list[Request]:
        """Return the waiting requests that do not wait for a newer frame, lock held."""
        return self._waiting.ready(self.newest_frame(), self._options)

    def take(self, urgency: Urgency) -> InferenceJob | None:
        """Take the due request, lock held, and freeze its frame; None if the request failed."""
        frame = self.newest_frame()
        if urgency is Urgency.BACKGROUND:
            request = self._background.take(frame)
            frame = self._fresh(request, frame)
            self._background.note_asked(frame)
        else:
            request = self._waiting.take(frame, self._options, self._busy_dialogues())
            frame = request.frame or self._fresh(request, frame)
        refusal = self._refusal(request, frame)
        if refusal is not None:
            if request.kind.is_background:
                self._background.ended(request, cancelled=False)
            self._ends.finish(request, frame, refusal)
            return None
        return self._begin(request, frame)

    def _begin(self, request: Request, frame: SyncedMessages) -> InferenceJob:
        """Record that the model begins to answer, lock held."""
        frame = self._frozen(request, frame)
        if frame.depth is None:
            self.counters.without_depth += 1
        dialogue, ticket = self._earlier_turns(request)
        if request.is_continuous:  # its further answers are about the same turns
            request = dataclasses.replace(request, turns=dialogue, ticket=ticket)
        job = InferenceJob(request, frame, dialogue, ticket)
        self._running.append(job)
        self._delivery.started(request, frame)
        return job

    def renew(self, job: InferenceJob, has_events: bool) -> InferenceJob | EarlyEnd:
        """Look again at the frame of a job that a batch has left; see `RequestQueue.renew`."""
        request = job.request
        refusal = self._refusal(request, job.frame)
        if refusal is None:
            return job
        newest = self._fresh(request, self.newest_frame())
        if not has_events and newest is not None:
            refusal = self._refusal(request, newest)
        if refusal is not None:
            return EarlyEnd(refusal.status, refusal.reason)
        renewed = dataclasses.replace(job, frame=self._frozen(request, newest))
        self._running = [renewed if running is job else running for running in self._running]
        self._delivery.started(request, renewed.frame)
        return renewed

    def _fresh(self, request: Request, frame: SyncedMessages | None) -> SyncedMessages | None:
        """Return the newest frame with depth; if it is too old, the newest without, lock held."""
        if frame is None or self._refusal(request, frame) is None:
            return frame
        tolerance = self._options.depth_tolerance
        newest = self._frames.newest_frame(tolerance, prefers_depth=False)
        return frame if self._refusal(request, newest) else newest

    def _note_query(self, job: InferenceJob) -> None:
        """Note what `requery` asks again, and drop a requery of a former query, lock held."""
        request = job.request
        if request.frame is None and not request.yes_no:  # those have no masks to track
            self._last_query = request, job.dialogue
            if not request.kind.is_background:
                self._background.drop_requery()

    def _frozen(self, request: Request, frame: SyncedMessages) -> SyncedMessages:
        """Return the frame of a request that begins; jobs of one batch share it."""
        if request.frame is None:
            for job in self._running:
                if job.request.frame is None and job.frame.arrival == frame.arrival:
                    return job.frame
        return dataclasses.replace(frame, frozen_at=time.monotonic())

    def _on_delivered(self) -> None:
        """Look again at what is due, after a result was delivered."""
        with self._changed:
            self._inference.wake()

    def event(self, job: InferenceJob, event: Event) -> None:
        """Pass a token or mask on to the listener."""
        self._delivery.event(job.request, event)

    def complete(self, job: InferenceJob, result: Segmentation) -> None:
        """Deliver the result of a job, except of cancelled background work."""
        request = job.request
        with self._changed:
            self._running = [running for running in self._running if running is not job]
            self._changed.notify_all()  # `close` may wait for it
            result = with_cancel_reason(result, request.cancellation)
            is_answered = result.status in ANSWERED
            if request.dialogue is not None and is_answered:
                self._note_turn(job, result)
            if is_answered:
                self.counters.last_seconds = time.monotonic() - request.created
                self._note_query(job)  # of several at once, the last answer is tracked
            is_cancelled = result.status is Status.CANCELLED
            if request.kind.is_background:
                self._background.ended(request, is_cancelled)
            if request.kind.is_background and is_cancelled:
                self._ends.count_cancelled(request)
            else:
                self._ends.finish(request, job.frame, result)

    def _note_turn(self, job: InferenceJob, result: Segmentation) -> None:
        """Add a turn to the dialogue of a job; further answers to a goal replace its first."""
        key, ticket = job.request.dialogue, job.dialogue_ticket
        if job.request.previous is None:
            self._dialogues.append(key, ticket, result)
        else:
            self._dialogues.replace(key, ticket, job.dialogue, result)

    def _refusal(self, request: Request, frame: SyncedMessages | None) -> Segmentation | None:
        """Return the result of a request that fails without the model; None if it can run."""
        if frame is None:
            timeout = self._options.image_timeout
            reason = f'no image within {timeout:g} s: check the camera and the remapping of image'
            return unanswered(request.text, Status.FAILED, reason)
        if request.frame is not None:
            return None
        limit = self._options.max_image_age
        reason = stale_reason(frame, request.max_age, limit, self._clock)
        return reason and unanswered(request.text, Status.STALE_INPUT, reason)

    def _earlier_turns(self, request: Request) -> tuple[Dialogue, int]:
        """Return the earlier turns of a request, and the ticket to append its own turn."""
        if request.dialogue is None:
            return request.turns, 0
        if request.previous is not None:
            _, ticket = self._dialogues.get(request.dialogue)
            is_kept = ticket == request.previous.ticket
            return request.previous.turns if is_kept else Dialogue(), ticket
        is_goal = request.kind is RequestKind.GOAL
        max_turns = MAX_TURNS if is_goal else self._options.dialogue_turns
        return self._dialogues.get(request.dialogue, max_turns)
