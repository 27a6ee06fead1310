# SPDX-License-Identifier: Apache-2.0
"""Meshes and textures of tabletop scenes, converted for MuJoCo."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from lisa_ros.errors import DataError
from lisa_ros.tabletop.objects import OBJECTS, ObjectModel

FACES = 2500  # triangles a mesh is decimated to: half the rendering time, no visible change


TABLES = (
    'martin_novak_wood_table', 'table_light_wood', 'marble_floor', 'gray_ceramic_tile',
    'brown_ceramic_tile', 'rustic_floor', 'light_floor', 'white_marble_floor', 'kona_gotham',
    'dark_floor_texture', 'stucco_wall', 'gray_floor',
)  # fmt: skip


WALLS = (
    'cream-plaster', 'dark_blue_wall', 'gray_plaster', 'light_blue_wall', 'meeka-beige-plaster',
    'white_wall', 'yellow_linen_wall_texture', 'dark_gray_plaster', 'light_grey_plaster',
)  # fmt: skip


def prepare_assets(assets: Path, cache: Path) -> Path:
    """Decimate the meshes and shrink the textures once; return the folder that holds them.

    Raises:
        DataError: `assets` lacks a mesh or a texture; the message names it.
    """
    done = cache / 'done.json'
    if done.is_file() and json.loads(done.read_text()).keys() == OBJECTS.keys():
        return cache
    try:
        import pymeshlab
    except ModuleNotFoundError as error:
        raise DataError("rendering needs PyMeshLab and MuJoCo: pip install '.[train]'") from error

    cache.mkdir(parents=True, exist_ok=True)
    boxes = {}
    for thing in tqdm(OBJECTS.values(), desc='meshes', unit='thing'):
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


def mesh_parts(thing: ObjectModel) -> list[tuple[str | tuple, str | None]]:
    """Return look and part name of each mesh in the cache, `<thing>_<i>.obj`."""
    pieces = []
    for part in thing.parts:
        pieces.append((part.look, part.name))
        if thing.handle:
            pieces.append((part.look, 'handle'))
    return pieces
