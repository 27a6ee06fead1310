# SPDX-License-Identifier: Apache-2.0
"""Tabletop scenes by seed: colour, depth, instance masks and camera intrinsics, with MuJoCo.

A scene is its split and its number: the same pair gives the same picture anywhere. The splits draw
from seed ranges apart, and `unseen` puts things on the table that no other split has shown.

On disk, one folder a split:

    scenes.json              K, size, and for each scene its objects (id, kind, thing, colour, box)
    colour/00000.jpg         (H, W, 3) RGB
    ids/00000.png            (H, W) uint8: 0 no object, else the object's id in scenes.json
    depth/00000.png          (H, W) uint16, millimetres along the optical axis (REP-118), 0 invalid

Frames: the world has z up and the table's top at z = 0; MuJoCo's cameras look along -z with y up,
ours along +z with y down (REP-103 optical).
"""

from __future__ import annotations

import itertools
import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from lisa_ros.errors import DataError
from lisa_ros.training.things import COLOURS, THINGS, Thing

SPLITS = {'train': 0, 'val': 1, 'test': 2, 'unseen': 3}  # first number of the seed of a scene
FACES = 2500  # triangles a mesh is decimated to: half the rendering time, no visible change
HIDDEN = (0.0, 0.0, -50.0)  # where things wait that are not in the scene
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
    """A thing on the table: which, in what colour, where and how it stands."""

    thing: Thing
    colour: str | None
    position: tuple[float, float, float]  # of the mesh's origin, world [m]
    quaternion: tuple[float, float, float, float]  # w x y z, mesh to world


@dataclass(frozen=True)
class Scene:
    """All that a picture depends on but its camera's pose."""

    placed: tuple[Placed, ...]
    table: str
    wall: str
    light_position: tuple[float, float, float]  # [m]
    light: float  # brightness of the lamp, 0..1
    ambient: float


@dataclass(frozen=True)
class Frame:
    """One rendered picture of a scene."""

    colour: np.ndarray  # (H, W, 3) uint8 RGB
    depth: np.ndarray  # (H, W) float32 metres along the optical axis
    ids: np.ndarray  # (H, W) uint8: 0 none, else 1 + index in Scene.placed


# ---------------------------------------------------------------- assets


def prepare_assets(assets: Path, cache: Path) -> Path:
    """Decimate the meshes and shrink the textures once; return the folder that holds them.

    Raises:
        DataError: `assets` lacks a mesh or a texture; the message names it.
    """
    done = cache / 'done.json'
    if done.is_file():
        return cache
    try:
        import pymeshlab
    except ModuleNotFoundError as error:
        raise DataError("rendering needs PyMeshLab and MuJoCo: pip install '.[train]'") from error

    cache.mkdir(parents=True, exist_ok=True)
    boxes = {}
    for thing in tqdm(THINGS.values(), desc='meshes', unit='thing'):
        corners = []
        for i, (mesh, look) in enumerate(thing.parts):
            meshes = pymeshlab.MeshSet()
            meshes.load_new_mesh(str(_asset(assets / 'meshes' / mesh)))
            box = meshes.current_mesh().bounding_box()
            corners += [box.min(), box.max()]
            small = cache / f'{thing.name}_{i}.obj'
            if meshes.current_mesh().face_number() > FACES:
                reduce = (
                    meshes.meshing_decimation_quadric_edge_collapse_with_texture
                    if isinstance(look, str)
                    else meshes.meshing_decimation_quadric_edge_collapse
                )
                reduce(targetfacenum=FACES, preservenormal=True)
                _write_obj(meshes.current_mesh(), small)
            else:
                shutil.copyfile(assets / 'meshes' / mesh, small)
            if isinstance(look, str):
                _shrink(_asset(assets / 'meshes' / look), cache / f'{thing.name}_{i}.png')
        boxes[thing.name] = [np.min(corners, axis=0).tolist(), np.max(corners, axis=0).tolist()]
    for name in TABLES + WALLS:
        _shrink(_asset(assets / 'textures' / f'{name}.png'), cache / f'{name}.png')
    done.write_text(json.dumps(boxes))
    return cache


def _write_obj(mesh, path: Path) -> None:
    """Write vertices, texture coordinates by corner and triangles; materials are the table's."""
    lines = [f'v {x:.6f} {y:.6f} {z:.6f}' for x, y, z in mesh.vertex_matrix()]
    faces = mesh.face_matrix() + 1
    if mesh.has_wedge_tex_coord():
        lines += [f'vt {u:.5f} {v:.5f}' for u, v in mesh.wedge_tex_coord_matrix()]
        lines += [
            f'f {a}/{3 * i + 1} {b}/{3 * i + 2} {c}/{3 * i + 3}'
            for i, (a, b, c) in enumerate(faces)
        ]
    else:
        lines += [f'f {a} {b} {c}' for a, b, c in faces]
    path.write_text('\n'.join(lines) + '\n')


def _asset(path: Path) -> Path:
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
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def _scale(thing: Thing, box) -> float:
    return thing.size / float((np.array(box[1]) - box[0]).max())


def _corners(box) -> np.ndarray:
    low, high = box
    return np.array(np.meshgrid(*zip(low, high, strict=True))).reshape(3, -1).T


def draw_scene(
    rng: np.random.Generator, boxes: dict, *, unseen: bool = False, count=None
) -> Scene:
    """Put 3 to 7 things on a table, apart from each other, under a light of its own."""
    names = [t for t in THINGS.values() if unseen or not t.held_out]
    held = [t for t in names if t.held_out]
    count = count or int(rng.integers(3, 8))
    placed: list[Placed] = []
    taken: list[tuple[float, float, float]] = []  # x, y, radius
    looks = set()
    for attempt in range(200):
        if len(placed) == count:
            break
        # Kinds alike often, whatever number of meshes they have; an unseen thing comes first.
        pool = held if unseen and not placed else names
        kind = (
            pool[rng.integers(len(pool))].kind
            if attempt % 4
            else str(rng.choice(sorted({t.kind for t in pool})))
        )
        thing = rng.choice([t for t in pool if t.kind == kind])
        colour = str(rng.choice(thing.colours)) if thing.colours else None
        if (thing.kind, colour) in looks or any(p.thing is thing for p in placed):
            continue  # two red mugs could not be told apart by words; a mesh is there once
        if any(look[0] == thing.kind for look in looks) and (colour is None or rng.random() < 0.3):
            continue
        pose = _UPRIGHT[thing.up]
        if thing.lies and rng.random() < 0.3:
            pose = _times((math.sqrt(0.5), 0.0, math.sqrt(0.5), 0.0), pose)
        yaw = rng.uniform(-math.pi, math.pi)
        pose = _times((math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2)), pose)
        corners = (
            _corners(boxes[thing.name]) * _scale(thing, boxes[thing.name]) @ _rotation(pose).T
        )
        low, high = corners.min(0), corners.max(0)
        radius = float(np.linalg.norm((high - low)[:2]) / 2) * 0.72  # boxes are looser than meshes
        x, y = rng.uniform(-0.26, 0.26), rng.uniform(-0.22, 0.22)
        if any(math.hypot(x - a, y - b) < radius + r for a, b, r in taken):
            continue
        middle = (low + high) / 2
        placed.append(Placed(thing, colour, (x - middle[0], y - middle[1], -low[2]), pose))
        taken.append((x, y, radius))
        looks.add((thing.kind, colour))
    angle = rng.uniform(0, 2 * math.pi)
    return Scene(
        tuple(placed),
        str(rng.choice(TABLES)),
        str(rng.choice(WALLS)),
        (1.2 * math.cos(angle), 1.2 * math.sin(angle), rng.uniform(1.2, 2.2)),
        rng.uniform(0.5, 0.95),
        rng.uniform(0.35, 0.6),
    )


def draw_camera(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return a camera's position and the point it looks at, world [m], each (3,)."""
    azimuth = rng.uniform(-0.9, 0.9) - math.pi / 2
    height = math.radians(rng.uniform(28, 62))
    distance = rng.uniform(0.62, 0.95)
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

    Things that are not in a scene wait far below the floor. `MUJOCO_GL` (egl, osmesa, glfw) picks
    the graphics library, as MuJoCo reads it.
    """

    def __init__(self, cache: Path, width: int = 320, height: int = 240, fovy: float = 50.0):
        import mujoco

        self._mujoco = mujoco
        self.boxes = json.loads((cache / 'done.json').read_text())
        self.model = mujoco.MjModel.from_xml_string(self._world(cache, width, height, fovy))
        self.data = mujoco.MjData(self.model)
        self.renderer = mujoco.Renderer(self.model, height, width)
        focal = height / 2 / math.tan(math.radians(fovy) / 2)
        self.k = np.array([[focal, 0, width / 2 - 0.5], [0, focal, height / 2 - 0.5], [0, 0, 1]])
        self._material = {
            mujoco.mj_id2name(self.model, mujoco.mjtObj.mjOBJ_MATERIAL, i): i
            for i in range(self.model.nmat)
        }

    def _world(self, cache: Path, width: int, height: int, fovy: float) -> str:
        assets, bodies = [], []
        for name in TABLES + WALLS:
            repeat = 2 if name in TABLES else 1
            assets.append(
                f'<texture name="{name}" type="2d" file="{cache / name}.png"/>'
                f'<material name="{name}" texture="{name}" texrepeat="{repeat} {repeat}" '
                'specular="0.1"/>'
            )
        for thing in THINGS.values():
            scale = _scale(thing, self.boxes[thing.name])
            geoms = []
            for i, (_, look) in enumerate(thing.parts):
                part = f'{thing.name}_{i}'
                assets.append(
                    f'<mesh name="{part}" file="{cache / part}.obj" '
                    f'scale="{scale} {scale} {scale}" inertia="shell"/>'
                )
                shine = 'specular="0.4" shininess="0.6"'
                if isinstance(look, str):
                    assets.append(
                        f'<texture name="{part}" type="2d" file="{cache / part}.png"/>'
                        f'<material name="{part}" texture="{part}" {shine}/>'
                    )
                else:
                    assets.append(
                        f'<material name="{part}" rgba="{look[0]} {look[1]} {look[2]} 1" {shine}/>'
                    )
                geoms.append(
                    f'<geom name="{part}" type="mesh" mesh="{part}" material="{part}" '
                    'contype="0" conaffinity="0"/>'
                )
            bodies.append(
                f'<body name="{thing.name}" mocap="true" pos="0 0 -50">{"".join(geoms)}</body>'
            )
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
            <camera name="camera" mode="fixed" fovy="{fovy}"/>
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
        self.data.mocap_pos[:] = HIDDEN
        for placed in scene.placed:
            body = model.body(placed.thing.name)
            self.data.mocap_pos[body.mocapid[0]] = placed.position
            self.data.mocap_quat[body.mocapid[0]] = placed.quaternion
            if placed.colour:
                material = self._material[f'{placed.thing.name}_0']
                model.mat_rgba[material, :3] = COLOURS[placed.colour]
        model.geom('table').matid[:] = self._material[scene.table]
        model.geom('wall').matid[:] = self._material[scene.wall]
        lamp = model.light('lamp')
        lamp.pos[:] = scene.light_position
        lamp.dir[:] = -np.array(scene.light_position) / np.linalg.norm(scene.light_position)
        lamp.diffuse[:] = scene.light
        model.vis.headlight.ambient[:] = scene.ambient
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
        number = {model.body(p.thing.name).id: i + 1 for i, p in enumerate(self._scene.placed)}
        geoms = np.where(segments[..., 1] == mujoco.mjtObj.mjOBJ_GEOM, segments[..., 0], -1)
        for geom in np.unique(geoms[geoms >= 0]):
            ids[geoms == geom] = number.get(model.geom_bodyid[geom], 0)
        return Frame(colour, depth, ids)


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
        frame = renderer.frame(camera_matrix(*draw_camera(rng)))
        cv2.imwrite(
            str(out / 'colour' / f'{name}.jpg'),
            frame.colour[..., ::-1],
            [cv2.IMWRITE_JPEG_QUALITY, 92],
        )
        cv2.imwrite(str(out / 'ids' / f'{name}.png'), frame.ids)
        millimetres = np.clip(np.rint(frame.depth * 1000), 0, 65535).astype(np.uint16)
        cv2.imwrite(str(out / 'depth' / f'{name}.png'), millimetres)
        meta.write_text(json.dumps(describe(scene, frame.ids)))


def describe(scene: Scene, ids: np.ndarray) -> list[dict]:
    """Return the objects a person would say are in the picture: id, kind, thing, colour, area."""
    objects = []
    for i, placed in enumerate(scene.placed, start=1):
        area = int((ids == i).sum())
        objects.append(
            {
                'id': i,
                'kind': placed.thing.kind,
                'thing': placed.thing.name,
                'colour': placed.colour,
                'area': area,
            }
        )
    return objects


def collect(out: Path, split: str, k: np.ndarray, size: tuple[int, int]) -> None:
    """Join the notes of the rendered scenes into scenes.json."""
    metas = sorted((out / 'meta').glob('*.json'))
    scenes = [{'name': m.stem, 'objects': json.loads(m.read_text())} for m in metas]
    note = {'split': split, 'size': list(size), 'k': k.tolist(), 'scenes': scenes}
    (out / 'scenes.json').write_text(json.dumps(note))


def render_split(
    assets: Path,
    out: Path,
    split: str,
    count: int,
    *,
    workers: int = 1,
    size: tuple[int, int] = (320, 240),
    cache: Path | None = None,
) -> None:
    """Render `count` scenes of a split into `out`/`split`, in `workers` processes; resumes."""
    import multiprocessing

    cache = prepare_assets(assets, cache or out / 'assets')
    out = out / split
    edges = np.linspace(0, count, workers + 1).astype(int)
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
    focal = size[1] / 2 / math.tan(math.radians(50.0) / 2)
    k = np.array([[focal, 0, size[0] / 2 - 0.5], [0, focal, size[1] / 2 - 0.5], [0, 0, 1]])
    collect(out, split, k, size)
