# SPDX-License-Identifier: Apache-2.0
"""Renders the scenes of a split and writes them to disk.

A split and a number identify a scene: the same pair gives the same image on every machine. The
splits have separate seeds, and `unseen` has objects that no other split shows.

A split's folder:

    scenes.json        {"split", "size": [width, height], "scenes": [{"name", "k", "objects"}]};
                       "objects" as of `scene_metadata`
    colour/00000.jpg   (H, W, 3) RGB
    ids/00000.png      (H, W) uint8: 0 no object, else the object's id in scenes.json,
                       + PART_FLAG on a named part (a handle, a cork)
    depth/00000.png    (H, W) uint16, millimetres along the optical axis (REP-118), 0 invalid
    meta/00000.json    the scene's entry of scenes.json
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from lisa_ros.errors import DataError
from lisa_ros.files.text import read_json
from lisa_ros.tabletop.assets import prepare_assets
from lisa_ros.tabletop.objects import PART_FLAG, SIZES
from lisa_ros.tabletop.rendering import Renderer
from lisa_ros.tabletop.scene_sampling import (
    Scene,
    camera_matrix,
    draw_camera,
    draw_scene,
    scene_rng,
)


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
    """Render scenes `first` to `first + count - 1` of a split into `out`/`split`.

    Scenes that are already there are kept, so a second call resumes an interrupted one.

    Args:
        assets: folder with meshes/ and textures/.
        out: folder of the splits.
        split: key of SPLITS.
        count: number of scenes.
        first: number of the first scene.
        workers: number of processes.
        size: (width, height) of the images [px].
        cache: folder of converted assets; default: `out`/assets.

    Raises:
        DataError: an asset is missing, or a process failed.
    """
    import multiprocessing

    cache = prepare_assets(assets, cache or out / 'assets')
    out = out / split
    edges = np.linspace(first, first + count, workers + 1).astype(int)
    context = multiprocessing.get_context('spawn')  # an OpenGL context does not survive a fork
    processes = [
        context.Process(target=render_range, args=(cache, out, split, range(begin, end), size))
        for begin, end in itertools.pairwise(edges)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise DataError(f'rendering {split} failed: see the error above; call again to resume')
    write_index(out, split, size)


def render_range(
    cache: Path, out: Path, split: str, numbers: range, size: tuple[int, int]
) -> None:
    """Render the scenes `numbers` of a split into `out`; those that are already there are kept."""
    for folder in ('colour', 'ids', 'depth', 'meta'):
        (out / folder).mkdir(parents=True, exist_ok=True)
    renderer = Renderer(cache, *size)
    for number in tqdm(numbers, desc=f'{split} {numbers.start}', unit='scene'):
        if not (out / 'meta' / f'{number:05d}.json').is_file():
            _render_scene(renderer, out, split, number)


def _render_scene(renderer: Renderer, out: Path, split: str, number: int) -> None:
    """Render one scene and write its files, the metadata last."""
    name = f'{number:05d}'
    rng = scene_rng(split, number)
    scene = draw_scene(rng, renderer.boxes, unseen=split == 'unseen')
    renderer.set_scene(scene)
    pose = camera_matrix(*draw_camera(rng))
    frame = renderer.render(pose)
    cv2.imwrite(
        str(out / 'colour' / f'{name}.jpg'),
        frame.image[..., ::-1],
        [cv2.IMWRITE_JPEG_QUALITY, 92],
    )
    cv2.imwrite(str(out / 'ids' / f'{name}.png'), frame.ids)
    cv2.imwrite(str(out / 'depth' / f'{name}.png'), depth_in_millimetres(frame.depth))
    metadata = {
        'name': name,
        'k': frame.k.tolist(),
        'objects': scene_metadata(scene, pose, frame.ids),
    }
    (out / 'meta' / f'{name}.json').write_text(json.dumps(metadata))


def depth_in_millimetres(depth: np.ndarray) -> np.ndarray:
    """Return a depth image in metres as uint16 millimetres (REP-118)."""
    return np.clip(np.rint(depth * 1000), 0, 65535).astype(np.uint16)


def scene_metadata(scene: Scene, pose: np.ndarray, ids: np.ndarray) -> list[dict]:
    """Return the fields of `scene_graph.SceneObject` for each object of a scene.

    Args:
        scene: the scene.
        pose: (4, 4) pose of the camera's optical frame in the world.
        ids: (H, W) uint8 id image of this view.
    """
    forward = pose[:2, 2] / np.linalg.norm(pose[:2, 2])
    right = pose[:2, 0]
    pixels = np.bincount(ids.ravel(), minlength=256)
    objects = []
    for i, placed in enumerate(scene.objects, start=1):
        low, high = np.array(placed.box_min), np.array(placed.box_max)
        offset = (low + high)[:2] / 2 - pose[:2, 3]  # from the point below the camera
        objects.append(
            {
                'id': i,
                'category': placed.model.category,
                'model': placed.model.name,
                'colour': placed.colour,
                'size': placed.size,
                'area': int(pixels[i] + pixels[i + PART_FLAG]),
                'part_area': int(pixels[i + PART_FLAG]),
                'right': round(float(offset @ right), 4),
                'away': round(float(offset @ forward), 4),
                'height': round(float(high[2] - low[2]), 4),
                'longest': round(placed.model.size * SIZES.get(placed.size, 1.0), 4),
            }
        )
    return objects


def write_index(out: Path, split: str, size: tuple[int, int]) -> None:
    """Collect the metadata of all rendered scenes in scenes.json."""
    scenes = [read_json(path) for path in sorted((out / 'meta').glob('*.json'))]
    index = {'split': split, 'size': list(size), 'scenes': scenes}
    (out / 'scenes.json').write_text(json.dumps(index))
