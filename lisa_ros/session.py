# SPDX-License-Identifier: Apache-2.0
"""Answers commands about the newest frame, one at a time, on a thread of its own.

Threads: `offer_*`, `command`, `cancel` and `reset_dialogue` may be called from any thread, hold a
lock for microseconds and return at once. `segment` runs on the worker thread, and there alone.
`finished` is called once for every command: on the worker thread, or, for one that never started
(empty, superseded, cancelled while it waited), on the thread that ended it. `finished` is called
with no lock held, so it may call back into the session.

Rules: the newest frame wins, and it is frozen when the request starts: the image, with the depth
and camera info nearest to its stamp. A new command supersedes one that waits; the one that runs
is finished, unless it is cancelled. A command waits for the first image. Whatever `segment` or
`finished` raises ends one request, never the session.

No ROS here: messages are opaque, stamps are integers in nanoseconds.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lisa_ros.errors import LisaError
from lisa_ros.results import Dialogue, Segmentation, Status

_LOOK_BACK = 500_000_000  # how far before the newest image one with depth is looked for [ns]


@dataclass(frozen=True)
class Frame:
    """What one request is answered about: messages as they came, not yet converted."""

    stamp: int  # of the image [ns]
    image: Any
    depth: Any | None = None
    camera_info: Any | None = None


@dataclass(frozen=True, eq=False)
class Request:
    """One command on its way; `cancelled` is set to stop it.

    With a frame of its own it waits for no image and stands outside the dialogue.
    """

    text: str
    frame: Frame | None = None
    tag: Any = None  # whatever the asker wants back with the answer
    since: float = field(default_factory=time.monotonic)  # when it came [s, monotonic]
    cancelled: threading.Event = field(default_factory=threading.Event)


@dataclass
class Counts:
    """What has happened since the session began; read by the diagnostics."""

    images: int = 0
    commands: int = 0
    answered: int = 0  # FOUND and NOT_FOUND
    failed: int = 0
    cancelled: int = 0  # superseded ones apart
    superseded: int = 0
    without_depth: int = 0  # requests that found no depth within the tolerance


Segment = Callable[[Frame, Request, Dialogue], Segmentation]
Finished = Callable[[Request, Frame | None, Segmentation], None]


class Session:
    """Newest frame wins, one job at a time; the module's docstring has the rules and threads."""

    def __init__(
        self,
        segment: Segment,
        finished: Finished,
        *,
        report: Callable[[str], None] = print,
        frames_kept: int = 8,
        depth_tolerance: float = 0.05,
        image_timeout: float = 30.0,
        dialogue_turns: int = 1,
    ) -> None:
        """Make a session that answers once `start` was called.

        Args:
            segment: answers a request about a frame; looks at `request.cancelled` as it goes.
            finished: takes every request's end; the frame is None if there was none yet.
            report: takes the traceback of a bug as text, on the thread where it happened.
            frames_kept: messages of each kind that are kept for matching.
            depth_tolerance: between the stamps of an image and its depth and camera info [s].
            image_timeout: how long a command waits for the first image [s].
            dialogue_turns: earlier turns that a command may refer to.
        """
        self.depth_tolerance = depth_tolerance
        self.image_timeout = image_timeout
        self.dialogue_turns = dialogue_turns
        self.counts = Counts()
        self._segment, self._finished, self._report = segment, finished, report
        self._images: deque[tuple[int, Any]] = deque(maxlen=frames_kept)
        # Camera infos and depth often come faster or a little later than their images.
        self._depths: deque[tuple[int, Any]] = deque(maxlen=2 * frames_kept)
        self._infos: deque[tuple[int, Any]] = deque(maxlen=2 * frames_kept)
        self._waiting: Request | None = None
        self._running: Request | None = None
        self._dialogue = Dialogue()
        self._dialogue_number = 0  # counts resets: an answer to an older dialogue stays out
        self._closed = False
        self._changed = threading.Condition()
        self._worker = threading.Thread(target=self._work, name='lisa-session', daemon=True)

    def start(self) -> None:
        """Start the worker; commands that came before are answered now."""
        self._worker.start()

    def close(self, timeout: float = 10.0) -> bool:
        """Cancel all and end the worker; False if it still runs after `timeout` [s]."""
        with self._changed:
            self._closed = True
            waiting, self._waiting = self._waiting, None
            if self._running:
                self._running.cancelled.set()
            self._changed.notify_all()
        if waiting:
            self._end(waiting, None, _unanswered(waiting, Status.CANCELLED, 'shutting down'))
        if self._worker.is_alive() and threading.current_thread() is not self._worker:
            self._worker.join(timeout)
        return not self._worker.is_alive()

    def offer_image(self, stamp: int, message: Any) -> None:
        """Keep an image as the newest; `stamp` [ns]."""
        self._offer(self._images, stamp, message)
        self.counts.images += 1

    def offer_depth(self, stamp: int, message: Any) -> None:
        """Keep a depth image for the image with its stamp [ns]."""
        self._offer(self._depths, stamp, message)

    def offer_camera_info(self, stamp: int, message: Any) -> None:
        """Keep a camera info for the image with its stamp [ns]."""
        self._offer(self._infos, stamp, message)

    def command(self, text: str, frame: Frame | None = None, tag: Any = None) -> Request:
        """Ask for an answer to `text` about the newest frame; it supersedes a waiting command.

        With a `frame` the answer is about that one. The `tag` comes back in `finished`.
        """
        request = Request(text, frame, tag)
        superseded = None
        empty = not text.strip()
        with self._changed:
            self.counts.commands += 1
            closed = self._closed
            if not empty and not closed:
                superseded, self._waiting = self._waiting, request
                self._changed.notify_all()
        if closed:
            self._end(request, None, _unanswered(request, Status.CANCELLED, 'shutting down'))
        elif empty:
            reason = 'the command is empty: say what to look for, such as "segment the red mug"'
            self._end(request, self.newest_frame(), _unanswered(request, Status.FAILED, reason))
        if superseded:
            self.counts.superseded += 1
            self.counts.cancelled -= 1  # `_end` counts every CANCELLED
            reason = f'superseded by {text!r} before it started'
            self._end(superseded, None, _unanswered(superseded, Status.CANCELLED, reason))
        return request

    def cancel(self, request: Request | None = None) -> bool:
        """Stop this request, or all of them without one; False if there was nothing to stop."""
        with self._changed:
            waiting = self._waiting if request in (None, self._waiting) else None
            running = self._running if request in (None, self._running) else None
            if waiting:
                self._waiting = None
            if running:
                running.cancelled.set()
        if waiting:
            self._end(waiting, None, _unanswered(waiting, Status.CANCELLED, 'cancelled'))
        return bool(waiting or running)

    def reset_dialogue(self) -> None:
        """Forget the turns; an answer that is still on its way stays forgotten too."""
        with self._changed:
            self._dialogue = Dialogue()
            self._dialogue_number += 1

    def newest_frame(self) -> Frame | None:
        """Return the newest image that has its depth, with that; None before the first image.

        Depth comes a moment after its image. So the newest of the kept images that has some is
        taken, where it is at most 0.5 s older than the newest of all: a slow camera's would be of
        another scene. Where none has, the newest.
        """
        with self._changed:
            if not self._images:
                return None
            depth = None
            stamp, image = self._images[-1]
            for stamp_tried, image_tried in reversed(self._images):
                if self._images[-1][0] - stamp_tried > _LOOK_BACK:
                    break
                depth = self._nearest(self._depths, stamp_tried)
                if depth is not None:
                    stamp, image = stamp_tried, image_tried
                    break
            return Frame(stamp, image, depth, self._nearest(self._infos, stamp))

    @property
    def busy(self) -> bool:
        """Whether a command runs or waits."""
        return self._waiting is not None or self._running is not None

    @property
    def seconds_waiting(self) -> float:
        """How long the waiting command has waited [s]; 0 if none waits."""
        waiting = self._waiting
        return time.monotonic() - waiting.since if waiting else 0.0

    @property
    def seconds_running(self) -> float:
        """How long ago the running command came [s]; 0 if none runs."""
        running = self._running
        return time.monotonic() - running.since if running else 0.0

    def _offer(self, ring: deque[tuple[int, Any]], stamp: int, message: Any) -> None:
        with self._changed:
            if ring and stamp < ring[-1][0]:
                ring.clear()  # time went back: a bag began anew, what came before is another past
            ring.append((stamp, message))
            self._changed.notify_all()

    def _nearest(self, ring: deque[tuple[int, Any]], stamp: int) -> Any | None:
        """Return the message nearest to the stamp, None if it is farther than the tolerance.

        Of several as near the newest: one that was sent again replaces the one before.
        """
        if not ring:
            return None
        distance, message = min(
            ((abs(other - stamp), message) for other, message in reversed(ring)),
            key=lambda pair: pair[0],
        )
        return message if distance <= self.depth_tolerance * 1e9 else None

    def _work(self) -> None:
        while not self._closed:
            self._run_one()

    def _run_one(self) -> None:
        """Wait for a command and for a frame, answer it."""
        with self._changed:
            request, frame = self._next()
            if request is None:
                return
            dialogue = Dialogue(self._dialogue.turns[-self.dialogue_turns :])
            if self.dialogue_turns == 0 or request.frame is not None:
                dialogue = Dialogue()  # not by the slice: [-0:] would be all of them
            number = self._dialogue_number
        if frame is None:
            reason = (
                f'no image within {self.image_timeout:g} s: is the camera on, the topic right?'
            )
            result = _unanswered(request, Status.FAILED, reason)
        else:
            result = self._answer(request, frame, dialogue)
        with self._changed:
            self._running = None
            answered = result.status in (Status.FOUND, Status.NOT_FOUND)
            if answered and request.frame is None and number == self._dialogue_number:
                turns = dialogue.extended(result).turns
                self._dialogue = Dialogue(turns[-max(self.dialogue_turns, 1) :])
        self._end(request, frame, result)

    def _next(self) -> tuple[Request | None, Frame | None]:
        """Wait, lock held, for a command and a frame; the frame is None on time-out."""
        while not self._closed:
            request = self._waiting
            if request is None:
                self._changed.wait()
                continue
            frame = request.frame or self.newest_frame()
            left = request.since + self.image_timeout - time.monotonic()
            if frame is None and left > 0:
                self._changed.wait(left)
                continue
            self._waiting, self._running = None, request
            return request, frame
        return None, None

    def _answer(self, request: Request, frame: Frame, dialogue: Dialogue) -> Segmentation:
        """Return what `segment` says, or how it failed."""
        if frame.depth is None:
            self.counts.without_depth += 1
        try:
            return self._segment(frame, request, dialogue)
        except LisaError as error:
            return _unanswered(request, Status.FAILED, str(error))
        except Exception as error:  # noqa: BLE001  # a bug: reported whole, and outlived
            self._report(traceback.format_exc())
            reason = f'internal error: {type(error).__name__}: {error}'
            return _unanswered(request, Status.FAILED, reason)

    def _end(self, request: Request, frame: Frame | None, result: Segmentation) -> None:
        """Count the end of a request and tell it."""
        if result.status is Status.FAILED:
            self.counts.failed += 1
        elif result.status is Status.CANCELLED:
            self.counts.cancelled += 1
        else:
            self.counts.answered += 1
        try:
            self._finished(request, frame, result)
        except Exception:  # noqa: BLE001  # a bug in the caller: reported whole, and outlived
            self._report(traceback.format_exc())


def _unanswered(request: Request, status: Status, reason: str) -> Segmentation:
    """Return a result without answer and masks."""
    none = np.zeros((0, 0, 0), np.float32)
    return Segmentation(
        query=request.text,
        answer='',
        answer_raw='',
        token_ids=(),
        masks=none.astype(bool),
        mask_logits=none,
        scores=np.zeros(0, np.float32),
        status=status,
        reason=reason,
    )
