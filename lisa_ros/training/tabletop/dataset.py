# SPDX-License-Identifier: Apache-2.0
"""Rendered scenes as training images, with augmentation."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from lisa_ros.error_text import short_repr
from lisa_ros.errors import DataError
from lisa_ros.files.json_schema import SCALAR, TEXT, ListOf, MapOf, Record, check_json
from lisa_ros.files.text import read_json
from lisa_ros.model import image_processing
from lisa_ros.tabletop.objects import PART_FLAG
from lisa_ros.tabletop.scene_graph import SceneGraph

_AREA_PIXELS = 320 * 240  # a scene graph has areas for an image of this size [px]

_SCENES = Record({'scenes': ListOf(Record({'name': TEXT, 'objects': ListOf(MapOf(SCALAR))}))})


@dataclass(frozen=True)
class SceneView:
    """One image of a scene, with the objects that it shows."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    ids: np.ndarray  # (H, W) uint8, id of the object + PART_FLAG on its named part; 0 background
    scene_graph: SceneGraph  # areas and positions as in this image


@dataclass(frozen=True)
class SceneSet:
    """The n scenes of one split, in memory."""

    images: np.ndarray  # (n, H, W, 3) uint8 RGB
    ids: np.ndarray  # (n, H, W) uint8, as `SceneView.ids`
    scene_graphs: list[SceneGraph]

    def __len__(self) -> int:
        """Return the number of scenes."""
        return len(self.scene_graphs)

    def view(self, index: int) -> SceneView:
        """Return a scene as it was rendered."""
        return SceneView(self.images[index], self.ids[index], self.scene_graphs[index])

    @classmethod
    def load(cls, folder: Path, limit: int | None = None) -> SceneSet:
        """Read the folder of a split, as `lisa-ros scenes` writes it.

        Args:
            folder: holds scenes.json, colour/ and ids/.
            limit: read only the first scenes; all if None.

        Raises:
            DataError: scenes.json or an image is missing or broken; the message names it.
        """
        try:
            content = read_json(folder / 'scenes.json')
            check_json(folder / 'scenes.json', content, _SCENES)
            scenes = content['scenes'][:limit]
            scene_graphs = [SceneGraph.from_dicts(scene['objects']) for scene in scenes]
        except (DataError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f'{folder}: scenes.json cannot be read ({error}); expected scenes of this '
                'version: render them with `lisa-ros scenes`'
            ) from error
        if not scenes:
            raise DataError(
                f'{folder}: scenes.json has no scenes; render some with `lisa-ros scenes`'
            )
        with ThreadPoolExecutor() as pool:
            pairs = list(pool.map(lambda scene: _read_images(folder, scene['name']), scenes))
        images, ids = (np.stack(arrays) for arrays in zip(*pairs, strict=True))
        return cls(
            images,
            ids,
            [with_visibility(*pair) for pair in zip(scene_graphs, ids, strict=True)],
        )


def _read_images(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the colour image (RGB) and the id image of a scene."""
    if not name.isalnum():
        raise DataError(f'{folder}: scenes.json has the name {short_repr(name)}; expected digits')
    image = cv2.imread(str(folder / 'colour' / f'{name}.jpg'), cv2.IMREAD_COLOR)
    ids = cv2.imread(str(folder / 'ids' / f'{name}.png'), cv2.IMREAD_GRAYSCALE)
    if image is None or ids is None:
        raise DataError(
            f'{folder}: cannot read colour/{name}.jpg or ids/{name}.png; render the scenes again '
            'with `lisa-ros scenes`'
        )
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB), ids


def augment(rng: np.random.Generator, view: SceneView) -> SceneView:
    """Return a view with a random crop, flip, exposure, white balance, noise and blur."""
    image, ids = _random_crop(rng, view)
    scene_graph = view.scene_graph
    if rng.random() < 0.5:
        image, ids, scene_graph = image[:, ::-1], ids[:, ::-1], scene_graph.mirrored()
    image = _random_exposure(rng, image)
    if rng.random() < 0.25:
        image = cv2.GaussianBlur(image, (3, 3), 0)
    return SceneView(
        np.ascontiguousarray(image),
        np.ascontiguousarray(ids),
        with_visibility(scene_graph, ids),
    )


def _random_crop(rng: np.random.Generator, view: SceneView) -> tuple[np.ndarray, np.ndarray]:
    """Return image and ids of a random crop, resized to the size of the view."""
    height, width = view.ids.shape
    scale = rng.uniform(0.7, 1.0)
    h, w = int(height * scale), int(width * scale)
    y, x = rng.integers(height - h + 1), rng.integers(width - w + 1)
    crop, size = np.s_[y : y + h, x : x + w], (width, height)
    return (
        cv2.resize(view.image[crop], size, interpolation=cv2.INTER_LINEAR),
        cv2.resize(view.ids[crop], size, interpolation=cv2.INTER_NEAREST_EXACT),
    )


def _random_exposure(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Return an image with random exposure, white balance, offset and noise."""
    gain = rng.uniform(0.75, 1.25) * rng.uniform(0.94, 1.06, 3)  # exposure and white balance
    values = image * gain.astype(np.float32) + np.float32(rng.uniform(-12, 12))
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    values += noise * np.float32(rng.uniform(0, 6))
    return values.clip(0, 255).astype(np.uint8)


def with_visibility(scene_graph: SceneGraph, ids: np.ndarray) -> SceneGraph:
    """Return a scene graph with the areas and image positions of an id image (H, W) uint8.

    Areas are scaled to an image of 320 x 240 px. The position of an object is the mean of the
    lower half of its visible pixels, as a fraction of the width and height.
    """
    scale = _AREA_PIXELS / ids.size
    height, width = ids.shape
    rows, columns = np.nonzero(ids)
    values = ids[rows, columns]
    objects = []
    for scene_object in scene_graph.objects:
        is_object = (values & ~np.uint8(PART_FLAG)) == scene_object.id
        is_part = values == scene_object.id + PART_FLAG
        area = np.count_nonzero(is_object)
        lower_half = np.s_[area // 2 :]  # np.nonzero sorts by rows, from the top
        objects.append(
            dataclasses.replace(
                scene_object,
                area=int(area * scale),
                part_area=int(np.count_nonzero(is_part) * scale),
                image_x=round(_mean_centre(columns[is_object][lower_half]) / width, 3),
                image_y=round(_mean_centre(rows[is_object][lower_half]) / height, 3),
            )
        )
    return SceneGraph(tuple(objects))


def _mean_centre(indices: np.ndarray) -> float:
    """Return the mean of the centres of pixels [px]; 0 without pixels."""
    return float(indices.mean() + 0.5) if len(indices) else 0.0


def to_sam_square(ids: np.ndarray, side: int) -> np.ndarray:
    """Return an id image (H, W) as in SAM's square input, (side, side), padded with 0."""
    height, width = image_processing.sam_resized_shape(ids.shape, side)
    square = np.zeros((side, side), np.uint8)
    square[:height, :width] = cv2.resize(
        ids, (width, height), interpolation=cv2.INTER_NEAREST_EXACT
    )
    return square
