# SPDX-License-Identifier: Apache-2.0
"""Answers commands about the newest frame, one at a time, on a thread of its own.

Threads: `offer_*`, `command`, `goal`, `watch` and `cancel` may be called from any thread, hold a
lock for microseconds and return at once. `segment` runs on the worker thread, and there alone.
`finished` is called once for every request: on the worker thread, or, for one that never started
(empty, superseded, cancelled while it waited), on the thread that ended it. `finished` is called
with no lock held, so it may call back into the session.

Rules: the newest frame wins, and it is frozen when the request starts: the image, with the depth
and camera info nearest to its stamp. A request waits for the first image. Whatever `segment` or
`finished` raises ends one request, never the session.

Who is next: goals wait in the order they came, at most so many. Of commands the newest wins: it
takes the place of the one that waits, which is superseded. What runs is finished, unless it is
cancelled. A standing query is asked about every newest frame when nobody else waits; a goal or a
command stops it at once, and it is asked again afterwards. Sessions that share `turns` have one
model among them, and take turns, a request each.

No ROS here: messages are opaque, stamps are integers in nanoseconds.
"""

from __future__ import annotations

import dataclasses
import math
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any

from lisa_ros.errors import LisaError
from lisa_ros.results import Dialogue, Segmentation, Status
from lisa_ros.session.dialogue_history import MOST_TURNS, DialogueStore
from lisa_ros.session.frame_buffer import _LOOK_BACK, SyncedMessages
from lisa_ros.session.model_lock import ModelLock
from lisa_ros.session.request import Request, RequestCounters, unanswered

COMMANDS = ''  # the dialogue that commands follow one another in
_DAY = 86400.0  # an image older than this is of another clock [s]


Segment = Callable[[SyncedMessages, Request, Dialogue], Segmentation]
Finished = Callable[[Request, SyncedMessages | None, Segmentation], None]


class RequestScheduler:
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
        dialogues: DialogueStore | None = None,
        goals_kept: int = 64,
        watch_rate: float = 2.0,
        now: Callable[[], int] = time.time_ns,
        turns: ModelLock | None = None,
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
            dialogues: what was said so far, where that is to outlive the session.
            goals_kept: goals that may wait.
            watch_rate: most answers a second to a standing query [Hz].
            now: the clock that stamps are of [ns].
            turns: of the model, where other sessions use it, too.
        """
        self.depth_tolerance = depth_tolerance
        self.image_timeout = image_timeout
        self.dialogue_turns = dialogue_turns
        self.goals_kept, self.watch_rate = goals_kept, watch_rate
        self.counts = RequestCounters()
        self._segment, self._finished, self._report = segment, finished, report
        self._images: deque[tuple[int, Any]] = deque(maxlen=frames_kept)
        # Camera infos and depth often come faster or a little later than their images.
        self._depths: deque[tuple[int, Any]] = deque(maxlen=2 * frames_kept)
        self._infos: deque[tuple[int, Any]] = deque(maxlen=2 * frames_kept)
        self._now = now
        self._waiting: list[Request] = []  # first come, first served
        self._running: Request | None = None
        self._turns = turns or ModelLock()
        self._watched: Request | None = None  # the standing query
        self._again: Request | None = None  # to be asked once more, when nobody waits
        self._watched_stamp: int | None = None  # of the frame that it was asked about last [ns]
        self._watched_since = -math.inf  # when that was [s, monotonic]
        self._dialogues = dialogues or DialogueStore()
        self._closed = False
        self._changed = threading.Condition()
        self._worker = threading.Thread(target=self._work, name='lisa-session', daemon=True)

    def start(self) -> None:
        """Start the worker; commands that came before are answered now."""
        self._worker.start()

    def close(self, timeout: float = 10.0) -> bool:
        """Cancel all and end the worker; False if it still runs after `timeout` [s]."""
        with self._changed:
            self._closed, self._watched, self._again = True, None, None
            waiting, self._waiting = self._waiting, []
            if self._running:
                self._running.cancelled.set()
            self._changed.notify_all()
        for request in waiting:
            self._end(request, None, unanswered(request, Status.CANCELLED, 'shutting down'))
        if self._worker.is_alive() and threading.current_thread() is not self._worker:
            self._worker.join(timeout)
        return not self._worker.is_alive()

    def add_image(self, stamp: int, message: Any) -> None:
        """Keep an image as the newest; `stamp` [ns]."""
        self._offer(self._images, stamp, message)
        self.counts.images += 1

    def add_depth(self, stamp: int, message: Any) -> None:
        """Keep a depth image for the image with its stamp [ns]."""
        self._offer(self._depths, stamp, message)

    def add_camera_info(self, stamp: int, message: Any) -> None:
        """Keep a camera info for the image with its stamp [ns]."""
        self._offer(self._infos, stamp, message)

    def submit_command(
        self, text: str, frame: SyncedMessages | None = None, tag: Any = None
    ) -> Request:
        """Ask for an answer to `text` about the newest frame; it supersedes a waiting command.

        Commands follow one another in a dialogue. One with a `frame` is about that, and stands
        alone. The `tag` comes back in `finished`.
        """
        request = Request(text, frame, tag, COMMANDS if frame is None else None)
        superseded = None
        empty = not text.strip()
        with self._changed:
            self.counts.commands += 1
            closed = self._closed
            if not empty and not closed:
                superseded = next((one for one in self._waiting if not one.patient), None)
                self._enter(request, superseded)
        if closed:
            self._end(request, None, unanswered(request, Status.CANCELLED, 'shutting down'))
        elif empty:
            reason = 'the command is empty: say what to look for, such as "segment the red mug"'
            self._end(request, self.newest_frame(), unanswered(request, Status.FAILED, reason))
        if superseded:
            self.counts.superseded += 1
            self.counts.cancelled -= 1  # `_end` counts every CANCELLED
            reason = f'superseded by {text!r} before it started'
            self._end(superseded, None, unanswered(superseded, Status.CANCELLED, reason))
        return request

    def submit_goal(self, request: Request) -> bool:
        """Let a request wait for its turn; False if there is no room for it, or all is closing."""
        with self._changed:
            self.counts.commands += 1
            if self._closed or not self.accepts_goals:
                self.counts.rejected += 1
                return False
            self._enter(request)
        return True

    @property
    def closed(self) -> bool:
        """Whether it has ended."""
        return self._closed

    @property
    def accepts_goals(self) -> bool:
        """Whether one more goal may wait."""
        with self._changed:
            return sum(one.patient for one in self._waiting) < self.goals_kept

    def set_standing_query(self, text: str) -> None:
        """Ask this about every newest frame from now on, at most `watch_rate` times a second.

        It takes the place of an earlier one; `stop` ends it.
        """
        with self._changed:
            self._stop_watching()
            self._watched_stamp, self._watched_since = None, -math.inf
            if not self._closed:
                self._watched = Request(text, standing=True)
            self._changed.notify_all()

    def requery(self, text: str, turns: Dialogue | None = None, tag: Any = None) -> None:
        """Ask this once about the newest frame when nobody waits, making room for all others.

        It follows these turns, and becomes none itself. While a standing query or another one is
        to be asked anyway, nothing is done.
        """
        with self._changed:
            if not self._closed and not self._watched and not self._again:
                self._again = Request(text, tag=tag, turns=turns or Dialogue(), standing=True)
                self._changed.notify_all()

    def stop(self) -> bool:
        """End the standing query and all commands, at once; goals go on. False if none was."""
        with self._changed:
            stopped = self._watched is not None
            self._stop_watching()
            waiting = [one for one in self._waiting if not one.patient]
            self._waiting = [one for one in self._waiting if one.patient]
            running = self._running if self._running and not self._running.patient else None
            if running:
                running.cancelled.set()
        for request in waiting:
            self._end(request, None, unanswered(request, Status.CANCELLED, 'stopped'))
        return bool(stopped or waiting or running)

    def cancel(self, request: Request | None = None) -> bool:
        """Stop this request, or all of them without one; False if there was nothing to stop."""
        with self._changed:
            waiting = [one for one in self._waiting if request in (None, one)]
            running = self._running if request in (None, self._running) else None
            self._waiting = [one for one in self._waiting if one not in waiting]
            if running:
                running.cancelled.set()
        for one in waiting:
            self._end(one, None, unanswered(one, Status.CANCELLED, 'cancelled'))
        return bool(waiting or running)

    def reset_dialogue(self) -> None:
        """Forget all turns; an answer that is still on its way stays forgotten too."""
        self._dialogues.clear()

    def _enter(self, request: Request, instead: Request | None = None) -> None:
        """Let a request wait, lock held: at the end, or in the place of another one."""
        if instead is None:
            self._waiting.append(request)
        else:
            self._waiting[self._waiting.index(instead)] = request
        self._make_room()
        self._turns.preempt_background()
        self._changed.notify_all()

    def _stop_watching(self) -> None:
        """End the standing query, lock held."""
        self._watched = self._again = None
        self._make_room()

    def _make_room(self) -> None:
        """Stop answering a standing query; takes no lock."""
        running = self._running
        if running and running.standing:
            running.cancelled.set()

    def _is_urgent(self) -> bool:
        """Whether a goal or a command waits or runs; takes no lock."""
        running = self._running
        return bool(self._waiting) or (running is not None and not running.standing)

    def newest_frame(self) -> SyncedMessages | None:
        """Return the newest image that has its depth, with that; None before the first image.

        Depth comes a moment after its image. So the newest of the kept images that has some of its
        own is taken, where it is at most 0.5 s older than the newest of all: a slow camera's would
        be of another scene. Depth that is nearer to another image is that one's. Where none has
        depth, the newest.
        """
        with self._changed:
            if not self._images:
                return None
            depth = None
            stamp, image = self._images[-1]
            for stamp_tried, image_tried in reversed(self._images):
                if self._images[-1][0] - stamp_tried > _LOOK_BACK:
                    break
                depth = self._own_depth(stamp_tried)
                if depth is not None:
                    stamp, image = stamp_tried, image_tried
                    break
            info = self._nearest(self._infos, stamp)
            if info is None and self._infos:  # on its way, or sent once: a lens does not change
                info = self._infos[-1][1]
            return SyncedMessages(stamp, image, depth, info)

    def _own_depth(self, stamp: int) -> Any | None:
        """Return the depth nearest to an image, lock held; None if another image is nearer to it.

        Of two images as near the newer one has it.
        """
        found = self._nearest_with_stamp(self._depths, stamp)
        if found is None:
            return None
        of = min((abs(other - found[0]), -other) for other, _ in self._images)
        return found[1] if -of[1] == stamp else None

    @property
    def busy(self) -> bool:
        """Whether a request runs or waits."""
        return bool(self._waiting) or self._running is not None

    @property
    def seconds_waiting(self) -> float:
        """How long the request that is next has waited [s]; 0 if none waits."""
        waiting = self._waiting[:1]  # a copy: another thread may take it away
        return time.monotonic() - waiting[0].since if waiting else 0.0

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
        """Return the message nearest to the stamp, None if it is farther than the tolerance."""
        found = self._nearest_with_stamp(ring, stamp)
        return found and found[1]

    def _nearest_with_stamp(
        self, ring: deque[tuple[int, Any]], stamp: int
    ) -> tuple[int, Any] | None:
        """Return the message nearest to the stamp with its own, None as `_nearest`.

        Of several as near the newest: one that was sent again replaces the one before.
        """
        if not ring:
            return None
        found = min(reversed(ring), key=lambda pair: abs(pair[0] - stamp))
        return found if abs(found[0] - stamp) <= self.depth_tolerance * 1e9 else None

    def _work(self) -> None:
        while not self._closed:
            self._run_one()

    def _run_one(self) -> None:
        """Wait for a request, for a frame and for the model; answer it."""
        with self._changed:
            self._wait_until_due()
        if self._closed:
            return
        with self._turns.acquire(self._is_urgent, self._make_room):
            with self._changed:  # anew: the newest frame is frozen now that the model is free
                request, frame = self._begin()
            result = None if request is None else self._run(request, frame)
        if result is not None:  # told after the turn: others need not wait for that
            self._end(request, frame, result)

    def _run(self, request: Request, frame: SyncedMessages | None) -> Segmentation:
        """Answer a request about a frame."""
        dialogue, ticket = request.turns or Dialogue(), 0
        if request.dialogue is not None:
            most = MOST_TURNS if request.patient else self.dialogue_turns
            dialogue, ticket = self._dialogues.get(request.dialogue, most)
        late = frame and self._too_old(request, frame)
        if frame is None:
            reason = (
                f'no image within {self.image_timeout:g} s: is the camera on, the topic right?'
            )
            result = unanswered(request, Status.FAILED, reason)
        elif late:
            result = unanswered(request, Status.STALE_INPUT, late)
        else:
            result = self._answer(request, frame, dialogue)
        with self._changed:
            self._running = None
            if request.standing and result.status is Status.CANCELLED:
                self._watched_stamp = None  # it made room: its frame is still to be answered
            elif request is self._again:  # or it was stopped meanwhile
                self._again = None
        if request.dialogue is not None and result.status in (Status.FOUND, Status.NOT_FOUND):
            self._dialogues.append(request.dialogue, ticket, result)
        return result

    def _wait_until_due(self) -> None:
        """Wait, lock held, until a request can be answered, or all is closed."""
        while not self._closed:
            request, _, pause = self._due()
            if request is not None:
                return
            self._changed.wait(pause)

    def _due(self) -> tuple[Request | None, SyncedMessages | None, float | None]:
        """Return who is to be answered now about which frame, or how long to wait [s], lock held.

        The frame is None where none came in time. With nothing to wait for the pause is None.
        """
        if self._closed:
            return None, None, None
        if self._waiting:
            newest = self.newest_frame()
            for request in self._waiting:  # the first that has a frame, or waits no longer for it
                frame = request.frame or newest
                left = request.since + self.image_timeout - time.monotonic()
                if frame is not None or left <= 0:
                    return request, frame, None
            return None, None, self._waiting[0].since + self.image_timeout - time.monotonic()
        frame, pause = self._watched_next()
        return (
            (None, None, pause) if frame is None else (self._watched or self._again, frame, None)
        )

    def _watched_next(self) -> tuple[SyncedMessages | None, float | None]:
        """Return the frame that the standing query is due for, or how long to wait [s]."""
        frame = self.newest_frame() if self._watched or self._again else None
        if frame is None or frame.stamp == self._watched_stamp:
            return None, None  # until anything changes
        pause = self._watched_since + 1 / self.watch_rate - time.monotonic()
        return (None, pause) if pause > 0 else (frame, None)

    def _begin(self) -> tuple[Request | None, SyncedMessages | None]:
        """Take the request that is due, lock held; None where it is gone, or has to make room."""
        request, frame, _ = self._due()
        if request is None or (request.standing and self._turns.has_urgent_waiter()):
            return None, None
        if request.standing:
            request = dataclasses.replace(
                request, since=time.monotonic(), cancelled=threading.Event()
            )
            self._watched_stamp, self._watched_since = frame.stamp, request.since
            if not self._watched:
                self._again = request
        else:
            self._waiting.remove(request)
        self._running = request
        return request, frame

    def _too_old(self, request: Request, frame: SyncedMessages) -> str:
        """Return why a frame is too old for a request, nothing if it is not."""
        age = (self._now() - frame.stamp) / 1e9
        if request.frame is not None or not request.max_age or age <= request.max_age:
            return ''
        clocks = ': is it a bag? Then set use_sim_time' if age > _DAY else ''
        return (
            f'the newest image is {age:.2f} s old, at most {request.max_age:g} s were asked '
            f'for{clocks}'
        )

    def _answer(self, request: Request, frame: SyncedMessages, dialogue: Dialogue) -> Segmentation:
        """Return what `segment` says, or how it failed."""
        if frame.depth is None:
            self.counts.without_depth += 1
        try:
            return self._segment(frame, request, dialogue)
        except LisaError as error:
            return unanswered(request, Status.FAILED, str(error))
        except Exception as error:  # noqa: BLE001  # a bug: reported whole, and outlived
            self._report(traceback.format_exc())
            reason = f'internal error: {type(error).__name__}: {error}'
            return unanswered(request, Status.FAILED, reason)

    def _end(self, request: Request, frame: SyncedMessages | None, result: Segmentation) -> None:
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
