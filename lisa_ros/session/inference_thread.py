# SPDX-License-Identifier: Apache-2.0
"""The inference thread: the one thread that uses the model, for all cameras of a node.

Order: commands and goals of all cameras come before background work (standing queries and
requeries). Within each, the cameras take turns, one request at a time. Running background work is
cancelled when a command or goal is due within 0.1 s, and is asked again afterwards. The frame of a
request is frozen when the model starts it, so it is the newest frame.

Batches: with `max_batch` above 1, requests of one urgency that are due at the same moment are
answered together, where the backend can; nothing waits for others to come. They are taken in the
order above, as if one after the other, and end in any order. Who owns what:

- A queue (scheduler.py) owns its waiting requests, and knows which of its jobs run.
- This thread owns the batch that runs, which nobody joins later. Each of its runs has a job with
  a cancellation of its own, and what was ready of its answer. Who claims a run first ends it.
- The backend owns nothing: what it leaves without an answer is asked alone next, whether it could
  not answer it together with others, or an exception ended the batch. What the queue was told then
  is not told twice. So a request that breaks the model ends alone.
- If the memory is not enough for a batch, its requests are asked in halves, and later batches have
  at most half as many, until `max_batch` changes or one request turns out to be too large alone.
- The time limit is that of the batch, and begins with it.

Threads: every method may be called from any thread and returns at once, except `close`. The
backend runs on the inference thread and nowhere else. `changed` is the one lock of the thread and
of all its queues; a queue calls `wake` with it held when something new is due. Nothing polls: the
thread sleeps until it is woken or until the next due time.

A backend that does not return in time: `STOP_GRACE` after `answer_timeout` the watchdog (a thread
of its own) ends the jobs as TIMED_OUT with the masks that were ready, and ignores whatever the
backend still yields. It also interrupts a backend in a process of its own. A thread cannot be
ended: while the backend holds it, the watchdog ends every command and goal as FAILED, with a
reason that names the cure. When the backend returns, the thread goes on as before. Whatever a
backend raises, SystemExit and the like included, ends one request and not the thread.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Sequence

from lisa_ros.errors import DeviceMemoryError, LisaError
from lisa_ros.perception.backend import (
    STOP_GRACE,
    Backend,
    InferenceOptions,
    SupervisedBackend,
)
from lisa_ros.perception.batch import can_batch
from lisa_ros.perception.health import HealthState, ModelFailure, ModelHealth, newest_failure
from lisa_ros.perception.stopping import CANCELLED, Deadline, EarlyEnd
from lisa_ros.results import Done, Segmentation, Status, unanswered
from lisa_ros.session.answering import FrameDecoder, answer_jobs
from lisa_ros.session.delivery import ErrorLog
from lisa_ros.session.inference_batch import Batch, BatchUse, RequestQueue, Run, Urgency
from lisa_ros.session.job_queues import JobQueues
from lisa_ros.session.request import CancelReason
from lisa_ros.session.watchdog import Watchdog

_INTERRUPT_MARGIN = 0.2  # a supervised backend ends an answer itself, after STOP_GRACE [s]
_RETURN_GRACE = 0.5  # how long a backend may take to return after it was interrupted [s]
_CRASH_PAUSE = 0.1  # after an exception that no request has caused [s]


class InferenceThread:
    """Owns a backend; the module's docstring has the rules and threads."""

    def __init__(
        self,
        backend: Backend,
        decoder: FrameDecoder,
        options: InferenceOptions,
        log: ErrorLog,
        max_batch: int = 1,
    ):
        """Make a thread; `start` starts it.

        Args:
            backend: the model; nothing else may use it.
            decoder: converts frames to RGB images, on this thread.
            options: how queries are answered, used until `set_options`.
            log: receives the tracebacks of bugs.
            max_batch: how many requests are answered at once, if the backend can.
        """
        self.changed = threading.Condition()
        self._backend, self._decoder = backend, decoder
        self._supervised = backend if isinstance(backend, SupervisedBackend) else None
        self._options, self._log = options, log
        self._batch_use = BatchUse(max_batch if can_batch(backend) else 1)
        self._queues = JobQueues()
        self._running: Batch | None = None
        self._unanswered: deque[Run] = deque()  # by the last batch: asked next
        self._failure: ModelFailure | None = None  # the last one that happened on this thread
        self._closed = False
        self._thread = threading.Thread(target=self._run, name='lisa-inference', daemon=True)
        self._watchdog = Watchdog(self._on_expired, log)

    def start(self) -> None:
        """Start the thread."""
        self._watchdog.start()
        self._thread.start()

    def close(self, timeout: float = 10.0) -> bool:
        """End the thread after the running batch; False if it still runs after `timeout` [s].

        What the batch leaves without an answer ends as CANCELLED. It does not wait for a backend
        that was given up.
        """
        with self.changed:
            self._closed = True
            is_hung = self._running is not None and self._running.is_given_up
            self.changed.notify_all()
        self._watchdog.close()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(min(timeout, _RETURN_GRACE) if is_hung else timeout)
        return not self._thread.is_alive()

    @property
    def health(self) -> ModelHealth:
        """The state of the model and of the thread."""
        with self.changed:
            batch, own_failure = self._running, self._failure
        health = ModelHealth(HealthState.OK, time.monotonic())
        if self._supervised is not None:
            health = self._supervised.health
        health = dataclasses.replace(health, failure=newest_failure(health.failure, own_failure))
        if not self._thread.is_alive():
            cause = 'the inference thread has ended: restart the node'
            return dataclasses.replace(health, state=HealthState.DEAD, cause=cause)
        if batch is None or health.state is not HealthState.OK:
            return health
        if batch.is_given_up:
            state, cause = HealthState.HUNG, self._hung_reason(batch)
            return dataclasses.replace(health, state=state, since=batch.started_at, cause=cause)
        return dataclasses.replace(health, state=HealthState.BUSY, since=batch.started_at)

    @property
    def device(self) -> str:
        """The device of the model."""
        return str(self._backend.device)

    @property
    def batch_use(self) -> BatchUse:
        """How many requests are answered at once."""
        return self._batch_use

    def abandon(self, reason: CancelReason) -> None:
        """Give up the running jobs, which end as CANCELLED at once, whatever the backend does.

        A backend in a process of its own is interrupted; another one keeps the thread until it
        returns. No effect while nothing runs.
        """
        end = EarlyEnd(Status.CANCELLED, reason.value)
        with self.changed:
            batch = self._running
            runs = [*(batch.runs if batch else ()), *self._take_unanswered()]
            runs = [run for run in runs if self._claim(run)]
            if batch is not None:
                batch.deadline = time.monotonic()
                self._interrupt(batch, reason.value)
        for run in runs:
            self._complete(run, run.partial.result(end))
        if batch is not None:  # other requests must not wait for the backend
            self._watchdog.watch(batch.deadline)

    def set_options(self, options: InferenceOptions, max_batch: int | None = None) -> None:
        """Use other options, starting with the next request; `max_batch` None: as before."""
        with self.changed:
            self._options = options
            if max_batch is not None:
                limit = max_batch if can_batch(self._backend) else 1
                self._batch_use = self._batch_use.with_limit(limit)

    def add_queue(self, queue: RequestQueue) -> None:
        """Serve another camera."""
        with self.changed:
            self._queues.add(queue)
            self.wake()

    def remove_queue(self, queue: RequestQueue) -> None:
        """Stop serving a camera; no effect if it is not served."""
        with self.changed:
            self._queues.remove(queue)

    def wake(self) -> None:
        """Wake the thread if a request is due, or preempt background work; `changed` held."""
        if self._running is None or self._running.is_claimed:
            if self._queues.seconds_until_due is not None:
                self.changed.notify_all()
        elif self._running.runs[0].is_background and self._queues.is_urgent_soon:
            for run in self._running.runs:
                run.cancel(CancelReason.PREEMPTED)

    def _run(self) -> None:
        while not self._closed:
            try:
                self._serve_next()
            except BaseException:  # noqa: BLE001, PERF203  # only `close` may end this thread
                self._survive()
        with self.changed:
            runs = self._take_unanswered()
        for run in runs:
            end = EarlyEnd(Status.CANCELLED, CancelReason.SHUTDOWN.value)
            self._end(run, run.partial.result(end))

    def _serve_next(self) -> None:
        """Wait for jobs and answer them."""
        batch = self._wait_for_batch()
        if batch is None:
            return
        self._watchdog.watch(batch.deadline)
        last: tuple[Run, Segmentation] | None = None
        try:
            last = self._answer(batch)
        except DeviceMemoryError as error:
            last = self._end_of_too_large(batch, error)
        except LisaError:  # asked alone, the request at fault names its error
            assert len(batch.runs) > 1  # noqa: S101  # else it is FAILED
        except BaseException:  # noqa: BLE001  # also SystemExit: the next request is answered
            failed = self._failed(batch.runs[0].job.request.text)
            if len(batch.runs) == 1:
                last = batch.runs[0], failed
        self._watchdog.call_off()
        if last is not None:
            self._end(*last)
        self._forget()

    def _end_of_too_large(
        self, batch: Batch, error: DeviceMemoryError
    ) -> tuple[Run, Segmentation] | None:
        """Let later batches be smaller; return a single run with its result, to be ended.

        A request that is too large alone says nothing of batches: they are as large as before.
        """
        count = len(batch.runs)
        if count == 1:
            reason = str(error)
            self._log.error(reason)
            self._note_failure(reason)
            with self.changed:
                self._batch_use = dataclasses.replace(self._batch_use, failed_size=0)
            run = batch.runs[0]
            return run, run.partial.result(EarlyEnd(Status.FAILED, reason))
        with self.changed:
            batch.is_too_large = True
            self._batch_use = dataclasses.replace(self._batch_use, failed_size=count)
        self._log.error(
            f'{count} requests at once are too many, {self._batch_use.fitting} are the limit from '
            f'now on: {error}'
        )
        return None

    def _survive(self) -> None:
        """End the running jobs after an exception that neither backend nor image has raised."""
        batch = self._running
        result = self._failed('' if batch is None else batch.runs[0].job.request.text)
        if batch is None:
            with self.changed:
                self.changed.wait(_CRASH_PAUSE)  # it may be raised again at once
            return
        self._watchdog.call_off()
        for run in batch.runs:
            with contextlib.suppress(BaseException):  # logged
                self._end(run, dataclasses.replace(result, query=run.job.request.text))
        self._forget()

    def _forget(self) -> None:
        """Note that the backend has returned; what it has left is asked next."""
        with self.changed:
            batch = self._running
            runs = [run for run in batch.runs if not run.is_claimed]
            for run in runs:
                run.begin_again(alone=not batch.is_too_large)
            self._unanswered.extend(runs)
            self._running = None
            self.changed.notify_all()  # the watchdog may wait for it

    def _end(self, run: Run, result: Segmentation) -> None:
        """End a job, unless somebody else has."""
        if self._claim(run):
            self._complete(run, result)

    def _claim(self, run: Run) -> bool:
        """Decide who ends a job: True for the first caller."""
        with self.changed:
            is_first, run.is_claimed = not run.is_claimed, True
        return is_first

    def _complete(self, run: Run, result: Segmentation) -> None:
        if result.status in (Status.TIMED_OUT, Status.UNREACHABLE):
            self._note_failure(result.reason)
        try:
            run.queue.complete(run.job, result)
        except Exception:  # noqa: BLE001  # e.g. masks that are no (N, H, W) array
            run.queue.complete(run.job, self._failed(run.job.request.text))

    def _wait_for_batch(self) -> Batch | None:
        """Wait for the next jobs; None when the thread closes."""
        with self.changed:
            while not self._closed:
                runs = self._next_unanswered() or self._take_runs(Urgency.URGENT)
                if not runs and not self._queues.is_urgent_soon:
                    runs = self._take_runs(Urgency.BACKGROUND)
                if runs:
                    self._running = self._make_batch(runs)
                    return self._running
                self.changed.wait(self._queues.seconds_until_due)
        return None

    def _make_batch(self, runs: Sequence[Run]) -> Batch:
        options, use = self._options, self._batch_use
        self._batch_use = use.begun(len(runs))
        grace = STOP_GRACE
        if self._supervised is not None:
            grace += _INTERRUPT_MARGIN
        limit = options.answer_timeout
        return Batch(runs, options, Deadline(None if limit is None else limit + grace).at)

    def _next_unanswered(self) -> list[Run]:
        """Return the next runs that a batch has left, lock held; an empty list: none.

        One that was cancelled meanwhile, or gives way to a command or goal, is not asked. Several
        are those of a batch that was too large.
        """
        runs: list[Run] = []
        while self._unanswered and len(runs) < self._batch_use.fitting:
            if runs and self._unanswered[0].is_alone:
                break
            run = self._unanswered.popleft()
            if run.is_background and self._queues.is_urgent_soon:
                run.cancel(CancelReason.PREEMPTED)
            if not self._begins(run):
                continue
            runs.append(run)
            if run.is_alone:
                break
        return runs

    def _begins(self, run: Run) -> bool:
        """Prepare a run that a batch has left, lock held; False: it has ended."""
        try:
            end = self._renewed(run)
        except BaseException:  # noqa: BLE001  # a bug of its queue: the other runs go on
            self._end(run, self._failed(run.job.request.text))
            return False
        if end is not None:
            self._end(run, run.partial.result(end))
        return end is None

    def _renewed(self, run: Run) -> EarlyEnd | None:
        """Prepare a run that a batch has left, lock held; return how it ends, None: it begins."""
        if run.job.request.cancellation.is_set():
            return CANCELLED
        renewed = run.queue.renew(run.job, run.told > 0)
        if isinstance(renewed, EarlyEnd):
            return renewed
        run.job = renewed
        return None

    def _take_unanswered(self) -> list[Run]:
        """Return all runs that a batch has left, lock held; they are not asked any more."""
        runs, self._unanswered = list(self._unanswered), deque()
        return runs

    def _take_runs(self, urgency: Urgency) -> list[Run]:
        """Take jobs that are due at this moment, lock held, as many as a batch may have."""
        runs: list[Run] = []
        try:
            while len(runs) < self._batch_use.fitting:
                queue_and_job = self._queues.take(urgency)
                if queue_and_job is None:
                    break
                runs.append(Run.of(*queue_and_job))
        except BaseException:  # a bug of one queue: the jobs of the others are answered
            self._unanswered.extend(runs)
            raise
        return runs

    def _answer(self, batch: Batch) -> tuple[Run, Segmentation] | None:
        """Decode the images and run the model; pass each event to its queue at once.

        Returns:
            The last job with its result, which is to be ended; None: there is none, or all were
            given up.
        """
        jobs = [run.job for run in batch.runs]
        events = answer_jobs(self._backend, self._decoder, jobs, batch.options)
        open_count = len(jobs)
        with contextlib.closing(events):
            for place, event in events:
                run = batch.runs[place]
                if not isinstance(event, Done):
                    with self.changed:
                        if not run.is_claimed:
                            run.add(event)
                elif open_count == 1:
                    return run, event.result
                else:
                    open_count -= 1
                    self._end(run, event.result)
                if batch.is_claimed:
                    break
        return None

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

    def _on_expired(self) -> None:
        """Give up jobs whose backend does not return, on the watchdog's thread."""
        with self.changed:
            batch = self._running
            if batch is None or not batch.is_late:
                return  # it has just returned
            runs = [run for run in batch.runs if self._claim(run)]
            reason = self._hung_reason(batch)
            are_cancelled = [run.job.request.cancellation.is_set() for run in runs]
            self._interrupt(batch, reason)
        for run, is_cancelled in zip(runs, are_cancelled, strict=True):
            status = Status.CANCELLED if is_cancelled else Status.TIMED_OUT
            self._complete(run, run.partial.result(EarlyEnd(status, reason)))
        self._refuse_while_hung(batch)

    def _interrupt(self, batch: Batch, cause: str) -> None:
        """Make the backend return, if it can, lock held."""
        for run in batch.runs:
            run.cancel(CancelReason.TIMED_OUT)
        if self._supervised is not None:
            self._supervised.interrupt(cause)

    def _refuse_while_hung(self, batch: Batch) -> None:
        """End commands and goals as FAILED until the backend returns."""
        with self.changed:
            self.changed.wait_for(lambda: self._running is not batch, _RETURN_GRACE)
            if self._running is batch:
                self._log.error(self._hung_reason(batch))
                for run in self._take_unanswered():
                    self._end(run, run.partial.result(self._hung_end(batch)))
            while self._running is batch and not self._closed:
                queue_and_job = self._queues.take(Urgency.URGENT)
                if queue_and_job is None:
                    due_in = self._queues.next_due_at(Urgency.URGENT) - time.monotonic()
                    self.changed.wait(None if due_in == math.inf else max(0.0, due_in))
                    continue
                queue, job = queue_and_job
                text = job.request.text
                queue.complete(job, unanswered(text, Status.FAILED, self._hung_reason(batch)))

    def _hung_end(self, batch: Batch) -> EarlyEnd:
        return EarlyEnd(Status.FAILED, self._hung_reason(batch))

    def _hung_reason(self, batch: Batch) -> str:
        cure = (
            'its process was ended'
            if self._supervised is not None
            else 'restart the node; the parameter isolation:=process lets the node end such a '
            'model by itself'
        )
        return f'the model has not returned for {batch.seconds:.1f} s: {cure}'
