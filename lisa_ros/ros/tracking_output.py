# SPDX-License-Identifier: Apache-2.0
"""Between one camera's topics and its tracking worker.

Threads: all of it runs on the tracking worker's thread, except `connect`.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from lisa_ros.errors import ImageError
from lisa_ros.geometry.rgbd import registration_fault
from lisa_ros.messages.image import depth_to_metres
from lisa_ros.msg import Segmentation as SegmentationMessage
from lisa_ros.results import Segmentation
from lisa_ros.ros.context import NodeContext
from lisa_ros.ros.image_decoder import rgb_image
from lisa_ros.ros.publishers import AnswerPublishers, LocalizedResult
from lisa_ros.session.frame_buffer import SyncedMessages
from lisa_ros.session.scheduler import RequestScheduler
from lisa_ros.tracking.tracker import TrackingState
from lisa_ros.tracking.worker import TrackerFrame


class TrackingOutput:
    """The `TrackingSink` of one camera: frames from its scheduler, masks to ~/tracked."""

    def __init__(self, context: NodeContext, publishers: AnswerPublishers):
        self._context, self._publishers = context, publishers
        self._scheduler: RequestScheduler | None = None

    def connect(self, scheduler: RequestScheduler) -> None:
        """Take frames from this scheduler and repeat queries there."""
        self._scheduler = scheduler

    def newest_frame(self) -> SyncedMessages | None:
        """Return the newest frame; None before the first."""
        return self._scheduler.newest_frame()

    def convert(self, frame: SyncedMessages) -> TrackerFrame:
        """Decode a frame.

        Raises:
            ImageError: the colour image cannot be decoded.
        """
        max_pixels = self._context.settings.value.max_image_pixels
        image = rgb_image(frame, max_pixels)
        depth = _aligned_depth(frame, image.shape[:2], max_pixels)
        return TrackerFrame(frame.moment, image, depth)

    def has_subscribers(self) -> bool:
        """Return whether anybody subscribes to ~/tracked."""
        return self._publishers.has_subscribers()

    def publish(
        self,
        frame: SyncedMessages,
        tracker_frame: TrackerFrame,
        result: Segmentation,
        state: TrackingState,
    ) -> None:
        """Publish an answer with its masks moved to a newer frame."""
        localized = LocalizedResult(None, [None] * len(result.masks))
        lost = [number for number, tracked in enumerate(state.tracked, 1) if not tracked]
        if self._publishers.needs_depth():
            localized = self._publishers.localize(frame, result, tracker_frame.image, lost=lost)
        if lost:
            reasons = [f'instance {", ".join(map(str, lost))} is lost', localized.reason]
            localized = dataclasses.replace(localized, reason='; '.join(filter(None, reasons)))

        def message() -> SegmentationMessage:
            return self._publishers.message(frame, result, localized, state)

        note = f'{state.age:.1f} s after the answer, drift {state.drift.max(initial=0):.2f}'
        self._publishers.publish(frame, result, localized, message, tracker_frame.image, note)

    def requery(self) -> None:
        """Ask the last query again."""
        self._scheduler.requery()

    def report(self, message: str) -> None:
        """Log why a frame is not tracked."""
        self._context.log.error(message, 'tracking')


def _aligned_depth(
    frame: SyncedMessages, size: tuple[int, int], max_pixels: int
) -> np.ndarray | None:
    """Return the depth, (H, W) float32 [m]; None if it is not aligned with the colour image."""
    if frame.depth is None:
        return None
    frame_ids = frame.image.header.frame_id, frame.depth.header.frame_id
    if registration_fault(*frame_ids, size=None, depth_size=None):
        return None
    try:
        depth = depth_to_metres(frame.depth, max_pixels)
    except ImageError:  # depth helps the tracker, but is optional
        return None
    return depth if depth.shape == size else None
