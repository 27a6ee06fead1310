# SPDX-License-Identifier: Apache-2.0
"""Which pixels of a mask are the thing's own surface, and how that surface runs.

A mask is a pixel or two too wide, and depth at the edge of a thing is a mixture of front and back
(bleeding, flying pixels). What is a jump depends on the noise at that distance and on how steep a
surface may be seen. Letters: h, w rows and columns of the part of the picture round the mask.
Metres, the camera's optical frame (REP-103); pure numpy and OpenCV, any thread.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from lisa_ros.geometry.oriented_box import Plane

_STEEP = 5.7  # tan of 80 degrees: a surface seen more from the side is taken for a jump
_SPILL = 4  # pixels that a mask may be too wide
SPECK = 5  # pixels below which a piece apart is noise


@dataclass(frozen=True)
class DepthPatch:
    """The part of the picture round a mask, with a margin."""

    points: np.ndarray  # (h, w, 3) float32, NaN where invalid
    mask: np.ndarray  # (h, w) bool, only where points are valid
    corner: tuple[int, int]  # its first column and row in the picture
    pitch: float  # between the rays of neighbouring pixels, x/z

    @property
    def z(self) -> np.ndarray:
        """Return the depth, (h, w) float32, NaN where invalid."""
        return self.points[..., 2]


def depth_noise_std(z: np.ndarray) -> np.ndarray:
    """Return the standard deviation of depth at z [m], of the Kinect kind: 1.2 mm and more.

    Nguyen, Izadi and Lovell, "Modeling Kinect Sensor Noise for Improved 3D Reconstruction and
    Tracking", 3DIMPVT 2012, equation 2; cameras of stereo and of time of flight are near it
    over a table.
    """
    return 0.0012 + 0.0019 * (z - 0.4) ** 2


def object_surface_mask(view: DepthPatch, plane: Plane | None) -> np.ndarray:
    """Return the pixels of the mask that are the thing's own, (h, w) bool.

    What flies goes; then what lies in the supporting plane at the mask's edge (unless the middle
    does, too: a sheet of paper); then strips of what is beside it; then the pieces that hang
    together with nothing of the thing.
    """
    kept = view.mask & ~_flying(view)
    if plane is not None and kept.any():
        height = np.abs(plane.height(view.points))
        level = height < 2.2 * abs(float(plane.up[2])) * depth_noise_std(view.z)
        edge = _edge(view.mask, 6)
        inner = kept & ~edge
        if np.mean(level[inner if inner.any() else kept]) < 0.5:
            kept &= ~(level & edge)
    kept &= ~_beside(view, kept)
    if not kept.any():
        return kept
    kept = _own_pieces(view, kept)
    return kept & ~_specks(view, kept)


def _edge(mask: np.ndarray, width: int) -> np.ndarray:
    """Return the pixels of a mask that are at most `width` pixels from its edge, (h, w) bool."""
    inside = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_C, 3)[1:-1, 1:-1]
    return mask & (inside <= width)


def _jump(z: np.ndarray, pitch: float) -> np.ndarray:
    """Return the difference of depth between neighbours that no surface explains [m]."""
    return 3 * math.sqrt(2) * depth_noise_std(z) + _STEEP * pitch * z


def _flying(view: DepthPatch) -> np.ndarray:
    """Return where depth is a mixture of front and back, (h, w) bool.

    Such a pixel has something nearer on one side, and something farther, or nothing, on the
    opposite one. The edge of a thin thing has nothing nearer beside it, and stays.
    """
    z = view.z
    jump = _jump(z, view.pitch)
    ringed = np.pad(z, 1, constant_values=np.nan)
    height, width = z.shape
    flying = np.zeros(z.shape, bool)
    for dv, du in ((0, 1), (1, 0), (1, 1), (1, -1)):
        one = ringed[1 - dv : 1 - dv + height, 1 - du : 1 - du + width]
        other = ringed[1 + dv : 1 + dv + height, 1 + du : 1 + du + width]
        for near, far in ((one, other), (other, one)):
            flying |= (z - near > jump) & ~(far - z < jump)  # ~: NaN counts as far
    return flying


def _beside(view: DepthPatch, kept: np.ndarray) -> np.ndarray:
    """Return the strips at the mask's edge that a jump cuts off from what is within, (h, w) bool.

    Where two things touch, such a strip of the other one hangs together with the thing; so it is
    not enough to be connected: an edge pixel near a jump must be reached from within, straight.
    """
    surface, right, down = _links(view, kept)
    depth_in = cv2.distanceTransform(np.pad(view.mask, 1).astype(np.uint8), cv2.DIST_C, 3)
    depth_in = depth_in[1:-1, 1:-1]
    # of a pencil all is edge: its middle half counts as within
    thickness = cv2.dilate(depth_in, np.ones((21, 21), np.uint8))
    edge = depth_in <= np.minimum(_SPILL, thickness / 2)
    cut = np.zeros(kept.shape, np.uint8)
    cut[:, 1:] |= surface[:, 1:] & surface[:, :-1] & ~right
    cut[1:] |= surface[1:] & surface[:-1] & ~down
    around = np.ones((2 * _SPILL + 1, 2 * _SPILL + 1), np.uint8)
    doubtful = kept & edge & (cv2.dilate(cut * depth_in, around) >= depth_in)  # a cut farther in
    reached = kept & ~doubtful
    for _ in range(_SPILL):
        grown = reached.copy()
        grown[:, 1:] |= reached[:, :-1] & right
        grown[:, :-1] |= reached[:, 1:] & right
        grown[1:] |= reached[:-1] & down
        grown[:-1] |= reached[1:] & down
        reached = grown & surface
    within = kept & ~edge
    beyond = np.float32(1e6)
    far = cv2.dilate(np.where(within, view.z, -beyond), around) + 0.02
    near = cv2.erode(np.where(within, view.z, beyond), around) - 0.02
    off = (far > 0) & ((view.z > far) | (view.z < near))
    return doubtful & (~reached | off)


_RING, _AWAY, _MOST = 5, 0.025, 60  # pixels from the mask's edge; [m]; pixels of a speck


def _specks(view: DepthPatch, kept: np.ndarray) -> np.ndarray:
    """Return small groups at the mask's edge that are far from all that is within, (h, w) bool.

    Some pixels of a ramp from one surface to the next make no jump. What is as large as a handle
    stays.
    """
    within = kept & ~_edge(view.mask, _RING)
    if not within.any():
        return within  # of a pencil all is edge
    _, nearest = cv2.distanceTransformWithLabels(
        (~within).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    points = np.empty((int(nearest.max()) + 1, 3), np.float32)
    points[nearest[within]] = view.points[within]
    # no farther than a surface seen at 70 degrees reaches across the ring
    reach = np.maximum(_AWAY, 2.9 * _RING * view.pitch * view.z)
    away = np.linalg.norm(view.points - points[nearest], axis=-1) > reach
    _, labels, stats, _ = cv2.connectedComponentsWithStats((kept & away).astype(np.uint8))
    small = stats[:, cv2.CC_STAT_AREA] <= _MOST
    small[0] = False
    return small[labels]


_PIECES = 60  # largest ones that are looked at; a surface in more of them is noise


def _own_pieces(view: DepthPatch, kept: np.ndarray) -> np.ndarray:
    """Return the main piece of a surface and those that belong to it, (h, w) bool.

    The main one has the most pixels, those at the mask's edge counting least. A thin piece, as of
    a handle behind holes, belongs if it is next to the main one; a piece as thick as a thing, as
    behind something that stands before it, may be farther off, but no farther than the main one
    is long.
    """
    labels, count = _pieces(view, kept)
    if count <= 2:
        return kept & (labels > 0)
    depth_in = cv2.distanceTransform(np.pad(kept, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
    chosen = labels[kept]
    inner = depth_in[kept]
    sizes = np.bincount(chosen, minlength=count)
    main = int(np.bincount(chosen, np.minimum(inner, 8), count)[1:].argmax()) + 1
    points = view.points[kept]
    body = points[chosen == main]
    body = body[:: -(-len(body) // 800)]
    length = float(np.linalg.norm(np.ptp(body, axis=0)))
    belongs = np.zeros(count, bool)
    belongs[main] = True
    for label in np.argsort(-sizes)[:_PIECES]:
        if label in (0, main) or sizes[label] < SPECK:
            continue
        own = chosen == label
        piece = points[own]
        piece = piece[:: -(-len(piece) // 200)]
        gaps = np.linalg.norm(piece[:, None] - body[None], axis=2).min(axis=1)
        thick = inner[own].max() > 4 and sizes[label] > 0.1 * sizes[main]
        belongs[label] = gaps.min() < length if thick else np.median(gaps) < 0.012
    return kept & belongs[labels]


def _pieces(view: DepthPatch, kept: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the connected pieces of a surface, (h, w) int32 from 1, 0 outside, and their count+1.

    Drawn at twice the size, with a pixel between any two neighbours that hang together, OpenCV's
    labels of a flat picture do it.
    """
    height, width = kept.shape
    links = np.zeros((2 * height - 1, 2 * width - 1), np.uint8)
    links[::2, ::2], links[::2, 1::2], links[1::2, ::2] = _links(view, kept)
    count, labels = cv2.connectedComponents(links, connectivity=4)
    return labels[::2, ::2], count


def _links(view: DepthPatch, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what is surface, (h, w) bool, and which neighbours hang together.

    To the right, (h, w - 1), and below, (h - 1, w), bool: no jump is between them. Over holes of
    two pixels the nearer surface goes on.
    """
    beyond = np.float32(1e6)  # what OpenCV puts round a picture is finite, too
    near = cv2.erode(np.where(kept, view.z, beyond), np.ones((3, 3), np.uint8))
    hole = (near < beyond) & (view.mask | np.isnan(view.z))
    z = np.where(kept, view.z, np.where(hole, near, np.nan))
    jump = _jump(z, view.pitch)
    right = np.abs(z[:, 1:] - z[:, :-1]) < np.fmax(jump[:, 1:], jump[:, :-1])
    down = np.abs(z[1:] - z[:-1]) < np.fmax(jump[1:], jump[:-1])
    return np.isfinite(z), right, down


def smooth_points_and_normals(view: DepthPatch, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return means of points, and unit normals towards the camera, (h, w, 3) float32 each.

    Over some 4 mm to each side, so that noise is small beside the slope; NaN where unknown.
    """
    z = float(np.median(view.z[kept]))
    half = int(np.clip(round(0.004 / (view.pitch * z)), 1, 8))
    side = (2 * half + 1, 2 * half + 1)
    weight = cv2.blur(kept.astype(np.float32), side, borderType=cv2.BORDER_CONSTANT)
    means = cv2.blur(
        np.where(kept[..., None], view.points, 0), side, borderType=cv2.BORDER_CONSTANT
    )
    with np.errstate(invalid='ignore', divide='ignore'):
        means = np.where((weight > 0.3)[..., None], means / weight[..., None], np.nan)
    ringed = np.pad(means, ((half, half), (half, half), (0, 0)), constant_values=np.nan)
    right = ringed[half:-half, 2 * half :] - ringed[half:-half, : -2 * half]
    down = ringed[2 * half :, half:-half] - ringed[: -2 * half, half:-half]
    normals = np.cross(down, right)  # towards the camera: y is down
    lengths = np.linalg.norm(normals, axis=-1, keepdims=True)
    return means, normals / np.where(lengths > 0, lengths, np.nan)
