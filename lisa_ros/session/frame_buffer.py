# SPDX-License-Identifier: Apache-2.0
"""The newest messages of one camera, matched by stamp, identified by arrival.

Threads: every method may be called from any thread; each holds a lock for microseconds.
"""

from __future__ import annotations

import bisect
import itertools
import math
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

_MAX_IMAGE_LAG = 500_000_000  # an image with depth may be this much older than the newest [ns]
_FIRST_DEPTH_WAIT = 0.1  # how long the first image waits for its depth and camera info [s]
# The moments of images with one stamp may run ahead of the next stamp by this: stamps in whole
# seconds repeat [ns]
_MAX_LEAD = 1_000_000_000
# A message older than the newest by less than this came out of order; an older one means that a
# bag restarted [ns]
_MAX_LATENESS = 1_000_000_000
_MIN_RESTART_INTERVAL = 1.0  # between two images that count as a first one [s]


@dataclass(frozen=True)
class SyncedMessages:
    """The messages that one request is about, as they arrived; nothing is converted yet."""

    stamp: int  # of the image [ns]; if the camera left it 0, the time of its arrival
    image: Any
    depth: Any | None = None
    camera_info: Any | None = None
    # Images count from 1: a camera may repeat a stamp, but each of its images is a new frame.
    arrival: int = field(default=0, compare=False)
    arrived_at: float = field(default=math.inf, compare=False)  # [s], on the steady clock
    # The stamp; if the camera repeats it, later by the time between the arrivals. Each image of a
    # stream has its own [ns]; None: `stamp`.
    own_moment: int | None = field(default=None, compare=False)
    received_at: float = field(default=math.inf, compare=False)  # [s, monotonic]: never pauses
    # Stamp of the nearest depth image minus `stamp`, if none is near enough [s]; None: none came
    depth_gap: float | None = field(default=None, compare=False)
    frozen_at: float = field(default=0.0, compare=False)  # when the model began [s, monotonic]

    @property
    def moment(self) -> int:
        """When the image was taken, different for each image of a stream [ns]."""
        return self.stamp if self.own_moment is None else self.own_moment

    @property
    def is_stamp_repeated(self) -> bool:
        """Whether an earlier image of the stream has the same stamp."""
        return self.moment != self.stamp


@dataclass(frozen=True)
class NewestMessages:
    """The newest message of each topic of a camera; None before the first."""

    image: Any | None
    depth: Any | None
    camera_info: Any | None
    # between an image and the depth image nearest to it, the smallest of those that are kept [s]
    stamp_gap: float | None


@dataclass(frozen=True)
class _Image:
    """A colour image with its arrival."""

    message: Any
    arrival: int
    arrived_at: float
    moment: int  # see `SyncedMessages.own_moment`
    received_at: float  # [s, monotonic]


class _MessageRing:
    """The newest messages of one topic, in the order of their stamps."""

    def __init__(self, capacity: int):
        self.entries: deque[tuple[int, Any]] = deque(maxlen=capacity)
        # When the first message came, since the start or since time went back [s, monotonic]. With
        # two cameras on one topic time may go back at every second message: then at most one new
        # start a second.
        self.first_arrival = math.inf
        self._late: tuple[int, Any] | None = None  # the last message, if it came out of order

    def add(self, stamp: int, message: Any) -> None:
        """Add a message; one that came out of order takes its place.

        Time went back, and the messages so far do not match, in three cases: the stamp is older by
        `_MAX_LATENESS`; a second message in a row is late and follows the first one, since the
        clock was set; or the stamp is already there, since a short recording is played in a loop.
        """
        entry, late = (stamp, message), self._late
        self._late = None
        if not self.entries or stamp >= self.entries[-1][0]:
            if not self.entries:
                self._note_start()
            self.entries.append(entry)
        elif self.entries[-1][0] - stamp >= _MAX_LATENESS:
            self._start_again(entry)
        elif late is not None and stamp >= late[0]:
            self._start_again(late, entry)
        elif any(stamp == other for other, _ in self.entries):
            self._start_again(entry)
        else:
            self._late = entry
            self._insert(entry)

    def _insert(self, entry: tuple[int, Any]) -> None:
        """Insert a late message behind those of its stamp; too late for a full ring: drop it."""
        place = bisect.bisect_right([stamp for stamp, _ in self.entries], entry[0])
        if len(self.entries) < self.entries.maxlen:
            self.entries.insert(place, entry)
        elif place:
            self.entries.popleft()
            self.entries.insert(place - 1, entry)

    def _start_again(self, *entries: tuple[int, Any]) -> None:
        self.entries.clear()
        self._note_start()
        self.entries.extend(entries)

    def _note_start(self) -> None:
        now = time.monotonic()
        if math.isinf(self.first_arrival) or now - self.first_arrival > _MIN_RESTART_INTERVAL:
            self.first_arrival = now

    def nearest(self, stamp: int, tolerance: float) -> tuple[int, Any] | None:
        """Return the (stamp, message) nearest to a stamp, None beyond the tolerance [s].

        If several are equally near, the last to arrive: a message sent twice is replaced.
        """
        if not self.entries:
            return None
        nearest = min(reversed(self.entries), key=lambda entry: abs(entry[0] - stamp))
        return nearest if abs(nearest[0] - stamp) <= tolerance * 1e9 else None


class FrameBuffer:
    """Keeps images, depth images and camera infos, and matches them by stamp."""

    def __init__(self, frames_kept: int):
        """Make an empty buffer for `frames_kept` images."""
        self._images = _MessageRing(frames_kept)  # of `_Image`
        self._arrivals = itertools.count(1)
        # Camera infos and depth images often come at a higher rate or later than the images.
        self._depths = _MessageRing(2 * frames_kept)
        self._infos = _MessageRing(2 * frames_kept)
        self._lock = threading.Lock()

    def add_image(self, stamp: int, message: Any, arrived_at: float) -> None:
        """Add a colour image; `stamp` [ns], `arrived_at` [s] on the steady clock."""
        with self._lock:
            moment = self._moment(stamp, arrived_at)
            image = _Image(message, next(self._arrivals), arrived_at, moment, time.monotonic())
            self._images.add(stamp, image)

    def add_depth(self, stamp: int, message: Any) -> None:
        """Add a depth image; `stamp` [ns]."""
        with self._lock:
            self._depths.add(stamp, message)

    def add_camera_info(self, stamp: int, message: Any) -> None:
        """Add a camera info; `stamp` [ns]."""
        with self._lock:
            self._infos.add(stamp, message)

    def newest_frame(
        self, tolerance: float, *, prefers_depth: bool = True
    ) -> SyncedMessages | None:
        """Return the newest image that has depth, with its depth; None before the first image.

        A depth image arrives a moment after its colour image, so the newest image may not have its
        depth yet. This returns the newest image that has a depth image of its own (`_own_depth`)
        and is at most 0.5 s older than the newest image: an older image, of a slow camera, would
        show another scene.
        If there is none, it returns the newest image without depth.

        Args:
            tolerance: largest difference between the stamps of an image and of its depth and
                camera info [s].
            prefers_depth: False: the newest image, whether it has depth or not.
        """
        with self._lock:
            if not self._images.entries:
                return None
            stamp, image = self._images.entries[-1]
            depth = None
            for candidate, candidate_image in reversed(self._images.entries):
                lag = self._images.entries[-1][0] - candidate
                if lag > (_MAX_IMAGE_LAG if prefers_depth else 0):
                    break
                depth = self._own_depth(candidate, tolerance)
                if depth is not None:
                    stamp, image = candidate, candidate_image
                    break
            info = self._camera_info(stamp, tolerance)
            return SyncedMessages(
                stamp,
                image.message,
                depth,
                info,
                image.arrival,
                image.arrived_at,
                image.moment,
                image.received_at,
                self._depth_gap(stamp) if depth is None else None,
            )

    def newest_messages(self) -> NewestMessages:
        """Return the newest message of each topic, whether their stamps fit or not."""
        with self._lock:
            rings = self._images, self._depths, self._infos
            stamped = [ring.entries[-1] if ring.entries else None for ring in rings]
            nearest = None
            if stamped[0] and stamped[1]:
                pairs = itertools.product(self._images.entries, self._depths.entries)
                nearest = min(abs(image - depth) for (image, _), (depth, _) in pairs) / 1e9
        image, depth, info = (entry and entry[1] for entry in stamped)
        return NewestMessages(image and image.message, depth, info, nearest)

    def usable_at(self, frame: SyncedMessages | None) -> float:
        """Return the earliest time to answer a request about the newest frame [s, monotonic].

        The first image arrives shortly before its depth and camera info. A request that waits for
        an image also waits up to 0.1 s for these two, because 3D positions need them. It does not
        wait longer, because a camera may have no depth. Infinite without a frame.
        """
        if frame is None:
            return math.inf
        with self._lock:
            first_arrival = self._images.first_arrival
        is_complete = frame.depth is not None and frame.camera_info is not None
        return first_arrival if is_complete else first_arrival + _FIRST_DEPTH_WAIT

    def _moment(self, stamp: int, arrived_at: float) -> int:
        """Return the moment of an image that has just arrived, see `SyncedMessages` [ns]."""
        if not self._images.entries:
            return stamp
        last_stamp, last = self._images.entries[-1]
        if stamp == last_stamp:
            return last.moment + max(1, round((arrived_at - last.arrived_at) * 1e9))
        if last_stamp < stamp <= last.moment < stamp + _MAX_LEAD:
            return last.moment + 1
        return stamp

    def _depth_gap(self, stamp: int) -> float | None:
        """Return by how much the depth image nearest to a stamp [ns] is later [s]."""
        nearest = self._depths.nearest(stamp, math.inf)
        return nearest and (nearest[0] - stamp) / 1e9

    def _own_depth(self, stamp: int, tolerance: float) -> Any | None:
        """Return the depth image nearest to an image; None if it is nearer to another image.

        If two images are equally near, the depth belongs to the newer one.
        """
        nearest = self._depths.nearest(stamp, tolerance)
        if nearest is None:
            return None
        depth_stamp, depth = nearest
        images = [image_stamp for image_stamp, _ in self._images.entries]
        owner = min(images, key=lambda image_stamp: (abs(image_stamp - depth_stamp), -image_stamp))
        return depth if owner == stamp else None

    def _camera_info(self, stamp: int, tolerance: float) -> Any | None:
        """Return the nearest camera info, else the last one: a lens does not change."""
        nearest = self._infos.nearest(stamp, tolerance)
        if nearest is None and self._infos.entries:
            nearest = self._infos.entries[-1]
        return nearest and nearest[1]
