# SPDX-License-Identifier: Apache-2.0
"""The newest outcome of something that may fail again and again, such as a transform.

Threads: every method may be called from any thread and returns at once.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

_MAX_SUBJECTS = 50  # frames come from messages: their names may be anything


@dataclass(frozen=True)
class Outcome:
    """How the last try has ended."""

    subject: str  # what was tried: "camera_optical to map"
    at: float  # [s, monotonic]
    reason: str = ''  # why it failed; empty: it did not


class Outcomes:
    """Keeps the newest outcome of each subject."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._newest: dict[str, Outcome] = {}  # by subject, the oldest first

    def note(self, subject: str, reason: str = '') -> None:
        """Note that something was tried just now, and why it failed, if it did."""
        with self._lock:
            self._newest.pop(subject, None)
            self._newest[subject] = Outcome(subject, time.monotonic(), reason)
            if len(self._newest) > _MAX_SUBJECTS:
                del self._newest[next(iter(self._newest))]

    @property
    def newest(self) -> tuple[Outcome, ...]:
        """The newest outcome of each subject, in the order of time."""
        with self._lock:
            return tuple(self._newest.values())
