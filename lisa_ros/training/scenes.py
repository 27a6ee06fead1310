# SPDX-License-Identifier: Apache-2.0
"""Tabletop scenes by seed: colour, depth, instance masks and camera intrinsics, with MuJoCo.

A scene is its split and its number: the same pair gives the same picture anywhere. The splits draw
from seed ranges apart, and `unseen` puts things on the table that no other split has shown.

On disk, one folder a split:

    scenes.json              size, and for each scene its name, K and objects, see `describe`
    colour/00000.jpg         (H, W, 3) RGB
    ids/00000.png            (H, W) uint8: 0 no object, else the object's id in scenes.json, plus
                             PART where a part shows that has a name (a handle, a cork)
    depth/00000.png          (H, W) uint16, millimetres along the optical axis (REP-118), 0 invalid

Frames: the world has z up and the table's top at z = 0; MuJoCo's cameras look along -z with y up,
ours along +z with y down (REP-103 optical).
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from lisa_ros.errors import DataError
from lisa_ros.places import rotation
from lisa_ros.training.things import COLOURS, HELD_OUT_TABLES, SIZES, THINGS, Thing

SPLITS = {'train': 0, 'val': 1, 'test': 2, 'unseen': 3}  # first number of the seed of a scene
PART = 0x80  # added to the id where a part with a name of its own shows
FACES = 2500  # triangles a mesh is decimated to: half the rendering time, no visible change
SHOWN, HIDDEN = 0, 4  # MuJoCo's groups of geoms: those of HIDDEN are not drawn
TABLES = (
    'martin_novak_wood_table', 'table_light_wood', 'marble_floor', 'gray_ceramic_tile',
    'brown_ceramic_tile', 'rustic_floor', 'light_floor', 'white_marble_floor', 'kona_gotham',
    'dark_floor_texture', 'stucco_wall', 'gray_floor',
)  # fmt: skip
WALLS = (
    'cream-plaster', 'dark_blue_wall', 'gray_plaster', 'light_blue_wall', 'meeka-beige-plaster',
    'white_wall', 'yellow_linen_wall_texture', 'dark_gray_plaster', 'light_grey_plaster',
)  # fmt: skip


@dataclass(frozen=True)
class Placed:
    """A thing on the table: which, in what colour and size, where and how it stands."""

    thing: Thing
    colour: str | None
    size: str | None
    low: tuple[float, float, float]  # corners of its box, world [m]
    high: tuple[float, float, float]
    position: tuple[float, float, float]  # of the mesh's origin, world [m]
    quaternion: tuple[float, float, float, float]  # w x y z, mesh to world


@dataclass(frozen=True)
class Scene:
    """All that a picture depends on but its camera's pose."""

    placed: tuple[Placed, ...]
    table: str
    wall: str
    light_position: tuple[float, float, float]  # [m]
    light: tuple[float, float, float]  # colour and brightness of the lamp, RGB 0..1
    ambient: float
    fovy: float  # of the lens, top to bottom [degrees]


@dataclass(frozen=True)
class Frame:
    """One rendered picture of a scene."""

    colour: np.ndarray  # (H, W, 3) uint8 RGB
    depth: np.ndarray  # (H, W) float32 metres along the optical axis
    ids: np.ndarray  # (H, W) uint8: 0 none, else 1 + index in Scene.placed, + PART
    k: np.ndarray  # (3, 3) intrinsics [px]


# ---------------------------------------------------------------- assets


def prepare_assets(assets: Path, cache: Path) -> Path:
    """Decimate the meshes and shrink the textures once; return the folder that holds them.

    Raises:
        DataError: `assets` lacks a mesh or a texture; the message names it.
    """
    done = cache / 'done.json'
    if done.is_file() and json.loads(done.read_text()).keys() == THINGS.keys():
        return cache
    try:
        import pymeshlab
    except ModuleNotFoundError as error:
        raise DataError("rendering needs PyMeshLab and MuJoCo: pip install '.[train]'") from error

    cache.mkdir(parents=True, exist_ok=True)
    boxes = {}
    for thing in tqdm(THINGS.values(), desc='meshes', unit='thing'):
        corners, pieces = [], []
        for part in thing.parts:
            meshes = pymeshlab.MeshSet()
            meshes.load_new_mesh(str(_asset(assets / 'meshes', part.mesh)))
            textured = isinstance(part.look, str)
            if meshes.current_mesh().face_number() > FACES:
                reduce = (
                    meshes.meshing_decimation_quadric_edge_collapse_with_texture
                    if textured
                    else meshes.meshing_decimation_quadric_edge_collapse
                )
                reduce(targetfacenum=FACES, preservenormal=True)
            mesh = meshes.current_mesh()
            points = mesh.vertex_matrix() * thing.stretch
            corners += [points.min(0), points.max(0)]
            wedges = mesh.wedge_tex_coord_matrix() if textured else None
            pieces += _split(points, mesh.face_matrix(), wedges, thing.handle)
            if textured:
                for i in range(len(pieces) - 1 - thing.handle, len(pieces)):
                    _shrink(_asset(assets / 'meshes', part.look), cache / f'{thing.name}_{i}.png')
        for i, piece in enumerate(pieces):
            _write_obj(*piece, cache / f'{thing.name}_{i}.obj')
        boxes[thing.name] = [np.min(corners, axis=0).tolist(), np.max(corners, axis=0).tolist()]
    for name in TABLES + WALLS:
        _shrink(_asset(assets / 'textures', f'{name}.png'), cache / f'{name}.png')
    done.write_text(json.dumps(boxes))
    return cache


def _split(points: np.ndarray, faces: np.ndarray, wedges, handle: bool) -> list[tuple]:
    """Return the mesh whole, or as body and handle: a handle stands out of a body that is round.

    Seen from above the body is a circle as wide as the mesh across its handle; where the mesh is
    widest in that direction lies the circle's middle.
    """
    corners = None if wedges is None else wedges.reshape(-1, 3, 2)
    if not handle:
        return [(points, faces, corners)]
    flat = points[:, :2]
    along = int(np.argmax(np.ptp(flat, axis=0)))
    across = 1 - along
    radius = np.ptp(flat[:, across]) / 2
    middle = np.empty(2)
    middle[across] = flat[:, across].min() + radius
    ends = [flat[:, along].min() + radius, flat[:, along].max() - radius]
    rim = np.abs(flat[:, across] - middle[across]) > 0.9 * radius
    middle[along] = min(ends, key=lambda end: abs(end - flat[rim, along].mean()))
    outside = np.linalg.norm(flat[faces].mean(1) - middle, axis=1) > 1.03 * radius
    return [
        (points, faces[chosen], None if corners is None else corners[chosen])
        for chosen in (~outside, outside)
    ]


def _write_obj(points: np.ndarray, faces: np.ndarray, corners, path: Path) -> None:
    """Write vertices, texture coordinates by corner and triangles; materials are the table's."""
    used, faces = np.unique(faces, return_inverse=True)
    lines = [f'v {x:.6f} {y:.6f} {z:.6f}' for x, y, z in points[used]]
    faces = faces.reshape(-1, 3) + 1
    if corners is not None:
        lines += [f'vt {u:.5f} {v:.5f}' for u, v in corners.reshape(-1, 2)]
        lines += [
            f'f {a}/{3 * i + 1} {b}/{3 * i + 2} {c}/{3 * i + 3}'
            for i, (a, b, c) in enumerate(faces)
        ]
    else:
        lines += [f'f {a} {b} {c}' for a, b, c in faces]
    path.write_text('\n'.join(lines) + '\n')


def _asset(folder: Path, name: str) -> Path:
    """Return the file of this name in the assets folder, or, for `package:path`, in a package."""
    package, _, inside = name.rpartition(':')
    if package:
        found = importlib.util.find_spec(package)
        if found is None:
            raise DataError(
                f'some meshes are those of the package {package}: '
                'pip install --no-deps robosuite pybullet'
            )
        folder, name = Path(found.submodule_search_locations[0]), inside
    path = folder / name
    if not path.is_file():
        raise DataError(
            f'no {path.name} in {path.parent}: the assets folder needs meshes/ and textures/ as '
            'docs/lisa-tabletop.md lists them; give it with --assets'
        )
    return path


def _shrink(source: Path, target: Path, side: int = 512) -> None:
    picture = cv2.imread(str(source), cv2.IMREAD_COLOR)
    scale = side / max(picture.shape[:2])
    if scale < 1:
        picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(target), picture)


def pieces_of(thing: Thing) -> list[tuple[str | tuple, str | None]]:
    """Return look and part name of each mesh in the cache, `<thing>_<i>.obj`."""
    pieces = []
    for part in thing.parts:
        pieces.append((part.look, part.name))
        if thing.handle:
            pieces.append((part.look, 'handle'))
    return pieces


# ---------------------------------------------------------------- what stands where

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
    return rotation(x, y, z, w)


def _scale(thing: Thing, size: str | None, box) -> float:
    return thing.size * SIZES.get(size, 1.0) / float((np.array(box[1]) - box[0]).max())


def body_name(thing: Thing, size: str | None) -> str:
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
    names = [t for t in THINGS.values() if unseen or not t.held_out]
    held = [t for t in names if t.held_out]
    count = count or int(rng.integers(3, 10))
    placed: list[Placed] = []
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
            Placed(
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


# ---------------------------------------------------------------- rendering


class Renderer:
    """Renders any scene with one MuJoCo model that holds every thing; not thread-safe.

    Things that are not in a scene are not drawn. `MUJOCO_GL` (egl, osmesa, glfw) picks the
    graphics library, as MuJoCo reads it.
    """

    def __init__(self, cache: Path, width: int = 320, height: int = 240):
        import mujoco

        self._mujoco = mujoco
        self.boxes = json.loads((cache / 'done.json').read_text())
        self.model = mujoco.MjModel.from_xml_string(self._world(cache, width, height))
        self.data = mujoco.MjData(self.model)
        self.renderer = mujoco.Renderer(self.model, height, width)
        self._size = width, height
        self._material = {
            mujoco.mj_id2name(self.model, mujoco.mjtObj.mjOBJ_MATERIAL, i): i
            for i in range(self.model.nmat)
        }
        self._part = np.zeros(self.model.ngeom, bool)
        for thing in THINGS.values():
            for size in thing.sizes or (None,):
                for i, (_, part) in enumerate(pieces_of(thing)):
                    self._part[self.model.geom(f'{body_name(thing, size)}_{i}').id] = bool(part)

    def _world(self, cache: Path, width: int, height: int) -> str:
        assets, bodies = [], []
        for name in TABLES + WALLS:
            repeat = 2 if name in TABLES else 1
            assets.append(
                f'<texture name="{name}" type="2d" file="{cache / name}.png"/>'
                f'<material name="{name}" texture="{name}" texrepeat="{repeat} {repeat}" '
                'specular="0.1"/>'
            )
        shine = 'specular="0.4" shininess="0.6"'
        for thing in THINGS.values():
            for i, (look, _) in enumerate(pieces_of(thing)):
                if isinstance(look, str):
                    file = cache / f'{thing.name}_{i}.png'
                    assets.append(f'<texture name="{thing.name}_{i}" type="2d" file="{file}"/>')
            for size in thing.sizes or (None,):
                name, scale = body_name(thing, size), _scale(thing, size, self.boxes[thing.name])
                geoms = []
                for i, (look, _) in enumerate(pieces_of(thing)):
                    assets.append(
                        f'<mesh name="{name}_{i}" file="{cache / thing.name}_{i}.obj" '
                        f'scale="{scale} {scale} {scale}" inertia="shell"/>'
                    )
                    paint = (
                        f'texture="{thing.name}_{i}"'
                        if isinstance(look, str)
                        else f'rgba="{look[0]} {look[1]} {look[2]} 1"'
                    )
                    assets.append(f'<material name="{name}_{i}" {paint} {shine}/>')
                    geoms.append(
                        f'<geom name="{name}_{i}" type="mesh" mesh="{name}_{i}" '
                        f'material="{name}_{i}" contype="0" conaffinity="0" group="{HIDDEN}"/>'
                    )
                bodies.append(f'<body name="{name}" mocap="true">{"".join(geoms)}</body>')
        return f"""
        <mujoco>
          <statistic extent="1" center="0 0 0"/>
          <visual>
            <global offwidth="{width}" offheight="{height}"/>
            <quality shadowsize="1024" offsamples="4"/>
            <map znear="0.02" zfar="30"/>
            <headlight ambient="0.3 0.3 0.3" diffuse="0.1 0.1 0.1" specular="0 0 0"/>
          </visual>
          <asset>{''.join(assets)}</asset>
          <worldbody>
            <light name="lamp" pos="0 0 2" dir="0 0 -1" castshadow="true" cutoff="80"/>
            <camera name="camera" mode="fixed" fovy="50"/>
            <geom name="table" type="box" size="0.65 0.55 0.02" pos="0 0 -0.02"
                  material="{TABLES[0]}"/>
            <geom name="floor" type="plane" size="4 4 0.1" pos="0 0 -0.75"
                  material="{TABLES[-1]}"/>
            <geom name="wall" type="plane" size="4 4 0.1" pos="0 1.3 0" euler="90 0 0"
                  material="{WALLS[0]}"/>
            {''.join(bodies)}
          </worldbody>
        </mujoco>"""

    def set_scene(self, scene: Scene) -> None:
        """Put the scene's things in place; the camera comes with `frame`."""
        mujoco, model = self._mujoco, self.model
        self._scene = scene
        model.geom_group[model.geom_bodyid > 0] = HIDDEN
        for placed in scene.placed:
            name = body_name(placed.thing, placed.size)
            body = model.body(name)
            self.data.mocap_pos[body.mocapid[0]] = placed.position
            self.data.mocap_quat[body.mocapid[0]] = placed.quaternion
            model.geom_group[model.geom_bodyid == body.id] = SHOWN
            if placed.colour and placed.thing.colours:
                for i in range(len(pieces_of(placed.thing))):
                    model.mat_rgba[self._material[f'{name}_{i}'], :3] = COLOURS[placed.colour]
        model.geom('table').matid[:] = self._material[scene.table]
        model.geom('wall').matid[:] = self._material[scene.wall]
        lamp = model.light('lamp')
        lamp.pos[:] = scene.light_position
        lamp.dir[:] = -np.array(scene.light_position) / np.linalg.norm(scene.light_position)
        lamp.diffuse[:] = scene.light
        model.vis.headlight.ambient[:] = scene.ambient
        model.camera('camera').fovy[:] = scene.fovy
        mujoco.mj_forward(model, self.data)

    def frame(self, pose: np.ndarray) -> Frame:
        """Render the scene from a camera whose optical frame in the world is `pose` (4, 4)."""
        mujoco, model, data = self._mujoco, self.model, self.data
        camera = model.camera('camera')
        camera.pos[:] = pose[:3, 3]
        turned = pose[:3, :3] @ np.diag([1.0, -1.0, -1.0])  # optical -> MuJoCo's camera frame
        mujoco.mju_mat2Quat(camera.quat, turned.flatten())
        mujoco.mj_forward(model, data)
        renderer = self.renderer
        renderer.update_scene(data, 'camera')
        colour = renderer.render().copy()
        renderer.enable_depth_rendering()
        depth = renderer.render().astype(np.float32)
        renderer.disable_depth_rendering()
        renderer.enable_segmentation_rendering()
        segments = renderer.render()
        renderer.disable_segmentation_rendering()
        ids = np.zeros(colour.shape[:2], np.uint8)
        number = {
            model.body(body_name(p.thing, p.size)).id: i + 1
            for i, p in enumerate(self._scene.placed)
        }
        geoms = np.where(segments[..., 1] == mujoco.mjtObj.mjOBJ_GEOM, segments[..., 0], -1)
        for geom in np.unique(geoms[geoms >= 0]):
            id_ = number.get(model.geom_bodyid[geom], 0)
            ids[geoms == geom] = id_ + (PART if self._part[geom] else 0)
        width, height = self._size
        focal = height / 2 / math.tan(math.radians(self._scene.fovy) / 2)
        k = np.array([[focal, 0, width / 2 - 0.5], [0, focal, height / 2 - 0.5], [0, 0, 1]])
        return Frame(colour, depth, ids, k)


# ---------------------------------------------------------------- splits on disk


def scene_rng(split: str, number: int) -> np.random.Generator:
    """Return the generator that a scene is drawn with: its own, whatever came before."""
    return np.random.default_rng((SPLITS[split], number))


def render_range(
    cache: Path, out: Path, split: str, numbers: range, size: tuple[int, int]
) -> None:
    """Render the scenes `numbers` of a split into `out`; those that are there already stay."""
    for folder in ('colour', 'ids', 'depth', 'meta'):
        (out / folder).mkdir(parents=True, exist_ok=True)
    renderer = Renderer(cache, *size)
    for number in tqdm(numbers, desc=f'{split} {numbers.start}', unit='scene'):
        name = f'{number:05d}'
        meta = out / 'meta' / f'{name}.json'
        if meta.is_file():
            continue
        rng = scene_rng(split, number)
        scene = draw_scene(rng, renderer.boxes, unseen=split == 'unseen')
        renderer.set_scene(scene)
        pose = camera_matrix(*draw_camera(rng))
        frame = renderer.frame(pose)
        cv2.imwrite(
            str(out / 'colour' / f'{name}.jpg'),
            frame.colour[..., ::-1],
            [cv2.IMWRITE_JPEG_QUALITY, 92],
        )
        cv2.imwrite(str(out / 'ids' / f'{name}.png'), frame.ids)
        millimetres = np.clip(np.rint(frame.depth * 1000), 0, 65535).astype(np.uint16)
        cv2.imwrite(str(out / 'depth' / f'{name}.png'), millimetres)
        note = {'name': name, 'k': frame.k.tolist(), 'objects': describe(scene, pose, frame.ids)}
        meta.write_text(json.dumps(note))


def describe(scene: Scene, pose: np.ndarray, ids: np.ndarray) -> list[dict]:
    """Return the objects a person would say are in the picture, as words need them.

    id, kind, thing, colour and size (None: has none with a name), area and part_area (of its
    named part) [px]; `right` and `away`, where it stands on the table as the camera sees it, from
    the camera's foot [m]; `height` above the table and `longest` edge of its box [m].
    """
    forward = pose[:2, 2] / np.linalg.norm(pose[:2, 2])
    right = pose[:2, 0]
    counts = np.bincount(ids.ravel(), minlength=256)
    objects = []
    for i, placed in enumerate(scene.placed, start=1):
        low, high = np.array(placed.low), np.array(placed.high)
        foot = (low + high)[:2] / 2 - pose[:2, 3]
        objects.append(
            {
                'id': i,
                'kind': placed.thing.kind,
                'thing': placed.thing.name,
                'colour': placed.colour,
                'size': placed.size,
                'area': int(counts[i] + counts[i + PART]),
                'part_area': int(counts[i + PART]),
                'right': round(float(foot @ right), 4),
                'away': round(float(foot @ forward), 4),
                'height': round(float(high[2] - low[2]), 4),
                'longest': round(placed.thing.size * SIZES.get(placed.size, 1.0), 4),
            }
        )
    return objects


def collect(out: Path, split: str, size: tuple[int, int]) -> None:
    """Join the notes of the rendered scenes into scenes.json."""
    scenes = [json.loads(m.read_text()) for m in sorted((out / 'meta').glob('*.json'))]
    note = {'split': split, 'size': list(size), 'scenes': scenes}
    (out / 'scenes.json').write_text(json.dumps(note))


def render_split(
    assets: Path,
    out: Path,
    split: str,
    count: int,
    *,
    first: int = 0,
    workers: int = 1,
    size: tuple[int, int] = (320, 240),
    cache: Path | None = None,
) -> None:
    """Render `count` scenes of a split, from number `first` on, into `out`/`split`; resumes."""
    import multiprocessing

    cache = prepare_assets(assets, cache or out / 'assets')
    out = out / split
    edges = np.linspace(first, first + count, workers + 1).astype(int)
    context = multiprocessing.get_context('spawn')  # a GL context does not survive a fork
    jobs = [
        context.Process(target=render_range, args=(cache, out, split, range(a, b), size))
        for a, b in itertools.pairwise(edges)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    if any(job.exitcode for job in jobs):
        raise DataError(f'rendering {split} failed: see the error above; call again to resume')
    collect(out, split, size)
