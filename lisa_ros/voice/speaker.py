# SPDX-License-Identifier: Apache-2.0
"""Speaks texts with espeak-ng: always the newest one, with pauses in which a person can speak.

A standing query gives an answer for each image, far more than can be spoken. So a text that has
not been spoken when the next one comes is dropped, and a text that comes again is not repeated.

Threads: the texts are spoken in a thread of its own; the methods may be called from any.
"""

from __future__ import annotations

import math
import shutil
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable

_PAUSE = 2.0  # after each text: enough for "stop" [s]
_MAX_WAIT = 5.0  # of a text, for a person who speaks, after the pause [s]
_REPEAT_AFTER = 10.0  # a text that came last before this time is spoken again [s]
_POLL_PERIOD = 0.1  # how often it is checked whether the person still speaks [s]
_TIMEOUT = 60.0  # of espeak-ng [s]
_KEPT = 16  # intervals of speech; an utterance of a person spans fewer


class Speaker:
    """Speaks the newest text."""

    def __init__(
        self,
        warn: Callable[[str], None],
        hears_speech: Callable[[], bool] = lambda: False,
        *,
        pause: float = _PAUSE,
        max_wait: float = _MAX_WAIT,
        repeat_after: float = _REPEAT_AFTER,
    ):
        """Start the thread.

        Args:
            warn: logs a warning.
            hears_speech: returns whether a person is speaking; the next text waits for them.
            pause: shortest time between two texts [s].
            max_wait: longest wait for a person who speaks [s].
            repeat_after: a text that did not come for this time is spoken again [s].
        """
        self._warn, self._hears_speech = warn, hears_speech
        self._pause, self._max_wait, self._repeat_after = pause, max_wait, repeat_after
        self._changed = threading.Condition()  # guards all that follows
        self._newest: str | None = None  # the text to speak next
        self._waits_since = 0.0  # since when there is such a text [s, monotonic]
        self._last: str | None = None  # the text spoken last
        self._last_at = float('-inf')  # when it came last, or its speech ended [s, monotonic]
        self._speaking = self._stopping = False
        self._spoken = deque[tuple[float, float]](maxlen=_KEPT)  # from, to [s, monotonic]
        threading.Thread(target=self._run, daemon=True).start()

    @property
    def is_speaking(self) -> bool:
        """Whether a text is being spoken."""
        return self._speaking

    @property
    def spoke_at(self) -> float:
        """When the last text ended [s, monotonic]; inf: it has not; -inf: there was none."""
        return self._spoken[-1][1] if self._spoken else -math.inf

    def spoke_during(self, start: float, end: float) -> bool:
        """Return whether a text was being spoken at some time from start to end [s, monotonic]."""
        with self._changed:
            return any(began <= end and start <= ended for began, ended in self._spoken)

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
            if self._newest is None:
                self._waits_since = now
            self._newest = None if is_repeated and is_recent else text
            self._changed.notify_all()

    def forget(self) -> None:
        """Drop the text that waits, and speak the next one in any case: the question is new."""
        with self._changed:
            self._newest = self._last = None

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
        now = time.monotonic()
        ready_at = max(self._waits_since, self.spoke_at + self._pause)
        return now < ready_at or (now < ready_at + self._max_wait and self._hears_speech())

    def _speak(self, text: str) -> None:
        program = shutil.which('espeak-ng') or shutil.which('espeak')
        if program is None:
            self._warn('say: espeak-ng is not installed: apt install espeak-ng')
            return
        command = [program, '--', text]
        began_at = time.monotonic()
        with self._changed:
            self._spoken.append((began_at, math.inf))
        try:
            subprocess.run(command, check=False, capture_output=True, timeout=_TIMEOUT)  # noqa: S603
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            self._warn(f'say: {error}')
        with self._changed:
            self._spoken[-1] = (began_at, time.monotonic())
