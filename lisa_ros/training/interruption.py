# SPDX-License-Identifier: Apache-2.0
"""Ends a training run cleanly on SIGINT or SIGTERM."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType


@dataclass
class StopRequest:
    """Whether a signal has asked the run to stop."""

    received: bool = False


@contextlib.contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Record SIGINT or SIGTERM, so that the loop can finish its step, save and stop.

    A second signal of the same kind has its usual effect at once. Outside the main thread, where
    Python allows no signal handlers, nothing is recorded.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def record(number: int, frame: FrameType | None) -> None:
        stop.received = True
        signal.signal(number, previous[number])

    previous = {n: signal.signal(n, record) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
