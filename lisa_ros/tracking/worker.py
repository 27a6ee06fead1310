# SPDX-License-Identifier: Apache-2.0
"""A tracker on a thread of its own: it follows what was answered to every newer frame.

The newest frame wins: those that come faster than the tracker follows are skipped. Questions and
answers are kept in their order. Nothing is followed while nobody wants it.

Threads: `asked`, `answered`, `stop` and `notify` may be called from any thread and return at once.
The tracker, `show`, `tell` and `checked` run on the follower's thread, and there alone.
"""

from __future__ import annotations

import dataclasses
import math
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from lisa_ros.errors import LisaError, TrackingError
from lisa_ros.results import Segmentation
from lisa_ros.tracking.tracker import Tracker, TrackingState

_SURE = 30.0  # logit of what is no mask: its probability is 0
_BACK = 1_000_000_000  # a frame less far behind the last one is late; beyond: a bag anew [ns]
_RECENT = 5_000_000_000  # how old an answer may be for a listener who comes after it [ns]


@dataclass(frozen=True)
class TrackerFrame:
    """A frame as the tracker takes it."""

    stamp: int  # [ns]
    image: np.ndarray  # (H, W, 3) uint8 RGB
    depth: np.ndarray | None = None  # (H, W) float32 metres, NaN where invalid


_Frame = TypeVar('_Frame')


class TrackingWorker(Generic[_Frame]):
    """Feeds one tracker; the module's docstring has the rules and threads."""

    def __init__(
        self,
        tracker: Tracker,
        *,
        newest: Callable[[], _Frame | None],
        show: Callable[[_Frame], TrackerFrame],
        tell: Callable[[_Frame, TrackerFrame, Segmentation, TrackingState], None],
        wanted: Callable[[], bool],
        checked: Callable[[TrackingState | None], None] = lambda now: None,
        report: Callable[[str], None] = print,
    ):
        """Make a follower that begins once `start` was called.

        Args:
            tracker: its own, of nobody else.
            newest: the newest frame, with its `stamp` [ns]; None before the first; any thread.
            show: converts a frame; what it raises of LisaErrors skips that frame.
            tell: takes where the things are on a frame: the frame, what `show` made of it, the
                answer with its masks carried there, and what the tracker says of them.
            wanted: whether anybody listens.
            checked: called after each frame since an answer, with where the things are, or None
                where the tracker has forgotten them.
            report: takes a line, or the traceback of a bug.
        """
        self._tracker, self._newest, self._show = tracker, newest, show
        self._tell, self._wanted, self._checked, self._report = tell, wanted, checked, report
        self._heard: list[tuple[str, Any, Segmentation | None]] = []
        self._answer: tuple[Any, Segmentation] | None = None  # the last one, and its frame
        self._begun = False  # whether anything was asked since all was forgotten
        self._result: Segmentation | None = None  # of the answer that is followed
        self._stamp: int | None = None  # of the frame that was followed to [ns]
        self._told: int | None = None  # of the frame that was told last [ns]
        self._fresh = False  # whether a message came since the last frame
        self._closed = False
        self._changed = threading.Condition()
        self._worker = threading.Thread(target=self._work, name='lisa-follower', daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._worker.start()

    def close(self, timeout: float = 10.0) -> bool:
        """End the thread, once it has done what it is at; False if it still runs then [s]."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._worker.is_alive() and threading.current_thread() is not self._worker:
            self._worker.join(timeout)
        return not self._worker.is_alive()

    def on_query(self, frame: _Frame) -> None:
        """Note that the model is asked about this frame."""
        self._hear('asked', frame, None)

    def on_answer(self, frame: _Frame, result: Segmentation) -> None:
        """Follow what was found in the frame that was asked about."""
        self._hear('answered', frame, result)

    def stop(self) -> bool:
        """Follow nothing more, until the next answer; False if nothing was followed."""
        following = self._result is not None
        self._hear('stop', None, None)
        return following

    def notify(self) -> None:
        """There may be a newer frame."""
        with self._changed:
            self._fresh = True
            self._changed.notify_all()

    def _hear(self, what: str, frame: _Frame | None, result: Segmentation | None) -> None:
        with self._changed:
            if what != 'asked':  # a newer answer makes those before it needless
                kept = [one for one in self._heard if one[0] == 'asked' and one[1] is frame]
                self._heard = kept if what == 'answered' else []
            self._heard.append((what, frame, result))
            self._fresh = True  # it is told on the newest frame, even if that is the last one
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._heard or self._fresh)
                if self._closed:
                    return
                heard = self._heard.pop(0) if self._heard else None
                self._fresh = self._fresh and heard is not None
            try:
                if heard:
                    self._take(*heard)
                elif not self._wanted():
                    self._forget()
                else:
                    self._follow()
            except LisaError as error:
                self._report(f'not tracked: {error}')
            except Exception:  # noqa: BLE001  # a bug: reported whole, and outlived
                self._report(traceback.format_exc())
                self._forget()

    def _forget(self) -> None:
        if self._begun:
            self._tracker.reset()
        self._begun, self._result = False, None

    def _take(self, what: str, frame: Any, result: Segmentation | None) -> None:
        """Tell the tracker of a question, or of an answer."""
        if what == 'stop':
            self._answer = None
            self._forget()
        elif what == 'answered':
            self._answer = frame, result
            self._follow_answer()
        elif self._wanted():
            self._begin(frame)

    def _begin(self, frame: Any) -> None:
        shown = self._show(frame)
        self._tracker.set_reference(shown.stamp, shown.image, shown.depth)
        self._begun = True

    def _follow_answer(self) -> None:
        """Follow the last answer, if anybody wants it and its question was followed."""
        if not self._wanted() or not self._begun:
            return
        frame, result = self._answer
        try:
            self._tracker.set_masks(frame.stamp, result.masks)
        except TrackingError:  # nobody listened when it was asked
            self._tracker.reset()
            self._begin(frame)
            self._tracker.set_masks(frame.stamp, result.masks)
        self._result, self._told = result, None

    def _is_recent(self, frame: Any) -> bool:
        """Tell whether the last answer is new enough to be carried to this frame at once."""
        return self._answer is not None and 0 <= frame.stamp - self._answer[0].stamp <= _RECENT

    def _follow(self) -> None:
        """Follow to the newest frame, and tell it."""
        frame = self._newest()
        if frame is None:
            return
        if not self._begun and self._is_recent(frame):  # a listener who came after the answer
            self._begin(self._answer[0])
            self._follow_answer()
        if not self._begun:
            if self._answer is not None:
                self._checked(None)
            return
        if frame.stamp == self._told:
            return
        if self._stamp is not None and 0 < self._stamp - frame.stamp < _BACK:
            return  # it came late: the tracker is farther already
        if self._stamp is not None and frame.stamp < self._stamp and self._result is not None:
            self._report('time went back, so nothing is tracked until the next answer')
            self._forget()
            self._stamp = frame.stamp
            return
        shown = self._show(frame)
        self._tracker.update(shown.stamp, shown.image, shown.depth)
        self._stamp = self._told = frame.stamp
        if self._result is None:
            return
        now = self._tracker.state()
        if now is not None:
            self._tell(frame, shown, propagate_result(self._result, now), now)
        self._checked(now)


def propagate_result(result: Segmentation, tracked: TrackingState) -> Segmentation:
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
class RequeryPolicy:
    """When a question is due anew, so that tracking does not go astray."""

    rule: str  # drift, timer or never
    period: float  # least time from answer to question [s]; of timer: each so long
    drift: float  # from which drift on, 0..1

    def due(self, tracked: TrackingState | None, answered: float) -> bool:
        """Return whether the question is to be asked again.

        Args:
            tracked: where the things are now; None where the tracker has forgotten them.
            answered: when the last answer came, or was asked for again [s, monotonic].
        """
        if self.rule == 'never' or time.monotonic() - answered < self.period:
            return False
        return self.rule == 'timer' or tracked is None or self._is_astray(tracked)

    def _is_astray(self, tracked: TrackingState) -> bool:
        """Tell whether a thing is lost, was not found, or is not sure any more."""
        seen = len(tracked.tracked) > 0 and bool(tracked.tracked.all())
        return not seen or float(tracked.drift.max()) > self.drift
