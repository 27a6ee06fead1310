# SPDX-License-Identifier: Apache-2.0
"""The tracking worker: a tracker on its own thread that follows an answer's masks to new frames.

The newest frame wins: frames that arrive faster than the tracker runs are skipped. Queries and
answers are processed in their order. Nothing is tracked while tracked masks have no subscriber.

Threads: `on_query`, `on_answer`, `stop`, `notify`, `set_policy` and `idle` may be used from any
thread and return at once. Only the worker's thread calls the tracker and the sink. The sink's
`newest_frame` must be thread-safe, because other threads add frames.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import threading
import time
import traceback
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np

from lisa_ros.errors import LisaError, ModelError, TrackingError
from lisa_ros.results import Segmentation
from lisa_ros.tracking.requery import RequeryPolicy
from lisa_ros.tracking.tracker import MAX_REFERENCE_AGE, Tracker, TrackingState

_MAX_LOGIT = 30.0  # of a probability of 1; its negative, of 0, is that of pixels outside a mask
# A frame older than the newest tracked one by less than this arrived late; an older one means that
# a bag restarted [ns]
_MAX_LATENESS = 1_000_000_000
_MAX_ANSWER_AGE = 5_000_000_000  # oldest answer that is tracked for a new subscriber [ns]


class CameraFrame(Protocol):
    """A camera frame; only the sink knows what is in it."""

    @property
    def moment(self) -> int:
        """When it was taken [ns]; each frame has its own, although a camera may repeat stamps."""


@dataclass(frozen=True)
class TrackerFrame:
    """A frame, converted for the tracker."""

    moment: int  # of the camera frame [ns]
    image: np.ndarray  # (H, W, 3) uint8 RGB
    depth: np.ndarray | None = None  # (H, W) float32 [m], NaN where invalid


_Frame = TypeVar('_Frame', bound=CameraFrame)


class TrackingSink(Protocol[_Frame]):
    """Gives a worker its frames and publishes its masks."""

    def newest_frame(self) -> _Frame | None:
        """Return the newest frame; None before the first."""

    def convert(self, frame: _Frame) -> TrackerFrame:
        """Return a frame for the tracker.

        Raises:
            LisaError: it cannot be converted; it is skipped, and the error is reported.
        """

    def has_subscribers(self) -> bool:
        """Return whether tracked masks are wanted."""

    def publish(
        self,
        frame: _Frame,
        tracker_frame: TrackerFrame,
        result: Segmentation,
        state: TrackingState,
    ) -> None:
        """Publish an answer with its masks moved to a newer frame."""

    def requery(self) -> None:
        """Ask the last query again: the tracker has drifted, or the period has passed."""

    def report(self, message: str) -> None:
        """Log why a frame is not tracked, or the traceback of a bug."""


@dataclass(frozen=True)
class _QueryItem(Generic[_Frame]):
    """The model is asked about a frame."""

    frame: _Frame


@dataclass(frozen=True)
class _AnswerItem(Generic[_Frame]):
    """The model has answered about a frame."""

    frame: _Frame
    result: Segmentation


@dataclass(frozen=True)
class _Stop:
    """Tracking ends until the next answer."""


class TrackingWorker(Generic[_Frame]):
    """Runs one tracker; the module's docstring has the rules and threads."""

    def __init__(self, tracker: Tracker, sink: TrackingSink[_Frame], policy: RequeryPolicy):
        """Make a worker; `start` starts its thread.

        Args:
            tracker: nothing else may use it.
            sink: gives frames and takes masks.
            policy: when to ask the last query again, used until `set_policy`.
        """
        self.idle = threading.Event()  # set while nothing is left to process, and after the end
        self._tracker, self._sink, self._policy = tracker, sink, policy
        self._inbox: list[_QueryItem[_Frame] | _AnswerItem[_Frame] | _Stop] = []
        self._answer: _AnswerItem[_Frame] | None = None  # the last one
        self._is_answer_past = False  # time has gone back since: its image shows another scene
        self._answered_at = -math.inf  # when it came or was asked for again [s, monotonic]
        self._has_reference = False  # whether the tracker knows the frame of a query
        self._has_failed = False  # whether it has computed NaN since the last answer
        self._open_query: _Frame | None = None  # frame of the newest query since the last answer
        self._result: Segmentation | None = None  # of the answer that is tracked
        self._tracked_moment: int | None = None  # of the newest frame that was tracked [ns]
        self._published_moment: int | None = None  # of the last frame for this answer [ns]
        self._has_new_frame = False
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name='lisa-tracking', daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self, timeout: float = 10.0) -> bool:
        """End the thread after the present frame; False if it still runs after `timeout` [s]."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def set_policy(self, policy: RequeryPolicy) -> None:
        """Use another re-query policy from now on."""
        self._policy = policy

    def on_query(self, frame: _Frame) -> None:
        """Make this frame a reference frame: the model begins to answer about it."""
        with self._changed:
            self._inbox.append(_QueryItem(frame))
            self._wake()

    def on_answer(self, frame: _Frame, result: Segmentation) -> None:
        """Track the masks of this answer; it replaces answers that are not yet processed."""
        with self._changed:
            # Drop all waiting items except this answer's own query.
            self._inbox = [
                item
                for item in self._inbox
                if isinstance(item, _QueryItem) and item.frame is frame
            ]
            self._inbox.append(_AnswerItem(frame, result))
            self._answered_at = time.monotonic()
            self._wake()

    def stop(self) -> bool:
        """Track nothing until the next answer; False if nothing was tracked."""
        was_tracking = self._result is not None
        with self._changed:
            self._inbox = [_Stop()]
            self._wake()
        return was_tracking

    def notify(self) -> None:
        """Look for a newer frame."""
        with self._changed:
            self._wake()

    def _wake(self) -> None:
        """Wake the thread, lock held; it also looks at the newest frame again.

        After `close` nothing is processed, so `idle` stays as it is.
        """
        if self._closed:
            return
        self._has_new_frame = True
        self.idle.clear()
        self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._inbox and not self._has_new_frame:
                    self.idle.set()
                self._changed.wait_for(lambda: self._closed or self._inbox or self._has_new_frame)
                if self._closed:
                    self.idle.set()
                    return
                item = self._inbox.pop(0) if self._inbox else None
                if item is None:
                    self._has_new_frame = False
            try:
                self._process(item)
            except ModelError as error:
                self._note_failure(error)
            except LisaError as error:
                self._sink.report(f'not tracked: {error}')
            except BaseException:  # noqa: BLE001  # a bug: logged, and the next answer is tracked
                self._sink.report(traceback.format_exc())
                with contextlib.suppress(BaseException):  # the tracker may be broken
                    self._reset()

    def _note_failure(self, error: ModelError) -> None:
        """Report that the tracker has dropped its objects; the last answer is tracked again."""
        self._sink.report(f'not tracked: {error}')
        self._result, self._has_failed = None, True

    def _process(self, item: _QueryItem[_Frame] | _AnswerItem[_Frame] | _Stop | None) -> None:
        """Process a query, an answer or a stop; None: the newest frame."""
        if isinstance(item, _Stop):
            self._answer = self._open_query = None
            self._reset()
        elif isinstance(item, _AnswerItem):
            self._answer, self._is_answer_past, self._open_query = item, False, None
            self._track_answer()
        elif not self._sink.has_subscribers():
            if item is None:
                self._reset()
        elif isinstance(item, _QueryItem):
            if not self._is_outdated(item.frame):
                self._open_query = item.frame
                self._set_reference(item.frame)
        else:
            self._track_newest()

    def _reset(self) -> None:
        had_reference = self._has_reference
        self._has_reference, self._result, self._tracked_moment = False, None, None
        if had_reference:
            self._tracker.reset()

    def _is_outdated(self, frame: _Frame) -> bool:
        """Return whether a query comes so late that its frame would restart the tracker.

        If it has an answer, tracking starts again from it.
        """
        if self._tracked_moment is None:
            return False
        return MAX_REFERENCE_AGE < self._tracked_moment - frame.moment <= _MAX_ANSWER_AGE

    def _set_reference(self, frame: _Frame) -> None:
        converted = self._sink.convert(frame)
        try:
            self._tracker.set_reference(converted.moment, converted.image, converted.depth)
        except ModelError as error:  # about objects, of which it has none now
            self._note_failure(error)
            self._tracker.set_reference(converted.moment, converted.image, converted.depth)
        self._has_reference = True

    def _track_answer(self) -> None:
        """Track the last answer, if somebody subscribes and its query was a reference."""
        if not self._sink.has_subscribers() or not self._has_reference:
            return
        frame, result = self._answer.frame, self._answer.result
        try:
            self._set_masks(frame, result.masks)
        except BaseException:
            self._result = None  # of another answer than the masks, which may be new
            raise
        self._result, self._published_moment, self._has_failed = result, None, False

    def _set_masks(self, frame: _Frame, masks: np.ndarray) -> None:
        try:
            self._tracker.set_masks(frame.moment, masks)
        except TrackingError:  # nobody subscribed when the query began, or these were set before
            self._tracker.reset()
            self._set_reference(frame)
            self._tracker.set_masks(frame.moment, masks)
            if self._open_query is not None and self._open_query.moment > frame.moment:
                self._set_reference(self._open_query)  # its answer is to come

    def _is_recent(self, frame: _Frame) -> bool:
        """Return whether the last answer is new enough to be tracked to this frame at once."""
        if self._answer is None or self._is_answer_past:
            return False
        return 0 <= frame.moment - self._answer.frame.moment <= _MAX_ANSWER_AGE

    def _track_newest(self) -> None:
        """Track to the newest frame and publish."""
        frame = self._sink.newest_frame()
        if frame is None:
            return
        is_lost = not self._has_reference or self._has_failed
        if is_lost and self._is_recent(frame):  # subscribed after the answer, or after NaN
            if not self._has_reference:
                self._set_reference(self._answer.frame)
            self._track_answer()
        if not self._has_reference:
            if self._answer is not None:
                self._requery_if_due(None)
            return
        if self._is_processed_or_late(frame) or self._reset_if_time_went_back(frame):
            return
        self._track_to(frame)

    def _is_processed_or_late(self, frame: _Frame) -> bool:
        if frame.moment == self._published_moment:
            return True
        return (
            self._tracked_moment is not None
            and 0 < self._tracked_moment - frame.moment < _MAX_LATENESS
        )

    def _reset_if_time_went_back(self, frame: _Frame) -> bool:
        """If a bag has restarted while an answer was tracked, stop tracking and return True."""
        last = self._tracked_moment
        if last is None or frame.moment >= last or self._result is None:
            return False
        self._sink.report('time went back, so nothing is tracked until the next answer')
        self._reset()
        self._tracked_moment, self._is_answer_past = frame.moment, True
        return True

    def _track_to(self, frame: _Frame) -> None:
        converted = self._sink.convert(frame)
        self._tracker.update(converted.moment, converted.image, converted.depth)
        self._tracked_moment = self._published_moment = frame.moment
        if self._result is None:
            if self._answer is not None:
                self._requery_if_due(None)
            return
        state = self._tracker.state()
        if state is not None:
            moved = propagate_result(self._result, state)
            self._sink.publish(frame, converted, moved, state)
        self._requery_if_due(state)

    def _requery_if_due(self, state: TrackingState | None) -> None:
        if self._policy.is_due(state, self._answered_at):
            self._answered_at = time.monotonic()
            self._sink.requery()


def propagate_result(result: Segmentation, state: TrackingState) -> Segmentation:
    """Return an answer with its masks moved to the newest frame.

    All pixels of a mask have the same probability: the mean probability of the answer's mask times
    (1 - drift). The logits are its log odds.
    """
    logits = np.full(state.masks.shape, -_MAX_LOGIT, np.float32)
    for i, mask in enumerate(state.masks):
        own = result.mask_logits[i][result.masks[i]]
        own = np.clip(own, 0, _MAX_LOGIT)
        probability = float(np.mean(1 / (1 + np.exp(-own)))) if own.size else 0.5
        remaining = min(max(probability * (1 - float(state.drift[i])), 1e-3), 1 - 1e-6)
        logits[i][mask] = math.log(remaining / (1 - remaining))
    return dataclasses.replace(result, masks=state.masks, mask_logits=logits)
