# SPDX-License-Identifier: Apache-2.0
"""A watchdog: calls a function when a deadline passes before it is called off.

Threads: the function is called on the watchdog's own thread, one call at a time; every method may
be called from any thread. The thread sleeps while there is no deadline; a deadline that is called
off and followed by a later one does not wake it.
"""

from __future__ import annotations

import math
import threading
import time
import traceback
from collections.abc import Callable

from lisa_ros.session.delivery import ErrorLog


class Watchdog:
    """Waits for one deadline at a time."""

    def __init__(self, on_expired: Callable[[], None], log: ErrorLog):
        """Make a watchdog; `start` starts its thread.

        Args:
            on_expired: called once for each deadline that passes.
            log: receives the traceback of what `on_expired` raises.
        """
        self._on_expired, self._log = on_expired, log
        self._changed = threading.Condition()
        self._deadline = self._wakes_at = math.inf  # [s, monotonic]
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name='lisa-watchdog', daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """End the thread; a call that runs goes on."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def watch(self, deadline: float) -> None:
        """Set the deadline [s, monotonic]; infinite: none. It replaces the one before."""
        with self._changed:
            self._deadline = deadline
            if deadline < self._wakes_at:
                self._changed.notify_all()

    def call_off(self) -> None:
        """Drop the deadline."""
        self.watch(math.inf)

    def _run(self) -> None:
        while self._wait_for_deadline():
            try:
                self._on_expired()
            except BaseException:  # noqa: BLE001, PERF203  # a bug; the next deadline counts
                self._log.error(traceback.format_exc())

    def _wait_for_deadline(self) -> bool:
        """Wait until the deadline passes; False when the watchdog closes."""
        with self._changed:
            while not self._is_closed:
                seconds = self._deadline - time.monotonic()
                if seconds <= 0:
                    self._deadline = math.inf
                    return True
                self._wakes_at = self._deadline
                self._changed.wait(None if seconds == math.inf else seconds)
                self._wakes_at = -math.inf  # awake: `watch` need not wake it
        return False
