# SPDX-License-Identifier: Apache-2.0
"""The last requests of a camera and how they ended, to judge its health.

Threads: every method may be called from any thread and returns at once.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass

from lisa_ros.results import Status

_KEPT = 200  # ends, and as many rejections


@dataclass(frozen=True)
class RequestEnd:
    """How a request has ended."""

    at: float  # [s, monotonic]
    status: Status
    reason: str
    seconds: float | None = None  # that the model has worked; None: it did not begin
    tokens: int = 0  # of its answer


@dataclass(frozen=True)
class Rejection:
    """A goal that was not accepted, or not kept."""

    at: float  # [s, monotonic]
    reason: str  # with the cure


class RequestHistory:
    """Keeps the last ends and rejections, in the order of time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ends: deque[RequestEnd] = deque(maxlen=_KEPT)
        self._rejections: deque[Rejection] = deque(maxlen=_KEPT)

    def add_end(self, status: Status, reason: str, seconds: float | None, tokens: int = 0) -> None:
        """Note that a request has just ended."""
        with self._lock:
            self._ends.append(RequestEnd(time.monotonic(), status, reason, seconds, tokens))

    def add_rejection(self, reason: str) -> None:
        """Note that a goal was just rejected."""
        with self._lock:
            self._rejections.append(Rejection(time.monotonic(), reason))

    @property
    def ends(self) -> tuple[RequestEnd, ...]:
        """The last 200 ends."""
        with self._lock:
            return tuple(self._ends)

    @property
    def rejections(self) -> tuple[Rejection, ...]:
        """The last 200 rejections."""
        with self._lock:
            return tuple(self._rejections)
