# SPDX-License-Identifier: Apache-2.0
"""A tracker on a thread of its own: it follows what was answered to every newer frame.

The newest frame wins: those that come faster than the tracker follows are skipped. Questions and
answers are kept in their order. Nothing is followed while nobody wants it.

Threads: `asked`, `answered` and `notify` may be called from any thread and return at
once. The tracker, `show` and `tell` run on the follower's thread, and there alone.
"""

from __future__ import annotations

import dataclasses
import math
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from lisa_ros.errors import LisaError
from lisa_ros.results import Segmentation
from lisa_ros.tracking import Tracked, Tracker

_SURE = 30.0  # logit of what is no mask: its probability is 0


@dataclass(frozen=True)
class Shown:
    """A frame as the tracker takes it."""

    stamp: int  # [ns]
    image: np.ndarray  # (H, W, 3) uint8 RGB
    depth: np.ndarray | None = None  # (H, W) float32 metres, NaN where invalid


_Frame = TypeVar('_Frame')


class Follower(Generic[_Frame]):
    """Feeds one tracker; the module's docstring has the rules and threads."""

    def __init__(
        self,
        tracker: Tracker,
        *,
        newest: Callable[[], _Frame | None],
        show: Callable[[_Frame], Shown],
        tell: Callable[[_Frame, Shown, Segmentation, Tracked], None],
        wanted: Callable[[], bool],
        report: Callable[[str], None] = print,
    ):
        """Make a follower that begins once `start` was called.

        Args:
            tracker: its own, of nobody else.
            newest: the newest frame, None before the first; from any thread.
            show: converts a frame; what it raises of LisaErrors skips that frame.
            tell: takes where the things are on a frame: the frame, what `show` made of it, the
                answer with its masks carried there, and what the tracker says of them.
            wanted: whether anybody listens.
            report: takes a line, or the traceback of a bug.
        """
        self._tracker, self._newest = tracker, newest
        self._show, self._tell, self._wanted, self._report = show, tell, wanted, report
        self._heard: deque[tuple[str, _Frame, Segmentation | None]] = deque()
        self._begun = False  # whether anything was asked since all was forgotten
        self._result: Segmentation | None = None
        self._stamp: int | None = None  # of the frame that was followed to [ns]
        self._fresh = False  # whether a message came since the last frame
        self._closed = False
        self._changed = threading.Condition()
        self._worker = threading.Thread(target=self._work, name='lisa-follower', daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._worker.start()

    def close(self, timeout: float = 10.0) -> None:
        """End the thread; what it is at it finishes first."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._worker.is_alive() and threading.current_thread() is not self._worker:
            self._worker.join(timeout)

    def asked(self, frame: _Frame) -> None:
        """Note that the model is asked about this frame."""
        self._hear('asked', frame, None)

    def answered(self, frame: _Frame, result: Segmentation) -> None:
        """Follow what was found in the frame that was asked about."""
        self._hear('answered', frame, result)

    def notify(self) -> None:
        """There may be a newer frame."""
        with self._changed:
            self._fresh = True
            self._changed.notify_all()

    def _hear(self, what: str, frame: _Frame, result: Segmentation | None) -> None:
        if not self._wanted():
            return
        with self._changed:
            self._heard.append((what, frame, result))
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._heard or self._fresh)
                if self._closed:
                    return
                heard = self._heard.popleft() if self._heard else None
                self._fresh = self._fresh and heard is not None
            try:
                if not self._wanted():
                    self._forget()
                elif heard:
                    self._take(*heard)
                elif self._begun:
                    self._follow()
            except LisaError as error:
                self._report(f'not tracked: {error}')
            except Exception:  # noqa: BLE001  # a bug: reported whole, and outlived
                self._report(traceback.format_exc())
                self._forget()

    def _forget(self) -> None:
        self._tracker.forget()
        self._begun, self._result = False, None

    def _take(self, what: str, frame: _Frame, result: Segmentation | None) -> None:
        """Tell the tracker of a question, or of an answer."""
        if what == 'asked':
            shown = self._show(frame)
            self._tracker.begin(shown.stamp, shown.image, shown.depth)
            self._begun = True
        elif self._begun:
            self._tracker.answered(frame.stamp, result.masks)
            self._result = result
            self._stamp = None  # it is told where they are now, not with the next frame

    def _follow(self) -> None:
        """Follow to the newest frame, and tell it."""
        frame = self._newest()
        if frame is None or frame.stamp == self._stamp:
            return  # the message was a depth image of before, or the like
        shown = self._show(frame)
        self._tracker.advance(shown.stamp, shown.image, shown.depth)
        self._stamp = frame.stamp
        now = self._tracker.now()
        if now is not None and self._result is not None:
            self._tell(frame, shown, carried(self._result, now), now)


def carried(result: Segmentation, tracked: Tracked) -> Segmentation:
    """Return an answer with its masks where they were carried to.

    Logits are those of the share of certainty that is left: the mean probability of the answer's
    own mask, times 1 - drift.
    """
    logits = np.full(tracked.masks.shape, -_SURE, np.float32)
    for i, mask in enumerate(tracked.masks):
        own = result.mask_logits[i][result.masks[i]]
        sure = float(np.mean(1 / (1 + np.exp(-np.clip(own, 0, _SURE))))) if own.size else 0.5
        left = min(max(sure * (1 - float(tracked.drift[i])), 1e-3), 1 - 1e-6)
        logits[i][mask] = math.log(left / (1 - left))
    return dataclasses.replace(result, masks=tracked.masks, mask_logits=logits)


@dataclass
class Requery:
    """When a question is due anew, so that tracking does not go astray."""

    rule: str  # drift, timer or never
    period: float  # least time from answer to question [s]; of timer: each so long
    drift: float  # from which drift on, 0..1

    def due(self, tracked: Tracked, answered: float) -> bool:
        """Return whether the question is to be asked again.

        Args:
            tracked: where the things are now.
            answered: when the last answer came, or was asked for again [s, monotonic].
        """
        if self.rule == 'never' or time.monotonic() - answered < self.period:
            return False
        worst = float(tracked.drift.max(initial=0.0))
        astray = worst > self.drift or not tracked.tracked.all()
        return self.rule == 'timer' or astray
