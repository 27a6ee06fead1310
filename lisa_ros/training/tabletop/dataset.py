# SPDX-License-Identifier: Apache-2.0
"""Rendered tabletop scenes as training images."""

from __future__ import annotations

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from lisa_ros.errors import DataError
from lisa_ros.model import image_processing
from lisa_ros.tabletop.rendering import PART_FLAG
from lisa_ros.tabletop.scene_graph import SceneGraph, SceneObject

if TYPE_CHECKING:
    pass  # from Python 3.11 on


@dataclass(frozen=True)
class SceneSet:
    """The scenes of one split, in memory."""

    colour: np.ndarray  # (n, H, W, 3) uint8 RGB
    ids: np.ndarray  # (n, H, W) uint8, object's id + PART, see scenes.py
    tables: list[SceneGraph]  # what each shows

    def __len__(self) -> int:
        """Return the number of scenes."""
        return len(self.tables)

    @classmethod
    def load(cls, folder: Path, limit: int | None = None) -> SceneSet:
        """Read a split's folder as scenes.py writes it.

        Raises:
            DataError: scenes.json or a picture is missing or broken; the message names it.
        """
        try:
            scenes = json.loads((folder / 'scenes.json').read_text())['scenes'][:limit]
            tables = [
                SceneGraph(tuple(SceneObject(**o) for o in scene['objects'])) for scene in scenes
            ]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f'{folder}: no scenes here, or of another version ({error!r}); render some '
                'with `lisa-ros scenes`'
            ) from error
        if not tables:
            raise DataError(f'{folder}: scenes.json is empty; render some with `lisa-ros scenes`')

        def read(scene: dict) -> tuple[np.ndarray, np.ndarray]:
            colour = cv2.imread(str(folder / 'colour' / f'{scene["name"]}.jpg'), cv2.IMREAD_COLOR)
            ids = cv2.imread(str(folder / 'ids' / f'{scene["name"]}.png'), cv2.IMREAD_GRAYSCALE)
            if colour is None or ids is None:
                raise DataError(
                    f'{folder}: the pictures of scene {scene["name"]} are not readable'
                )
            return cv2.cvtColor(colour, cv2.COLOR_BGR2RGB), ids

        with ThreadPoolExecutor() as pool:
            pictures = list(pool.map(read, scenes))
        tables = [
            with_visibility(table, ids) for table, (_, ids) in zip(tables, pictures, strict=True)
        ]
        return cls(
            np.stack([colour for colour, _ in pictures]),
            np.stack([ids for _, ids in pictures]),
            tables,
        )


def augment(
    rng: np.random.Generator, colour: np.ndarray, ids: np.ndarray, table: SceneGraph
) -> tuple[np.ndarray, np.ndarray, SceneGraph]:
    """Return picture, ids and table cropped, mirrored, in another light and with noise."""
    height, width = ids.shape
    share = rng.uniform(0.7, 1.0)
    h, w = int(height * share), int(width * share)
    y, x = rng.integers(height - h + 1), rng.integers(width - w + 1)
    size = (width, height)
    colour = cv2.resize(colour[y : y + h, x : x + w], size, interpolation=cv2.INTER_LINEAR)
    ids = cv2.resize(ids[y : y + h, x : x + w], size, interpolation=cv2.INTER_NEAREST_EXACT)
    if rng.random() < 0.5:
        colour, ids, table = colour[:, ::-1], ids[:, ::-1], table.mirrored()
    gain = rng.uniform(0.75, 1.25) * rng.uniform(0.94, 1.06, 3)  # exposure and white balance
    values = colour * gain.astype(np.float32) + np.float32(rng.uniform(-12, 12))
    noise = rng.standard_normal(colour.shape, dtype=np.float32)
    values += noise * np.float32(rng.uniform(0, 6))
    colour = values.clip(0, 255).astype(np.uint8)
    if rng.random() < 0.25:
        colour = cv2.GaussianBlur(colour, (3, 3), 0)
    return np.ascontiguousarray(colour), np.ascontiguousarray(ids), with_visibility(table, ids)


def with_visibility(table: SceneGraph, ids: np.ndarray) -> SceneGraph:
    """Return the table as this view shows it; areas are as of a 320 x 240 picture."""
    scale = 320 * 240 / ids.size
    height, width = ids.shape
    down, across = np.nonzero(ids)
    shown = ids[down, across]
    things = []
    for one in table.objects:
        whole, part = (shown & ~np.uint8(PART_FLAG)) == one.id, shown == one.id + PART_FLAG
        area = np.count_nonzero(whole)
        lower = (a[whole][area // 2 :] for a in (across, down))  # rows come from the top
        place = (float(a.mean() + 0.5) if len(a) else 0.0 for a in lower)
        things.append(
            dataclasses.replace(
                one,
                area=int(area * scale),
                part_area=int(np.count_nonzero(part) * scale),
                across=round(next(place) / width, 3),
                down=round(next(place) / height, 3),
            )
        )
    return SceneGraph(tuple(things))


def to_sam_square(ids: np.ndarray, side: int) -> np.ndarray:
    """Return an id image as SAM's square input holds the picture, padded with 0."""
    height, width = image_processing.sam_resized(ids.shape, side)
    square = np.zeros((side, side), np.uint8)
    square[:height, :width] = cv2.resize(
        ids, (width, height), interpolation=cv2.INTER_NEAREST_EXACT
    )
    return square
