# SPDX-License-Identifier: Apache-2.0
"""A segmented object in 3D: points, centroid, boxes and confidence from a mask and its depth.

Points are in the camera's optical frame (REP-103: x right, y down, z forward). Depth is in metres
along z, NaN where invalid (REP-118), on the image's own pixels, as
`messages.image.depth_to_metres` returns it. Letters: H, W rows and columns of the image, M points.
Pure numpy and OpenCV, any thread.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lisa_ros.geometry.camera import Camera
from lisa_ros.geometry.depth_filter import (
    MIN_PIECE_PIXELS,
    DepthPatch,
    cell_size,
    is_noise,
    object_surface_mask,
    pixels_of_cells,
    smooth_points_and_normals,
)
from lisa_ros.geometry.oriented_box import Box, box_in_axes, fit_upright_box, principal_axes
from lisa_ros.geometry.rgbd import check_size, is_valid_depth
from lisa_ros.geometry.support_plane import Floor, find_floor, fit_support_plane
from lisa_ros.perception.masks import box_slices

SCATTERED_DEPTH_CURE = (
    'set fill_upsampling_holes: true of depth_image_proc register; with another driver, use its '
    'filter that fills holes'
)

_MARGIN = 4  # background around the mask that the depth filter gets [px]


@dataclass(frozen=True, eq=False)
class Object3D:
    """The visible surface of one object, and boxes around the object."""

    points: np.ndarray  # (M, 3) float32 [m]
    colours: np.ndarray  # (M, 3) uint8 RGB
    pixels: np.ndarray  # (M, 2) int32, image column u and row v of each point
    centroid: np.ndarray  # (3,) float64, mean of the points [m]
    box: Box  # its third axis is up where gravity or a support plane is known
    axes: np.ndarray  # (3, 3) float64, columns are the principal axes, the longest first
    extent: np.ndarray  # (3,) float64, size of the points along `axes` [m]
    nearest: np.ndarray  # (3,) float32, the point closest to the camera [m]
    confidence: float  # 0..1: fraction of the mask that became points; lower for few points


def localize_object(
    image: np.ndarray,
    depth: np.ndarray,
    mask: np.ndarray,
    camera: Camera,
    up: np.ndarray | None = None,
) -> Object3D | None:
    """Return the object of a mask in 3D; None if its valid points form no surface.

    Depth may be sparse, with a valid pixel in every 2 to 10 columns and rows, as after
    registration to a camera of longer focal length. There is no place if no pixel is valid, or if
    the largest connected surface is only a tiny part of the valid pixels: noise, anywhere in the
    mask.

    Args:
        image: (H, W, 3) uint8 RGB.
        depth: (H, W) float32 metres.
        mask: (H, W) bool.
        camera: of the same pixels.
        up: (3,) away from gravity, in the optical frame. None: the box uses the normal of the
            support plane as up, or without such a plane the principal axes.

    Raises:
        ImageError: image, depth, mask and camera differ in size.
    """
    for name, pixels in (('image', image[..., 0]), ('depth', depth), ('mask', mask)):
        check_size(name, pixels, camera)
    if up is not None:
        up = np.asarray(up, np.float64) / np.linalg.norm(up)
    if not mask.any():
        return None
    cell = cell_size(depth, mask)
    patch = _patch_around(depth, mask, camera, _MARGIN * cell)
    if not patch.mask.any():
        return None
    plane = fit_support_plane(depth, mask, camera, up, cell)
    grid = patch.coarser(cell)
    surface = object_surface_mask(grid, plane)
    v, u = np.nonzero(pixels_of_cells(patch, grid, surface))
    if not v.size or is_noise(v.size, np.count_nonzero(patch.mask), np.count_nonzero(mask)):
        return None
    points = patch.points[v, u]
    axes = principal_axes(points)
    if up is None and plane is not None:
        up = plane.up
    floor = None if up is None else find_floor(points, plane, mask, camera, up, cell)
    rows, columns = v + patch.corner[1], u + patch.corner[0]
    return Object3D(
        points=points,
        colours=image[rows, columns],
        pixels=np.stack([columns, rows], axis=1).astype(np.int32),
        centroid=points.mean(axis=0, dtype=np.float64),
        box=_fit_box(points, grid, surface, (v // cell, u // cell), up, floor, axes),
        axes=axes,
        extent=box_in_axes(points, axes).extent,
        nearest=points[(points**2).sum(axis=1).argmin()],
        confidence=float(v.size / np.count_nonzero(mask) * v.size / (v.size + MIN_PIECE_PIXELS)),
    )


def _fit_box(
    points: np.ndarray,
    grid: DepthPatch,
    surface: np.ndarray,
    cells: tuple[np.ndarray, np.ndarray],
    up: np.ndarray | None,
    floor: Floor | None,
    axes: np.ndarray,
) -> Box:
    """Return the box of (M, 3) points: upright, or along `axes` if up is unknown.

    The surface is (h, w) bool, in pixels of `grid`; `cells` has the row and column of each point.
    """
    if up is None:
        return box_in_axes(points, axes)
    smooth, normals = (vectors[cells] for vectors in smooth_points_and_normals(grid, surface))
    # in sparse depth, an edge is half a cell beyond the outermost points
    pitch = grid.pitch if grid.cell == 1 else grid.pitch / 2
    spacing = pitch * float(np.median(points[:, 2]))
    return fit_upright_box(points, smooth, normals, up, floor, spacing)


def _patch_around(depth: np.ndarray, mask: np.ndarray, camera: Camera, margin: int) -> DepthPatch:
    """Return the part of the image that contains the mask, not empty, and a margin [px]."""
    window = rows, columns = box_slices(mask, margin)
    z = depth[window]
    z = np.where(is_valid_depth(z), z, np.float32(np.nan))
    points = np.concatenate([camera.rays()[window] * z[..., None], z[..., None]], axis=-1)
    inside = mask[window] & np.isfinite(points).all(axis=-1)
    corner = columns.start, rows.start
    return DepthPatch(points, inside, corner, float(1 / camera.k[0, 0]))
