# SPDX-License-Identifier: Apache-2.0
"""Logging throttled by cause: a camera delivers thirty messages a second.

rclpy's own throttle counts by line of code, so one message would hide the others. Two messages
have the same cause if they differ only in numbers, nan and inf included, and in quoted text: "the
newest image is 3.21 s old" and "... 3.24 s old" are logged once.

Threads: any; if two threads log a cause at the same moment it may be logged twice.
"""

from __future__ import annotations

import re
import time
from typing import Protocol

_INTERVAL = 5.0  # minimum time between two messages of one cause [s]
_MAX_CAUSES = 200  # within the interval; messages of further causes are left out
_MAX_CHARS = 2000  # of a message; a traceback fits
# quoted text and numbers
_VARYING = re.compile(r"'[^']*'|\"[^\"]*\"|-?(?:\d+(?:[.,e+-]+\d+)*|\b(?:nan|inf)\b)")


class Logger(Protocol):
    """The part of rclpy's logger that is used here."""

    def info(self, message: str) -> bool:
        """Log a note."""

    def warning(self, message: str) -> bool:
        """Log a warning."""

    def error(self, message: str) -> bool:
        """Log an error."""


class ThrottledLog:
    """Logs each cause at most once in five seconds, and then how many messages it left out.

    Each severity has its own call of the logger: rclpy allows one severity per line of code.
    """

    def __init__(self, logger: Logger):
        self._logger = logger
        self._logged_at: dict[str, float] = {}  # recent causes, and when [s, monotonic]
        self._left_out: dict[str, int] = {}  # by cause, since it was logged

    def error(self, message: str, cause: str = '') -> None:
        """Log an error unless its cause was logged just now; the cause defaults to the text."""
        line = self._line(message, cause)
        if line:
            self._logger.error(line)

    def warning(self, message: str, cause: str = '') -> None:
        """Log a warning unless its cause was logged just now; the cause defaults to the text."""
        line = self._line(message, cause)
        if line:
            self._logger.warning(line)

    def info(self, message: str, cause: str = '', interval: float = _INTERVAL) -> None:
        """Log a note unless its cause was logged just now; the cause defaults to the text.

        Args:
            message: the line.
            cause: of the line.
            interval: minimum time between two lines of the cause, at most five seconds [s].
        """
        line = self._line(message, cause, interval)
        if line:
            self._logger.info(line)

    def _line(self, message: str, cause: str, interval: float = _INTERVAL) -> str:
        """Return the line to log; empty if the cause was logged just now."""
        key = _VARYING.sub('#', (cause or message)[:_MAX_CHARS])
        now = time.monotonic()
        recent = {key: at for key, at in self._logged_at.items() if now - at < _INTERVAL}
        is_recent = now - recent.get(key, -_INTERVAL) < interval
        if is_recent or len(recent) >= _MAX_CAUSES:
            self._left_out[key] = self._left_out.get(key, 0) + 1
            return ''
        self._logged_at = {**recent, key: now}
        count = self._left_out.pop(key, 0)
        if len(self._left_out) > _MAX_CAUSES:
            self._left_out.clear()
        note = f' (and {count} more like it)' if count else ''
        return message[:_MAX_CHARS] + note
