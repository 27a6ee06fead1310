# SPDX-License-Identifier: Apache-2.0
"""The plane that an object stands on."""

from __future__ import annotations

import cv2
import numpy as np

from lisa_ros.geometry.camera import Camera
from lisa_ros.geometry.depth_filter import depth_noise_std
from lisa_ros.geometry.oriented_box import Plane
from lisa_ros.geometry.rgbd import _same_size


def fit_support_plane(
    depth: np.ndarray, mask: np.ndarray, camera: Camera, up: np.ndarray | None = None
) -> Plane | None:
    """Return the plane that a thing stands on, None if there is none round the mask.

    RANSAC (Fischler and Bolles 1981) on the pixels round the mask, seeded so that the same
    picture gives the same plane. The thing must be above it and begin near it.

    Args:
        depth: (H, W) float32.
        mask: (H, W) bool.
        camera: of the same pixels.
        up: (3,) away from gravity; a plane tilted more than 12 degrees against it is refused.
    """
    _same_size(depth, camera)
    ring, inside = _ring(depth, mask, camera)
    if len(ring) < 100 or not len(inside):
        return None
    rng = np.random.default_rng(0)
    some = ring[rng.choice(len(ring), min(len(ring), 1500), replace=False)].astype(np.float64)
    corners = some[rng.integers(0, len(some), (200, 3))]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    lengths = np.linalg.norm(normals, axis=1)
    normals, origins = normals[lengths > 1e-7], corners[lengths > 1e-7, 0]
    normals /= lengths[lengths > 1e-7, None]
    offsets = (normals * origins).sum(axis=1)
    turned = np.where(offsets > 0, -1.0, 1.0)  # the camera is above
    normals, offsets = normals * turned[:, None], offsets * turned
    if up is not None:
        level = normals @ (np.asarray(up) / np.linalg.norm(up)) > np.cos(np.radians(12))
        normals, offsets = normals[level], offsets[level]
    if not len(normals):
        return None
    near = np.abs(some @ normals.T - offsets) < 3 * depth_noise_std(some[:, 2:])
    for best in np.argsort(-near.sum(axis=0))[:20]:
        plane = _refined(Plane(normals[best], float(offsets[best])), some)
        if plane is not None and _carries(plane, inside):
            return plane
    return None


def _ring(depth: np.ndarray, mask: np.ndarray, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Return valid points round the mask and within it, (M, 3) float32 each, at most some 4000."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return np.empty((0, 3), np.float32), np.empty((0, 3), np.float32)
    reach = max(24, (rows[-1] - rows[0] + columns[-1] - columns[0]) // 4)
    part = np.s_[
        max(0, rows[0] - reach) : rows[-1] + reach,
        max(0, columns[0] - reach) : columns[-1] + reach,
    ]
    z, own = depth[part], mask[part]
    apart = ~cv2.dilate(own.astype(np.uint8), np.ones((9, 9), np.uint8)).astype(bool)
    rays = camera.rays()[part]
    found = []
    for area in (apart, own):
        v, u = np.nonzero(area & (z > 0) & (z < np.inf) & np.isfinite(rays[..., 0]))
        step = -(-len(v) // 4000) or 1
        v, u = v[::step], u[::step]
        distance = z[v, u, None]
        found.append(np.concatenate([rays[v, u] * distance, distance], axis=1))
    return found[0], found[1]


def _refined(plane: Plane, points: np.ndarray) -> Plane | None:
    """Return the plane by least squares of the (M, 3) points near it; None if they are few."""
    for _ in range(3):
        near = points[np.abs(plane.height(points)) < 3 * depth_noise_std(points[:, 2])]
        if len(near) < max(50, 0.15 * len(points)):
            return None
        middle = near.mean(axis=0)
        up = np.linalg.eigh((near - middle).T @ (near - middle))[1][:, 0]
        up = up * (-1.0 if up @ middle > 0 else 1.0)
        plane = Plane(up, float(up @ middle))
    return plane


_FOOT = 0.02  # what may be unseen of a thing between its lowest point and what carries it [m]


_HIDDEN = 0.10  # the same where something stands before it: what is up is known all the same [m]


def _carries(plane: Plane, points: np.ndarray) -> bool:
    """Tell whether a thing's (M, 3) points begin near the plane and lie above it."""
    height = plane.height(points)
    begins = float(np.quantile(height, 0.02))
    return bool(-_FOOT < begins < _HIDDEN and np.mean(height > -0.01) > 0.85)


def _floor_under(points: np.ndarray, plane: Plane | None, up: np.ndarray) -> float | None:
    """Return how far along `up` the plane lies below (M, 3) points [m], None if it is not near."""
    if plane is None or np.quantile(plane.height(points), 0.01) > _FOOT:
        return None
    middle = points.mean(axis=0, dtype=np.float64)
    return float(np.asarray(up) @ (middle - plane.height(middle) * plane.up))
