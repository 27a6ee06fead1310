# SPDX-License-Identifier: Apache-2.0
"""Logging throttled by cause: a camera delivers thirty messages a second.

rclpy's own throttle counts by line of code, so one message would hide the others.
Threads: any; if two threads log a cause at the same moment it may be logged twice.
"""

from __future__ import annotations

import time
from typing import Protocol

_INTERVAL = 5.0  # minimum time between two messages of one cause [s]


class Logger(Protocol):
    """The part of rclpy's logger that is used here."""

    def warning(self, message: str) -> bool:
        """Log a warning."""

    def error(self, message: str) -> bool:
        """Log an error."""


class ThrottledLog:
    """Logs each cause at most once in five seconds."""

    def __init__(self, logger: Logger):
        self._logger = logger
        self._logged_at: dict[str, float] = {}  # recent causes, and when [s, monotonic]

    def error(self, message: str, cause: str = '') -> None:
        """Log an error unless its cause was logged just now; the cause defaults to the text."""
        if self._is_due(cause or message):
            self._logger.error(message)

    def warning(self, message: str, cause: str = '') -> None:
        """Log a warning unless its cause was logged just now; the cause defaults to the text."""
        if self._is_due(cause or message):
            self._logger.warning(message)

    def _is_due(self, cause: str) -> bool:
        now = time.monotonic()
        recent = {key: at for key, at in self._logged_at.items() if now - at < _INTERVAL}
        self._logged_at = {**recent, cause: recent.get(cause, now)}
        return cause not in recent
