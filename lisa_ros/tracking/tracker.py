# SPDX-License-Identifier: Apache-2.0
"""The Tracker protocol: what every tracker does."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lisa_ros.errors import ImageError, TrackingError

LATE = 1_000_000_000  # how far before the newest frame one may lie that is asked about [ns]


@dataclass(frozen=True)
class TrackingState:
    """Where the things of an answer are on the newest frame."""

    stamp: int  # of that frame [ns]
    masks: np.ndarray  # (N, H, W) bool; empty for what is lost
    tracked: np.ndarray  # (N,) bool; False: lost (hidden, out of the picture, nothing like it was)
    drift: np.ndarray  # (N,) float32 0..1; 0 as sure as the answer, 1 nothing of it remains
    age: float  # from the answer's frame to this one [s]


class Tracker(Protocol):
    """Carries masks; the frames come in the order of their stamps.

    A frame of another size, or one older than the newest (a bag begins anew), forgets all.
    Pictures are (H, W, 3) uint8 RGB, depth is (H, W) float32 metres, NaN where invalid, or None.
    """

    def set_reference(
        self, stamp: int, image: np.ndarray, depth: np.ndarray | None = None
    ) -> None:
        """Note that the model is asked about this frame, the newest or one shortly before it."""

    def update(self, stamp: int, image: np.ndarray, depth: np.ndarray | None = None) -> None:
        """Take a newer frame."""

    def set_masks(self, stamp: int, masks: np.ndarray) -> None:
        """Follow these from now on: (N, H, W) bool, the answer about the begun frame."""

    def state(self) -> TrackingState | None:
        """Return where the things are on the newest frame; None before an answer."""

    def reset(self) -> None:
        """Forget frames, questions and things."""


def unknown_frame(stamp: int, known: Iterable[int]) -> TrackingError:
    """Return the error for an answer about a frame, by its stamp [ns], that nobody asked about."""
    asked = ', '.join(map(str, known)) or 'none'
    return TrackingError(
        f'an answer about the frame of {stamp} ns, but asked about are: {asked}; '
        'pictures of another size or a bag that begins anew forget what was asked'
    )


def check_masks(masks: np.ndarray, size: tuple[int, int]) -> None:
    """Raise ImageError unless masks are (N, H, W) of `size` (H, W); without any, of any size."""
    if masks.ndim != 3 or (len(masks) and masks.shape[1:] != size):
        raise ImageError(
            f'masks of the shape {masks.shape} about a picture of the shape {size}: '
            'they are to be (N, H, W)'
        )
