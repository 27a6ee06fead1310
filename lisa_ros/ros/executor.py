# SPDX-License-Identifier: Apache-2.0
"""An executor that no message can end: an error of a callback is logged, and it goes on.

rclpy's executors raise the error of a callback in `spin`, so that one malformed request would end
a node. An error while a message is taken would be worse: rclpy then never runs another callback
of the same group.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.logging import get_logger
from rclpy.signals import SignalHandlerOptions, get_current_signal_handlers_options

from lisa_ros.error_text import error_summary
from lisa_ros.ros.throttled_log import Logger, ThrottledLog
from lisa_ros.stop_signals import STOP_SIGNALS

_PAUSE = 0.001  # after an error, so that one that comes again and again leaves time [s]


class CallbackErrorLog:
    """Logs errors of callbacks: each cause once with its traceback, then a line in 5 s at most.

    Threads: one, that of the executor.
    """

    def __init__(self, logger: Logger):
        self._log = ThrottledLog(logger)
        self._logged_causes: set[str] = set()  # places in the code: there are few

    def report(self, error: BaseException, source: str) -> None:
        """Log an error; `source` says what could not be done."""
        text = error_summary(error)
        frames = traceback.extract_tb(error.__traceback__)
        cause = f'{source} {type(error).__name__} {frames[-1:]}'
        details = ''
        if cause not in self._logged_causes:
            self._logged_causes.add(cause)
            details = '\n' + ''.join(traceback.format_list(frames)).rstrip()
        self._log.error(f'{source} failed, the node goes on: {text}{details}', cause)

    def report_refused(self, request: str, reason: str) -> None:
        """Log that a request was refused, and why; each kind of request once in 5 s at most."""
        self._log.warning(f'{request} refused: {reason}', request)


class GuardedExecutor(SingleThreadedExecutor):
    """Runs callbacks in the thread that calls `spin` or `spin_once`, and logs their errors."""

    def __init__(self, logger: Logger | None = None, context: Context | None = None):
        """Make an executor without nodes.

        Args:
            logger: for errors of callbacks; None: one of the executor's own.
            context: of the nodes; None: the default context.
        """
        super().__init__(context=context)
        self.errors = CallbackErrorLog(logger or get_logger('executor'))
        self._is_stopping = False

    def spin(self) -> None:
        """Run callbacks until `stop` is called or the context is shut down.

        It is for nodes that stop by `stop_signals`: SystemExit and KeyboardInterrupt can only come
        from a callback there, and are logged as other errors.
        """
        with contextlib.suppress(ExternalShutdownException):
            while self.context.ok() and not self._is_stopping:
                self._run_one(None, BaseException)

    def spin_once(self, timeout_sec: float | None = None) -> None:
        """Run one callback, or wait [s] for one; log its error.

        Raises:
            ExternalShutdownException: the context is shut down.
            BaseException: what the handler of a signal raises, such as KeyboardInterrupt.
        """
        with _handle_signals_later():
            self._run_one(timeout_sec, Exception)

    def _run_one(self, timeout_sec: float | None, logged: type[BaseException]) -> None:
        try:
            super().spin_once(timeout_sec)
        except ExternalShutdownException:
            raise
        except logged as error:
            if not self.context.ok():  # "context is invalid", of a callback that publishes
                raise ExternalShutdownException from error
            self.errors.report(error, 'a callback')
            time.sleep(_PAUSE)

    def stop(self) -> None:
        """Make `spin` return after the present callback; from any thread."""
        self._is_stopping = True
        self.create_task(lambda: None)  # wakes it and makes spin_once return

    def drain(self, seconds: float) -> None:
        """Run what is due within a time [s], such as sending results of goals that have ended."""
        end = time.monotonic() + seconds
        with contextlib.suppress(ExternalShutdownException):
            while (left := end - time.monotonic()) > 0:
                self.spin_once(left)

    def _make_handler(
        self, entity: Any, node: Any, take_from_wait_list: Callable[[Any], Any], *others: Any
    ) -> Any:
        """Extend rclpy: a message that cannot be taken, such as malformed CDR, is dropped."""

        def take(entity: Any) -> Any:
            try:
                return take_from_wait_list(entity)
            except Exception as error:  # noqa: BLE001  # of the middleware: any type
                if self.context.ok():
                    self.errors.report(error, f'reading {_name(entity)}')
                return None

        return super()._make_handler(entity, node, take, *others)


@contextlib.contextmanager
def _handle_signals_later() -> Iterator[None]:
    """Call the handlers of signals after the block: they may raise, and rclpy then fails.

    Its code in C++ makes another error of KeyboardInterrupt, and its code in Python never runs
    the same group of callbacks again. The second signal is handled at once, since a callback may
    hang. Where rclpy has handlers of its own, they shut the context down: nothing is changed.
    """
    if (
        threading.current_thread() is not threading.main_thread()  # it gets no signal
        or get_current_signal_handlers_options() != SignalHandlerOptions.NO
    ):
        yield
        return
    present = {int(number): signal.getsignal(number) for number in STOP_SIGNALS}
    handlers = {number: handler for number, handler in present.items() if callable(handler)}
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            handlers[number](number, frame)

    for number in handlers:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if len(received) == 1:
            signal.raise_signal(received[0])


def _name(entity: Any) -> str:
    """Return the topic or service of a subscription, client or service, else its type."""
    for attribute in ('topic_name', 'srv_name'):
        if hasattr(entity, attribute):
            return str(getattr(entity, attribute))
    return type(entity).__name__
