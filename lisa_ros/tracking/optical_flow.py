# SPDX-License-Identifier: Apache-2.0
"""Masks propagated from frame to frame by dense optical flow: no neural network, no ROS.

An answer is about a frame that is seconds old. With each new frame, flow_chain.py updates the flow
from the newest frame back to that frame. When the answer arrives, one warp moves its masks to the
newest frame, however many frames came in between. visibility.py finds the visible part of each
object; the visible fraction decides whether the object is lost.

Limits: sides of an object that come into view as it turns are not added to its mask, and
uncovered background of a similar colour may stick to the object's edge.

Letters: N objects of an answer; H x W the image; h x w the size that flow is computed at.
"""

from __future__ import annotations

import numpy as np

from lisa_ros.tracking.flow_chain import FlowChain, FlowFrame, KeyFrameFlow, make_frame
from lisa_ros.tracking.tracker import (
    MAX_OPEN_REFERENCES,
    MAX_REFERENCE_AGE,
    TrackingState,
    check_masks,
    unknown_reference,
)
from lisa_ros.tracking.visibility import (
    AppearanceDiff,
    TrackedObject,
    compare_appearance,
    find_visible_part,
    track_object,
)


class FlowTracker:
    """A `Tracker` by dense optical flow, at camera rate on one CPU core.

    A lost object stays lost until the next answer: what looks like it later may be another one.
    An object that is visible again within the grace period was only occluded, and is not lost.
    Threads: not thread-safe; each tracker belongs to one thread.
    """

    def __init__(
        self, *, max_side: int = 640, min_visible: float = 0.15, grace_period: float = 0.2
    ) -> None:
        """Create a tracker without frames.

        Args:
            max_side: larger images are resized to this longer side for the flow [px].
            min_visible: an object with a smaller fraction of its first area is invisible, 0..1.
            grace_period: how long an object may be invisible without being lost [s].
        """
        self._max_side, self._min_visible = max_side, min_visible
        self._grace_period = round(grace_period * 1e9)  # [ns]
        self.reset()

    def reset(self) -> None:
        """See `Tracker.reset`."""
        self._flow: KeyFrameFlow | None = None  # None before the first frame
        self._open: dict[int, FlowChain] = {}  # by the stamp of its reference frame [ns]
        self._followed: FlowChain | None = None  # of the frame that the objects' masks are on
        self._objects: list[TrackedObject] = []
        self._state: TrackingState | None = None

    def set_reference(
        self, stamp: int, image: np.ndarray, depth: np.ndarray | None = None
    ) -> None:
        """See `Tracker.set_reference`."""
        newest = self._newest()
        if newest and not 0 <= newest.stamp - stamp <= MAX_REFERENCE_AGE:
            self.update(stamp, image, depth)
        frame = self._newest()
        if frame is None or stamp != frame.stamp:
            frame = make_frame(stamp, image, depth, self._max_side)
        if self._flow is None or self._flow.newest.size != frame.size:
            self._restart(frame)
        else:
            self._set_key()
        followed = self._followed is not None and self._followed.reference.stamp == stamp
        if stamp not in self._open and not followed:
            self._open[stamp] = self._flow.new_chain(frame)
        while len(self._open) > MAX_OPEN_REFERENCES:
            del self._open[min(self._open)]

    def update(self, stamp: int, image: np.ndarray, depth: np.ndarray | None = None) -> None:
        """See `Tracker.update`."""
        newest = self._newest()
        if newest and stamp == newest.stamp:
            return
        frame = make_frame(stamp, image, depth, self._max_side)
        if newest is None or newest.size != frame.size or stamp < newest.stamp:
            self._restart(frame)
            return
        self._flow.advance(frame)
        if self._followed:
            self._propagate()
        if self._flow.key_is_due():
            self._set_key()

    def set_masks(self, stamp: int, masks: np.ndarray) -> None:
        """See `Tracker.set_masks`; masks of the frame that is tracked from may be replaced.

        Raises:
            TrackingError: no reference frame has this stamp.
            ImageError: the masks have another size than that frame.
        """
        chain = self._open.get(stamp)
        if chain is None and self._followed and self._followed.reference.stamp == stamp:
            chain = self._followed
        if chain is None:
            raise unknown_reference(stamp, self._open)
        check_masks(masks, chain.reference.size)
        self._open = {opened: self._open[opened] for opened in self._open if opened > stamp}
        self._followed = chain
        self._objects = [track_object(mask, chain.reference.grey.shape) for mask in masks]
        self._propagate()

    def state(self) -> TrackingState | None:
        """See `Tracker.state`."""
        return self._state

    def _newest(self) -> FlowFrame | None:
        return self._flow.newest if self._flow else None

    def _restart(self, frame: FlowFrame) -> None:
        """Start with this frame, without references and objects."""
        self.reset()
        self._flow = KeyFrameFlow(frame)

    def _set_key(self) -> None:
        """Make the newest frame the key frame of all chains."""
        followed = [self._followed] if self._followed else []
        self._flow.set_key([*self._open.values(), *followed])

    def _propagate(self) -> None:
        """Find the objects on the newest frame."""
        chain, frame = self._followed, self._flow.newest
        flow, error = self._flow.compose(chain)
        difference = compare_appearance(chain.reference, frame, flow, error)
        masks = np.zeros((len(self._objects), *frame.size), bool)
        drift = np.ones(len(self._objects), np.float32)
        for i, tracked in enumerate(self._objects):
            if not tracked.lost:
                masks[i], drift[i] = self._locate(tracked, flow, difference)
        found = [not t.lost and t.hidden_since is None for t in self._objects]
        visible = np.array(found, bool)
        masks[~visible] = False
        drift[~visible] = 1
        age = (frame.stamp - chain.reference.stamp) * 1e-9
        self._state = TrackingState(frame.stamp, masks, visible, drift, age)

    def _locate(
        self, tracked: TrackedObject, flow: np.ndarray, difference: AppearanceDiff
    ) -> tuple[np.ndarray, float]:
        """Return an object's mask (H, W) bool on the newest frame, and its drift 0..1."""
        frame = self._flow.newest
        mask, visible, reliability = find_visible_part(tracked, frame, flow, difference)
        self._note_visibility(tracked, visible)
        return mask, 1 - visible * reliability

    def _note_visibility(self, tracked: TrackedObject, visible: float) -> None:
        """Record whether an object is visible or lost, from the visible fraction of its area."""
        stamp = self._flow.newest.stamp
        if visible >= self._min_visible:
            tracked.hidden_since = None
        elif tracked.hidden_since is None:
            tracked.hidden_since = stamp
        elif stamp - tracked.hidden_since > self._grace_period:
            tracked.lost = True
