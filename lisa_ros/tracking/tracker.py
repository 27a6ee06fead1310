# SPDX-License-Identifier: Apache-2.0
"""The Tracker protocol: masks of an answer, propagated to newer frames."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lisa_ros.errors import ImageError, TrackingError

MAX_REFERENCE_AGE = 1_000_000_000  # a reference may be this much older than the newest [ns]
# Reference frames that wait for masks. With more the oldest is dropped: its query has ended.
MAX_OPEN_REFERENCES = 4


@dataclass(frozen=True)
class TrackingState:
    """The objects of an answer on the newest frame. Do not modify the arrays."""

    stamp: int  # of that frame [ns]
    masks: np.ndarray  # (N, H, W) bool; empty for a lost object
    tracked: np.ndarray  # (N,) bool; False: lost (occluded, out of the image, or changed)
    drift: np.ndarray  # (N,) float32 0..1; 0 as reliable as the answer, 1 lost
    age: float  # stamp of this frame minus that of the answer's frame [s]


class Tracker(Protocol):
    """Propagates the masks of an answer from its frame to each newer frame.

    An answer arrives seconds after its frame. So a query marks its frame first (`set_reference`),
    newer frames follow (`update`), and the masks come later (`set_masks`).

    Frames arrive in the order of their stamps. A frame of another size, or one older than the
    newest frame (a bag that starts again), resets the tracker. Images are (H, W, 3) uint8 RGB,
    depth is (H, W) float32 metres, NaN where invalid, or None.

    Threads: not thread-safe; each tracker belongs to one thread.
    """

    def set_reference(
        self, stamp: int, image: np.ndarray, depth: np.ndarray | None = None
    ) -> None:
        """Mark the frame of a query as a reference, so that `set_masks` can refer to it.

        At most `MAX_OPEN_REFERENCES` frames wait for masks; the oldest is dropped then.

        Args:
            stamp: of the frame [ns]. It may be the newest frame, a newer one (which becomes the
                newest), or one that is up to `MAX_REFERENCE_AGE` older.
            image: of the frame.
            depth: of the frame.

        Raises:
            ImageError: image or depth has an unsupported shape or type.
            ModelError: as `update`, of the former objects; call it again.
        """

    def update(self, stamp: int, image: np.ndarray, depth: np.ndarray | None = None) -> None:
        """Propagate the masks to a newer frame; the newest frame again changes nothing.

        Args:
            stamp: of the frame [ns].
            image: of the frame.
            depth: of the frame.

        Raises:
            ImageError: image or depth has an unsupported shape or type.
            ModelError: a model computed NaN or infinity; its objects are dropped.
        """

    def set_masks(self, stamp: int, masks: np.ndarray) -> None:
        """Track these masks from now on; they replace the former ones.

        Args:
            stamp: of a frame marked with `set_reference` [ns]; older references are dropped.
            masks: (N, H, W) bool on that frame; N may be 0.

        Raises:
            TrackingError: no reference frame has this stamp.
            ImageError: the masks have another size than that frame.
            ModelError: a model computed NaN or infinity; no masks are tracked then.
        """

    def state(self) -> TrackingState | None:
        """Return the objects on the newest frame; None before the first `set_masks`."""

    def reset(self) -> None:
        """Drop all frames, references and objects."""


def unknown_reference(stamp: int, known: Iterable[int]) -> TrackingError:
    """Return the error for masks of a frame (stamp [ns]) that is not a reference frame."""
    stamps = ', '.join(map(str, known)) or 'none'
    return TrackingError(
        f'masks for the frame at {stamp} ns, but the reference frames are: {stamps}; '
        'a frame of another size or a bag that starts again resets the tracker'
    )


def check_masks(masks: np.ndarray, size: tuple[int, int]) -> None:
    """Raise an ImageError unless masks are (N, H, W) with `size` (H, W); N 0 allows any size."""
    if masks.ndim != 3 or (len(masks) and masks.shape[1:] != size):
        raise ImageError(
            f'masks of shape {masks.shape} for an image of size {size}: expected (N, H, W)'
        )
