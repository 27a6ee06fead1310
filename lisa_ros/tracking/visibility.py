# SPDX-License-Identifier: Apache-2.0
"""Which part of a tracked object is visible on the newest frame, given the flow back to its mask.

A pixel is occluded if the flow's forward-backward error is large, if its colour differs from the
reference frame (after a common change of brightness), or if it is closer to the camera than it
was, by more than the object as a whole has come closer.

Letters as in flow_chain.py: H x W the image, h x w flow pixels, s x t comparison pixels. Threads:
nothing here is thread-safe.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from lisa_ros.perception.masks import bounding_box
from lisa_ros.tracking.flow_chain import (
    COMPARISON_SCALE,
    UNCERTAIN_ERROR,
    FlowFrame,
    pixel_grid,
    sample,
)

_MAX_ERROR = 40.0  # a larger forward-backward error counts as occluded [px of h x w]
_MAX_COLOUR_DIFFERENCE = 40.0  # of a channel (0..255); shading and rotation cause less
_OCCLUDER_DISTANCE = 0.06  # an occluder is at least this far in front of the object [m]
_OCCLUDER_DISTANCE_PER_DEPTH = 0.04  # added to it per metre of depth
_MIN_OBJECT_FRACTION = 0.3  # of pixels that must agree to update the approach of an object
_KERNEL_SIDES = (5, 3, 1)  # of the opening that removes thin lines [px of h x w]
_OPENED_FRACTION = 0.97  # an opening must keep this fraction of the answer's mask
_MIN_GAIN_FRACTION = 0.05  # of the image, to estimate a change of brightness
_NO_DEPTH = np.float32(1e6)  # stands for invalid depth in minimum filters [m]


@dataclass
class TrackedObject:
    """A mask on its reference frame, and the state of its object since then."""

    signed_distance: np.ndarray  # (h, w) float32 to the mask's edge, positive inside [px]
    coarse_distance: np.ndarray  # (s, t) float32, the same in comparison pixels
    area: int  # of the mask [px of h x w]
    min_piece_area: int  # smaller separate pieces do not belong to it [px of h x w]
    kernel: np.ndarray  # (k, k) uint8 of the opening that removes lines too thin for the object
    approach: float | None = None  # how much closer to the camera it is now [m]; None: unknown
    hidden_since: int | None = None  # stamp of the first frame on which it is not visible [ns]
    lost: bool = False


@dataclass(frozen=True)
class AppearanceDiff:
    """Differences between the newest frame and a reference frame, on comparison pixels."""

    flow: np.ndarray  # (s, t, 2) float32 from the newest to the reference frame [px of s x t]
    error: np.ndarray  # (s, t) float32 of the chain, on the newest frame [px of h x w]
    colour: np.ndarray  # (s, t) float32 0..255: largest difference of a channel
    approach: np.ndarray | None  # (s, t) float32: how much closer it is now [m]; NaN unknown


def track_object(mask: np.ndarray, flow_size: tuple[int, int]) -> TrackedObject:
    """Return the object of a mask, (H, W) bool, for frames with flow at (h, w)."""
    h, w = flow_size
    if mask.shape != flow_size:
        mask = cv2.resize(mask.astype(np.float32), (w, h), interpolation=cv2.INTER_AREA) > 0.5
    mask = mask.astype(np.uint8)
    # The edge runs between the last pixel inside and the first one outside.
    inside = cv2.distanceTransform(mask, cv2.DIST_L2, 3) - 0.5
    outside = cv2.distanceTransform(1 - mask, cv2.DIST_L2, 3) - 0.5
    distance = np.where(mask > 0, inside, -outside).clip(-h - w, h + w)  # a full mask has no edge
    comparison_size = (w // COMPARISON_SCALE, h // COMPARISON_SCALE)
    coarse = cv2.resize(distance, comparison_size, interpolation=cv2.INTER_AREA)
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask)
    area, piece_areas = int(np.count_nonzero(mask)), stats[1:, cv2.CC_STAT_AREA]
    min_piece_area = int(min(0.1 * area, 0.5 * piece_areas.min(initial=area)))
    kernel = _opening_kernel(mask, area)
    return TrackedObject(distance, coarse / COMPARISON_SCALE, area, min_piece_area, kernel)


def compare_appearance(
    reference: FlowFrame, frame: FlowFrame, flow: np.ndarray, error: np.ndarray
) -> AppearanceDiff:
    """Compare the newest frame with a reference frame.

    Args:
        reference: the frame that the flow leads to.
        frame: the newest one.
        flow: (h, w, 2) float32 from the newest frame to the reference frame [px].
        error: (h / 2, w / 2) float32 of that flow [px of h x w].
    """
    s, t = frame.colour.shape[:2]
    flow = cv2.resize(flow, (t, s)) / COMPARISON_SCALE
    error = cv2.resize(error, (t, s))
    expected = sample(reference.colour, flow)
    expected *= _brightness_gain(
        expected, frame.colour, (error < UNCERTAIN_ERROR) & _comes_from_inside(flow)
    )
    # Compare with the range in the neighbourhood: an error of a pixel at an edge is not a change.
    kernel = np.ones((3, 3), np.uint8)
    high, low = cv2.dilate(expected, kernel), cv2.erode(expected, kernel)
    colour = np.maximum(np.maximum(frame.colour - high, low - frame.colour), 0).max(axis=2)
    approach = None
    if reference.depth is not None and frame.depth is not None:
        # Use the minimum in the neighbourhood: an error of a pixel at an edge is not an occlusion.
        depth = np.where(np.isfinite(reference.depth), reference.depth, _NO_DEPTH)
        depth = cv2.remap(
            cv2.erode(depth, kernel),
            pixel_grid(s, t) + flow,
            None,
            cv2.INTER_NEAREST,
            borderMode=cv2.BORDER_REPLICATE,
        )
        depth[depth >= _NO_DEPTH] = np.nan
        approach = depth - frame.depth
    return AppearanceDiff(flow, error, colour, approach)


def find_visible_part(
    tracked: TrackedObject, frame: FlowFrame, flow: np.ndarray, difference: AppearanceDiff
) -> tuple[np.ndarray, float, float]:
    """Return the visible part of an object on the newest frame; update its approach.

    Args:
        tracked: the object.
        frame: the newest one.
        flow: (h, w, 2) float32 to the object's reference frame [px].
        difference: of the two frames.

    Returns:
        The mask, (H, W) bool; its area as a fraction of the mask on the reference frame, 0..1; the
        reliability of the flow there, 0..1.
    """
    distance = sample(tracked.coarse_distance, difference.flow)
    x, y, width, height = bounding_box(distance > -1)
    if not width or not tracked.area:
        return np.zeros(frame.size, bool), 0.0, 0.0
    occluded = difference.colour > _MAX_COLOUR_DIFFERENCE
    occluded |= difference.error > _MAX_ERROR
    if difference.approach is not None:
        occluded |= _occluded_by_depth(tracked, distance > 0, difference.approach, frame.depth)
    rows, columns = (y, y + height), (x, x + width)
    part = _cut_out(tracked, flow, rows, columns, occluded)
    visible = min(1.0, np.count_nonzero(part > 0) / tracked.area)
    errors = difference.error[(distance > 0) & ~occluded]
    reliability = float((1 / (1 + (errors / UNCERTAIN_ERROR) ** 2)).mean()) if errors.size else 0.0
    return _paste(part, (y * COMPARISON_SCALE, x * COMPARISON_SCALE), frame), visible, reliability


def _occluded_by_depth(
    tracked: TrackedObject, inner: np.ndarray, approach: np.ndarray, depth: np.ndarray
) -> np.ndarray:
    """Return where something is in front of the object, (s, t) bool; update its approach."""
    tolerance = _OCCLUDER_DISTANCE + _OCCLUDER_DISTANCE_PER_DEPTH * depth
    measured = inner & np.isfinite(approach)
    values = approach[measured]
    if values.size:
        expected = float(np.median(values)) if tracked.approach is None else tracked.approach
        inliers = values[np.abs(values - expected) < tolerance[measured]]
        # With fewer inliers, most visible pixels belong to an occluder.
        enough = inliers.size > _MIN_OBJECT_FRACTION * values.size
        tracked.approach = float(np.median(inliers)) if enough else expected
    return approach - (tracked.approach or 0.0) > tolerance  # NaN: not occluded


def _cut_out(
    tracked: TrackedObject,
    flow: np.ndarray,
    rows: tuple[int, int],
    columns: tuple[int, int],
    occluded: np.ndarray,
) -> np.ndarray:
    """Return a window of h x w, positive where the object is visible.

    `rows` and `columns` are the first and the last + 1 of the window in comparison pixels.
    """
    h, w = flow.shape[:2]
    top, left = rows[0] * COMPARISON_SCALE, columns[0] * COMPARISON_SCALE
    bottom = h if rows[1] == occluded.shape[0] else rows[1] * COMPARISON_SCALE
    right = w if columns[1] == occluded.shape[1] else columns[1] * COMPARISON_SCALE
    window = np.s_[top:bottom, left:right]
    distance = cv2.remap(
        tracked.signed_distance,
        flow[window] + pixel_grid(h, w)[window],
        None,
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    hidden = occluded[rows[0] : rows[1], columns[0] : columns[1]].astype(np.float32)
    hidden = cv2.resize(hidden, (right - left, bottom - top))
    distance[hidden > 0.5] = -1
    distance[(distance > 0) & ~_without_thin_parts(distance > 0, tracked)] = -1
    return distance


def _without_thin_parts(mask: np.ndarray, tracked: TrackedObject) -> np.ndarray:
    """Return a mask without parts that are too thin or too small to belong to the object.

    Flow leaves thin lines along the edge of an object that moves in front of its background.
    """
    mask = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, tracked.kernel)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask)
    large = stats[:, cv2.CC_STAT_AREA] >= tracked.min_piece_area
    large[0] = False  # the background
    return large[labels] if count > 1 else mask > 0


def _opening_kernel(mask: np.ndarray, area: int) -> np.ndarray:
    """Return the largest kernel (k, k) whose opening keeps `_OPENED_FRACTION` of a mask."""
    padded = np.pad(mask, max(_KERNEL_SIDES))
    for side in _KERNEL_SIDES:
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
        opened = np.count_nonzero(cv2.morphologyEx(padded, cv2.MORPH_OPEN, kernel))
        if opened >= _OPENED_FRACTION * area:
            break
    return kernel


def _comes_from_inside(flow: np.ndarray) -> np.ndarray:
    """Return where (s, t, 2) flow leads to a pixel of the reference frame, (s, t) bool."""
    s, t = flow.shape[:2]
    positions = pixel_grid(s, t) + flow
    return (positions >= 0).all(axis=2) & (positions <= (t - 1, s - 1)).all(axis=2)


def _brightness_gain(expected: np.ndarray, colour: np.ndarray, reliable: np.ndarray) -> np.ndarray:
    """Return the gain of each channel since the reference frame, (3,) float32.

    Estimated from pixels that both frames show, `reliable` (s, t) bool: a camera that turns to a
    darker part of the room must not count as a change of brightness.
    """
    if np.count_nonzero(reliable) < _MIN_GAIN_FRACTION * reliable.size:
        return np.ones(3, np.float32)
    return np.median((colour[reliable] + 1) / (expected[reliable] + 1), axis=0)


def _paste(part: np.ndarray, corner: tuple[int, int], frame: FlowFrame) -> np.ndarray:
    """Return a window of h x w at corner (row, column), where positive, as (H, W) bool."""
    canvas = np.full(frame.grey.shape, -1, np.float32)
    top, left = corner
    canvas[top : top + part.shape[0], left : left + part.shape[1]] = part
    if canvas.shape != frame.size:
        canvas = cv2.resize(canvas, frame.size[::-1])
    return canvas > 0
