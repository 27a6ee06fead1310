# SPDX-License-Identifier: Apache-2.0
"""Oriented boxes of things seen from one side: what stands on a plane is a box, a can, or neither.

One view shows the top of a thing and one or two of its sides. So the box is not the tightest one
round the points but that of the shape that explains them: a cuboid whose seen faces are planes
through their points, or a cylinder, upright or lying, whose hidden half follows from the circle.

Letters: M points. Metres, the camera's optical frame (REP-103) unless a line says otherwise; pure
numpy and OpenCV, any thread. The cuboid's yaw: Zhang, Xu, Dong and Dolan, "Efficient L-Shape
Fitting for Vehicle Detection Using Laser Scanners", IV 2017, closeness criterion.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

_SEEN = 40  # least points with the normal of a face that its place is taken from
_FEW = 12  # points that are no shape yet: the box is that of their principal axes
_USED = 2500  # points that fits look at: more change nothing but the time
_CAP = 0.010  # misfit beyond which a point is simply not explained [m]


@dataclass(frozen=True)
class Box:
    """A box in space; its third axis is up where up is known."""

    centre: np.ndarray  # (3,) float64 [m]
    rotation: np.ndarray  # (3, 3) float64, columns are the box's axes, right-handed
    extent: np.ndarray  # (3,) float64, full sizes along the axes [m]

    def corners(self) -> np.ndarray:
        """Return the corners, (8, 3) float64 metres; the last axis of the box changes fastest."""
        signs = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1], indexing='ij')).reshape(3, -1).T
        return self.centre + (signs * self.extent / 2) @ self.rotation.T


@dataclass(frozen=True)
class Plane:
    """The points p with up @ p == offset; `up` (3,) is a unit vector away from what carries."""

    up: np.ndarray
    offset: float  # [m]

    def height(self, points: np.ndarray) -> np.ndarray:
        """Return how far (..., 3) points lie above the plane [m]."""
        return points @ self.up.astype(points.dtype) - points.dtype.type(self.offset)


def principal_axes(points: np.ndarray) -> np.ndarray:
    """Return the principal axes of (M, 3) points as columns, (3, 3) float64, the longest first.

    Of the two senses of an axis the one is taken whose greatest component is positive; the third
    axis completes a right-handed frame. With fewer than three points: the camera's axes.
    """
    if len(points) < 3:
        return np.eye(3)
    centred = (points - points.mean(axis=0)).astype(np.float64)
    _, axes = np.linalg.eigh(centred.T @ centred)
    axes = axes[:, ::-1]
    greatest = axes[np.abs(axes).argmax(axis=0), range(3)]
    axes = axes * np.where(greatest < 0, -1.0, 1.0)
    axes[:, 2] = np.cross(axes[:, 0], axes[:, 1])
    return axes


def box_in_axes(points: np.ndarray, axes: np.ndarray) -> Box:
    """Return the tight box of (M, 3) points along the given axes, columns of (3, 3)."""
    along = points.astype(np.float64) @ axes
    low, high = along.min(axis=0), along.max(axis=0)
    return Box(axes @ ((low + high) / 2), axes, high - low)


def fit_upright_box(
    points: np.ndarray,
    smooth: np.ndarray,
    normals: np.ndarray,
    up: np.ndarray,
    floor: float | None = None,
    spacing: float = 0.0,
) -> Box:
    """Return the box of a thing whose third axis is up.

    Args:
        points: (M, 3) of its surface, as seen.
        smooth: (M, 3), each point's mean with those round it; NaN where unknown.
        normals: (M, 3) unit normals of the surface there, towards the camera; NaN where unknown.
        up: (3,) unit vector.
        floor: how far along `up` the plane lies that it stands on [m]; None: its lower end is
            the lowest that is seen.
        spacing: of the points of neighbouring pixels, across the view [m].
    """
    base = _level_frame(up)
    if len(points) < _FEW:
        return box_in_axes(points, base)
    step = -(-len(points) // _USED)
    level = (rows[::step].astype(np.float64) @ base for rows in (points, smooth, normals))
    seen = _SurfacePoints(*level, floor, spacing)
    shapes = [_cuboid(seen), _upright(seen), _lying(seen)]
    box, _ = min((shape for shape in shapes if shape is not None), key=lambda shape: shape[1])
    return Box(base @ box.centre, base @ box.rotation, box.extent)


@dataclass(frozen=True)
class _SurfacePoints:
    """Surface in the level frame: x right, y away from the camera, z up [m]."""

    points: np.ndarray  # (M, 3)
    smooth: np.ndarray  # (M, 3), each point's mean with those round it, NaN where unknown
    normals: np.ndarray  # (M, 3), NaN where unknown
    floor: float | None
    spacing: float  # of neighbouring pixels there [m]

    @property
    def sides(self) -> np.ndarray:
        """Where the surface is steep, (M,) bool."""
        return np.abs(self.normals[:, 2]) < 0.5

    def span(self) -> tuple[float, float]:
        """Return the lower and upper end [m]."""
        low, high = _ends(self, np.eye(3), 2)
        return (low if self.floor is None else self.floor), high


def _level_frame(up: np.ndarray) -> np.ndarray:
    """Return right, away and up as the columns of a (3, 3); right is level."""
    up = np.asarray(up, np.float64) / np.linalg.norm(up)
    ahead = np.array([0.0, 0, 1]) if abs(up[2]) < 0.95 else np.array([0.0, -1, 0])
    away = ahead - (ahead @ up) * up
    away /= np.linalg.norm(away)
    return np.stack([np.cross(away, up), away, up], axis=1)


def _ends(seen: _SurfacePoints, turn: np.ndarray, axis: int) -> tuple[float, float]:
    """Return where a thing ends along a column of `turn`, low and high [m].

    An end whose face is seen lies where the face's smoothed points are outmost. Another one is an
    edge across the other level axis: strips of points that end there, most of them a pixel or two
    early for a mask's sake, agree on it; where they do not, the end is no edge but a tip.
    """
    along, facing = seen.points @ turn[:, axis], seen.normals @ turn[:, axis]
    smooth = seen.smooth @ turn[:, axis]
    across = seen.points @ turn[:, 1 if axis == 0 else 0]
    ends = np.quantile(along, (0.01, 0.99))
    for i, sense in enumerate((-1.0, 1.0)):
        here = np.isfinite(smooth) & (np.abs(along - ends[i]) < 1.5 * _CAP)
        face = smooth[here & (facing * sense > 0.85)]
        if len(face) >= _SEEN:
            ends[i] = np.quantile(face * sense, 0.95) * sense
        elif axis < 2:
            ends[i] = sense * (_edge(along * sense, across) + seen.spacing)
    return float(ends[0]), float(ends[1])


def _edge(along: np.ndarray, across: np.ndarray) -> float:
    """Return where (M,) points end that lie `across` beside one another: the upper end [m]."""
    order = np.argsort(across)
    strips = np.array_split(order, max(1, min(16, len(order) // _SEEN)))
    tips = np.array([np.quantile(along[strip], 0.99) for strip in strips])
    outmost = float(np.quantile(tips, 0.8))
    straight = np.count_nonzero(np.abs(tips - outmost) < 0.004) > len(tips) / 2
    return outmost if straight else float(np.quantile(along, 0.995))


def _box_of(turn: np.ndarray, low: np.ndarray, high: np.ndarray) -> Box:
    """Return the box between two corners given along the columns of `turn`."""
    low, high = np.asarray(low), np.asarray(high)
    return Box(turn @ ((low + high) / 2), turn, high - low)


def _turn(yaw: float) -> np.ndarray:
    """Return a rotation about up as a (3, 3) matrix."""
    cosine, sine = np.cos(yaw), np.sin(yaw)
    return np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])


# ---------------------------------------------------------------- a cuboid


def _cuboid(seen: _SurfacePoints) -> tuple[Box, float]:
    """Return the upright cuboid and its misfit [m]."""
    sides = seen.points[seen.sides, :2]
    if len(sides) >= _SEEN:
        yaw = _closest_yaw(sides)
        yaw = _aligned_yaw(seen.points[seen.sides, :2], seen.normals[seen.sides, :2], yaw)
    else:  # flat: only its outline says how it lies
        yaw = np.radians(cv2.minAreaRect(seen.points[:, :2].astype(np.float32))[2])
    turn = _turn(yaw)
    along = seen.points @ turn
    low, high = np.transpose([_ends(seen, turn, 0), _ends(seen, turn, 1), seen.span()])
    to_faces = np.minimum(np.abs(along - low), np.abs(along - high)).min(axis=1)
    return _box_of(turn, low, high), _misfit(to_faces)


def _closest_yaw(flat: np.ndarray) -> float:
    """Return the yaw [rad] of the rectangle whose edges (M, 2) points are closest to."""
    flat = flat[:: -(-len(flat) // 600)]
    yaws = np.radians(np.arange(0.0, 90.0, 1.5))
    cosine, sine = np.cos(yaws)[:, None], np.sin(yaws)[:, None]
    x, y = flat[:, 0], flat[:, 1]
    closest = None
    for along in (x * cosine + y * sine, y * cosine - x * sine):  # (60, M)
        low, high = np.quantile(along, (0.02, 0.98), axis=1)[..., None]
        away = np.minimum(np.abs(along - low), np.abs(high - along))
        closest = away if closest is None else np.minimum(closest, away)
    return float(yaws[(1 / np.maximum(closest, 0.002)).sum(axis=1).argmax()])


def _aligned_yaw(flat: np.ndarray, normals: np.ndarray, yaw: float) -> float:
    """Return the yaw of the perpendicular lines through the seen faces, by least squares.

    Points belong to the face that their normal is nearest to; those off its middle are left out.
    """
    for _ in range(4):
        turn = _turn(yaw)[:2, :2]
        along, facing = flat @ turn, normals @ turn
        scatter = np.zeros((2, 2))
        for i in range(2):
            for sense in (-1.0, 1.0):
                face = facing[:, i] * sense > 0.8
                if np.count_nonzero(face) < _SEEN // 2:
                    continue
                off = along[face] - np.median(along[face], axis=0)
                off = off[np.abs(off[:, i]) < 0.006]
                if i == 1:  # turned by a quarter, both faces tell of one yaw
                    off = np.stack([off[:, 1], -off[:, 0]], axis=1)
                scatter += off.T @ off
        if not scatter.any():
            return yaw
        across = np.linalg.eigh(scatter)[1][:, 0]
        across = across * np.sign(across[0] or 1.0)
        yaw += float(np.clip(np.arctan2(across[1], across[0]), -0.1, 0.1))
    return yaw


def _misfit(distances: np.ndarray) -> float:
    """Return how badly a shape explains points at these distances from its surface [m]."""
    return float(np.sqrt(np.mean(np.minimum(distances, _CAP) ** 2)))


# ---------------------------------------------------------------- a can


def _upright(seen: _SurfacePoints) -> tuple[Box, float] | None:
    """Return the box of an upright cylinder and its misfit [m]; None if nothing is round."""
    sides = seen.points[seen.sides, :2]
    circle = _circle(sides)
    if circle is None:
        return None
    middle, radius = circle
    low, high = seen.span()
    from_axis = np.linalg.norm(seen.points[:, :2] - middle, axis=1)
    to_shell = np.abs(from_axis - radius)
    to_lid = np.where(from_axis < radius, np.abs(seen.points[:, 2] - high), np.inf)
    box = Box(
        np.array([*middle, (low + high) / 2]), np.eye(3), np.array([2 * radius] * 2 + [high - low])
    )
    return box, _misfit(np.minimum(to_shell, to_lid))


def _lying(seen: _SurfacePoints) -> tuple[Box, float] | None:
    """Return the box of a lying cylinder and its misfit [m]; None if nothing is round.

    All normals of its shell are perpendicular to its axis; those along it are of its lids.
    """
    known = np.isfinite(seen.normals[:, 0])
    shell = known.copy()
    axis = np.array([1.0, 0.0])
    for _ in range(4):
        if np.count_nonzero(shell) < _SEEN:
            return None
        axis = np.linalg.eigh(seen.normals[shell, :2].T @ seen.normals[shell, :2])[1][:, 0]
        shell = known & (np.abs(seen.normals[:, :2] @ axis) < 0.4)
    turn = _turn(float(np.arctan2(axis[1], axis[0])))
    along = seen.points @ turn
    circle = _circle(along[shell, 1:])
    if circle is None:
        return None
    (across, height), radius = circle
    if seen.floor is not None and abs(height - radius - seen.floor) > _CAP:
        return None  # it would float, or sink in
    if height + radius - np.quantile(seen.points[:, 2], 0.99) > _CAP:
        return None  # its top would be seen from above: it is a bowl's wall
    low, high = _ends(seen, turn, 0)
    to_shell = np.abs(np.linalg.norm(along[:, 1:] - (across, height), axis=1) - radius)
    to_lids = np.minimum(np.abs(along[:, 0] - low), np.abs(along[:, 0] - high))
    box = _box_of(
        turn,
        [low, across - radius, height - radius],
        [high, across + radius, height + radius],
    )
    return box, _misfit(np.minimum(to_shell, to_lids))


def _circle(flat: np.ndarray) -> tuple[np.ndarray, float] | None:
    """Return centre (2,) and radius of the circle through an arc of (M, 2) points, or None.

    The algebraic fit (Kasa 1976) begins, Gauss-Newton on the true distances ends it; points off
    the circle, as a handle's, lose their say on the way. A short arc says nothing and is refused.
    """
    if len(flat) < _SEEN:
        return None
    used = flat
    origin = flat.mean(axis=0)
    centre, radius = None, 0.0
    for turn in range(12):
        if centre is None:
            x = used - origin
            design = np.column_stack([2 * x, np.ones(len(x))])
            answer, *_ = np.linalg.lstsq(design, (x**2).sum(axis=1), rcond=None)
            centre = origin + answer[:2]
            radius = float(np.sqrt(max(answer[2] + answer[:2] @ answer[:2], 1e-12)))
            continue
        away = flat - centre
        distance = np.maximum(np.linalg.norm(away, axis=1), 1e-9)
        off = distance - radius
        keep = np.abs(off) <= max(0.003, 2.5 * float(np.median(np.abs(off))) * (1 + 2 / turn))
        if np.count_nonzero(keep) < _SEEN:
            return None
        design = np.column_stack([away[keep] / distance[keep, None], np.ones(keep.sum())])
        step, *_ = np.linalg.lstsq(design, off[keep], rcond=None)
        centre, radius = centre + step[:2], radius + float(step[2])
    if not 0.004 < radius < 0.75 * float(np.ptp(flat, axis=0).max()):
        return None
    return (centre, radius) if _arc(flat[keep] - centre) > np.radians(100) else None


def _arc(away: np.ndarray) -> float:
    """Return the angle [rad] that (M, 2) vectors from a circle's middle cover."""
    angles = np.sort(np.arctan2(away[:, 1], away[:, 0]))
    gaps = np.diff(np.concatenate([angles, angles[:1] + 2 * np.pi]))
    return float(2 * np.pi - gaps.max())
