# SPDX-License-Identifier: Apache-2.0
"""Keeps a child process with a loaded model: starts it, watches it, loads it again when it ended.

A load that fails is tried again after 1 s and 3 s, then only when the next request comes. A child
whose memory is above the limit is killed. A standby that ends is replaced.

Threads: a thread of its own starts and watches the child. Every method may be called from any
thread.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import time
import weakref
from typing import Protocol

from lisa_ros import stop_signals
from lisa_ros.error_text import one_line
from lisa_ros.errors import WorkerError
from lisa_ros.perception import standby_handover
from lisa_ros.perception.backend import Cancellation
from lisa_ros.perception.health import HealthState, ModelFailure, ModelHealth
from lisa_ros.perception.process_memory import process_memory
from lisa_ros.perception.shared_channel import ChannelClosedError
from lisa_ros.perception.stopping import Deadline, EarlyEnd
from lisa_ros.perception.worker import Worker
from lisa_ros.perception.worker_messages import Load, Loaded, Prepare, Raised, exception_of
from lisa_ros.results import Status

RELOAD_DELAYS = (0.0, 1.0, 3.0)  # before each try to load the model again [s]
_MEMORY_PERIOD = 0.05  # how often the memory of the child is read, if it has a limit [s]
_WATCH_PERIOD = 1.0  # how often a child without limit is looked at; its end is seen at once [s]
_STANDBY_PERIOD = 10.0  # between two starts of a standby that ends [s]
_CANCEL_PERIOD = 0.01  # how often a cancel is looked for while the model is loaded again [s]
_MIB = 2**20


class WorkerLog(Protocol):
    """Receives lines about the child, as the loggers of `logging` and rclpy do."""

    def info(self, message: str) -> object:
        """Log that the model was loaded again."""

    def error(self, message: str) -> object:
        """Log why the child has ended."""


class StoppedError(Exception):
    """A request ends early."""

    def __init__(self, end: EarlyEnd):
        super().__init__(end.reason)
        self.end = end


class WorkerSupervisor:
    """Owns the child; see the module's docstring for rules and threads."""

    def __init__(
        self,
        name: str,
        load: Load,
        memory_limit: int | None,
        log: WorkerLog,
        *,
        has_standby: bool = False,
    ) -> None:
        """Make a supervisor; `start` starts the first child.

        Args:
            name: of the model, for messages.
            load: the first message to every child.
            memory_limit: largest resident memory of the child [bytes]; None: no limit.
            log: receives the ends of children and the reloads.
            has_standby: keep another child ready, with the libraries imported but without a model;
                take over that of a node that died.
        """
        self._name, self._load, self._memory_limit, self._log = name, load, memory_limit, log
        self._has_standby = has_standby
        self._fingerprint = standby_handover.fingerprint() if has_standby else ''
        self._changed = threading.Condition()  # guards everything below
        self._worker: Worker | None = None  # can be asked
        self._starting: Worker | None = None  # loads the model
        self._standby: Worker | None = None  # loads the model next
        self._standby_started = 0.0  # [s, monotonic]
        self._loaded: Loaded | None = None  # of the first child
        self._error: Exception | None = None  # of the last try to load
        self._state, self._since, self._cause = HealthState.RELOADING, time.monotonic(), ''
        self._failure: ModelFailure | None = None
        self._reloads = 0
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name='lisa-model', daemon=True)

    def start(self) -> Loaded:
        """Load the model for the first time, which is tried once; return what it is.

        Raises:
            WorkerError: the child died while it loaded the model.
            LisaError: what the loader of the model raises.
        """
        with _lock:
            _started.add(self)
        self._thread.start()
        try:
            with self._changed:
                self._changed.wait_for(lambda: self._loaded or self._error)
                if self._error is not None:
                    raise self._error
                return self._loaded
        except BaseException:  # also KeyboardInterrupt: leave no child behind
            self.close()
            raise

    def close(self, timeout: float = 5.0) -> None:
        """Kill the child for good, and wait at most `timeout` [s] for its end."""
        with self._changed:
            self._is_closed = True
            owned = self._worker, self._starting, self._standby
            workers = [worker for worker in owned if worker]
            self._worker = None
            self._changed.notify_all()
        for worker in workers:
            worker.kill('was ended')
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    @property
    def health(self) -> ModelHealth:
        """The state of the child: OK, RELOADING or DEAD."""
        with self._changed:
            state, since = self._state, self._since
            return ModelHealth(state, since, self._cause, self._reloads, self._failure)

    @property
    def memory(self) -> int:
        """Resident memory of the child, without that of a GPU [bytes]; 0 if there is none."""
        with self._changed:
            worker = self._worker or self._starting
        return worker.memory() if worker else 0

    @property
    def peak_memory(self) -> int:
        """Largest resident memory of the child so far [bytes]; 0 if there is none."""
        with self._changed:
            worker = self._worker or self._starting
        return process_memory(worker.pid).peak if worker else 0

    # ---- for requests

    def ready_worker(self, cancel: Cancellation, deadline: Deadline) -> Worker:
        """Return a child that can be asked; wait for it while the model is being loaded again.

        Raises:
            StoppedError: the request was cancelled meanwhile.
            WorkerError: the model cannot be loaded, or not before the deadline.
        """
        with self._changed:
            if self._state is HealthState.DEAD:
                self._set_state(HealthState.RELOADING, self._cause)
            while self._worker is None:
                self._check_wait(cancel, deadline)
                self._changed.wait(_CANCEL_PERIOD)
            return self._worker

    def _check_wait(self, cancel: Cancellation, deadline: Deadline) -> None:
        """Raise if there is nothing to wait for, lock held."""
        if cancel.is_set():
            reason = 'cancelled while the model was being loaded again'
            raise StoppedError(EarlyEnd(Status.CANCELLED, reason))
        if self._is_closed:
            raise WorkerError('the model process was ended: the node is stopping')
        if self._state is HealthState.DEAD:
            raise WorkerError(self._cause)
        if deadline.is_over:
            raise WorkerError(f'{self._cause}, and not ready after {deadline.limit:.3g} s')

    def discard(self, worker: Worker, cause: str) -> None:
        """Kill a child, whose model is then loaded again; no effect if it was discarded before.

        Args:
            worker: as `ready_worker` returned it.
            cause: "did not answer within 3 s".
        """
        self._record_end(worker, cause)
        worker.kill(cause)

    def ended(self, worker: Worker) -> str:
        """Take note that a child has ended; return why: "the model process ..."."""
        self._record_end(worker, worker.exit_cause())
        return f'the model process {worker.exit_cause()}; it is being loaded again'

    def _record_end(self, worker: Worker, cause: str) -> None:
        """Give no more requests to a child; the first call for it counts."""
        with self._changed:
            if self._worker is not worker:
                return
            self._worker = None
            self._failure = ModelFailure(f'the model process {cause}', time.monotonic())
            reason = f'the model process {cause}; it is being loaded again'
            self._set_state(HealthState.RELOADING, reason)
        self._log.error(reason)

    def _set_state(self, state: HealthState, cause: str = '') -> None:
        """Change the state, lock held."""
        self._state, self._since, self._cause = state, time.monotonic(), cause
        self._changed.notify_all()

    # ---- the thread

    def _run(self) -> None:
        delays: tuple[float, ...] = (0.0,)
        while self._wait_until_wanted():
            worker = self._load_with_retries(delays)
            if worker is not None:
                if self._has_standby and self._standby is None:
                    self._start_standby(self._loaded.module)
                self._watch(worker)
                delays = RELOAD_DELAYS
            elif self._loaded is None:
                return  # `start` raises the error
            else:
                delays = (0.0,)  # one try for each request

    def _wait_until_wanted(self) -> bool:
        """Wait until a child is to be started; False if none will be."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._state is HealthState.RELOADING)
            return not self._is_closed

    def _load_with_retries(self, delays: tuple[float, ...]) -> Worker | None:
        """Start a child, with a try after each delay [s]; None if all of them fail."""
        for delay in delays:
            with self._changed:
                if self._changed.wait_for(lambda: self._is_closed, delay):
                    return None
            try:
                return self._start_worker()
            except Exception as error:  # noqa: BLE001  # `start` raises it; later it is reported
                self._note_failed_load(error, is_last=delay is delays[-1])
        return None

    def _note_failed_load(self, error: Exception, is_last: bool) -> None:
        with self._changed:
            self._error = error.with_traceback(None)
            self._changed.notify_all()
            if self._is_closed or self._loaded is None:
                return
            cause = f'{self._name} could not be loaded again: {error}'
            self._failure = ModelFailure(cause, time.monotonic())
            if is_last:
                cause += '. The next request tries it once more; restart the node if it fails'
                self._set_state(HealthState.DEAD, cause)
        self._log.error(cause)

    def _start_worker(self) -> Worker:
        """Start a child and load the model.

        Raises:
            WorkerError: the child died.
            Exception: what the loader raised.
        """
        worker = self._take_standby()
        if worker is not None:  # start its successor now: its imports take longer than this load
            self._start_standby(self._loaded.module)
        elif (adopted := self._adopt_standby()) is not None:
            try:
                return self._load_in(adopted)
            except Exception as error:  # noqa: BLE001  # a new process may do better
                self._log.error(f'{one_line(error)}; another process loads {self._name}')
                adopted.kill('was ended')
        return self._load_in(worker or Worker.start())

    def _load_in(self, worker: Worker) -> Worker:
        """Load the model in a child; return the child."""
        start = time.monotonic()
        with self._changed:
            self._starting = worker
            is_closed = self._is_closed
        try:
            if is_closed:  # `close` did not see it
                worker.kill('was ended')
            loaded = self._load_model(worker)
        except BaseException:
            with self._changed:
                self._starting = None
            raise
        self._note_loaded(worker, loaded, time.monotonic() - start)
        return worker

    def _take_standby(self) -> Worker | None:
        """Return the child that is ready to load; None if there is none that lives."""
        with self._changed:
            worker, self._standby = self._standby, None
        return None if worker is None or worker.wait(0) else worker

    def _adopt_standby(self) -> Worker | None:
        """Take over the standby of a node that died, for the first model of this one."""
        if not self._has_standby or self._loaded is not None:
            return None
        worker = Worker.adopt(self._fingerprint)
        if worker is not None:
            self._log.info('the standby process of a node that died loads the model')
        return worker

    def _start_standby(self, module: str) -> None:
        """Start a child that imports what the model needs, and waits; log it if that fails."""
        self._standby_started = time.monotonic()
        try:
            worker = Worker.start()
        except OSError as error:  # no memory, or too many processes: the model itself runs on
            self._log.error(
                f'no standby for {self._name}: {one_line(error)}; loading again takes longer'
            )
            return
        with contextlib.suppress(ChannelClosedError):
            worker.send(Prepare(module, self._fingerprint))
        with self._changed:
            self._standby = worker
            is_closed = self._is_closed
        if is_closed:  # `close` did not see it
            worker.kill('was ended')

    def _load_model(self, worker: Worker) -> Loaded:
        try:
            worker.send(self._load)
            while (reply := worker.receive(_MEMORY_PERIOD)) is None:
                self._check_memory(worker)
        except ChannelClosedError:
            raise WorkerError(
                f'the model process {worker.exit_cause()} while it loaded {self._name}'
            ) from None
        if isinstance(reply, Raised):
            worker.wait(_WATCH_PERIOD)
            raise exception_of(reply)
        return reply

    def _note_loaded(self, worker: Worker, loaded: Loaded, seconds: float) -> None:
        with self._changed:
            is_first, self._loaded = self._loaded is None, self._loaded or loaded
            self._starting, is_closed = None, self._is_closed
            self._changed.notify_all()
            if not is_closed:
                self._reloads += not is_first
                self._worker = worker
                self._set_state(HealthState.OK)
        if is_closed:  # `close` may have come after the load, but before this
            worker.kill('was ended')
        elif not is_first:
            self._log.info(f'{self._name} was loaded again in {seconds:.1f} s')

    def _watch(self, worker: Worker) -> None:
        """Return when a child has ended; kill it if it needs too much memory."""
        period = _MEMORY_PERIOD if self._memory_limit else _WATCH_PERIOD
        while not worker.wait(period) and not worker.is_lost:
            self._check_memory(worker)
            self._check_standby()
        self._record_end(worker, worker.exit_cause())

    def _check_standby(self) -> None:
        """Replace a standby that has ended or was not started, but not again and again."""
        with self._changed:
            standby, is_wanted = self._standby, self._has_standby and not self._is_closed
        if not is_wanted or time.monotonic() - self._standby_started < _STANDBY_PERIOD:
            return
        if standby is not None:
            if not standby.wait(0):
                return
            cause = standby.exit_cause()
            self._log.error(f'the standby of {self._name} {cause}; another is started')
        self._start_standby(self._loaded.module)

    def _check_memory(self, worker: Worker) -> None:
        if self._memory_limit is None:
            return
        memory = worker.memory()
        if memory > self._memory_limit:
            cause = (
                f'used {memory // _MIB} MiB, worker_memory_limit allows '
                f'{self._memory_limit // _MIB} MiB: raise it, or use a smaller model or image'
            )
            self.discard(worker, cause)


_started: weakref.WeakSet[WorkerSupervisor] = weakref.WeakSet()
_lock = threading.Lock()  # guards it
_owner = os.getpid()


@atexit.register
@stop_signals.before_exit
def _close_started() -> None:
    """End all children with this process, which stops in an orderly way: no standby waits."""
    if os.getpid() != _owner:  # a fork
        return
    with _lock:
        supervisors = list(_started)
    for supervisor in supervisors:
        supervisor.close(timeout=0)
