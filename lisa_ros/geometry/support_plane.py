# SPDX-License-Identifier: Apache-2.0
"""The plane that an object stands on, found in the depth around its mask.

Metres, the camera's optical frame (REP-103). Letters: H, W rows and columns of the image, M
points. Pure numpy and OpenCV, any thread.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from lisa_ros.geometry.camera import Camera
from lisa_ros.geometry.hidden_part import hides_below, rays_beside
from lisa_ros.geometry.plane import Plane
from lisa_ros.geometry.rgbd import check_size, depth_noise_std, is_valid_depth
from lisa_ros.perception.masks import bounding_box

_MIN_MARGIN = 24  # the surroundings are at least this wide in dense depth [px]
_MIN_RING_POINTS = 100  # with fewer points around the mask there is no plane
_SAMPLED_POINTS = 1500  # points around the mask that RANSAC uses
_HYPOTHESES = 200  # number of planes, each through three random points
_REFINED_HYPOTHESES = 20  # planes with most inliers; refined until one supports the object
_DEEP_PLANES = 2  # of these, tested to be hidden by the object; most of them are one plane
_INLIER_STDS = 3  # standard deviations of depth noise within which a point is in the plane
_MAX_TILT = 12.0  # between the normal of the plane and up, if up is known [degrees]
_MAX_POINTS = 4000  # about this many around the mask, and as many inside it
_MAX_GAP = 0.02  # from the plane to the lowest visible point of an object on it [m]
# largest such gap when a plane is chosen: the lower part of the object may be occluded [m]
_MAX_HIDDEN = 0.10
# and if the object itself hides all that is below it: the height of a bottle seen from above [m]
_MAX_HIDDEN_BY_ITSELF = 0.35
# Part of the surroundings that such a deep plane has if gravity is unknown: a wall behind an
# object looks the same, but then the table is in view, too
_MIN_DEEP_SHARE = 0.85


@dataclass(frozen=True)
class SupportPlane(Plane):
    """A plane below an object."""

    # largest gap below an object that still counts as hidden by it [m]
    max_hidden: float


@dataclass(frozen=True)
class Floor:
    """Where an object ends below."""

    position: float  # along the direction up [m]
    is_visible: bool  # the visible surface begins here; False: the object hides its lower part


def fit_support_plane(
    depth: np.ndarray,
    mask: np.ndarray,
    camera: Camera,
    up: np.ndarray | None = None,
    cell: int = 1,
) -> SupportPlane | None:
    """Return the plane that an object stands on; None if there is none around the mask.

    RANSAC (Fischler and Bolles 1981) on the pixels around the mask, with a fixed seed: the same
    input gives the same plane. The object must be above the plane and begin near it, or hide all
    that is between it and the plane.

    Args:
        depth: (H, W) float32 metres.
        mask: (H, W) bool.
        camera: of the same pixels.
        up: (3,) away from gravity; planes tilted against it by more than 12 degrees are refused.
        cell: of `cell_size`: sparse depth needs wider surroundings [px].

    Raises:
        ImageError: depth and camera differ in size.
    """
    check_size('depth', depth, camera)
    ring, inside = _points_around_and_inside(depth, mask, camera, cell)
    if len(ring) < _MIN_RING_POINTS or not len(inside):
        return None
    rng = np.random.default_rng(0)
    sample = rng.choice(len(ring), min(len(ring), _SAMPLED_POINTS), replace=False)
    points = ring[sample].astype(np.float64)
    normals, offsets = _plane_hypotheses(points, rng)
    if up is not None:
        cosines = normals @ (np.asarray(up) / np.linalg.norm(up))
        level = cosines > np.cos(np.radians(_MAX_TILT))
        normals, offsets = normals[level], offsets[level]
    if not len(normals):
        return None
    distances = np.abs(points @ normals.T - offsets)
    inliers = distances < _inlier_distance(points)[:, None]
    deep: list[SupportPlane] = []
    for best in np.argsort(-inliers.sum(axis=0))[:_REFINED_HYPOTHESES]:
        refined = _refine(Plane(normals[best], float(offsets[best])), points)
        if refined is None or not _is_below(refined, inside):
            continue
        may_be_deep = up is not None or _share(refined, points) > _MIN_DEEP_SHARE
        max_hidden = _MAX_HIDDEN_BY_ITSELF if may_be_deep else _MAX_HIDDEN
        plane = SupportPlane(refined.up, refined.offset, max_hidden)
        gap = _gap(plane, inside, 0.02)
        if gap < _MAX_HIDDEN:
            return plane
        if gap < max_hidden and len(deep) < _DEEP_PLANES:
            deep.append(plane)
    if not deep:
        return None
    rays = rays_beside(mask, camera, cell)
    return next((plane for plane in deep if hides_below(inside, plane, rays)), None)


def find_floor(
    points: np.ndarray,
    plane: SupportPlane | None,
    mask: np.ndarray,
    camera: Camera,
    up: np.ndarray,
    cell: int = 1,
) -> Floor | None:
    """Return the part of a plane below an object where the object ends; None if it is not known.

    The object stands on the plane if its visible surface begins there. If it begins higher, it
    counts as standing there if it would hide its own lower part, as seen from straight above; an
    object in the air looks the same then. Otherwise it is in the air, or something is in front of
    its lower part: None.

    Args:
        points: (M, 3) of the visible surface.
        plane: the support plane; None: there is none.
        mask: (H, W) bool.
        camera: of the same pixels.
        up: (3,) unit vector. The normal of the plane may differ from it: the position is that of
            the point of the plane below the mean of the points.
        cell: of `cell_size`, for sparse depth [px].
    """
    if plane is None:
        return None
    gap = _gap(plane, points, 0.01)
    is_visible = gap <= _MAX_GAP
    if not is_visible and not (
        gap < plane.max_hidden and hides_below(points, plane, rays_beside(mask, camera, cell))
    ):
        return None
    mean = points.mean(axis=0, dtype=np.float64)
    position = float(np.asarray(up) @ (mean - plane.height(mean) * plane.up))
    return Floor(position, is_visible)


def _points_around_and_inside(
    depth: np.ndarray, mask: np.ndarray, camera: Camera, cell: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return valid points around the mask and inside it, (M, 3) float32 each, M about 4000."""
    x, y, width, height = bounding_box(mask)
    if not width:
        return np.empty((0, 3), np.float32), np.empty((0, 3), np.float32)
    margin = max(_MIN_MARGIN * cell, (height + width - 2) // 4)  # [px]
    window = np.s_[
        max(0, y - margin) : y + height - 1 + margin,
        max(0, x - margin) : x + width - 1 + margin,
    ]
    z, inside = depth[window], mask[window]
    around = ~cv2.dilate(inside.astype(np.uint8), np.ones((9, 9), np.uint8)).astype(bool)
    rays = camera.rays()[window]
    usable = is_valid_depth(z) & np.isfinite(rays[..., 0])
    return _thinned_points(around & usable, z, rays), _thinned_points(inside & usable, z, rays)


def _thinned_points(area: np.ndarray, z: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """Return the points of about `_MAX_POINTS` pixels of an area, (M, 3) float32."""
    v, u = np.nonzero(area)
    step = -(-len(v) // _MAX_POINTS) or 1
    v, u = v[::step], u[::step]
    distance = z[v, u, None]
    return np.concatenate([rays[v, u] * distance, distance], axis=1)


def _plane_hypotheses(
    points: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return unit normals (P, 3) and offsets (P,) of planes through random points of (M, 3).

    The normals point towards the camera, which is above the plane.
    """
    corners = points[rng.integers(0, len(points), (_HYPOTHESES, 3))]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    lengths = np.linalg.norm(normals, axis=1)
    normals, origins = normals[lengths > 1e-7], corners[lengths > 1e-7, 0]
    normals /= lengths[lengths > 1e-7, None]
    offsets = (normals * origins).sum(axis=1)
    signs = np.where(offsets > 0, -1.0, 1.0)
    return normals * signs[:, None], offsets * signs


def _refine(plane: Plane, points: np.ndarray) -> Plane | None:
    """Return the least-squares plane of its inliers among (M, 3) points; None if they are few."""
    for _ in range(3):
        inliers = points[np.abs(plane.height(points)) < _inlier_distance(points)]
        if len(inliers) < max(50, 0.15 * len(points)):
            return None
        mean = inliers.mean(axis=0)
        up = np.linalg.eigh((inliers - mean).T @ (inliers - mean))[1][:, 0]
        up = up * (-1.0 if up @ mean > 0 else 1.0)
        plane = Plane(up, float(up @ mean))
    return plane


def _inlier_distance(points: np.ndarray) -> np.ndarray:
    """Return the distance from a plane up to which each of (M, 3) points is in it, (M,) [m]."""
    return _INLIER_STDS * depth_noise_std(points[:, 2])


def _share(plane: Plane, points: np.ndarray) -> float:
    """Return the part of (M, 3) points that is in the plane."""
    return float(np.mean(np.abs(plane.height(points)) < _inlier_distance(points)))


def _gap(plane: Plane, points: np.ndarray, quantile: float) -> float:
    """Return the height [m] of the lowest of (M, 3) points, the given part of them left out."""
    return float(np.quantile(plane.height(points), quantile))


def _is_below(plane: Plane, points: np.ndarray) -> bool:
    """Return whether an object's (M, 3) points lie above the plane."""
    height = plane.height(points)
    return bool(np.quantile(height, 0.02) > -_MAX_GAP and np.mean(height > -0.01) > 0.85)
