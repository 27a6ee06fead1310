# SPDX-License-Identifier: Apache-2.0
"""Exams on rendered scenes: the requests of each and their truth, drawn by the scene's number.

`lisa_ros.evaluation.tabletop` reads what this writes.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from lisa_ros.tabletop import query_sampling
from lisa_ros.tabletop.objects import OBJECTS
from lisa_ros.tabletop.scene_graph import SceneGraph, SceneObject
from lisa_ros.tabletop.scene_sampling import SPLITS

_APART = 1000  # requests of exams draw from other seeds than scenes and lessons


def make_test_queries(split: str, number: int, table: SceneGraph) -> list[dict]:
    """Return what a table is asked, as `evaluation.scenes.read_exam` reads it."""
    rng = np.random.default_rng((_APART + SPLITS[split], number))
    if split == 'unseen':
        new = [o.thing for o in table.visible if OBJECTS[o.thing].held_out]
        asked = [
            r for thing in new for r in query_sampling.make_object_test_queries(rng, table, thing)
        ]
    else:
        asked = query_sampling.make_test_queries(rng, table)
    pages = []
    for request in asked:
        *before, last = request.turns
        page = {
            'sort': 'unseen_objects' if split == 'unseen' else request.category,
            'text': last.query,
            'targets': sorted({i for ids in request.targets[request.first :] for i in ids}),
        }
        if before:
            page['before'] = [turn.query for turn in before]
        if request.expected_phrases:
            page['expects'] = [list(wordings) for wordings in request.expected_phrases]
        pages.append(page)
    return pages


def write_test_set(folder: Path) -> None:
    """Write exam.json beside a split's scenes.json."""
    note = json.loads((folder / 'scenes.json').read_text())
    pages = [
        {
            'picture': f'colour/{scene["name"]}.jpg',
            'ids': f'ids/{scene["name"]}.png',
            'questions': make_test_queries(
                note['split'],
                int(scene['name']),
                SceneGraph(tuple(SceneObject(**one) for one in scene['objects'])),
            ),
        }
        for scene in note['scenes']
    ]
    (folder / 'exam.json').write_text(json.dumps(pages))


def pack_test_set(folders: list[Path], out: Path, quality: int = 80) -> None:
    """Join the exams of several folders into one zip that is small enough to ship, as WebP."""
    pages = []
    with zipfile.ZipFile(out, 'w') as archive:
        for folder in folders:
            for page in tqdm(json.loads((folder / 'exam.json').read_text()), desc=folder.name):
                if not page['questions']:
                    continue
                name = f'{folder.name}_{Path(page["ids"]).stem}'
                picture = cv2.imread(str(folder / page['picture']), cv2.IMREAD_COLOR)
                ids = cv2.imread(str(folder / page['ids']), cv2.IMREAD_GRAYSCALE)
                archive.writestr(
                    f'{name}.webp', _coded('.webp', picture, cv2.IMWRITE_WEBP_QUALITY, quality)
                )
                archive.writestr(
                    f'{name}.png', _coded('.png', ids, cv2.IMWRITE_PNG_COMPRESSION, 9)
                )
                pages.append({**page, 'picture': f'{name}.webp', 'ids': f'{name}.png'})
        archive.writestr('exam.json', json.dumps(pages), zipfile.ZIP_DEFLATED)


def _coded(kind: str, picture: np.ndarray, option: int, value: int) -> bytes:
    return cv2.imencode(kind, picture, [option, value])[1].tobytes()
