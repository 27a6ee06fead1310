# SPDX-License-Identifier: Apache-2.0
"""The pixels of a mask that show the object's own surface, and the normals of that surface.

A mask is a pixel or two too wide, and depth at the edge of an object mixes foreground and
background (bleeding, flying pixels). A depth difference between neighbours counts as a jump if
neither noise at that distance nor a steep surface explains it.

Depth registered to a colour camera of longer focal length has a value at every few pixels only, if
nothing fills the holes (github.com/ros-perception/image_pipeline/issues/265). Such a sparse patch
is filtered on a coarser grid, see `DepthPatch.coarser`.

Letters: h, w rows and columns of the image patch around the mask. Metres, the camera's optical
frame (REP-103). Pure numpy and OpenCV, any thread.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from lisa_ros.geometry.plane import Plane
from lisa_ros.geometry.rgbd import depth_noise_std, is_valid_depth
from lisa_ros.perception.masks import box_slices

_STEEPEST_SLOPE = 5.7  # tan of 80 degrees: depth change of a steeper surface counts as a jump
_MASK_MARGIN = 4  # a mask may be this much too wide [px]
_PLANE_MARGIN = 6  # the support plane is removed up to this far from the mask's edge [px]
_PLANE_STDS = 2.2  # standard deviations of depth noise within which a pixel is in the plane

MIN_PIECE_PIXELS = 5  # a smaller separate piece is noise

_RING = 5  # isolated groups are removed up to this far from the mask's edge [px]
_MIN_DISTANCE = 0.025  # an isolated group is at least this far from the inner surface [m]
_MAX_GROUP_PIXELS = 60  # a larger group is a part of the object, such as a handle
_RING_SLOPE = 2.9  # about tan of 70 degrees: how far a surface may continue across the ring

_MAX_PIECES = 60  # the largest ones are examined; a surface in more pieces is noise
_BODY_SAMPLES = 800  # points of the main piece that distances are measured to
_PIECE_SAMPLES = 200  # points of another piece that distances are measured from
_THIN_PIECE_GAP = 0.012  # maximum median distance of a thin piece from the main one [m]

_SMOOTHING_RADIUS = 0.004  # [m]
_MAX_SMOOTHING_PIXELS = 8  # the radius in pixels is limited to 1..8
_MIN_SMOOTHING_WEIGHT = 0.3  # a window with a smaller fraction of surface has no mean
_FAR = np.float32(1e6)  # beyond any surface [m]; finite, as OpenCV's border values are

_MAX_SPACING = 10  # valid pixels farther apart are no surface [px]
_MIN_SURFACE_SHARE = 0.05  # a smaller part of the valid pixels is a piece of noise
_MIN_NOISE_SHARE = 0.25  # also, if it has fewer than MIN_PIECE_PIXELS
_DENSE_SHARE = 0.5  # of a mask with valid depth: many pieces are leaves then, not noise


@dataclass(frozen=True)
class DepthPatch:
    """The part of the image around a mask, with a margin; its pixels may be cells of the image."""

    points: np.ndarray  # (h, w, 3) float32 [m], NaN where invalid
    mask: np.ndarray  # (h, w) bool, True only where points are valid
    corner: tuple[int, int]  # column and row of its top left pixel in the image
    pitch: float  # difference of x/z between neighbouring pixels
    cell: int = 1  # pixels of the image along each side of a pixel of the patch

    @property
    def z(self) -> np.ndarray:
        """Depth, (h, w) float32 [m], NaN where invalid."""
        return self.points[..., 2]

    def coarser(self, cell: int) -> DepthPatch:
        """Return the patch with one pixel for each `cell` x `cell` pixels; itself if cell is 1.

        It is the closest valid one, of those in the mask if there are any, at its own position.
        """
        if cell == 1:
            return self
        height, width = self.mask.shape
        padding = ((0, -height % cell), (0, -width % cell))
        points = np.pad(self.points, (*padding, (0, 0)), constant_values=np.nan)
        inside = _cells(np.pad(self.mask, padding), cell)
        points = _cells(points, cell)
        z = points[..., 2]
        order = np.where(inside, z, np.where(np.isnan(z), np.inf, _FAR + z))
        chosen = order.argmin(axis=2)[..., None]
        return DepthPatch(
            np.take_along_axis(points, chosen[..., None], axis=2)[:, :, 0],
            np.take_along_axis(inside, chosen, axis=2)[:, :, 0],
            self.corner,
            self.pitch * cell,
            cell,
        )


def cell_size(depth: np.ndarray, mask: np.ndarray) -> int:
    """Return the side of the cells of which most have valid depth, 3 to 11 [px]; 1 in dense depth.

    Half of the mask's valid pixels have another valid one within a distance, in columns and rows;
    the cells are one pixel larger, as a ratio of focal lengths is rarely a whole number.

    Args:
        depth: (H, W) float32 metres.
        mask: (H, W) bool, not empty.
    """
    window = box_slices(mask, _MAX_SPACING)
    valid = is_valid_depth(depth[window])
    inside = mask[window] & valid
    half = np.count_nonzero(inside) / 2
    pixels = valid.astype(np.float32)
    for distance in range(1, _MAX_SPACING + 1):
        side = 2 * distance + 1
        sums = cv2.boxFilter(
            pixels, -1, (side, side), normalize=False, borderType=cv2.BORDER_CONSTANT
        )
        if np.count_nonzero(inside & (sums > 1.5)) >= half:  # more than the pixel itself
            return 1 if distance == 1 else distance + 1
    return 1  # a few pixels far apart


def pixels_of_cells(patch: DepthPatch, grid: DepthPatch, surface: np.ndarray) -> np.ndarray:
    """Return the pixels of a patch that belong to a surface of its coarser grid, (h, w) bool.

    Args:
        patch: (h, w) pixels.
        grid: made by `patch.coarser`.
        surface: bool, of the pixels of `grid`.
    """
    if grid is patch:
        return surface
    height, width = patch.mask.shape
    rows, columns = np.arange(height)[:, None] // grid.cell, np.arange(width) // grid.cell
    jump = _jump_threshold(grid.z, grid.pitch)
    near = np.abs(patch.z - grid.z[rows, columns]) < jump[rows, columns]
    return patch.mask & surface[rows, columns] & near


def is_noise(points: int, valid: int, pixels: int) -> bool:
    """Return whether a surface is too small a part of the valid pixels of a mask.

    The largest connected piece is noise then, and its position is that of any one of the pieces.

    Args:
        points: number of pixels of the surface.
        valid: number of pixels of the mask with valid depth.
        pixels: number of pixels of the mask.
    """
    few = points < MIN_PIECE_PIXELS and points < _MIN_NOISE_SHARE * valid
    return few or (valid < _DENSE_SHARE * pixels and points < _MIN_SURFACE_SHARE * valid)


def _cells(pixels: np.ndarray, cell: int) -> np.ndarray:
    """Return the pixels of each cell, (h / cell, w / cell, cell * cell, ...).

    `pixels` are (h, w, ...); h and w are multiples of `cell`.
    """
    height, width, *rest = pixels.shape
    blocks = pixels.reshape(height // cell, cell, width // cell, cell, *rest).swapaxes(1, 2)
    return blocks.reshape(height // cell, width // cell, cell * cell, *rest)


def object_surface_mask(patch: DepthPatch, plane: Plane | None) -> np.ndarray:
    """Return the pixels of the mask that belong to the object itself, (h, w) bool.

    Removes, in this order: flying pixels; pixels of the support plane near the mask's edge (unless
    most of the object lies in the plane, like a sheet of paper); strips of neighbouring surfaces;
    pieces that are not connected to the object; small isolated groups.
    """
    surface = patch.mask & ~_flying_pixels(patch)
    if plane is not None and surface.any():
        height = np.abs(plane.height(patch.points))
        tolerance = _PLANE_STDS * abs(float(plane.up[2])) * depth_noise_std(patch.z)
        in_plane = height < tolerance
        edge = _edge_band(patch.mask, _PLANE_MARGIN)
        inner = surface & ~edge
        if np.mean(in_plane[inner if inner.any() else surface]) < 0.5:
            surface &= ~(in_plane & edge)
    surface &= ~_neighbouring_strips(patch, surface)
    if not surface.any():
        return surface
    surface = _object_pieces(patch, surface)
    return surface & ~_isolated_groups(patch, surface)


def smooth_points_and_normals(
    patch: DepthPatch, surface: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return smoothed points, and unit normals towards the camera, (h, w, 3) float32 each.

    Means over about 4 mm to each side, so that noise is small against the slope; NaN where
    unknown. `surface` is (h, w) bool with at least one pixel.
    """
    z = float(np.median(patch.z[surface]))
    half = int(np.clip(round(_SMOOTHING_RADIUS / (patch.pitch * z)), 1, _MAX_SMOOTHING_PIXELS))
    window = (2 * half + 1, 2 * half + 1)
    weight = cv2.blur(surface.astype(np.float32), window, borderType=cv2.BORDER_CONSTANT)
    means = cv2.blur(
        np.where(surface[..., None], patch.points, 0), window, borderType=cv2.BORDER_CONSTANT
    )
    with np.errstate(invalid='ignore', divide='ignore'):
        enough = (weight > _MIN_SMOOTHING_WEIGHT)[..., None]
        means = np.where(enough, means / weight[..., None], np.nan)
    padded = np.pad(means, ((half, half), (half, half), (0, 0)), constant_values=np.nan)
    along_u = padded[half:-half, 2 * half :] - padded[half:-half, : -2 * half]
    along_v = padded[2 * half :, half:-half] - padded[: -2 * half, half:-half]
    normals = np.cross(along_v, along_u)  # towards the camera: y is down
    lengths = np.linalg.norm(normals, axis=-1, keepdims=True)
    return means, normals / np.where(lengths > 0, lengths, np.nan)


def _inner_distance(mask: np.ndarray, metric: int = cv2.DIST_C) -> np.ndarray:
    """Return the distance of each pixel of a mask to its edge, (h, w) float32 [px], 0 outside."""
    padded = np.pad(mask, 1).astype(np.uint8)  # the patch's border is an edge, too
    return cv2.distanceTransform(padded, metric, 3)[1:-1, 1:-1]


def _edge_band(mask: np.ndarray, width: int) -> np.ndarray:
    """Return the pixels of a mask that are at most `width` pixels from its edge, (h, w) bool."""
    return mask & (_inner_distance(mask) <= width)


def _jump_threshold(z: np.ndarray, pitch: float) -> np.ndarray:
    """Return the depth difference between neighbours above which they are a jump [m]."""
    return 3 * math.sqrt(2) * depth_noise_std(z) + _STEEPEST_SLOPE * pitch * z


def _flying_pixels(patch: DepthPatch) -> np.ndarray:
    """Return the pixels whose depth mixes foreground and background, (h, w) bool.

    Such a pixel has a closer neighbour on one side, and a farther or invalid one on the opposite
    side. The edge of a thin object has no closer neighbour and is kept.
    """
    z = patch.z
    jump = _jump_threshold(z, patch.pitch)
    padded = np.pad(z, 1, constant_values=np.nan)
    height, width = z.shape
    flying = np.zeros(z.shape, bool)
    for dv, du in ((0, 1), (1, 0), (1, 1), (1, -1)):
        first = padded[1 - dv : 1 - dv + height, 1 - du : 1 - du + width]
        second = padded[1 + dv : 1 + dv + height, 1 + du : 1 + du + width]
        for near, far in ((first, second), (second, first)):
            flying |= (z - near > jump) & ~(far - z < jump)  # ~: NaN counts as far
    return flying


def _neighbouring_strips(patch: DepthPatch, surface: np.ndarray) -> np.ndarray:
    """Return strips of other surfaces at the mask's edge, cut off by a jump, (h, w) bool.

    If two objects touch, such a strip is connected with the object somewhere, so connection alone
    is not enough. An edge pixel near a jump is kept only if it can be reached from the other
    pixels in at most `_MASK_MARGIN` steps along links, and if its depth is near that of the pixels
    inside.
    """
    linked, right, down = _links(patch, surface)
    inner_distance = _inner_distance(patch.mask)
    # a thin object, like a pencil, is all edge: its middle half counts as inside
    thickness = cv2.dilate(inner_distance, np.ones((21, 21), np.uint8))
    edge = inner_distance <= np.minimum(_MASK_MARGIN, thickness / 2)
    jumps = np.zeros(surface.shape, np.uint8)
    jumps[:, 1:] |= linked[:, 1:] & linked[:, :-1] & ~right
    jumps[1:] |= linked[1:] & linked[:-1] & ~down
    kernel = np.ones((2 * _MASK_MARGIN + 1, 2 * _MASK_MARGIN + 1), np.uint8)
    behind_jump = cv2.dilate(jumps * inner_distance, kernel) >= inner_distance
    doubtful = surface & edge & behind_jump
    reached = _grow_along_links(surface & ~doubtful, linked, right, down)
    inside = surface & ~edge
    far = cv2.dilate(np.where(inside, patch.z, -_FAR), kernel) + 0.02
    near = cv2.erode(np.where(inside, patch.z, _FAR), kernel) - 0.02
    off = (far > 0) & ((patch.z > far) | (patch.z < near))
    return doubtful & (~reached | off)


def _grow_along_links(
    seeds: np.ndarray, linked: np.ndarray, right: np.ndarray, down: np.ndarray
) -> np.ndarray:
    """Return seeds, (h, w) bool, grown by `_MASK_MARGIN` steps along the links of `_links`."""
    reached = seeds
    for _ in range(_MASK_MARGIN):
        grown = reached.copy()
        grown[:, 1:] |= reached[:, :-1] & right
        grown[:, :-1] |= reached[:, 1:] & right
        grown[1:] |= reached[:-1] & down
        grown[:-1] |= reached[1:] & down
        reached = grown & linked
    return reached


def _isolated_groups(patch: DepthPatch, surface: np.ndarray) -> np.ndarray:
    """Return small groups at the mask's edge that are far from the inner surface, (h, w) bool.

    Such pixels are on a depth ramp between two surfaces that is too gradual to count as a jump.
    Groups as large as a handle are kept.
    """
    inside = surface & ~_edge_band(patch.mask, _RING)
    if not inside.any():
        return inside  # a thin object, like a pencil, is all edge
    _, nearest = cv2.distanceTransformWithLabels(
        (~inside).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    points = np.empty((int(nearest.max()) + 1, 3), np.float32)
    points[nearest[inside]] = patch.points[inside]
    reach = np.maximum(_MIN_DISTANCE, _RING_SLOPE * _RING * patch.pitch * patch.z)
    far = np.linalg.norm(patch.points - points[nearest], axis=-1) > reach
    _, labels, stats, _ = cv2.connectedComponentsWithStats((surface & far).astype(np.uint8))
    small = stats[:, cv2.CC_STAT_AREA] <= _MAX_GROUP_PIXELS
    small[0] = False  # the background
    return small[labels]


def _object_pieces(patch: DepthPatch, surface: np.ndarray) -> np.ndarray:
    """Return the main piece of a surface and the pieces that belong to it, (h, w) bool.

    The main piece has the most pixels, weighted by their distance from the edge. A thin piece (a
    handle behind invalid depth) belongs to it if it is close. A thick piece (the rest of an
    occluded object) may be farther away, up to the length of the main piece.
    """
    labels, count = _connected_pieces(patch, surface)
    if count <= 2:
        return surface & (labels > 0)
    piece_of_pixel = labels[surface]
    inner_distance = _inner_distance(surface, cv2.DIST_L2)[surface]
    sizes = np.bincount(piece_of_pixel, minlength=count)
    weights = np.bincount(piece_of_pixel, np.minimum(inner_distance, 8), count)
    main = int(weights[1:].argmax()) + 1
    points = patch.points[surface]
    body = points[piece_of_pixel == main]
    body = body[:: -(-len(body) // _BODY_SAMPLES)]
    length = float(np.linalg.norm(np.ptp(body, axis=0)))
    belongs = np.zeros(count, bool)
    belongs[main] = True
    for label in np.argsort(-sizes)[:_MAX_PIECES]:
        if label in (0, main) or sizes[label] < MIN_PIECE_PIXELS:
            continue
        in_piece = piece_of_pixel == label
        piece = points[in_piece]
        piece = piece[:: -(-len(piece) // _PIECE_SAMPLES)]
        gaps = np.linalg.norm(piece[:, None] - body[None], axis=2).min(axis=1)
        thick = inner_distance[in_piece].max() > 4 and sizes[label] > 0.1 * sizes[main]
        belongs[label] = gaps.min() < length if thick else np.median(gaps) < _THIN_PIECE_GAP
    return surface & belongs[labels]


def _connected_pieces(patch: DepthPatch, surface: np.ndarray) -> tuple[np.ndarray, int]:
    """Return labels of the connected pieces, (h, w) int32 from 1, 0 outside, and their count + 1.

    The surface is drawn at twice its size, with a pixel between linked neighbours: then OpenCV's
    labels of a binary image respect the links.
    """
    height, width = surface.shape
    canvas = np.zeros((2 * height - 1, 2 * width - 1), np.uint8)
    canvas[::2, ::2], canvas[::2, 1::2], canvas[1::2, ::2] = _links(patch, surface)
    count, labels = cv2.connectedComponents(canvas, connectivity=4)
    return labels[::2, ::2], count


def _links(patch: DepthPatch, surface: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the surface with small holes closed, and which neighbours are linked.

    The surface is (h, w) bool; links to the right (h, w - 1) and down (h - 1, w) bool are True
    where no jump is between two pixels. Holes up to two pixels wide get the depth of the closer
    surface at their edge.
    """
    near = cv2.erode(np.where(surface, patch.z, _FAR), np.ones((3, 3), np.uint8))
    hole = (near < _FAR) & (patch.mask | np.isnan(patch.z))
    z = np.where(surface, patch.z, np.where(hole, near, np.nan))
    jump = _jump_threshold(z, patch.pitch)
    right = np.abs(z[:, 1:] - z[:, :-1]) < np.fmax(jump[:, 1:], jump[:, :-1])
    down = np.abs(z[1:] - z[:-1]) < np.fmax(jump[1:], jump[:-1])
    return np.isfinite(z), right, down
