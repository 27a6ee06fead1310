# SPDX-License-Identifier: Apache-2.0
"""What a run could not use, for its report."""

from __future__ import annotations

import threading

from lisa_ros.errors import DataError


class BrokenItems:
    """Collects errors, each text once: a bag may be opened several times.

    Threads: any thread may call `add`.
    """

    def __init__(self):
        self._messages: dict[str, None] = {}  # in order
        self._lock = threading.Lock()

    def add(self, error: DataError) -> None:
        """Remember an error; an `ErrorHandler`."""
        with self._lock:
            self._messages[str(error)] = None

    @property
    def messages(self) -> list[str]:
        """All errors, first to last."""
        with self._lock:
            return list(self._messages)
