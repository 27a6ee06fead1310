# SPDX-License-Identifier: Apache-2.0
"""From pixels to metres: what a mask and its depth say about the thing in space.

Points are in the camera's optical frame (REP-103): x right, y down, z forward. Depth is metres
along z, NaN where invalid, as `conversions.depth_to_metres` gives it (REP-118), on the picture's
own pixels. Letters: H, W rows and columns of the picture, M points. Pure numpy and OpenCV; every
function may be called in any thread.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lisa_ros.geometry.camera import Camera
from lisa_ros.geometry.depth_filter import (
    SPECK,
    DepthPatch,
    object_surface_mask,
    smooth_points_and_normals,
)
from lisa_ros.geometry.oriented_box import Box, box_in_axes, fit_upright_box, principal_axes
from lisa_ros.geometry.rgbd import _same_size
from lisa_ros.geometry.support_plane import _floor_under, fit_support_plane

# ---------------------------------------------------------------- the camera


# ---------------------------------------------------------------- the whole scene


# ---------------------------------------------------------------- one thing


@dataclass(frozen=True, eq=False)
class Object3D:
    """One mask in space."""

    points: np.ndarray  # (M, 3) float32 [m]
    colours: np.ndarray  # (M, 3) uint8 RGB
    pixels: np.ndarray  # (M, 2) int32, u and v of each point
    centroid: np.ndarray  # (3,) float64, mean of the points: of the surface that is seen [m]
    box: Box  # its third axis is up where gravity or a supporting plane is known
    axes: np.ndarray  # (3, 3) float64, columns are the principal axes, the longest first
    extent: np.ndarray  # (3,) float64, sizes of the points along `axes` [m]
    nearest: np.ndarray  # (3,) float32, the point nearest to the camera [m]
    confidence: float  # 0..1, share of the mask that became points, less where they are few


def localize_object(
    image: np.ndarray,
    depth: np.ndarray,
    mask: np.ndarray,
    camera: Camera,
    up: np.ndarray | None = None,
) -> Object3D | None:
    """Return what a mask shows, in space; None if no valid point is left.

    Args:
        image: (H, W, 3) uint8 RGB.
        depth: (H, W) float32.
        mask: (H, W) bool.
        camera: of the same pixels.
        up: (3,) away from gravity, in the optical frame; None: the plane that it stands on says,
            and without one the box follows the principal axes.

    Raises:
        ImageError: image, depth, mask and camera differ in size.
    """
    for pixels in (image[..., 0], depth, mask):
        _same_size(pixels, camera)
    view = _around(depth, mask, camera)
    if view is None or not view.mask.any():
        return None
    plane = fit_support_plane(depth, mask, camera, up)
    kept = object_surface_mask(view, plane)
    v, u = np.nonzero(kept)
    if not v.size:
        return None
    points = view.points[v, u]
    smooth, normals = (rows[v, u] for rows in smooth_points_and_normals(view, kept))
    upwards = up if up is not None else None if plane is None else plane.up
    if upwards is None:
        box = box_in_axes(points, principal_axes(points))
    else:
        spacing = view.pitch * float(np.median(points[:, 2]))
        floor = _floor_under(points, plane, upwards)
        box = fit_upright_box(points, smooth, normals, upwards, floor, spacing)
    axes = principal_axes(points)
    rows, columns = v + view.corner[1], u + view.corner[0]
    return Object3D(
        points=points,
        colours=image[rows, columns],
        pixels=np.stack([columns, rows], axis=1).astype(np.int32),
        centroid=points.mean(axis=0, dtype=np.float64),
        box=box,
        axes=axes,
        extent=box_in_axes(points, axes).extent,
        nearest=points[(points**2).sum(axis=1).argmin()],
        confidence=float(v.size / np.count_nonzero(mask) * v.size / (v.size + SPECK)),
    )


_MARGIN = 4  # pixels of the surroundings that tell a mask's edge from what lies behind


def _around(depth: np.ndarray, mask: np.ndarray, camera: Camera) -> DepthPatch | None:
    """Return the part of the picture that holds the mask; None if the mask is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return None
    top, left = max(0, rows[0] - _MARGIN), max(0, columns[0] - _MARGIN)
    part = np.s_[top : rows[-1] + 1 + _MARGIN, left : columns[-1] + 1 + _MARGIN]
    z = depth[part]
    z = np.where((z > 0) & (z < np.inf), z, np.float32(np.nan))
    points = np.concatenate([camera.rays()[part] * z[..., None], z[..., None]], axis=-1)
    inside = mask[part] & np.isfinite(points).all(axis=-1)
    return DepthPatch(points, inside, (int(left), int(top)), float(1 / camera.k[0, 0]))


# ---------------------------------------------------------------- what it stands on
