# SPDX-License-Identifier: Apache-2.0
"""Meshes and textures of tabletop scenes, converted for MuJoCo.

The cache folder holds, for each object model, one file per mesh:

    <model>_<i>.obj   decimated mesh i, in the order of `mesh_parts`, in the units of its source
    <model>_<i>.png   its texture, if it has one
    <texture>.png     table and wall textures
    done.json         model -> bounding box [[x, y, z] min, [x, y, z] max], in the mesh's units;
                      written last, so that it marks a complete cache
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from tqdm import tqdm

from lisa_ros.errors import DataError
from lisa_ros.files.text import read_json
from lisa_ros.images.image_file import read_rgb
from lisa_ros.optional_packages import install_command
from lisa_ros.tabletop.objects import OBJECTS, MeshPart, ObjectModel

if TYPE_CHECKING:
    import pymeshlab

MAX_FACES = 2500  # triangles per mesh; this halves the rendering time without a visible change
_TEXTURE_SIDE = 512  # longest side of a texture in the cache [px]
# Triangles farther from the body's axis than this multiple of its radius are the handle.
_HANDLE_RADIUS = 1.03

TABLE_TEXTURES = (
    'martin_novak_wood_table', 'table_light_wood', 'marble_floor', 'gray_ceramic_tile',
    'brown_ceramic_tile', 'rustic_floor', 'light_floor', 'white_marble_floor', 'kona_gotham',
    'dark_floor_texture', 'stucco_wall', 'gray_floor',
)  # fmt: skip
WALL_TEXTURES = (
    'cream-plaster', 'dark_blue_wall', 'gray_plaster', 'light_blue_wall', 'meeka-beige-plaster',
    'white_wall', 'yellow_linen_wall_texture', 'dark_gray_plaster', 'light_grey_plaster',
)  # fmt: skip

# points (V, 3), triangles (F, 3), and the texture coordinates of their corners (F, 3, 2) or None
Mesh = tuple[np.ndarray, np.ndarray, np.ndarray | None]


def prepare_assets(assets: Path, cache: Path) -> Path:
    """Fill the cache folder, unless it is complete, and return it.

    Args:
        assets: folder with meshes/ and textures/.
        cache: folder for the converted files, see the module's docstring.

    Raises:
        DataError: `assets` lacks a mesh or a texture, or PyMeshLab is not installed.
    """
    done = cache / 'done.json'
    if _is_complete(done):
        return cache
    if importlib.util.find_spec('pymeshlab') is None:
        raise DataError(f'rendering needs PyMeshLab and MuJoCo: {install_command("train")}')
    cache.mkdir(parents=True, exist_ok=True)
    boxes = {
        model.name: _convert_model(model, assets / 'meshes', cache)
        for model in tqdm(OBJECTS.values(), desc='meshes', unit='model')
    }
    for name in TABLE_TEXTURES + WALL_TEXTURES:
        _shrink_texture(find_asset(assets / 'textures', f'{name}.png'), cache / f'{name}.png')
    done.write_text(json.dumps(boxes))
    return cache


def _is_complete(done: Path) -> bool:
    """Return whether a file lists all objects, which it does when the cache is filled."""
    try:
        content = read_json(done)
    except DataError:  # it is missing, or the last run was stopped while it was written
        return False
    return isinstance(content, dict) and content.keys() == OBJECTS.keys()


def _convert_model(model: ObjectModel, folder: Path, cache: Path) -> list[list[float]]:
    """Write an object model's meshes and textures into the cache; return its bounding box."""
    import pymeshlab

    corners: list[np.ndarray] = []
    meshes: list[Mesh] = []
    for part in model.parts:
        mesh_set = pymeshlab.MeshSet()
        mesh_set.load_new_mesh(str(find_asset(folder, part.mesh)))
        points, faces, wedges = _decimate(mesh_set, part)
        points = points * model.stretch
        corners += [points.min(0), points.max(0)]
        split_meshes = split_handle(points, faces, wedges, model.has_handle)
        if isinstance(part.appearance, str):
            for i in range(len(meshes), len(meshes) + len(split_meshes)):
                texture = cache / f'{model.name}_{i}.png'
                _shrink_texture(find_asset(folder, part.appearance), texture)
        meshes += split_meshes
    for i, mesh in enumerate(meshes):
        _write_obj(*mesh, cache / f'{model.name}_{i}.obj')
    return [np.min(corners, axis=0).tolist(), np.max(corners, axis=0).tolist()]


def _decimate(mesh_set: pymeshlab.MeshSet, part: MeshPart) -> Mesh:
    """Reduce the loaded mesh to MAX_FACES triangles; return it."""
    textured = isinstance(part.appearance, str)
    if mesh_set.current_mesh().face_number() > MAX_FACES:
        decimate = (
            mesh_set.meshing_decimation_quadric_edge_collapse_with_texture
            if textured
            else mesh_set.meshing_decimation_quadric_edge_collapse
        )
        decimate(targetfacenum=MAX_FACES, preservenormal=True)
    mesh = mesh_set.current_mesh()
    wedges = mesh.wedge_tex_coord_matrix().reshape(-1, 3, 2) if textured else None
    return mesh.vertex_matrix(), mesh.face_matrix(), wedges


def split_handle(
    points: np.ndarray, faces: np.ndarray, wedges: np.ndarray | None, has_handle: bool
) -> list[Mesh]:
    """Return [mesh], or [body, handle] if the mesh has a handle on a round body.

    Seen from above, the body is a circle. Its diameter is the mesh's extent across the handle
    axis, and its centre lies where the mesh is widest in that direction.

    Args:
        points: (V, 3) vertices, z up.
        faces: (F, 3) vertex indices.
        wedges: (F, 3, 2) texture coordinates, or None.
        has_handle: whether to split.
    """
    if not has_handle:
        return [(points, faces, wedges)]
    flat = points[:, :2]
    along = int(np.argmax(np.ptp(flat, axis=0)))  # axis from the body's centre to the handle
    across = 1 - along
    radius = np.ptp(flat[:, across]) / 2
    centre = np.empty(2)
    centre[across] = flat[:, across].min() + radius
    candidates = [flat[:, along].min() + radius, flat[:, along].max() - radius]
    rim = np.abs(flat[:, across] - centre[across]) > 0.9 * radius
    centre[along] = min(candidates, key=lambda c: abs(c - flat[rim, along].mean()))
    outside = np.linalg.norm(flat[faces].mean(1) - centre, axis=1) > _HANDLE_RADIUS * radius
    return [
        (points, faces[chosen], None if wedges is None else wedges[chosen])
        for chosen in (~outside, outside)
    ]


def _write_obj(
    points: np.ndarray, faces: np.ndarray, wedges: np.ndarray | None, path: Path
) -> None:
    """Write a Wavefront .obj file: vertices, texture coordinates, triangles; no materials."""
    used, faces = np.unique(faces, return_inverse=True)
    lines = [f'v {x:.6f} {y:.6f} {z:.6f}' for x, y, z in points[used]]
    faces = faces.reshape(-1, 3) + 1
    if wedges is not None:
        lines += [f'vt {u:.5f} {v:.5f}' for u, v in wedges.reshape(-1, 2)]
        lines += [
            f'f {a}/{3 * i + 1} {b}/{3 * i + 2} {c}/{3 * i + 3}'
            for i, (a, b, c) in enumerate(faces)
        ]
    else:
        lines += [f'f {a} {b} {c}' for a, b, c in faces]
    path.write_text('\n'.join(lines) + '\n')


def find_asset(folder: Path, name: str) -> Path:
    """Return the path of a mesh or texture.

    Args:
        folder: meshes/ or textures/ of the assets folder.
        name: path inside it, or `package:path` inside an installed Python package.

    Raises:
        DataError: the file or the package does not exist.
    """
    package, _, path_in_package = name.rpartition(':')
    if package:
        spec = importlib.util.find_spec(package)
        if spec is None:
            raise DataError(
                f'the meshes of the package {package} are missing: '
                'pip install --no-deps robosuite pybullet'
            )
        folder, name = Path(spec.submodule_search_locations[0]), path_in_package
    path = folder / name
    if not path.is_file():
        raise DataError(
            f'no {path.name} in {path.parent}: the assets folder needs meshes/ and textures/ as '
            'docs/lisa-tabletop.md lists them; give it with --assets'
        )
    return path


def _shrink_texture(source: Path, target: Path, side: int = _TEXTURE_SIDE) -> None:
    image = np.ascontiguousarray(read_rgb(source)[:, :, ::-1])  # OpenCV writes BGR
    scale = side / max(image.shape[:2])
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(target), image)


def mesh_parts(model: ObjectModel) -> list[tuple[str | tuple[float, float, float], str | None]]:
    """Return (appearance, part name or None) of each mesh of a model in the cache."""
    parts = []
    for part in model.parts:
        parts.append((part.appearance, part.name))
        if model.has_handle:
            parts.append((part.appearance, 'handle'))
    return parts
