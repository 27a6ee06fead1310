# SPDX-License-Identifier: Apache-2.0
"""Fit a circle to an arc of points in a plane. Metres; pure numpy, any thread."""

from __future__ import annotations

import numpy as np

_MIN_POINTS = 40
_ITERATIONS = 12  # the algebraic fit and Gauss-Newton steps
_MIN_RADIUS = 0.004  # [m]
_MAX_RADIUS = 0.75  # as a fraction of the larger side of the points' bounding box
_MIN_ARC = 100  # a shorter arc does not determine a circle [degrees]
_INLIER_DISTANCE = 0.003  # points this close to the circle are always inliers [m]


def fit_circle(points: np.ndarray) -> tuple[np.ndarray, float] | None:
    """Return centre (2,) and radius of the circle through an arc of (M, 2) points, or None.

    It starts with the algebraic fit (Kasa 1976), followed by Gauss-Newton steps on the geometric
    distances; points far from the circle, such as those of a handle, are dropped in each step.
    None if points are few, the arc is short or the radius is out of range.
    """
    if len(points) < _MIN_POINTS:
        return None
    centre, radius = _algebraic_fit(points)
    for iteration in range(1, _ITERATIONS):
        offsets = points - centre
        distances = np.maximum(np.linalg.norm(offsets, axis=1), 1e-9)
        residuals = distances - radius
        spread = 2.5 * float(np.median(np.abs(residuals))) * (1 + 2 / iteration)
        inliers = np.abs(residuals) <= max(_INLIER_DISTANCE, spread)
        if np.count_nonzero(inliers) < _MIN_POINTS:
            return None
        directions = offsets[inliers] / distances[inliers, None]
        design = np.column_stack([directions, np.ones(inliers.sum())])
        step, *_ = np.linalg.lstsq(design, residuals[inliers], rcond=None)
        centre, radius = centre + step[:2], radius + float(step[2])
    if not _MIN_RADIUS < radius < _MAX_RADIUS * float(np.ptp(points, axis=0).max()):
        return None
    if not _arc_angle(points[inliers] - centre) > np.radians(_MIN_ARC):
        return None
    return centre, radius


def _algebraic_fit(points: np.ndarray) -> tuple[np.ndarray, float]:
    """Return centre (2,) and radius of the circle through (M, 2) points, by linear equations."""
    origin = points.mean(axis=0)
    centred = points - origin
    design = np.column_stack([2 * centred, np.ones(len(centred))])
    solution, *_ = np.linalg.lstsq(design, (centred**2).sum(axis=1), rcond=None)
    radius = float(np.sqrt(max(solution[2] + solution[:2] @ solution[:2], 1e-12)))
    return origin + solution[:2], radius


def _arc_angle(offsets: np.ndarray) -> float:
    """Return the angle [rad] that (M, 2) vectors from a circle's centre cover."""
    angles = np.sort(np.arctan2(offsets[:, 1], offsets[:, 0]))
    gaps = np.diff(np.concatenate([angles, angles[:1] + 2 * np.pi]))
    return float(2 * np.pi - gaps.max())
