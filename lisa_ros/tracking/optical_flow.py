# SPDX-License-Identifier: Apache-2.0
"""Masks carried from frame to frame while the model thinks: dense optical flow, no model, no ROS.

An answer is about the frame that was asked about, seconds ago. What has moved since then is known
as a map from the pixels of the newest frame back to those of that frame: every mask of the answer
goes through it at once, however many frames came in between and whenever the answer comes.

    begun frame  <-- composed, key by key --  key frame  <-- DIS flow, frame by frame --  newest

Flow is computed between the newest frame and a key frame that is at most a third of a second old,
starting from the flow before: flows of successive frames, added up, drift faster. It is computed
once, whatever number of questions is open.

What hides a thing is seen pixel by pixel: flow there and back ends far away (forward-backward
check), the colour is another than in the begun frame (after a common change of brightness), or it
is nearer than it was, beyond what the thing as a whole has come nearer. How much of a thing is
left tells whether it is lost.

What it cannot do: sides of a thing that come into view as it turns are not taken in, and of the
background that a thing uncovers a piece may stick to its edge where their colours are alike.

Letters: N things of an answer; H x W the picture's pixels; h x w those that flow is computed on,
`longest` at most; s x t a quarter of these, where colours and depths are compared. Threads:
nothing here is thread-safe, a tracker belongs to one thread.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import cv2
import numpy as np

from lisa_ros.errors import ImageError
from lisa_ros.tracking.tracker import LATE, TrackingState, check_masks, unknown_frame

_SMALL = 4  # flow pixels for one pixel of the comparison of colours and depths
_OPEN = 4  # questions that may be open; of more, the oldest is forgotten: nobody answers it
_LEAST = 32  # side of a picture [px]
_COARSE = 400  # on larger pictures [px] flow is computed at a quarter of the size, else a half
_ASTRAY = 40.0  # flow that leads back so far off belongs to something else [px of h x w]
_UNSURE = 4.0  # flow that leads back so far off counts half [px of h x w]
_OTHER_COLOUR = 40.0  # a difference of a channel (0..255) that turning does not make
_DEPTH, _DEPTH_SHARE = 0.06, 0.04  # in front of a thing is what is nearer by [m] + share of depth
_BRUSHES = (5, 3, 1)  # widths of a brush that paints masks [px of h x w]
_ENOUGH = 0.05  # share of the picture that tells how the light has changed
_NO_DEPTH = 1e6  # farther than anything [m]


@dataclass(frozen=True)
class _Frame:
    stamp: int  # [ns]
    size: tuple[int, int]  # H, W
    grey: np.ndarray  # (h, w) uint8
    half: np.ndarray  # (h / 2, w / 2) uint8
    colour: np.ndarray  # (s, t, 3) float32 RGB 0..255
    depth: np.ndarray | None  # (s, t) float32 [m], NaN invalid


@dataclass
class _FlowChain:
    """What has moved from a begun frame to the key frame."""

    begun: _Frame
    back: np.ndarray  # (h, w, 2) float32: add it to a pixel of the key frame, be in the begun one
    doubt: (
        np.ndarray
    )  # (h / 2, w / 2) float32 on the key frame: farthest that flow led astray [px]


@dataclass
class _TrackedObject:
    distance: np.ndarray  # (h, w) float32 on the begun frame: to the mask's edge, inside > 0 [px]
    small: np.ndarray  # (s, t) float32, the same in small pixels
    area: int  # of the mask there, on h x w
    least: int  # area of a piece that may belong to it, the same [px]
    brush: np.ndarray  # (k, k) uint8: what is too thin for it does not belong to it
    nearer: float | None = None  # how much nearer it has come since [m]; None: not known yet
    hidden_since: int | None = None  # stamp of the first frame of those without it [ns]
    lost: bool = False


class FlowTracker:
    """Carries masks by dense optical flow at camera rate: `Tracker`, on one core.

    A lost thing stays lost until the next answer: what then looks like it may be another. Not so
    one that is back within `grace`: it was hidden for a moment.
    """

    def __init__(
        self,
        *,
        longest: int = 640,
        key_seconds: float = 0.33,
        lost_below: float = 0.15,
        grace: float = 0.2,
    ) -> None:
        """Make a tracker that has seen nothing.

        Args:
            longest: side of the pictures that flow is computed on; larger ones are shrunk [px].
            key_seconds: longest time that flow is computed across [s].
            lost_below: share of a thing's first area below which it is lost, 0..1.
            grace: how long a thing may be hidden and be found again [s].
        """
        self._longest, self._key_seconds = longest, key_seconds
        self._lost_below, self._grace = lost_below, grace
        # Fine enough at full size, and 5 ms a frame; slower presets measured no better.
        self._flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        self._check = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        self.reset()

    def reset(self) -> None:
        """Forget frames, questions and things."""
        self._newest: _Frame | None = None
        self._key: _Frame | None = None
        self._to_key = self._from_key = None  # flows: newest to key (h, w, 2); key to newest, half
        self._astray = None  # (h / 2, w / 2) float32: how far off the two flows lead back [px]
        self._open: dict[int, _FlowChain] = {}
        self._followed: _FlowChain | None = None
        self._things: list[_TrackedObject] = []
        self._now: TrackingState | None = None

    def set_reference(
        self, stamp: int, image: np.ndarray, depth: np.ndarray | None = None
    ) -> None:
        """See `Tracker.begin`."""
        if self._newest and not 0 <= self._newest.stamp - stamp <= LATE:
            self.update(stamp, image, depth)
        frame = self._newest
        if frame is None or stamp != frame.stamp:
            frame = self._read(stamp, image, depth)
        if self._newest is None or self._newest.size != frame.size:
            self._start(frame)
        self._rekey()
        h, w = frame.grey.shape
        back = np.zeros((h, w, 2), np.float32)
        if frame is not self._newest:  # asked about a frame that is not the newest any more
            back = self._flow.calc(self._newest.grey, frame.grey, back)
        known = [self._open.get(stamp), self._followed]
        if not any(chain and chain.begun.stamp == stamp for chain in known):
            self._open[stamp] = _FlowChain(frame, back, np.zeros(frame.half.shape, np.float32))
        while len(self._open) > _OPEN:
            del self._open[min(self._open)]

    def update(self, stamp: int, image: np.ndarray, depth: np.ndarray | None = None) -> None:
        """See `Tracker.advance`. The newest frame again changes nothing."""
        if self._newest and stamp == self._newest.stamp:
            return
        frame = self._read(stamp, image, depth)
        if self._newest is None or self._newest.size != frame.size or stamp < self._newest.stamp:
            self._start(frame)
            return
        self._newest = frame
        self._move()
        if self._followed:
            self._follow()
        aged = stamp - self._key.stamp >= self._key_seconds * 1e9
        if aged or np.mean(self._astray > _UNSURE) > 0.3:
            self._rekey()

    def set_masks(self, stamp: int, masks: np.ndarray) -> None:
        """See `Tracker.answered`; a second answer about the same frame replaces the first.

        Raises:
            TrackingError: no frame of this stamp is known to be asked about.
            ImageError: the masks have another size than that frame.
        """
        chain = self._open.get(stamp)
        if chain is None and self._followed and self._followed.begun.stamp == stamp:
            chain = self._followed
        if chain is None:
            raise unknown_frame(stamp, self._open)
        check_masks(masks, chain.begun.size)
        self._open = {one: other for one, other in self._open.items() if one > stamp}
        self._followed = chain
        self._things = [_thing(mask, chain.begun.grey.shape) for mask in masks]
        self._follow()

    def state(self) -> TrackingState | None:
        """See `Tracker.now`. The arrays are not to be changed."""
        return self._now

    # ------------------------------------------------------------ what moves

    def _read(self, stamp: int, image: np.ndarray, depth: np.ndarray | None) -> _Frame:
        """Return the frame at the sizes that are worked on."""
        size = image.shape[:2]
        if image.shape != (*size, 3) or image.dtype != np.uint8 or min(size) < _LEAST:
            raise ImageError(
                f'a picture of the shape {image.shape} and type {image.dtype}: what is followed '
                f'is (H, W, 3) uint8, {_LEAST} pixels or more each way'
            )
        if depth is not None and depth.shape != size:
            raise ImageError(f'depth of the shape {depth.shape} for a picture of {size}')
        scale = min(1.0, self._longest / max(size))
        h, w = (max(_LEAST, round(side * scale)) for side in size)
        if (h, w) != size:
            image = cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA)
        small = (w // _SMALL, h // _SMALL)
        colour = cv2.resize(image, small, interpolation=cv2.INTER_AREA).astype(np.float32)
        if depth is not None:
            depth = cv2.resize(depth, small, interpolation=cv2.INTER_NEAREST)
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        half = cv2.resize(grey, (w // 2, h // 2), interpolation=cv2.INTER_AREA)
        return _Frame(stamp, size, grey, half, colour, depth)

    def _start(self, frame: _Frame) -> None:
        """Begin with this frame, knowing nothing of others."""
        self.reset()
        self._newest = frame
        finest = 2 if max(frame.grey.shape) > _COARSE else 1
        self._flow.setFinestScale(finest)
        self._check.setFinestScale(finest)
        self._rekey()

    def _rekey(self) -> None:
        """Make the newest frame the key frame, and lead the chains on to it."""
        chains = [*self._open.values(), *([self._followed] if self._followed else [])]
        for chain in chains if self._key is not self._newest else []:
            chain.back, chain.doubt = self._composed(chain)
        self._key = self._newest
        h, w = self._key.grey.shape
        self._to_key = np.zeros((h, w, 2), np.float32)
        self._from_key = np.zeros((h // 2, w // 2, 2), np.float32)
        self._astray = np.zeros((h // 2, w // 2), np.float32)

    def _move(self) -> None:
        """Compute the flow between the newest and the key frame, both ways, from the last one."""
        self._to_key = self._flow.calc(self._newest.grey, self._key.grey, self._to_key)
        self._from_key = self._check.calc(self._key.half, self._newest.half, self._from_key)
        h, w = self._newest.half.shape
        there = cv2.resize(self._to_key, (w, h)) * 0.5
        and_back = there + _at(self._from_key, there)
        self._astray = 2 * cv2.magnitude(and_back[..., 0], and_back[..., 1])

    def _composed(self, chain: _FlowChain) -> tuple[np.ndarray, np.ndarray]:
        """Return `back` and `doubt` of a chain on the newest frame."""
        if self._key is self._newest:
            return chain.back, chain.doubt
        h, w = chain.doubt.shape
        there = cv2.resize(self._to_key, (w, h)) * 0.5
        doubt = np.maximum(_at(chain.doubt, there), self._astray)
        # The displacement is looked up, not the place: it goes on beyond the picture's border, so
        # that what left the picture by a half comes back as a whole.
        return self._to_key + _at(chain.back, self._to_key), doubt

    # ------------------------------------------------------------ what is seen

    def _follow(self) -> None:
        """Find the things on the newest frame."""
        chain, frame = self._followed, self._newest
        back, doubt = self._composed(chain)
        looks = _looks(chain.begun, frame, back, doubt)
        masks = np.zeros((len(self._things), *frame.size), bool)
        drift = np.ones(len(self._things), np.float32)
        for i, thing in enumerate(self._things):
            if thing.lost:
                continue
            masks[i], drift[i] = self._find(thing, back, looks)
        found = np.array([not t.lost and t.hidden_since is None for t in self._things], bool)
        masks[~found] = False
        drift[~found] = 1
        age = (frame.stamp - chain.begun.stamp) * 1e-9
        self._now = TrackingState(frame.stamp, masks, found, drift, age)

    def _find(
        self, thing: _TrackedObject, back: np.ndarray, looks: _AppearanceDiff
    ) -> tuple[np.ndarray, float]:
        """Return a thing's mask (H, W) bool on the newest frame, and its drift."""
        small = _at(thing.small, looks.back)
        rows, columns = _range(small > -1, 1), _range(small > -1, 0)
        if not rows or not columns or not thing.area:
            self._note(thing, 0.0)
            return np.zeros(self._newest.size, bool), 1.0
        hides = (looks.colour > _OTHER_COLOUR) | (looks.doubt > _ASTRAY)
        if looks.nearer is not None:
            hides |= self._in_front(thing, small > 0, looks.nearer)
        part = self._cut(thing, back, rows, columns, hides)
        share = min(1.0, np.count_nonzero(part > 0) / thing.area)
        doubt = looks.doubt[(small > 0) & ~hides]
        sure = float((1 / (1 + (doubt / _UNSURE) ** 2)).mean()) if doubt.size else 0.0
        self._note(thing, share)
        corner = (rows[0] * _SMALL, columns[0] * _SMALL)
        return _placed(part, corner, self._newest), 1 - share * sure

    def _note(self, thing: _TrackedObject, share: float) -> None:
        """Note how much of a thing is seen, as a share of its first area."""
        if share >= self._lost_below:
            thing.hidden_since = None
        elif thing.hidden_since is None:
            thing.hidden_since = self._newest.stamp
        elif self._newest.stamp - thing.hidden_since > self._grace * 1e9:
            thing.lost = True

    def _in_front(
        self, thing: _TrackedObject, inner: np.ndarray, nearer: np.ndarray
    ) -> np.ndarray:
        """Return where (s, t) bool something is in front; learn how the thing itself moved."""
        reach = _DEPTH + _DEPTH_SHARE * self._newest.depth
        known = inner & np.isfinite(nearer)
        values = nearer[known]
        if values.size:
            before = float(np.median(values)) if thing.nearer is None else thing.nearer
            own = values[np.abs(values - before) < reach[known]]
            # With less of it in sight the median would be that of what hides it.
            thing.nearer = float(np.median(own)) if own.size > 0.3 * values.size else before
        return nearer - (thing.nearer or 0.0) > reach  # NaN: nothing is

    def _cut(
        self,
        thing: _TrackedObject,
        back: np.ndarray,
        rows: tuple[int, int],
        columns: tuple[int, int],
        hides: np.ndarray,
    ) -> np.ndarray:
        """Return a window of h x w, > 0 where the thing shows, at rows and columns of s x t."""
        h, w = back.shape[:2]
        y, x = rows[0] * _SMALL, columns[0] * _SMALL
        y1 = h if rows[1] == hides.shape[0] else rows[1] * _SMALL
        x1 = w if columns[1] == hides.shape[1] else columns[1] * _SMALL
        places = back[y:y1, x:x1] + _grid(h, w)[y:y1, x:x1]
        distance = cv2.remap(
            thing.distance, places, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        hidden = hides[rows[0] : rows[1], columns[0] : columns[1]].astype(np.float32)
        hidden = cv2.resize(hidden, (x1 - x, y1 - y))
        distance[hidden > 0.5] = -1
        distance[(distance > 0) & ~_cleaned(distance > 0, thing)] = -1
        return distance


def _cleaned(mask: np.ndarray, thing: _TrackedObject) -> np.ndarray:
    """Return a (y, x) bool mask without what is too thin or too small to belong to the thing.

    Along the edge of a thing that moves before its background, flow leaves such threads behind.
    """
    mask = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, thing.brush)
    count, pieces, stats, _ = cv2.connectedComponentsWithStats(mask)
    large = stats[:, cv2.CC_STAT_AREA] >= thing.least
    large[0] = False  # the background
    return large[pieces] if count > 1 else mask > 0


@dataclass(frozen=True)
class _AppearanceDiff:
    """How the newest frame differs from what the begun one leads to expect, s x t."""

    back: np.ndarray  # (s, t, 2) float32: from the newest frame to the begun one, in small pixels
    doubt: np.ndarray  # (s, t) float32, the chain's on the newest frame [px of h x w]
    colour: np.ndarray  # (s, t) float32 0..255: largest difference of a channel
    nearer: np.ndarray | None  # (s, t) float32 [m]: how much nearer it is now; NaN unknown


def _looks(begun: _Frame, frame: _Frame, back: np.ndarray, doubt: np.ndarray) -> _AppearanceDiff:
    """Compare the newest frame with the begun one, looked up through `back` and `doubt`."""
    s, t = frame.colour.shape[:2]
    back = cv2.resize(back, (t, s)) / _SMALL
    expected = _at(begun.colour, back)
    doubt = cv2.resize(doubt, (t, s))
    expected *= _gain(expected, frame.colour, (doubt < _UNSURE) & _inside(back))
    # Within what lies around: a pixel off at an edge is no other colour.
    around = np.ones((3, 3), np.uint8)
    high, low = cv2.dilate(expected, around), cv2.erode(expected, around)
    colour = np.maximum(np.maximum(frame.colour - high, low - frame.colour), 0).max(axis=2)
    nearer = None
    if begun.depth is not None and frame.depth is not None:
        places = _grid(s, t) + back
        # The nearest around: a pixel off at an edge must not look like something in front.
        nearest = cv2.erode(
            np.where(np.isfinite(begun.depth), begun.depth, np.float32(_NO_DEPTH)), around
        )
        was = cv2.remap(nearest, places, None, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
        was[was >= _NO_DEPTH] = np.nan
        nearer = was - frame.depth
    return _AppearanceDiff(back, doubt, colour, nearer)


def _inside(back: np.ndarray) -> np.ndarray:
    """Return where (s, t) bool a pixel comes from within the picture, by (s, t, 2) `back`."""
    s, t = back.shape[:2]
    places = _grid(s, t) + back
    return (places >= 0).all(axis=2) & (places <= (t - 1, s - 1)).all(axis=2)


def _gain(expected: np.ndarray, colour: np.ndarray, sure: np.ndarray) -> np.ndarray:
    """Return by how much each channel has become brighter, (3,) float32, of the pixels in `sure`.

    Of the same pixels, now and then: another part of the room is no other light.
    """
    if np.count_nonzero(sure) < _ENOUGH * sure.size:
        return np.ones(3, np.float32)
    return np.median((colour[sure] + 1) / (expected[sure] + 1), axis=0)


def _thing(mask: np.ndarray, size: tuple[int, int]) -> _TrackedObject:
    """Return what is to be known of a (H, W) bool mask, on h x w = `size`."""
    h, w = size
    if mask.shape != size:
        mask = cv2.resize(mask.astype(np.float32), (w, h), interpolation=cv2.INTER_AREA) > 0.5
    mask = mask.astype(np.uint8)
    # The edge runs between the last pixel inside and the first outside.
    inside = cv2.distanceTransform(mask, cv2.DIST_L2, 3) - 0.5
    outside = cv2.distanceTransform(1 - mask, cv2.DIST_L2, 3) - 0.5
    distance = np.where(mask > 0, inside, -outside).clip(-h - w, h + w)  # a full mask has no edge
    small = cv2.resize(distance, (w // _SMALL, h // _SMALL), interpolation=cv2.INTER_AREA)
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask)
    area, pieces = int(np.count_nonzero(mask)), stats[1:, cv2.CC_STAT_AREA]
    least = int(min(0.1 * area, 0.5 * pieces.min(initial=area)))
    return _TrackedObject(distance, small / _SMALL, area, least, _brush(mask, area))


def _brush(mask: np.ndarray, area: int) -> np.ndarray:
    """Return the widest brush (k, k) that can paint a mask of this area, all but its corners."""
    padded = np.pad(mask, max(_BRUSHES))
    for side in _BRUSHES:
        brush = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
        painted = np.count_nonzero(cv2.morphologyEx(padded, cv2.MORPH_OPEN, brush))
        if painted >= 0.97 * area:
            break
    return brush


def _range(chosen: np.ndarray, axis: int) -> tuple[int, int] | None:
    """Return first and last + 1 of the rows (axis 1) or columns (0) that hold a True, or None."""
    found = np.flatnonzero(chosen.any(axis=axis))
    return (int(found[0]), int(found[-1]) + 1) if found.size else None


def _placed(part: np.ndarray, at: tuple[int, int], frame: _Frame) -> np.ndarray:
    """Return a (H, W) bool mask: `part` > 0, a window of the h x w at (y, x), at full size."""
    whole = np.full(frame.grey.shape, -1, np.float32)
    whole[at[0] : at[0] + part.shape[0], at[1] : at[1] + part.shape[1]] = part
    if whole.shape != frame.size:
        whole = cv2.resize(whole, frame.size[::-1])
    return whole > 0


@functools.lru_cache(maxsize=8)
def _grid(h: int, w: int) -> np.ndarray:
    """Return (h, w, 2) float32: each pixel's own (x, y)."""
    grid = np.stack(np.meshgrid(np.arange(w), np.arange(h)), axis=-1).astype(np.float32)
    grid.setflags(write=False)
    return grid


def _at(values: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """Return `values` looked up where each pixel is moved to; beyond the border, as on it."""
    h, w = moved.shape[:2]
    return cv2.remap(
        values, _grid(h, w) + moved, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
