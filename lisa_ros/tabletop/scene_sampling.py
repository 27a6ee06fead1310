# SPDX-License-Identifier: Apache-2.0
"""Random tabletop scenes and cameras."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lisa_ros.geometry.rotation import quaternion_to_matrix
from lisa_ros.tabletop.assets import TABLES, WALLS
from lisa_ros.tabletop.objects import HELD_OUT_TABLES, OBJECTS, SIZES, ObjectModel

SPLITS = {'train': 0, 'val': 1, 'test': 2, 'unseen': 3}  # first number of the seed of a scene


@dataclass(frozen=True)
class PlacedObject:
    """A thing on the table: which, in what colour and size, where and how it stands."""

    thing: ObjectModel
    colour: str | None
    size: str | None
    low: tuple[float, float, float]  # corners of its box, world [m]
    high: tuple[float, float, float]
    position: tuple[float, float, float]  # of the mesh's origin, world [m]
    quaternion: tuple[float, float, float, float]  # w x y z, mesh to world


@dataclass(frozen=True)
class Scene:
    """All that a picture depends on but its camera's pose."""

    placed: tuple[PlacedObject, ...]
    table: str
    wall: str
    light_position: tuple[float, float, float]  # [m]
    light: tuple[float, float, float]  # colour and brightness of the lamp, RGB 0..1
    ambient: float
    fovy: float  # of the lens, top to bottom [degrees]


_UPRIGHT = {'z': (1.0, 0.0, 0.0, 0.0), 'y': (math.sqrt(0.5), math.sqrt(0.5), 0.0, 0.0)}


def _times(a, b):
    """Hamilton product of two quaternions, w x y z."""
    w, x, y, z = a
    p, q, r, s = b
    return (
        w * p - x * q - y * r - z * s,
        w * q + x * p + y * s - z * r,
        w * r - x * s + y * p + z * q,
        w * s + x * r - y * q + z * p,
    )


def _rotation(quaternion) -> np.ndarray:
    w, x, y, z = quaternion
    return quaternion_to_matrix(x, y, z, w)


def _scale(thing: ObjectModel, size: str | None, box) -> float:
    return thing.size * SIZES.get(size, 1.0) / float((np.array(box[1]) - box[0]).max())


def body_name(thing: ObjectModel, size: str | None) -> str:
    """Return the name of a thing of one size in MuJoCo's world."""
    return f'{thing.name}.{size}' if size else thing.name


def _corners(box) -> np.ndarray:
    low, high = box
    return np.array(np.meshgrid(*zip(low, high, strict=True))).reshape(3, -1).T


def draw_scene(
    rng: np.random.Generator, boxes: dict, *, unseen: bool = False, count=None
) -> Scene:
    """Put 3 to 9 things on a table, apart from each other, under a light of its own.

    Most tables hold two or three of one kind, in other looks, so that "the red one", "the smaller
    one" and "the one behind the milk" are worth asking.
    """
    names = [t for t in OBJECTS.values() if unseen or not t.held_out]
    held = [t for t in names if t.held_out]
    count = count or int(rng.integers(3, 10))
    placed: list[PlacedObject] = []
    taken: list[tuple[float, float, float]] = []  # x, y, radius
    looks = set()
    twice = rng.random() < 0.6
    for _ in range(300):
        if len(placed) == count:
            break
        # Kinds alike often, whatever number of meshes they have; an unseen thing comes first.
        pool = held if unseen and not placed else names
        again = [p.thing.kind for p in placed if p.thing.colours]
        if twice and again and len(placed) < 4:
            kind = str(rng.choice(again))
        else:
            kind = str(rng.choice(sorted({t.kind for t in pool})))
        thing = rng.choice([t for t in pool if t.kind == kind])
        colour = str(rng.choice(thing.colours)) if thing.colours else None
        size = str(rng.choice(thing.sizes)) if thing.sizes else None
        if (thing.kind, colour, size) in looks:
            continue  # two big red mugs could not be told apart by words
        if any(p.thing is thing and (p.size == size) for p in placed):
            continue  # each mesh of one size is there once
        if any(look[0] == kind for look in looks) and not thing.colours:
            continue
        pose = _UPRIGHT[thing.up]
        if thing.lies and rng.random() < 0.25:
            pose = _times((math.sqrt(0.5), 0.0, math.sqrt(0.5), 0.0), pose)
        yaw = rng.uniform(-math.pi, math.pi)
        pose = _times((math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2)), pose)
        box = boxes[thing.name]
        corners = _corners(box) * _scale(thing, size, box) @ _rotation(pose).T
        low, high = corners.min(0), corners.max(0)
        radius = float(np.linalg.norm((high - low)[:2]) / 2) * 0.70  # boxes are looser than meshes
        x, y = rng.uniform(-0.29, 0.29), rng.uniform(-0.25, 0.25)
        if any(math.hypot(x - a, y - b) < radius + r for a, b, r in taken):
            continue
        middle = (low + high) / 2
        position = np.array([x - middle[0], y - middle[1], -low[2]])
        placed.append(
            PlacedObject(
                thing,
                colour,
                size,
                tuple((low + position).tolist()),
                tuple((high + position).tolist()),
                tuple(position.tolist()),
                pose,
            )
        )
        taken.append((x, y, radius))
        looks.add((thing.kind, colour, size))
    angle = rng.uniform(0, 2 * math.pi)
    tables = TABLES if unseen else tuple(t for t in TABLES if t not in HELD_OUT_TABLES)
    warmth = rng.uniform(-0.06, 0.06)
    light = rng.uniform(0.4, 0.8)
    return Scene(
        tuple(placed),
        str(rng.choice(tables)),
        str(rng.choice(WALLS)),
        (1.2 * math.cos(angle), 1.2 * math.sin(angle), rng.uniform(1.0, 2.2)),
        (light * (1 + warmth), light, light * (1 - warmth)),
        rng.uniform(0.25, 0.45),
        rng.uniform(42.0, 60.0),
    )


def draw_camera(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return a camera's position and the point it looks at, world [m], each (3,)."""
    azimuth = rng.uniform(-0.9, 0.9) - math.pi / 2
    height = math.radians(rng.uniform(25, 65))
    distance = rng.uniform(0.58, 0.88)
    target = np.array([rng.uniform(-0.05, 0.05), rng.uniform(-0.05, 0.05), 0.04])
    away = np.array(
        [
            math.cos(azimuth) * math.cos(height),
            math.sin(azimuth) * math.cos(height),
            math.sin(height),
        ]
    )
    return target + distance * away, target


def camera_matrix(position: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the optical frame (x right, y down, z forward) in the world, (4, 4), level."""
    forward = (target - position) / np.linalg.norm(target - position)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
    pose[:3, 3] = position
    return pose


def scene_rng(split: str, number: int) -> np.random.Generator:
    """Return the generator that a scene is drawn with: its own, whatever came before."""
    return np.random.default_rng((SPLITS[split], number))
