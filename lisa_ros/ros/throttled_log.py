# SPDX-License-Identifier: Apache-2.0
"""What is wrong, said once in a while: a camera brings thirty messages a second.

rclpy's own throttle counts by the line of code, so that one complaint would hide the others.
Threads: any; two at once may say a line twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable

_PAUSE = 5.0  # least time between two complaints of one cause [s]


class ThrottledLog:
    """Says each cause at most once in five seconds."""

    def __init__(self, say: Callable[[str], None]):
        self._say = say
        self._said: dict[str, float] = {}  # causes said lately, and when [s, monotonic]

    def __call__(self, line: str, cause: str = '') -> None:
        """Say a line, unless its cause was said just now; without a cause the line is it."""
        now, cause = time.monotonic(), cause or line
        if now - self._said.get(cause, -_PAUSE) >= _PAUSE:
            recent = {said: at for said, at in self._said.items() if now - at < _PAUSE}
            self._said = {**recent, cause: now}
            self._say(line)
