# SPDX-License-Identifier: Apache-2.0
"""The delivery thread: calls the listeners of one camera's requests, in order.

The model does not wait while messages are built and published, up to a limit (scheduler.py).

Threads: every method may be called from any thread and returns at once, except `close`. Listeners
are called on the delivery thread, one call at a time, with no lock held: they may call back into
the scheduler. After `close` they are called on the caller's thread, so the caller must not hold a
lock then.
"""

from __future__ import annotations

import threading
import traceback
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Protocol

from lisa_ros.results import Event, Segmentation
from lisa_ros.session.frame_buffer import SyncedMessages
from lisa_ros.session.request import Request


class ErrorLog(Protocol):
    """Receives error lines, as the loggers of `logging` and rclpy do."""

    def error(self, message: str) -> None:
        """Log a line, or the traceback of a bug."""


class DeliveryThread:
    """Runs calls of listeners, first posted first."""

    def __init__(self, log: ErrorLog, on_delivered: Callable[[], None]):
        """Make a thread; `start` starts it.

        Args:
            log: receives tracebacks of listeners.
            on_delivered: called on the delivery thread after each result.
        """
        self._log, self._on_delivered = log, on_delivered
        self._undelivered = 0  # results
        self._calls: deque[Callable[[], object]] = deque()
        self._closing = self._ended = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name='lisa-delivery', daemon=True)

    def start(self) -> None:
        """Start the thread; it runs earlier calls first."""
        self._thread.start()

    def close(self, timeout: float) -> bool:
        """Run the posted calls and end the thread; False if it still runs after `timeout` [s]."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.ident is None:  # never started: the calls run here
            self._run()
        elif threading.current_thread() is not self._thread:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    @property
    def undelivered(self) -> int:
        """How many results were posted and are not delivered yet."""
        with self._changed:
            return self._undelivered

    def post(self, call: Callable[[], object]) -> None:
        """Run a call after those that were posted before."""
        with self._changed:
            if not self._ended:
                self._calls.append(call)
                self._changed.notify_all()
                return
        self._run_call(call)

    def started(self, request: Request, frame: SyncedMessages) -> None:
        """Tell a request's listener that the model begins."""
        self.post(partial(request.listener.started, request, frame))

    def event(self, request: Request, event: Event) -> None:
        """Give a request's listener a token or mask."""
        self.post(partial(request.listener.event, request, event))

    def finished(
        self, request: Request, frame: SyncedMessages | None, result: Segmentation
    ) -> None:
        """Give a request's listener the result."""
        with self._changed:
            self._undelivered += 1
        self.post(partial(request.listener.finished, request, frame, result))
        self.post(self._note_delivered)

    def _note_delivered(self) -> None:
        with self._changed:
            self._undelivered -= 1
        self._on_delivered()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._calls or self._closing)
                if not self._calls:
                    self._ended = True
                    return
                call = self._calls.popleft()
            self._run_call(call)

    def _run_call(self, call: Callable[[], object]) -> None:
        try:
            call()
        except BaseException:  # noqa: BLE001  # also SystemExit: logged, and the next call runs
            self._log.error(traceback.format_exc())
