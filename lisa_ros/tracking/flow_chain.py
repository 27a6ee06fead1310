# SPDX-License-Identifier: Apache-2.0
"""Dense optical flow from the newest frame of a stream back to earlier reference frames.

    reference frame  <-- composed flow --  key frame  <-- DIS flow --  newest frame

Flow is computed between the newest frame and a key frame that is at most a third of a second old,
initialized with the flow of the frame before: the sum of flows between successive frames would
drift faster. One flow per frame is enough for any number of reference frames.

DIS flow: Kroeger, Timofte, Dai and Van Gool, "Fast Optical Flow using Dense Inverse Search", 2016.

Letters: H x W the image; h x w the size that flow is computed at; s x t the size that colours
and depths are compared at, h = 4 s, w = 4 t. Threads: nothing here is thread-safe.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np

from lisa_ros.errors import ImageError

COMPARISON_SCALE = 4  # side of a comparison pixel in flow pixels: h = 4 s, w = 4 t
_MIN_SIDE = 32  # of an image [px], so that its coarsest level has a patch of DIS (8 px)
_LARGE_SIDE = 400  # flow of a larger image [px] is computed at a quarter of its size, else a half
_MAX_KEY_AGE = 330_000_000  # an older key frame is replaced by the newest frame [ns]
UNCERTAIN_ERROR = 4.0  # forward-backward error at which reliability is 0.5 [px of h x w]
_MAX_UNCERTAIN_FRACTION = 0.3  # with more pixels beyond UNCERTAIN_ERROR, a new key frame is set


@dataclass(frozen=True)
class FlowFrame:
    """An image, resized for flow and for comparison."""

    stamp: int  # [ns]
    size: tuple[int, int]  # H, W of the image
    grey: np.ndarray  # (h, w) uint8
    half_grey: np.ndarray  # (h / 2, w / 2) uint8
    colour: np.ndarray  # (s, t, 3) float32 RGB 0..255
    depth: np.ndarray | None  # (s, t) float32 [m], NaN where invalid


@dataclass
class FlowChain:
    """The flow from the key frame back to a reference frame."""

    reference: FlowFrame
    flow: np.ndarray  # (h, w, 2) float32 [px]: key pixel + flow = reference position
    # (h / 2, w / 2) float32 on the key frame: largest forward-backward error [px of h x w]
    error: np.ndarray


def make_frame(
    stamp: int, image: np.ndarray, depth: np.ndarray | None, max_side: int
) -> FlowFrame:
    """Return a frame, resized so that h and w are at most `max_side`.

    Args:
        stamp: of the image [ns].
        image: (H, W, 3) uint8 RGB, at least 32 pixels in each direction.
        depth: (H, W) float32 metres, NaN where invalid, or None.
        max_side: [px].

    Raises:
        ImageError: another shape or type.
    """
    size = image.shape[:2]
    if image.shape != (*size, 3) or image.dtype != np.uint8 or min(size) < _MIN_SIDE:
        raise ImageError(
            f'the tracker got an image of shape {image.shape} and type {image.dtype}; expected '
            f'(H, W, 3) uint8 with {_MIN_SIDE} pixels or more in each direction'
        )
    if depth is not None and depth.shape != size:
        raise ImageError(
            f'the tracker got depth of shape {depth.shape} for an image of {size}; expected the '
            "same size: resize the depth to the image's pixels"
        )
    scale = min(1.0, max_side / max(size))
    h, w = (max(_MIN_SIDE, round(side * scale)) for side in size)
    if (h, w) != size:
        image = cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA)
    comparison_size = (w // COMPARISON_SCALE, h // COMPARISON_SCALE)
    colour = cv2.resize(image, comparison_size, interpolation=cv2.INTER_AREA).astype(np.float32)
    if depth is not None:
        depth = cv2.resize(depth, comparison_size, interpolation=cv2.INTER_NEAREST)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    half_grey = cv2.resize(grey, (w // 2, h // 2), interpolation=cv2.INTER_AREA)
    return FlowFrame(stamp, size, grey, half_grey, colour, depth)


class KeyFrameFlow:
    """The flow between the newest frame and its key frame, and chains composed with it."""

    def __init__(self, first: FlowFrame) -> None:
        """Start with a frame; it is the newest and the key frame."""
        self.newest = first
        # Fine enough at full size, and 5 ms a frame; slower presets measured no better.
        self._backward = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        self._forward = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        is_large = max(first.grey.shape) > _LARGE_SIDE
        # At a quarter, half_grey of a wide and low image would be less than a patch: DIS crashes.
        finest_scale = 2 if is_large and min(first.half_grey.shape) >= _MIN_SIDE else 1
        self._backward.setFinestScale(finest_scale)
        self._forward.setFinestScale(finest_scale)
        self.set_key([])

    def advance(self, frame: FlowFrame) -> None:
        """Set the newest frame, and compute its flow to the key frame."""
        self.newest = frame
        self._to_key = self._backward.calc(frame.grey, self._key.grey, self._to_key)
        self._from_key = self._forward.calc(self._key.half_grey, frame.half_grey, self._from_key)
        half_flow = self._half_size_flow()
        round_trip = half_flow + sample(self._from_key, half_flow)
        self._error = 2 * cv2.magnitude(round_trip[..., 0], round_trip[..., 1])

    def key_is_due(self) -> bool:
        """Return whether the key frame is too old, or the flow to it too uncertain."""
        aged = self.newest.stamp - self._key.stamp >= _MAX_KEY_AGE
        return bool(aged or np.mean(self._error > UNCERTAIN_ERROR) > _MAX_UNCERTAIN_FRACTION)

    def set_key(self, chains: Iterable[FlowChain]) -> None:
        """Make the newest frame the key frame, and extend the chains to it."""
        for chain in chains:
            chain.flow, chain.error = self.compose(chain)
        self._key = self.newest
        h, w = self._key.grey.shape
        self._to_key = np.zeros((h, w, 2), np.float32)  # newest to key
        self._from_key = np.zeros((h // 2, w // 2, 2), np.float32)  # key to newest, half size
        self._error = np.zeros((h // 2, w // 2), np.float32)  # forward-backward [px of h x w]

    def new_chain(self, reference: FlowFrame) -> FlowChain:
        """Return the chain of a new reference frame, which is the newest frame or slightly older.

        The newest frame must be the key frame.
        """
        h, w = reference.grey.shape
        flow = np.zeros((h, w, 2), np.float32)
        if reference is not self.newest:
            flow = self._backward.calc(self.newest.grey, reference.grey, flow)
        return FlowChain(reference, flow, np.zeros(reference.half_grey.shape, np.float32))

    def compose(self, chain: FlowChain) -> tuple[np.ndarray, np.ndarray]:
        """Return flow and error of a chain on the newest frame, shaped as in FlowChain."""
        if self._key is self.newest:
            return chain.flow, chain.error
        error = np.maximum(sample(chain.error, self._half_size_flow()), self._error)
        # Displacements are sampled, not positions: displacements continue beyond the image's
        # border, so an object that has half left the image is whole again when it comes back.
        return self._to_key + sample(chain.flow, self._to_key), error

    def _half_size_flow(self) -> np.ndarray:
        """Return the flow to the key frame, (h / 2, w / 2, 2) in pixels of that size."""
        h, w = self.newest.half_grey.shape
        return cv2.resize(self._to_key, (w, h)) * 0.5


@functools.lru_cache(maxsize=8)
def pixel_grid(h: int, w: int) -> np.ndarray:
    """Return (h, w, 2) float32: the position (x, y) of each pixel."""
    grid = np.stack(np.meshgrid(np.arange(w), np.arange(h)), axis=-1).astype(np.float32)
    grid.setflags(write=False)
    return grid


def sample(values: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Return `values` at each pixel displaced by `flow` (h, w, 2) [px], bilinear.

    Positions outside the image take the value at its border.
    """
    h, w = flow.shape[:2]
    return cv2.remap(
        values, pixel_grid(h, w) + flow, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
