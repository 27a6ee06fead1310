# SPDX-License-Identifier: Apache-2.0
"""Oriented bounding boxes of objects seen from one side.

One view shows the top of an object and one or two of its sides. So an upright box is not the
tightest box around the points but the box of the shape that explains them best: a cuboid whose
visible faces are planes through the points, or a cylinder, upright or lying, whose hidden half
follows from the circle.

Letters: M points. Metres, the camera's optical frame (REP-103) unless a line says otherwise. Pure
numpy and OpenCV, any thread. The yaw of the cuboid: Zhang, Xu, Dong and Dolan, "Efficient L-Shape
Fitting for Vehicle Detection Using Laser Scanners", IV 2017, closeness criterion.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from lisa_ros.geometry.circle_fit import fit_circle
from lisa_ros.geometry.support_plane import Floor

_MIN_FACE_POINTS = 40  # minimum number of points with a face's normal to locate the face
_MIN_SHAPE_POINTS = 12  # fewer define no shape: the box is axis-aligned in the level frame
_MAX_FIT_POINTS = 2500  # more points only increase the run time
_MAX_MISFIT = 0.010  # upper limit of the misfit of a point [m]
_SIDE_NORMAL = 0.5  # a surface with |z| of its normal below this is a side, above it top or bottom
_END_BAND = 1.5 * _MAX_MISFIT  # the face of an end is searched within this distance [m]
_STRIPS = 16  # maximum number of strips to find an edge
_STRAIGHT_EDGE = 0.004  # strips within this deviation agree on an edge [m]
_YAW_POINTS = 600  # maximum number of points in the search for the yaw
_YAW_STEP = 1.5  # step of the search for the yaw [degrees]
_FACE_THICKNESS = 0.006  # points this close to a face's median refine the yaw [m]


@dataclass(frozen=True)
class Box:
    """An oriented box; its third axis is up where up is known."""

    centre: np.ndarray  # (3,) float64 [m]
    rotation: np.ndarray  # (3, 3) float64, columns are the box's axes, right-handed
    extent: np.ndarray  # (3,) float64, full lengths along the axes [m]

    def corners(self) -> np.ndarray:
        """Return the corners, (8, 3) float64 [m]; the last axis of the box changes fastest."""
        signs = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1], indexing='ij')).reshape(3, -1).T
        return self.centre + (signs * self.extent / 2) @ self.rotation.T


def principal_axes(points: np.ndarray) -> np.ndarray:
    """Return the principal axes of (M, 3) points as columns, (3, 3) float64, the longest first.

    The sign of an axis makes its largest component positive; the third axis completes a
    right-handed frame. With fewer than three points: the camera's axes.
    """
    if len(points) < 3:
        return np.eye(3)
    centred = (points - points.mean(axis=0)).astype(np.float64)
    _, axes = np.linalg.eigh(centred.T @ centred)
    axes = axes[:, ::-1]
    largest = axes[np.abs(axes).argmax(axis=0), range(3)]
    axes = axes * np.where(largest < 0, -1.0, 1.0)
    axes[:, 2] = np.cross(axes[:, 0], axes[:, 1])
    return axes


def box_in_axes(points: np.ndarray, axes: np.ndarray) -> Box:
    """Return the tight box of (M, 3) points along the given axes, columns of (3, 3)."""
    coordinates = points.astype(np.float64) @ axes
    return _box_between(axes, coordinates.min(axis=0), coordinates.max(axis=0))


def fit_upright_box(
    points: np.ndarray,
    smooth: np.ndarray,
    normals: np.ndarray,
    up: np.ndarray,
    floor: Floor | None = None,
    spacing: float = 0.0,
) -> Box:
    """Return the box of an object; its third axis is up.

    Args:
        points: (M, 3) of the visible surface.
        smooth: (M, 3) the points smoothed; NaN where unknown.
        normals: (M, 3) unit normals of the surface, towards the camera; NaN where unknown.
        up: (3,) unit vector.
        floor: of the plane that the object stands on; None: the object begins at its lowest
            visible point.
        spacing: distance of the points of neighbouring pixels, across the view [m].
    """
    frame = _level_frame(up)
    if len(points) < _MIN_SHAPE_POINTS:
        return box_in_axes(points, frame)
    step = -(-len(points) // _MAX_FIT_POINTS)
    level = (rows[::step].astype(np.float64) @ frame for rows in (points, smooth, normals))
    surface = _SurfacePoints(*level, floor, spacing)
    fits = [_fit_cuboid(surface), _fit_upright_cylinder(surface), _fit_lying_cylinder(surface)]
    box, _ = min((fit for fit in fits if fit is not None), key=lambda fit: fit[1])
    return Box(frame @ box.centre, frame @ box.rotation, box.extent)


@dataclass(frozen=True)
class _SurfacePoints:
    """A visible surface in the level frame: x right, y away from the camera, z up [m]."""

    points: np.ndarray  # (M, 3) float64
    smooth: np.ndarray  # (M, 3) float64, the points smoothed; NaN where unknown
    normals: np.ndarray  # (M, 3) float64, NaN where unknown
    floor: Floor | None  # z of the support plane
    spacing: float  # of neighbouring pixels at the object [m]

    @property
    def sides(self) -> np.ndarray:
        """Where the surface is steep, (M,) bool."""
        return np.abs(self.normals[:, 2]) < _SIDE_NORMAL

    def vertical_range(self) -> tuple[float, float]:
        """Return the lower and the upper end [m]."""
        low, high = _ends(self, np.eye(3), 2)
        if self.floor is None or self.floor.position >= high:  # lower than its surroundings
            return low, high
        return self.floor.position, high


def _level_frame(up: np.ndarray) -> np.ndarray:
    """Return right, away and up as the columns of a (3, 3); right and away are horizontal."""
    up = np.asarray(up, np.float64) / np.linalg.norm(up)
    view = np.array([0.0, 0, 1]) if abs(up[2]) < 0.95 else np.array([0.0, -1, 0])
    away = view - (view @ up) * up
    away /= np.linalg.norm(away)
    return np.stack([np.cross(away, up), away, up], axis=1)


def _ends(surface: _SurfacePoints, rotation: np.ndarray, axis: int) -> tuple[float, float]:
    """Return where an object ends along a column of `rotation`, low and high [m].

    If the face at an end is visible, the end is at the outermost smoothed points of the face.
    Otherwise the end of a horizontal axis is an edge, see `_edge`.
    """
    along = surface.points @ rotation[:, axis]
    facing = surface.normals @ rotation[:, axis]
    smooth = surface.smooth @ rotation[:, axis]
    across = surface.points @ rotation[:, 1 if axis == 0 else 0]
    ends = np.quantile(along, (0.01, 0.99))
    for i, sign in enumerate((-1.0, 1.0)):
        near = np.isfinite(smooth) & (np.abs(along - ends[i]) < _END_BAND)
        face = smooth[near & (facing * sign > 0.85)]
        if len(face) >= _MIN_FACE_POINTS:
            ends[i] = np.quantile(face * sign, 0.95) * sign
        elif axis < 2:
            ends[i] = sign * (_edge(along * sign, across) + surface.spacing)
    return float(ends.min()), float(ends.max())


def _edge(along: np.ndarray, across: np.ndarray) -> float:
    """Return the upper end [m] of (M,) points, sorted into strips by (M,) `across`.

    The strips of a straight edge agree on its position, even if the mask misses a pixel or two in
    most of them. If they do not agree, the end is a tip, not an edge.
    """
    order = np.argsort(across)
    count = max(1, min(_STRIPS, len(order) // _MIN_FACE_POINTS))
    tips = np.array([np.quantile(along[strip], 0.99) for strip in np.array_split(order, count)])
    edge = float(np.quantile(tips, 0.8))
    straight = np.count_nonzero(np.abs(tips - edge) < _STRAIGHT_EDGE) > len(tips) / 2
    return edge if straight else float(np.quantile(along, 0.995))


def _box_between(rotation: np.ndarray, low: np.ndarray, high: np.ndarray) -> Box:
    """Return the box between two corners, (3,) each, along the columns of `rotation`."""
    low, high = np.asarray(low), np.asarray(high)
    return Box(rotation @ ((low + high) / 2), rotation, high - low)


def _yaw_rotation(yaw: float) -> np.ndarray:
    """Return the rotation about the vertical axis by `yaw` [rad] as a (3, 3) matrix."""
    cosine, sine = np.cos(yaw), np.sin(yaw)
    return np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])


def _misfit(distances: np.ndarray) -> float:
    """Return the RMS distance of points to the surface of a shape, each distance limited [m]."""
    return float(np.sqrt(np.mean(np.minimum(distances, _MAX_MISFIT) ** 2)))


# ---------------------------------------------------------------- cuboid


def _fit_cuboid(surface: _SurfacePoints) -> tuple[Box, float]:
    """Return the upright cuboid and its misfit [m]."""
    sides = surface.points[surface.sides, :2]
    if len(sides) >= _MIN_FACE_POINTS:
        yaw = _closest_yaw(sides)
        yaw = _refine_yaw(sides, surface.normals[surface.sides, :2], yaw)
    else:  # a flat object: only its outline has a direction
        yaw = np.radians(cv2.minAreaRect(surface.points[:, :2].astype(np.float32))[2])
    rotation = _yaw_rotation(yaw)
    coordinates = surface.points @ rotation
    low, high = np.transpose(
        [_ends(surface, rotation, 0), _ends(surface, rotation, 1), surface.vertical_range()]
    )
    to_faces = np.minimum(np.abs(coordinates - low), np.abs(coordinates - high)).min(axis=1)
    return _box_between(rotation, low, high), _misfit(to_faces)


def _closest_yaw(points: np.ndarray) -> float:
    """Return the yaw [rad] of the rectangle with edges closest to (M, 2) points."""
    points = points[:: -(-len(points) // _YAW_POINTS)]
    yaws = np.radians(np.arange(0.0, 90.0, _YAW_STEP))
    cosine, sine = np.cos(yaws)[:, None], np.sin(yaws)[:, None]
    x, y = points[:, 0], points[:, 1]
    to_edges = None
    for along in (x * cosine + y * sine, y * cosine - x * sine):  # (60, M)
        low, high = np.quantile(along, (0.02, 0.98), axis=1)[..., None]
        distances = np.minimum(np.abs(along - low), np.abs(high - along))
        to_edges = distances if to_edges is None else np.minimum(to_edges, distances)
    return float(yaws[(1 / np.maximum(to_edges, 0.002)).sum(axis=1).argmax()])


def _refine_yaw(points: np.ndarray, normals: np.ndarray, yaw: float) -> float:
    """Return the yaw [rad] of the perpendicular lines through the visible faces, least squares.

    Each of (M, 2) points belongs to the face with the normal closest to its own, (M, 2). Points
    farther than `_FACE_THICKNESS` from the median of the face are left out.
    """
    for _ in range(4):
        rotation = _yaw_rotation(yaw)[:2, :2]
        scatter = _face_scatter(points @ rotation, normals @ rotation)
        if not scatter.any():
            return yaw
        direction = np.linalg.eigh(scatter)[1][:, 0]
        direction = direction * np.sign(direction[0] or 1.0)
        yaw += float(np.clip(np.arctan2(direction[1], direction[0]), -0.1, 0.1))
    return yaw


def _face_scatter(points: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Return the (2, 2) scatter of the (M, 2) points of all faces, turned to lie along y."""
    scatter = np.zeros((2, 2))
    for axis in range(2):
        for sign in (-1.0, 1.0):
            in_face = normals[:, axis] * sign > 0.8
            if np.count_nonzero(in_face) < _MIN_FACE_POINTS // 2:
                continue
            offsets = points[in_face] - np.median(points[in_face], axis=0)
            offsets = offsets[np.abs(offsets[:, axis]) < _FACE_THICKNESS]
            if axis == 1:  # turned by 90 degrees, so that all faces determine the same yaw
                offsets = np.stack([offsets[:, 1], -offsets[:, 0]], axis=1)
            scatter += offsets.T @ offsets
    return scatter


# ---------------------------------------------------------------- cylinders


def _fit_upright_cylinder(surface: _SurfacePoints) -> tuple[Box, float] | None:
    """Return the box of an upright cylinder and its misfit [m]; None if no circle fits."""
    circle = fit_circle(surface.points[surface.sides, :2])
    if circle is None:
        return None
    centre, radius = circle
    low, high = surface.vertical_range()
    from_axis = np.linalg.norm(surface.points[:, :2] - centre, axis=1)
    to_shell = np.abs(from_axis - radius)
    to_lid = np.where(from_axis < radius, np.abs(surface.points[:, 2] - high), np.inf)
    box = Box(
        np.array([*centre, (low + high) / 2]), np.eye(3), np.array([2 * radius] * 2 + [high - low])
    )
    return box, _misfit(np.minimum(to_shell, to_lid))


def _fit_lying_cylinder(surface: _SurfacePoints) -> tuple[Box, float] | None:
    """Return the box of a lying cylinder and its misfit [m]; None if no circle fits.

    The normals of the shell are perpendicular to the axis; those of the lids are along the axis.
    """
    has_normal = np.isfinite(surface.normals[:, 0])
    shell = has_normal.copy()
    axis = np.array([1.0, 0.0])
    for _ in range(4):
        if np.count_nonzero(shell) < _MIN_FACE_POINTS:
            return None
        normals = surface.normals[shell, :2]
        axis = np.linalg.eigh(normals.T @ normals)[1][:, 0]
        shell = has_normal & (np.abs(surface.normals[:, :2] @ axis) < 0.4)
    rotation = _yaw_rotation(float(np.arctan2(axis[1], axis[0])))
    coordinates = surface.points @ rotation
    circle = fit_circle(coordinates[shell, 1:])
    if circle is None:
        return None
    (across, height), radius = circle
    if surface.floor is not None:
        gap = height - radius - surface.floor.position
        if gap < -_MAX_MISFIT or (gap > _MAX_MISFIT and surface.floor.is_visible):
            return None  # the cylinder would sink into the plane or float above it
    if height + radius - np.quantile(surface.points[:, 2], 0.99) > _MAX_MISFIT:
        return None  # no points at the top of the circle: this is the wall of a bowl
    low, high = _ends(surface, rotation, 0)
    from_axis = np.linalg.norm(coordinates[:, 1:] - (across, height), axis=1)
    to_shell = np.abs(from_axis - radius)
    to_lids = np.minimum(np.abs(coordinates[:, 0] - low), np.abs(coordinates[:, 0] - high))
    box = _box_between(
        rotation,
        [low, across - radius, height - radius],
        [high, across + radius, height + radius],
    )
    return box, _misfit(np.minimum(to_shell, to_lids))
