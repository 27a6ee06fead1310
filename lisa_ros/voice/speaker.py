# SPDX-License-Identifier: Apache-2.0
"""Speaks texts with espeak-ng: always the newest one, with pauses in which a person can speak.

A standing query gives an answer for each image, far more than can be spoken. So a text that has
not been spoken when the next one comes is dropped, and a text that comes again is not repeated.

Threads: the texts are spoken in a thread of its own; the methods may be called from any.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Callable

_PAUSE = 2.0  # after each text: enough for "stop" [s]
_MAX_WAIT = 5.0  # for a person who speaks, after the pause [s]
_REPEAT_AFTER = 10.0  # a text that came last before this time is spoken again [s]
_POLL_PERIOD = 0.1  # how often it is checked whether the person still speaks [s]
_TIMEOUT = 60.0  # of espeak-ng [s]


class Speaker:
    """Speaks the newest text."""

    def __init__(
        self,
        warn: Callable[[str], None],
        hears_speech: Callable[[], bool] = lambda: False,
        *,
        pause: float = _PAUSE,
        repeat_after: float = _REPEAT_AFTER,
    ):
        """Start the thread.

        Args:
            warn: logs a warning.
            hears_speech: returns whether a person is speaking; the next text waits for them.
            pause: shortest time between two texts [s].
            repeat_after: a text that did not come for this time is spoken again [s].
        """
        self._warn, self._hears_speech = warn, hears_speech
        self._pause, self._repeat_after = pause, repeat_after
        self._changed = threading.Condition()  # guards all that follows
        self._newest: str | None = None  # the text to speak next
        self._last: str | None = None  # the text spoken last
        self._last_at = float('-inf')  # when it came last, or its speech ended [s, monotonic]
        self._speaking = self._stopping = False
        self._spoke_at = float('-inf')  # [s, monotonic]
        threading.Thread(target=self._run, daemon=True).start()

    @property
    def is_speaking(self) -> bool:
        """Whether a text is being spoken."""
        return self._speaking

    @property
    def spoke_at(self) -> float:
        """When the last text ended, by the monotonic clock [s]; -inf: there was none."""
        return self._spoke_at

    def say(self, text: str) -> None:
        """Speak a text next, in place of one that waits; not again if it was just spoken."""
        if not text.strip():
            return
        with self._changed:
            is_repeated = text == self._last
            now = time.monotonic()
            is_recent = self._speaking or now - self._last_at < self._repeat_after
            if is_repeated:
                self._last_at = now
            self._newest = None if is_repeated and is_recent else text
            self._changed.notify_all()

    def forget(self) -> None:
        """Speak the next text in any case: it answers a new question."""
        with self._changed:
            self._last = None

    def stop(self) -> None:
        """End the thread after the text that is being spoken."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def _run(self) -> None:
        while (text := self._next_text()) is not None:
            try:
                self._speak(text)
            finally:
                with self._changed:
                    self._speaking, self._last_at = False, time.monotonic()

    def _next_text(self) -> str | None:
        """Wait for a text and for the end of the pause; None: the thread must end."""
        with self._changed:
            while not self._stopping:
                if self._newest is not None and not self._must_pause():
                    text, self._newest = self._newest, None
                    self._last, self._speaking = text, True
                    return text
                self._changed.wait(_POLL_PERIOD if self._newest is not None else None)
        return None

    def _must_pause(self) -> bool:
        since = time.monotonic() - self._spoke_at
        return since < self._pause or (since < self._pause + _MAX_WAIT and self._hears_speech())

    def _speak(self, text: str) -> None:
        program = shutil.which('espeak-ng') or shutil.which('espeak')
        if program is None:
            self._warn('say: espeak-ng is not installed: apt install espeak-ng')
            return
        command = [program, '--', text]
        try:
            subprocess.run(command, check=False, capture_output=True, timeout=_TIMEOUT)  # noqa: S603
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            self._warn(f'say: {error}')
        self._spoke_at = time.monotonic()
