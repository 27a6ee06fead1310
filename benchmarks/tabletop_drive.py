# SPDX-License-Identifier: Apache-2.0
"""A robot drives round three tables with twelve objects: path, odometry, truth, rendered frames.

The robot passes each table twice. In between, two objects are put on other tables. Each table
stands in a room of its own, and the camera sees the room of the nearest one.

Frames: map, odom and base_link have z up and x forward (REP-105); the optical frame has x right,
y down, z forward (REP-103). A table's frame has its origin in the middle of the table top, and its
-y axis points to the robot. Poses are (4, 4) matrices; A_to_B is the pose of B in A. Times are in
seconds from the start of the drive.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))

from geometry import degraded

from lisa_ros.geometry.rotation import quaternion_to_matrix
from lisa_ros.tabletop import scene_sampling
from lisa_ros.tabletop.assets import TABLE_TEXTURES, WALL_TEXTURES
from lisa_ros.tabletop.objects import OBJECTS
from lisa_ros.tabletop.rendering import Renderer
from lisa_ros.tabletop.scene_sampling import Box, PlacedObject, Scene

ROUNDS = 2
TABLE_COUNT = 3
TABLE_HEIGHT = 0.75  # [m], as the floor of the renderer
_TABLE_DISTANCE = 2.0  # of the tables from the origin of the map [m]
_PASS_DISTANCE = 0.95  # of the robot from the middle of a table [m]
_PASS_ANGLE = math.radians(40)  # of the arc in front of a table, to each side
_TRANSIT_SHARE = 0.43  # time from table to table, as a share of that at a table
_CAMERA_HEIGHT = 1.35  # above the floor [m]
_CAMERA_PITCH = math.radians(31)  # downwards
_FOVY = 42.0  # vertical field of view [degrees]
_DEPTH_RANGE = 5.0  # of the camera [m]
_SLOTS = tuple((x, y) for x in (-0.22, 0.0, 0.22) for y in (-0.12, 0.14))  # on a table [m]
_JITTER = 0.02  # of an object from its slot [m]
ODOMETRY_STEP = 0.05  # between two poses of the odometry [s]


@dataclass(frozen=True)
class Item:
    """An object and what people call it."""

    name: str
    model: str  # key of OBJECTS
    table: int  # in the first round
    moved_to: int | None = None  # table in the second round; None: it stays
    colour: str | None = None
    size: str | None = None


ITEMS = (
    Item('red mug', 'coffee_mug', 0, 2, 'red', 'big'),
    Item('milk', 'milk', 0),
    Item('banana', 'banana', 0),
    Item('coffee pot', 'moka_pot', 0),
    Item('blue mug', 'porcelain_mug', 1, None, 'blue', 'big'),
    Item('cereal', 'cereal', 1),
    Item('bowl', 'bowl', 1, None, 'yellow', 'big'),
    Item('rubber duck', 'rubber_duck', 1, 0),
    Item('plate', 'plate', 2, None, 'white', 'small'),
    Item('ketchup', 'ketchup', 2),
    Item('orange juice', 'orange_juice', 2),
    Item('book', 'yellow_book', 2),
)


# ---------------------------------------------------------------- poses


def planar_pose(x: float, y: float, yaw: float, z: float = 0.0) -> np.ndarray:
    """Return a pose without roll and pitch; metres and radians."""
    pose = np.eye(4)
    pose[:2, :2] = [[math.cos(yaw), -math.sin(yaw)], [math.sin(yaw), math.cos(yaw)]]
    pose[:3, 3] = x, y, z
    return pose


def map_to_table(table: int) -> np.ndarray:
    """Return the pose of a table in the map."""
    angle = _table_angle(table)
    x, y = _TABLE_DISTANCE * math.cos(angle), _TABLE_DISTANCE * math.sin(angle)
    return planar_pose(x, y, angle + math.pi / 2, TABLE_HEIGHT)


def _table_angle(table: int) -> float:
    return 2 * math.pi * table / TABLE_COUNT


def base_to_camera_link() -> np.ndarray:
    """Return the pose of the camera on the robot: it looks to the left and down."""
    half = _CAMERA_PITCH / 2
    pose = planar_pose(0.0, 0.0, math.pi / 2, _CAMERA_HEIGHT)
    pose[:3, :3] = pose[:3, :3] @ quaternion_to_matrix(0, math.sin(half), 0, math.cos(half))
    return pose


def camera_link_to_optical() -> np.ndarray:
    """Return the pose of the optical frame in the camera's own, x forward and z up (REP-103)."""
    pose = np.eye(4)
    pose[:3, :3] = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]
    return pose


# ---------------------------------------------------------------- path and odometry


class DrivenPath:
    """Where the robot truly is: arcs in front of the tables, and curves from one to the next."""

    def __init__(self, seconds: float):
        """Make a drive that takes this long."""
        self.seconds = seconds
        passes = ROUNDS * TABLE_COUNT
        self._pass_time = seconds / (passes + (passes - 1) * _TRANSIT_SHARE)
        self._leg_time = (1 + _TRANSIT_SHARE) * self._pass_time  # a table, and the way to the next

    def map_to_base(self, time: float) -> np.ndarray:
        """Return the pose of base_link; before and after the drive the robot stands."""
        time = min(max(time, 0.0), self.seconds)
        leg = min(int(time / self._leg_time), ROUNDS * TABLE_COUNT - 1)
        time -= leg * self._leg_time
        share = time / self._pass_time
        if share <= 1:
            return _pose_at_table(leg, _PASS_ANGLE * (2 * share - 1))
        start, end = _pose_at_table(leg, _PASS_ANGLE), _pose_at_table(leg + 1, -_PASS_ANGLE)
        return _pose_on_curve(start, end, (share - 1) / _TRANSIT_SHARE)

    def map_to_optical(self, time: float) -> np.ndarray:
        """Return the pose of the camera's optical frame."""
        return self.map_to_base(time) @ base_to_camera_link() @ camera_link_to_optical()

    def place(self, time: float) -> tuple[int, int]:
        """Return the round, from 0, and the table that is nearest on the way."""
        middle_of_transit = self._pass_time * (1 + _TRANSIT_SHARE / 2)
        leg = math.ceil((min(time, self.seconds) - middle_of_transit) / self._leg_time)
        leg = min(max(leg, 0), ROUNDS * TABLE_COUNT - 1)
        return divmod(leg, TABLE_COUNT)


def _pose_at_table(table: int, angle: float) -> np.ndarray:
    """Return the robot's pose on the arc in front of a table, its left side to the table."""
    towards = _table_angle(table) + angle
    x = _TABLE_DISTANCE * math.cos(_table_angle(table)) + _PASS_DISTANCE * math.cos(towards)
    y = _TABLE_DISTANCE * math.sin(_table_angle(table)) + _PASS_DISTANCE * math.sin(towards)
    return planar_pose(x, y, towards + math.pi / 2)


def _pose_on_curve(start: np.ndarray, end: np.ndarray, share: float) -> np.ndarray:
    """Return a pose on the cubic Hermite curve that leaves and arrives along the x axes."""
    length = np.linalg.norm(end[:2, 3] - start[:2, 3])
    points = start[:2, 3], end[:2, 3], length * start[:2, 0], length * end[:2, 0]
    s = share
    weights = 2 * s**3 - 3 * s**2 + 1, 3 * s**2 - 2 * s**3, s**3 - 2 * s**2 + s, s**3 - s**2
    rates = 6 * s**2 - 6 * s, 6 * s - 6 * s**2, 3 * s**2 - 4 * s + 1, 3 * s**2 - 2 * s
    x, y = sum(weight * point for weight, point in zip(weights, points, strict=True))
    dx, dy = sum(rate * point for rate, point in zip(rates, points, strict=True))
    return planar_pose(x, y, math.atan2(dy, dx))


class Odometry:
    """Odometry that drifts, and a localization that corrects it every now and then, by a jump."""

    _SCALE_ERROR = 0.02  # of the driven distance
    _YAW_DRIFT = math.radians(0.5)  # per driven metre
    _NOISE = 0.01  # of each step, as a share of its length
    _CORRECTION_PERIOD = 2.0  # [s]
    _POSITION_NOISE, _YAW_NOISE = 0.015, math.radians(0.4)  # of a correction, standard deviations

    def __init__(self, path: DrivenPath, seed: int):
        """Make the odometry of a drive; the seed repeats its errors."""
        rng = np.random.default_rng(seed)
        count = math.ceil(path.seconds / ODOMETRY_STEP) + 1
        true = [path.map_to_base(i * ODOMETRY_STEP) for i in range(count)]
        self._odom_to_base = [np.eye(4)]
        for before, after in itertools.pairwise(true):
            step = np.linalg.inv(before) @ after
            length = np.linalg.norm(step[:2, 3])
            step[:2, 3] *= 1 + self._SCALE_ERROR + self._NOISE * rng.standard_normal(2)
            drift = planar_pose(0.0, 0.0, self._YAW_DRIFT * length)
            self._odom_to_base.append(self._odom_to_base[-1] @ step @ drift)
        self._map_to_odom = []
        self._steps_per_correction = round(self._CORRECTION_PERIOD / ODOMETRY_STEP)
        for i in range(0, count, self._steps_per_correction):
            x, y = self._POSITION_NOISE * rng.standard_normal(2)
            error = planar_pose(x, y, self._YAW_NOISE * rng.standard_normal())
            self._map_to_odom.append(true[i] @ error @ np.linalg.inv(self._odom_to_base[i]))

    def odom_to_base(self, step: int) -> np.ndarray:
        """Return what the odometry measures at step * ODOMETRY_STEP."""
        return self._odom_to_base[min(max(step, 0), len(self._odom_to_base) - 1)]

    def map_to_odom(self, step: int) -> np.ndarray:
        """Return the newest correction of the localization at step * ODOMETRY_STEP."""
        newest = max(step, 0) // self._steps_per_correction
        return self._map_to_odom[min(newest, len(self._map_to_odom) - 1)]


# ---------------------------------------------------------------- objects


@dataclass(frozen=True)
class Layout:
    """The objects on the tables in one round."""

    objects: Mapping[str, tuple[int, PlacedObject]]  # name -> table and object in its frame

    def position(self, name: str) -> np.ndarray:
        """Return the centre of an object's bounding box in the map, (3,) [m]."""
        table, placed = self.objects[name]
        middle = np.mean([placed.box_min, placed.box_max], axis=0)
        return (map_to_table(table) @ [*middle, 1.0])[:3]

    def scene(self, table: int) -> Scene:
        """Return what there is to render at a table."""
        objects = tuple(placed for at, placed in self.objects.values() if at == table)
        angle = 2.0 * table - 1.5  # of the lamp
        return Scene(
            objects,
            TABLE_TEXTURES[table],
            WALL_TEXTURES[2 * table],
            (1.2 * math.cos(angle), 1.2 * math.sin(angle), 1.6),
            (0.6, 0.6, 0.6),
            0.35,
            _FOVY,
        )


def draw_layouts(seed: int, boxes: Mapping[str, Box]) -> list[Layout]:
    """Return the layout of each round; the seed repeats it.

    Args:
        seed: of the places and the yaw of all objects.
        boxes: object model name -> bounding box of its mesh, see `lisa_ros.tabletop.assets`.
    """
    rng = np.random.default_rng(seed)
    free = [[_SLOTS[i] for i in rng.permutation(len(_SLOTS))] for _ in range(TABLE_COUNT)]

    def put(item: Item, table: int) -> tuple[int, PlacedObject]:
        model = OBJECTS[item.model]
        x, y = np.add(free[table].pop(), rng.uniform(-_JITTER, _JITTER, 2))
        turn = scene_sampling.upright(model, rng.uniform(-math.pi, math.pi))
        box = boxes[item.model]
        return table, scene_sampling.place_object(model, item.colour, item.size, box, (x, y), turn)

    first = {item.name: put(item, item.table) for item in ITEMS}
    moved = {item.name: put(item, item.moved_to) for item in ITEMS if item.moved_to is not None}
    return [Layout(first), Layout(first | moved)]


# ---------------------------------------------------------------- frames


@dataclass(frozen=True)
class Drive:
    """What a folder of rendered frames shows."""

    seconds: float
    rate: float  # [Hz]
    size: tuple[int, int]  # width and height [px]
    seed: int

    @property
    def frame_count(self) -> int:
        """The number of frames, from 0 s to the end."""
        return round(self.seconds * self.rate) + 1

    def k(self) -> np.ndarray:
        """Return the camera matrix (3, 3) [px]."""
        width, height = self.size
        focal = height / 2 / math.tan(math.radians(_FOVY) / 2)
        return np.array([[focal, 0, width / 2 - 0.5], [0, focal, height / 2 - 0.5], [0, 0, 1]])


def render(drive: Drive, cache: Path, folder: Path) -> list[Layout]:
    """Render all frames into a folder, unless it has them; return the layout of each round.

    Args:
        drive: what to render.
        cache: folder that `lisa_ros.tabletop.assets.prepare_assets` filled.
        folder: receives `00000.png` (RGB) and `00000_depth.png` (uint16 [mm], with the errors of
            a Kinect; 0 is invalid) for each frame.
    """
    layouts = draw_layouts(drive.seed, json.loads((cache / 'done.json').read_text()))
    path, done = DrivenPath(drive.seconds), folder / 'drive.json'
    scenes = {(i, t): layouts[i].scene(t) for i in range(ROUNDS) for t in range(TABLE_COUNT)}
    poses = [path.map_to_optical(drive.seconds * share).round(6).tolist() for share in (0, 0.45)]
    description = repr((drive, scenes, poses))  # all that the frames depend on
    if done.exists() and json.loads(done.read_text()) == description:
        return layouts
    folder.mkdir(parents=True, exist_ok=True)
    done.unlink(missing_ok=True)
    renderer = Renderer(cache, *drive.size)
    rng, shown = np.random.default_rng(drive.seed), None
    for number in tqdm(range(drive.frame_count), desc='render', unit='frame'):
        time = number / drive.rate
        place = path.place(time)
        if place != shown:
            renderer.set_scene(scenes[place])
            shown = place
        map_to_room = map_to_table(place[1])
        frame = renderer.render(np.linalg.inv(map_to_room) @ path.map_to_optical(time))
        depth = degraded(frame.depth, rng)
        depth[~(depth < _DEPTH_RANGE)] = 0  # NaN, too
        millimetres = np.rint(1000 * depth).astype(np.uint16)
        cv2.imwrite(str(folder / f'{number:05}.png'), frame.image[..., ::-1])
        cv2.imwrite(str(folder / f'{number:05}_depth.png'), millimetres)
    done.write_text(json.dumps(description))
    return layouts


def read_frame(folder: Path, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return image (H, W, 3) uint8 RGB and depth (H, W) uint16 [mm] of a frame."""
    image = cv2.imread(str(folder / f'{number:05}.png'))[..., ::-1]
    return image, cv2.imread(str(folder / f'{number:05}_depth.png'), cv2.IMREAD_UNCHANGED)
