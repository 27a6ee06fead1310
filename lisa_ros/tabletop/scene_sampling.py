# SPDX-License-Identifier: Apache-2.0
"""Random tabletop scenes and cameras.

The random generator of a scene is seeded with its split and its number, so that these two identify
the scene. The world frame has z up and the table top at z = 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lisa_ros.geometry.rotation import quaternion_to_matrix
from lisa_ros.tabletop.assets import TABLE_TEXTURES, WALL_TEXTURES
from lisa_ros.tabletop.objects import HELD_OUT_TABLE_TEXTURES, OBJECTS, SIZES, ObjectModel

SPLITS = {'train': 0, 'val': 1, 'test': 2, 'unseen': 3}  # split -> first number of the seed
Quaternion = tuple[float, float, float, float]  # w x y z
Box = Sequence[Sequence[float]]  # (minimum corner, maximum corner), each (3,)
Vector = tuple[float, float, float]

_MAX_TRIES = 300
_TABLE_HALF_SIZE = (0.29, 0.25)  # of the area with objects, x and y [m]
_REPEAT_RATE = 0.6  # share of scenes with two or more objects of one category
_LYING_RATE = 0.25  # share of the objects with `can_lie` that lie on their side
# The circle that an object covers is smaller than that round its bounding box by this factor.
_RADIUS_SCALE = 0.70


@dataclass(frozen=True)
class PlacedObject:
    """An object of a scene, with its appearance and pose."""

    model: ObjectModel
    colour: str | None
    size: str | None
    box_min: Vector  # corners of its axis-aligned bounding box, world [m]
    box_max: Vector
    position: Vector  # of the mesh origin, world [m]
    quaternion: Quaternion  # rotation from the mesh frame to the world


@dataclass(frozen=True)
class Scene:
    """All that a rendered image depends on, except the camera pose."""

    objects: tuple[PlacedObject, ...]
    table_texture: str
    wall_texture: str
    light_position: Vector  # world [m]
    light_colour: Vector  # RGB 0..1, brightness included
    ambient: float  # brightness of the ambient light, 0..1
    fovy: float  # vertical field of view [degrees]


# mesh axis that points up -> rotation that makes it the world's z axis
_UPRIGHT_ROTATIONS: dict[str, Quaternion] = {
    'z': (1.0, 0.0, 0.0, 0.0),
    'y': (math.sqrt(0.5), math.sqrt(0.5), 0.0, 0.0),
}
_LYING: Quaternion = (math.sqrt(0.5), 0.0, math.sqrt(0.5), 0.0)


def _multiply(a: Quaternion, b: Quaternion) -> Quaternion:
    """Return the Hamilton product of two quaternions."""
    w, x, y, z = a
    p, q, r, s = b
    return (
        w * p - x * q - y * r - z * s,
        w * q + x * p + y * s - z * r,
        w * r - x * s + y * p + z * q,
        w * s + x * r - y * q + z * p,
    )


def rotation_matrix(quaternion: Quaternion) -> np.ndarray:
    """Return the (3, 3) rotation matrix of a quaternion w x y z."""
    w, x, y, z = quaternion
    return quaternion_to_matrix(x, y, z, w)


def mesh_scale(model: ObjectModel, size: str | None, box: Box) -> float:
    """Return the scale from mesh units to metres.

    Args:
        model: the object model.
        size: key of SIZES, or None.
        box: bounding box of the mesh, in its units.
    """
    return model.size * SIZES.get(size, 1.0) / float((np.array(box[1]) - box[0]).max())


def body_name(model: ObjectModel, size: str | None) -> str:
    """Return the name of a model's MuJoCo body; each size has a body of its own."""
    return f'{model.name}.{size}' if size else model.name


def box_corners(box: Box) -> np.ndarray:
    """Return the corners of a box, (8, 3)."""
    low, high = box
    return np.array(np.meshgrid(*zip(low, high, strict=True))).reshape(3, -1).T


def draw_scene(
    rng: np.random.Generator,
    boxes: Mapping[str, Box],
    *,
    unseen: bool = False,
    count: int | None = None,
) -> Scene:
    """Return a random scene: objects on a table that do not overlap, and a light.

    Most scenes have several objects of one category that differ in colour or size. Then "the red
    one", "the smaller one" and "the one behind the milk" are useful queries.

    Args:
        rng: the generator of all random draws.
        boxes: object model name -> bounding box of its mesh, see `assets`.
        unseen: draw from all models and tables; the first object is a held-out model.
        count: number of objects; None: 3 to 9. If the table is full, the scene has fewer.
    """
    objects = _draw_objects(rng, boxes, unseen, count)
    angle = rng.uniform(0, 2 * math.pi)
    tables = (
        TABLE_TEXTURES
        if unseen
        else tuple(t for t in TABLE_TEXTURES if t not in HELD_OUT_TABLE_TEXTURES)
    )
    warmth = rng.uniform(-0.06, 0.06)
    brightness = rng.uniform(0.4, 0.8)
    return Scene(
        objects,
        str(rng.choice(tables)),
        str(rng.choice(WALL_TEXTURES)),
        (1.2 * math.cos(angle), 1.2 * math.sin(angle), rng.uniform(1.0, 2.2)),
        (brightness * (1 + warmth), brightness, brightness * (1 - warmth)),
        rng.uniform(0.25, 0.45),
        rng.uniform(42.0, 60.0),
    )


def _draw_objects(
    rng: np.random.Generator, boxes: Mapping[str, Box], unseen: bool, count: int | None
) -> tuple[PlacedObject, ...]:
    """Return the objects of a scene; no two of them overlap or have the same name."""
    models = [m for m in OBJECTS.values() if unseen or not m.held_out]
    held_out = [m for m in models if m.held_out]
    count = count or int(rng.integers(3, 10))
    placed: list[PlacedObject] = []
    occupied: list[tuple[float, float, float]] = []  # occupied (x, y, radius) [m]
    repeats = rng.random() < _REPEAT_RATE
    for _ in range(_MAX_TRIES):
        if len(placed) == count:
            break
        pool = held_out if unseen and not placed else models
        model = _draw_model(rng, pool, placed, repeats)
        colour = str(rng.choice(model.colours)) if model.colours else None
        size = str(rng.choice(model.sizes)) if model.sizes else None
        if not _is_distinct(model, colour, size, placed):
            continue
        candidate, circle = _draw_pose(rng, model, colour, size, boxes[model.name])
        x, y, radius = circle
        if any(math.hypot(x - a, y - b) < radius + r for a, b, r in occupied):
            continue
        placed.append(candidate)
        occupied.append(circle)
    return tuple(placed)


def _draw_model(
    rng: np.random.Generator,
    pool: list[ObjectModel],
    placed: list[PlacedObject],
    repeats: bool,
) -> ObjectModel:
    """Return a random model. All categories are equally likely, also those with few models.

    With `repeats`, the second to fourth object have a category that the scene already has, once
    an object with several colours is placed.
    """
    repeatable = [p.model.category for p in placed if p.model.colours]
    if repeats and repeatable and len(placed) < 4:
        category = str(rng.choice(repeatable))
    else:
        category = str(rng.choice(sorted({m.category for m in pool})))
    return rng.choice([m for m in pool if m.category == category])


def _is_distinct(
    model: ObjectModel, colour: str | None, size: str | None, placed: list[PlacedObject]
) -> bool:
    """Return whether the name of an object is unique in the scene, and its MuJoCo body unused."""
    same_category = [p for p in placed if p.model.category == model.category]
    same_look = any((p.colour, p.size) == (colour, size) for p in same_category)
    same_body = any(p.model is model and p.size == size for p in placed)
    return not (same_look or same_body or (same_category and not model.colours))


def _draw_pose(
    rng: np.random.Generator, model: ObjectModel, colour: str | None, size: str | None, box: Box
) -> tuple[PlacedObject, tuple[float, float, float]]:
    """Return an object at a random place on the table, and its circle (x, y, radius) there [m]."""
    quaternion = _UPRIGHT_ROTATIONS[model.up_axis]
    if model.can_lie and rng.random() < _LYING_RATE:
        quaternion = _multiply(_LYING, quaternion)
    quaternion = _turned(quaternion, rng.uniform(-math.pi, math.pi))
    x, y = (rng.uniform(-half, half) for half in _TABLE_HALF_SIZE)
    placed = place_object(model, colour, size, box, (x, y), quaternion)
    extent = np.subtract(placed.box_max, placed.box_min)
    return placed, (x, y, float(np.linalg.norm(extent[:2]) / 2) * _RADIUS_SCALE)


def upright(model: ObjectModel, yaw: float) -> Quaternion:
    """Return the rotation of an upright object; `yaw` is about the vertical axis [rad]."""
    return _turned(_UPRIGHT_ROTATIONS[model.up_axis], yaw)


def _turned(quaternion: Quaternion, yaw: float) -> Quaternion:
    """Return a rotation followed by one about the vertical axis."""
    return _multiply((math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2)), quaternion)


def place_object(
    model: ObjectModel,
    colour: str | None,
    size: str | None,
    box: Box,
    middle: tuple[float, float],
    quaternion: Quaternion,
) -> PlacedObject:
    """Return an object that stands on the table.

    Args:
        model: the object model.
        colour: one of `model.colours`, or None.
        size: one of `model.sizes`, or None.
        box: bounding box of the mesh, in its units.
        middle: x and y of the centre of its bounding box, world [m].
        quaternion: rotation from the mesh frame to the world.
    """
    corners = box_corners(box) * mesh_scale(model, size, box) @ rotation_matrix(quaternion).T
    low, high = corners.min(0), corners.max(0)
    centre = (low + high) / 2
    position = np.array([middle[0] - centre[0], middle[1] - centre[1], -low[2]])
    return PlacedObject(
        model,
        colour,
        size,
        tuple((low + position).tolist()),
        tuple((high + position).tolist()),
        tuple(position.tolist()),
        quaternion,
    )


def draw_camera(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return a camera's position and the point it looks at, world [m], each (3,)."""
    azimuth = rng.uniform(-0.9, 0.9) - math.pi / 2
    elevation = math.radians(rng.uniform(25, 65))
    distance = rng.uniform(0.58, 0.88)
    target = np.array([rng.uniform(-0.05, 0.05), rng.uniform(-0.05, 0.05), 0.04])
    return target + distance * direction(azimuth, elevation), target


def direction(azimuth: float, elevation: float) -> np.ndarray:
    """Return the unit vector (3,) of two angles [rad], world; azimuth 0 is along x."""
    return np.array(
        [
            math.cos(azimuth) * math.cos(elevation),
            math.sin(azimuth) * math.cos(elevation),
            math.sin(elevation),
        ]
    )


def camera_matrix(position: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the pose of a camera's optical frame in the world, (4, 4), without roll.

    The optical frame has x right, y down, z forward (REP-103).
    """
    forward = (target - position) / np.linalg.norm(target - position)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
    pose[:3, 3] = position
    return pose


def scene_rng(split: str, number: int) -> np.random.Generator:
    """Return the generator of one scene; it does not depend on other scenes."""
    return np.random.default_rng((SPLITS[split], number))
