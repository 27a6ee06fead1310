# SPDX-License-Identifier: Apache-2.0
"""Whether an object hides the space between its visible surface and a plane below it.

From straight above, an object shows its top and hides its sides. In an oblique view, a line of
sight just beside the near side shows the space below an object, unless it reaches the plane. If
only the front of an object is visible, its outline says nothing about the space below it.

Metres, the camera's optical frame (REP-103). Letters: H, W rows and columns of the image, M
points. Pure numpy and OpenCV, any thread.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from lisa_ros.geometry.camera import Camera
from lisa_ros.geometry.plane import Plane
from lisa_ros.perception.masks import bounding_box

_MAX_SLANT = 35.0  # between the line of sight and the plane's normal [degrees]
_MASK_ERROR = 3  # a mask may be this much too small [px]
_OVERHANG = 0.005  # lines of sight may pass this far below the edge of an object [m]
_THIN = 0.4  # parts thinner than this, by the thickest one, hide nothing: a handle is no foot
# Share of the lowest points, which are not used: depth at an edge mixes two surfaces
_LEFT_OUT = 0.1
_MAX_SEEN = 0.03  # share of the lines of sight beside the object that may pass below it
_LEVELS = 8  # heights at which a line of sight is compared with the outline
_MAX_CELLS = 256  # along each side of the grid of the outline


def hides_below(points: np.ndarray, plane: Plane, rays: np.ndarray) -> bool:
    """Return whether an object would hide its lower part if it reached straight down to a plane.

    False if the line of sight is more than 35 degrees from the plane's normal: then its sides are
    visible.

    Args:
        points: (M, 3) of the visible surface, above the plane.
        plane: below the object.
        rays: (R, 3) just outside the object, of `rays_beside`.
    """
    if not len(points) or not len(rays) or not _is_seen_from_above(points, plane):
        return False
    falling = rays @ plane.up
    rays, falling = rays[falling < 0], falling[falling < 0]  # the others never meet the plane
    if not len(rays):
        return False
    heights = plane.height(points)
    lowest = float(np.quantile(heights, _LEFT_OUT))
    outline = _Outline.of(plane.coordinates(points[heights >= lowest].astype(np.float64)))
    inside = np.zeros(len(rays))
    for level in np.linspace(0, lowest, _LEVELS, endpoint=False):
        crossings = plane.coordinates(rays * ((plane.offset + level) / falling)[:, None])
        inside = np.maximum(inside, outline.distance_inside(crossings))
    overhang = min(_OVERHANG, outline.thickness / 4)  # a thin object hides little
    return bool(np.mean(inside > overhang) < _MAX_SEEN)


def rays_beside(mask: np.ndarray, camera: Camera, cell: int = 1) -> np.ndarray:
    """Return the rays just outside an object, (R, 3) float64 with z = 1.

    There are none if the object reaches the edge of the image: it may go on beyond it.

    Args:
        mask: (H, W) bool, the pixels of the object.
        camera: of the same pixels.
        cell: of `cell_size`, in sparse depth: the outline of the object is as coarse [px].
    """
    error = _MASK_ERROR * cell
    margin = error + 1
    x, y, width, height = bounding_box(mask)
    right, bottom = x + width + margin, y + height + margin
    if not width or min(x, y) < margin or right > mask.shape[1] or bottom > mask.shape[0]:
        return np.empty((0, 3))
    window = np.s_[y - margin : bottom, x - margin : right]
    inside = mask[window].astype(np.uint8)
    covered = cv2.dilate(inside, np.ones((2 * error + 1,) * 2, np.uint8))
    beside = cv2.dilate(covered, np.ones((3, 3), np.uint8)) > covered
    x_y = camera.rays()[window][beside].astype(np.float64)
    x_y = x_y[np.isfinite(x_y[:, 0])]
    return np.concatenate([x_y, np.ones_like(x_y[:, :1])], axis=1)


def _is_seen_from_above(points: np.ndarray, plane: Plane) -> bool:
    """Return whether the line of sight to the middle of (M, 3) points is steep to the plane."""
    middle = points.mean(axis=0, dtype=np.float64)
    return bool(-(middle @ plane.up) > np.cos(np.radians(_MAX_SLANT)) * np.linalg.norm(middle))


@dataclass(frozen=True)
class _Outline:
    """The region that points in a plane cover, drawn on a grid."""

    corner: np.ndarray  # (2,) of the grid [m]
    cell: float  # side of a cell [m]
    distances: np.ndarray  # (h, w) float32, of each cell to the edge [cells]; 0 outside

    @classmethod
    def of(cls, points: np.ndarray) -> _Outline:
        """Return the outline of (M, 2) points [m]; about four of them are in each cell."""
        low, high = points.min(axis=0), points.max(axis=0)
        sides = np.maximum(high - low, 1e-4)
        cell = float(max(2 * np.sqrt(sides.prod() / len(points)), sides.max() / _MAX_CELLS))
        corner = low - 2 * cell  # closing needs two empty cells at each side
        rows, columns = np.floor((points - corner) / cell).astype(int).T
        drawn = np.zeros((rows.max() + 3, columns.max() + 3), np.uint8)
        drawn[rows, columns] = 1
        filled = cv2.morphologyEx(drawn, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
        body = _without_thin_parts(filled)
        return cls(corner, cell, cv2.distanceTransform(body, cv2.DIST_L2, 5))

    @property
    def thickness(self) -> float:
        """Diameter of the largest circle inside [m]."""
        return 2 * float(self.distances.max()) * self.cell

    def distance_inside(self, places: np.ndarray) -> np.ndarray:
        """Return how far inside the outline each of (R, 2) places is, (R,) [m]; 0 outside."""
        cells = np.floor((places - self.corner) / self.cell)
        rows, columns = np.clip(cells, 0, np.array(self.distances.shape) - 1).astype(int).T
        return self.distances[rows, columns] * self.cell


def _without_thin_parts(drawn: np.ndarray) -> np.ndarray:
    """Return a (h, w) uint8 region without its thin parts, such as a handle."""
    distances = cv2.distanceTransform(drawn, cv2.DIST_L2, 5)
    radius = _THIN * float(distances.max())
    thick = distances > radius
    return (cv2.distanceTransform((~thick).astype(np.uint8), cv2.DIST_L2, 5) <= radius) & drawn
