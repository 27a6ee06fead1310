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

import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from lisa_ros.errors import DataError
from lisa_ros.tabletop.assets import TABLES, WALLS, mesh_parts, prepare_assets
from lisa_ros.tabletop.objects import COLOURS, OBJECTS, SIZES
from lisa_ros.tabletop.scene_sampling import (
    Scene,
    _scale,
    body_name,
    camera_matrix,
    draw_camera,
    draw_scene,
    scene_rng,
)

PART_FLAG = 0x80  # added to the id where a part with a name of its own shows
SHOWN, HIDDEN = 0, 4  # MuJoCo's groups of geoms: those of HIDDEN are not drawn


@dataclass(frozen=True)
class RenderedFrame:
    """One rendered picture of a scene."""

    colour: np.ndarray  # (H, W, 3) uint8 RGB
    depth: np.ndarray  # (H, W) float32 metres along the optical axis
    ids: np.ndarray  # (H, W) uint8: 0 none, else 1 + index in Scene.placed, + PART
    k: np.ndarray  # (3, 3) intrinsics [px]


# ---------------------------------------------------------------- assets


# ---------------------------------------------------------------- what stands where


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
        for thing in OBJECTS.values():
            for size in thing.sizes or (None,):
                for i, (_, part) in enumerate(mesh_parts(thing)):
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
        for thing in OBJECTS.values():
            for i, (look, _) in enumerate(mesh_parts(thing)):
                if isinstance(look, str):
                    file = cache / f'{thing.name}_{i}.png'
                    assets.append(f'<texture name="{thing.name}_{i}" type="2d" file="{file}"/>')
            for size in thing.sizes or (None,):
                name, scale = body_name(thing, size), _scale(thing, size, self.boxes[thing.name])
                geoms = []
                for i, (look, _) in enumerate(mesh_parts(thing)):
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
                for i in range(len(mesh_parts(placed.thing))):
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

    def frame(self, pose: np.ndarray) -> RenderedFrame:
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
            ids[geoms == geom] = id_ + (PART_FLAG if self._part[geom] else 0)
        width, height = self._size
        focal = height / 2 / math.tan(math.radians(self._scene.fovy) / 2)
        k = np.array([[focal, 0, width / 2 - 0.5], [0, focal, height / 2 - 0.5], [0, 0, 1]])
        return RenderedFrame(colour, depth, ids, k)


# ---------------------------------------------------------------- splits on disk


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
        note = {
            'name': name,
            'k': frame.k.tolist(),
            'objects': scene_metadata(scene, pose, frame.ids),
        }
        meta.write_text(json.dumps(note))


def scene_metadata(scene: Scene, pose: np.ndarray, ids: np.ndarray) -> list[dict]:
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
                'area': int(counts[i] + counts[i + PART_FLAG]),
                'part_area': int(counts[i + PART_FLAG]),
                'right': round(float(foot @ right), 4),
                'away': round(float(foot @ forward), 4),
                'height': round(float(high[2] - low[2]), 4),
                'longest': round(placed.thing.size * SIZES.get(placed.size, 1.0), 4),
            }
        )
    return objects


def write_index(out: Path, split: str, size: tuple[int, int]) -> None:
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
    write_index(out, split, size)
