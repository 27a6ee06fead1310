# SPDX-License-Identifier: Apache-2.0
"""Renders tabletop scenes with MuJoCo: colour image, depth, id image and camera intrinsics.

Frames: the world has z up and the table top at z = 0. A MuJoCo camera looks along -z with y up.
The poses here are those of the optical frame of REP-103, which looks along +z with y down.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lisa_ros.tabletop.assets import TABLE_TEXTURES, WALL_TEXTURES, mesh_parts
from lisa_ros.tabletop.objects import COLOURS, OBJECTS, PART_FLAG, ObjectModel
from lisa_ros.tabletop.scene_sampling import Box, Scene, body_name, mesh_scale

_SHOWN_GROUP, _HIDDEN_GROUP = 0, 4  # MuJoCo geom groups; group 4 is not drawn by default


@dataclass(frozen=True)
class RenderedFrame:
    """A rendered view of a scene."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    depth: np.ndarray  # (H, W) float32, metres along the optical axis
    # (H, W) uint8: 0 none; else 1 + index in Scene.objects, plus PART_FLAG on a named part
    ids: np.ndarray
    k: np.ndarray  # (3, 3) intrinsics [px]


class Renderer:
    """Renders scenes. Not thread-safe.

    One MuJoCo model contains all object models. Those that are not in the scene are hidden. The
    environment variable `MUJOCO_GL` (egl, osmesa, glfw) selects the graphics library.

    Args:
        cache: folder that `assets.prepare_assets` filled.
        width: of the images [px].
        height: of the images [px].
    """

    def __init__(self, cache: Path, width: int = 320, height: int = 240):
        import mujoco

        self._mujoco = mujoco
        self.boxes: Mapping[str, Box] = json.loads((cache / 'done.json').read_text())
        self.model = mujoco.MjModel.from_xml_string(_world_xml(cache, self.boxes, width, height))
        self.data = mujoco.MjData(self.model)
        self.renderer = mujoco.Renderer(self.model, height, width)
        self._size = width, height
        self._material_ids = {
            mujoco.mj_id2name(self.model, mujoco.mjtObj.mjOBJ_MATERIAL, i): i
            for i in range(self.model.nmat)
        }
        self._is_part = np.zeros(self.model.ngeom, bool)  # by geom id
        for model in OBJECTS.values():
            for size in model.sizes or (None,):
                for i, (_, part) in enumerate(mesh_parts(model)):
                    geom = self.model.geom(f'{body_name(model, size)}_{i}')
                    self._is_part[geom.id] = bool(part)

    def set_scene(self, scene: Scene) -> None:
        """Place the objects, textures and lights of a scene."""
        self._scene = scene
        self._place_objects(scene)
        model = self.model
        model.geom('table').matid[:] = self._material_ids[scene.table_texture]
        model.geom('wall').matid[:] = self._material_ids[scene.wall_texture]
        lamp = model.light('lamp')
        lamp.pos[:] = scene.light_position
        lamp.dir[:] = -np.array(scene.light_position) / np.linalg.norm(scene.light_position)
        lamp.diffuse[:] = scene.light_colour
        model.vis.headlight.ambient[:] = scene.ambient
        model.camera('camera').fovy[:] = scene.fovy
        self._mujoco.mj_forward(model, self.data)

    def _place_objects(self, scene: Scene) -> None:
        model = self.model
        model.geom_group[model.geom_bodyid > 0] = _HIDDEN_GROUP
        for placed in scene.objects:
            name = body_name(placed.model, placed.size)
            body = model.body(name)
            self.data.mocap_pos[body.mocapid[0]] = placed.position
            self.data.mocap_quat[body.mocapid[0]] = placed.quaternion
            model.geom_group[model.geom_bodyid == body.id] = _SHOWN_GROUP
            if placed.colour and placed.model.colours:
                for i in range(len(mesh_parts(placed.model))):
                    material = self._material_ids[f'{name}_{i}']
                    model.mat_rgba[material, :3] = COLOURS[placed.colour]

    def render(self, pose: np.ndarray) -> RenderedFrame:
        """Render the scene from a camera.

        Args:
            pose: (4, 4) pose of the camera's optical frame in the world.
        """
        mujoco, model, data = self._mujoco, self.model, self.data
        camera = model.camera('camera')
        camera.pos[:] = pose[:3, 3]
        rotation = pose[:3, :3] @ np.diag([1.0, -1.0, -1.0])  # optical -> MuJoCo's camera frame
        mujoco.mju_mat2Quat(camera.quat, rotation.flatten())
        mujoco.mj_forward(model, data)
        renderer = self.renderer
        renderer.update_scene(data, 'camera')
        image = renderer.render().copy()
        renderer.enable_depth_rendering()
        depth = renderer.render().astype(np.float32)
        renderer.disable_depth_rendering()
        renderer.enable_segmentation_rendering()
        segmentation = renderer.render()
        renderer.disable_segmentation_rendering()
        return RenderedFrame(image, depth, self._id_image(segmentation), self._intrinsics())

    def _id_image(self, segmentation: np.ndarray) -> np.ndarray:
        """Return the id image (H, W) of MuJoCo's segmentation (H, W, 2): geom id, object type."""
        ids = np.zeros(segmentation.shape[:2], np.uint8)
        id_by_body = {
            self.model.body(body_name(placed.model, placed.size)).id: i + 1
            for i, placed in enumerate(self._scene.objects)
        }
        is_geom = segmentation[..., 1] == self._mujoco.mjtObj.mjOBJ_GEOM
        geoms = np.where(is_geom, segmentation[..., 0], -1)
        for geom in np.unique(geoms[geoms >= 0]):
            id_ = id_by_body.get(self.model.geom_bodyid[geom], 0)
            ids[geoms == geom] = id_ + (PART_FLAG if self._is_part[geom] else 0)
        return ids

    def _intrinsics(self) -> np.ndarray:
        """Return the camera matrix (3, 3) [px]; pixel centres have integer coordinates."""
        width, height = self._size
        focal = height / 2 / math.tan(math.radians(self._scene.fovy) / 2)
        return np.array([[focal, 0, width / 2 - 0.5], [0, focal, height / 2 - 0.5], [0, 0, 1]])


def _world_xml(cache: Path, boxes: Mapping[str, Box], width: int, height: int) -> str:
    """Return the MJCF model of the room and of every object model in every size."""
    assets, bodies = _room_assets(cache), []
    for model in OBJECTS.values():
        for i, (appearance, _) in enumerate(mesh_parts(model)):
            if isinstance(appearance, str):
                file = cache / f'{model.name}_{i}.png'
                assets.append(f'<texture name="{model.name}_{i}" type="2d" file="{file}"/>')
        for size in model.sizes or (None,):
            scale = mesh_scale(model, size, boxes[model.name])
            body, body_assets = _object_xml(cache, model, body_name(model, size), scale)
            assets += body_assets
            bodies.append(body)
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
                  material="{TABLE_TEXTURES[0]}"/>
            <geom name="floor" type="plane" size="4 4 0.1" pos="0 0 -0.75"
                  material="{TABLE_TEXTURES[-1]}"/>
            <geom name="wall" type="plane" size="4 4 0.1" pos="0 1.3 0" euler="90 0 0"
                  material="{WALL_TEXTURES[0]}"/>
            {''.join(bodies)}
          </worldbody>
        </mujoco>"""


def _room_assets(cache: Path) -> list[str]:
    """Return the MJCF textures and materials of tables and walls."""
    assets = []
    for name in TABLE_TEXTURES + WALL_TEXTURES:
        repeat = 2 if name in TABLE_TEXTURES else 1
        assets.append(
            f'<texture name="{name}" type="2d" file="{cache / name}.png"/>'
            f'<material name="{name}" texture="{name}" texrepeat="{repeat} {repeat}" '
            'specular="0.1"/>'
        )
    return assets


def _object_xml(cache: Path, model: ObjectModel, name: str, scale: float) -> tuple[str, list[str]]:
    """Return the MJCF body of a model in one size, and its meshes and materials."""
    assets, geoms = [], []
    for i, (appearance, _) in enumerate(mesh_parts(model)):
        assets.append(
            f'<mesh name="{name}_{i}" file="{cache / model.name}_{i}.obj" '
            f'scale="{scale} {scale} {scale}" inertia="shell"/>'
        )
        paint = (
            f'texture="{model.name}_{i}"'
            if isinstance(appearance, str)
            else f'rgba="{appearance[0]} {appearance[1]} {appearance[2]} 1"'
        )
        assets.append(f'<material name="{name}_{i}" {paint} specular="0.4" shininess="0.6"/>')
        geoms.append(
            f'<geom name="{name}_{i}" type="mesh" mesh="{name}_{i}" material="{name}_{i}" '
            f'contype="0" conaffinity="0" group="{_HIDDEN_GROUP}"/>'
        )
    return f'<body name="{name}" mocap="true">{"".join(geoms)}</body>', assets
