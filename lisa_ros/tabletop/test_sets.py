# SPDX-License-Identifier: Apache-2.0
"""Test sets of rendered scenes: queries with their ground truth, seeded by split and scene number.

`lisa_ros.evaluation.tabletop` reads them. queries.json is a list of

    {"image": path, "ids": path, "queries": [{"category", "text", "targets"}]}

with paths relative to its folder. Each query has
    category          of `queries.CATEGORIES`, or "unseen_objects"
    text              the query, of a dialogue its last turn
    targets           values of the id image that the mask must cover; empty for an absent object
    history           earlier queries of the dialogue; missing if there are none
    expected_phrases  phrases that the answer must state, each as a list of alternatives; see
                      `evaluation.tabletop.TabletopTestQuery`; missing if there are none
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from lisa_ros.error_text import short_repr
from lisa_ros.errors import DataError
from lisa_ros.files.access import path_below
from lisa_ros.files.text import read_json
from lisa_ros.tabletop import query_sampling
from lisa_ros.tabletop.objects import OBJECTS
from lisa_ros.tabletop.queries import TabletopQuery
from lisa_ros.tabletop.scene_graph import SceneGraph
from lisa_ros.tabletop.scene_sampling import SPLITS

QUERIES_FILE = 'queries.json'
_SEED_OFFSET = 1000  # test queries and scenes have different seeds


def make_test_queries(split: str, number: int, scene: SceneGraph) -> list[dict[str, Any]]:
    """Return the entries of a scene's queries in queries.json.

    For the split "unseen", the queries ask for the held-out objects only.
    """
    rng = np.random.default_rng((_SEED_OFFSET + SPLITS[split], number))
    if split == 'unseen':
        models = [o.model for o in scene.visible if OBJECTS[o.model].held_out]
        queries = [
            query
            for model in models
            for query in query_sampling.make_object_test_queries(rng, scene, model)
        ]
        return [_entry(query, 'unseen_objects') for query in queries]
    queries = query_sampling.make_test_queries(rng, scene)
    return [_entry(query, query.category) for query in queries]


def _entry(query: TabletopQuery, category: str) -> dict[str, Any]:
    *history, last = query.turns
    entry: dict[str, Any] = {
        'category': category,
        'text': last.query,
        'targets': sorted({i for ids in query.targets[query.first_target :] for i in ids}),
    }
    if history:
        entry['history'] = [turn.query for turn in history]
    if query.expected_phrases:
        entry['expected_phrases'] = [list(phrases) for phrases in query.expected_phrases]
    return entry


def write_test_set(folder: Path) -> None:
    """Write queries.json next to the scenes.json of a split."""
    index = read_json(folder / 'scenes.json')
    images = []
    for scene in index['scenes']:
        graph = SceneGraph.from_dicts(scene['objects'])
        images.append(
            {
                'image': f'colour/{scene["name"]}.jpg',
                'ids': f'ids/{scene["name"]}.png',
                'queries': make_test_queries(index['split'], int(scene['name']), graph),
            }
        )
    (folder / QUERIES_FILE).write_text(json.dumps(images))


def pack_test_set(folders: list[Path], out: Path, quality: int = 80) -> None:
    """Write the test sets of several splits into one small zip file.

    Args:
        folders: folders of the splits, each with queries.json.
        out: the zip file.
        quality: of the WebP images, 0 to 100.

    Raises:
        DataError: an image is missing, or is not in its folder.
    """
    images = []
    with zipfile.ZipFile(out, 'w') as archive:
        for folder in folders:
            for entry in tqdm(read_json(folder / QUERIES_FILE), desc=folder.name):
                if not entry['queries']:
                    continue
                name = f'{folder.name}_{Path(entry["ids"]).stem}'
                image = _read(folder, entry['image'], cv2.IMREAD_COLOR)
                ids = _read(folder, entry['ids'], cv2.IMREAD_GRAYSCALE)
                archive.writestr(
                    f'{name}.webp', _encode('.webp', image, cv2.IMWRITE_WEBP_QUALITY, quality)
                )
                archive.writestr(
                    f'{name}.png', _encode('.png', ids, cv2.IMWRITE_PNG_COMPRESSION, 9)
                )
                images.append({**entry, 'image': f'{name}.webp', 'ids': f'{name}.png'})
        archive.writestr(QUERIES_FILE, json.dumps(images), zipfile.ZIP_DEFLATED)


def _read(folder: Path, name: str, flags: int) -> np.ndarray:
    """Return an image of a test set, decoded with OpenCV's `flags`."""
    path = path_below(folder, name)
    image = None if path is None else cv2.imread(str(path), flags)
    if image is None:
        raise DataError(
            f'{folder / QUERIES_FILE}: {short_repr(name)} is no image in its folder; render the '
            'scenes again with `lisa-ros scenes`'
        )
    return image


def _encode(suffix: str, pixels: np.ndarray, option: int, value: int) -> bytes:
    return cv2.imencode(suffix, pixels, [option, value])[1].tobytes()
