# SPDX-License-Identifier: Apache-2.0
"""Disk cache of CLIP and SAM features, for training with frozen vision encoders.

Most of a training step is spent in the vision encoders. If they are frozen, as in the original
LISA (section 3.2), each image needs to be encoded only once: a step is then three to five times
as fast. Runs that start with the same vision encoders can share a cache. A cache is a folder:

    clip.npy     (n, P, W) float16, CLIP's patch states, before `mm_projector`
    sam.npy      (n, C, h, w) float16, SAM's features
    ids.npy      (n, S, S) uint8, object ids in SAM's square, 0 on padding
    views.json   scene graph of each view; hashes of the encoders and the scenes; views per scene;
                 shape of a view

n = scenes x views. The views of a scene are drawn by `dataset.augment`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lisa_ros.errors import DataError
from lisa_ros.files.json_schema import (
    ANYTHING,
    INTEGER,
    SCALAR,
    ListOf,
    MapOf,
    Record,
    check_json,
)
from lisa_ros.files.text import read_json
from lisa_ros.model import image_processing
from lisa_ros.model.lisa import LISA
from lisa_ros.model.lisa_config import LisaConfig
from lisa_ros.model.tokenizer import Tokenizer
from lisa_ros.tabletop.queries import TabletopQuery
from lisa_ros.tabletop.scene_graph import SceneGraph
from lisa_ros.training.tabletop import batches, dataset
from lisa_ros.training.tabletop.dataset import SceneSet, SceneView
from lisa_ros.training.tabletop.initialization import clip_preprocessing

_ENCODERS = ('clip.', 'sam.vision_encoder.')
_ENCODE_BATCH = 32  # images
_ARRAYS = ('clip', 'sam', 'ids')
_INDEX = 'views.json'
_INDEX_SCHEMA = Record(
    {'scene_graphs': ListOf(ListOf(MapOf(SCALAR))), 'shape': ListOf(INTEGER)},
)
_VIEW_SEED = 7919  # first number of the seed of a cached view
# earlier versions wrote the index under this name, with these keys
_OLD_INDEX = 'tables.json'
_OLD_KEYS = {'eyes': 'vision_encoders', 'tables': 'scene_graphs'}


@dataclass(frozen=True, kw_only=True)
class CachedBatch(batches.QueryBatch):
    """Conversations about images with the vision features of the images."""

    clip_states: Tensor  # (B, P, W) float16
    image_embeddings: Tensor  # (B, C, h, w) float16


@dataclass(frozen=True)
class FeatureCache:
    """The features of n views. The arrays are memory-mapped: data is read when it is used."""

    clip: np.ndarray  # (n, P, W) float16
    sam: np.ndarray  # (n, C, h, w) float16
    ids: np.ndarray  # (n, S, S) uint8
    scene_graphs: list[SceneGraph]
    image_shape: tuple[int, int]  # (height, width) of every view [px]

    def __len__(self) -> int:
        """Return the number of views."""
        return len(self.scene_graphs)

    def make_batch(
        self,
        config: LisaConfig,
        tokenizer: Tokenizer,
        views: Sequence[int],
        queries: Sequence[Sequence[TabletopQuery]],
    ) -> CachedBatch:
        """Return the batch of some views, with the queries about each of them."""
        ids = [self.ids[i] for i in views]
        query_batch = batches.make_query_batch(config, tokenizer, self.image_shape, ids, queries)
        return CachedBatch(
            **vars(query_batch),
            clip_states=torch.from_numpy(np.stack([self.clip[i] for i in views])),
            image_embeddings=torch.from_numpy(np.stack([self.sam[i] for i in views])),
        )


def cached_view(scenes: SceneSet, number: int) -> SceneView:
    """Return the augmented view that has this number in the cache of a scene set."""
    rng = np.random.default_rng((_VIEW_SEED, number))
    return dataset.augment(rng, scenes.view(number % len(scenes)))


def load_or_build(
    folder: Path, lisa: LISA, scenes: SceneSet, views_per_scene: int, bf16: bool = False
) -> FeatureCache:
    """Return the cache in a folder; if it does not exist, encode all views and write it.

    Args:
        folder: of the cache.
        lisa: the model whose vision encoders are used, on its device.
        scenes: the training set.
        views_per_scene: augmented views of each scene.
        bf16: whether views are encoded with matrix products in bfloat16.

    Raises:
        DataError: the folder contains other files, or features of other encoders or scenes.
    """
    key = {
        'vision_encoders': _encoder_hash(lisa),
        'scenes': _scenes_hash(scenes),
        'views': views_per_scene,
        'shape': list(scenes.ids.shape[1:]),  # of each view
    }
    if not any((folder / name).exists() for name in (_INDEX, _OLD_INDEX)):
        if folder.exists() and any(folder.iterdir()):
            raise DataError(
                f'{folder} is not empty and contains no feature cache: give --feature-cache a new '
                'folder'
            )
        _build(folder, lisa, scenes, key, bf16)
    index = _read_index(folder)
    differences = [
        f'{name} {index.get(name)}, expected {value}'
        for name, value in key.items()
        if index.get(name) != value
    ]
    if differences:
        raise DataError(
            f'{folder} contains features of other encoders or scenes ({"; ".join(differences)}): '
            'give --feature-cache another folder, or remove this one'
        )
    try:
        arrays = {name: np.load(folder / f'{name}.npy', mmap_mode='r') for name in _ARRAYS}
        scene_graphs = [SceneGraph.from_dicts(objects) for objects in index['scene_graphs']]
        lengths = {len(scene_graphs), *map(len, arrays.values())}
        if len(lengths) > 1:
            raise ValueError(f'its files have {sorted(lengths)} views')
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f'{folder}: the feature cache cannot be read ({error}); remove it to build it again'
        ) from error
    return FeatureCache(**arrays, scene_graphs=scene_graphs, image_shape=tuple(index['shape']))


def _read_index(folder: Path) -> dict[str, Any]:
    """Return the index of a cache; keys of earlier versions are renamed."""
    path = folder / (_INDEX if (folder / _INDEX).exists() else _OLD_INDEX)
    index = read_json(path)
    check_json(path, index, MapOf(ANYTHING))
    index = {_OLD_KEYS.get(name, name): value for name, value in index.items()}
    check_json(path, index, _INDEX_SCHEMA)
    return index


def _build(folder: Path, lisa: LISA, scenes: SceneSet, key: dict[str, Any], bf16: bool) -> None:
    """Encode every view and write the folder of the cache."""
    unfinished = folder.with_name(folder.name + '.new')
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    total = len(scenes) * key['views']
    files: dict[str, np.ndarray] = {}
    scene_graphs = []
    for start in tqdm(range(0, total, _ENCODE_BATCH), desc='encoding', unit='batch'):
        numbers = range(start, min(start + _ENCODE_BATCH, total))
        views = [cached_view(scenes, number) for number in numbers]
        for name, array in _encode(lisa, views, bf16).items():
            if name not in files:
                files[name] = np.lib.format.open_memmap(
                    unfinished / f'{name}.npy', 'w+', array.dtype, (total, *array.shape[1:])
                )
            files[name][start : start + len(array)] = array
        scene_graphs += [
            [dataclasses.asdict(o) for o in view.scene_graph.objects] for view in views
        ]
    for file in files.values():
        file.flush()
    index = json.dumps({**key, 'scene_graphs': scene_graphs})
    (unfinished / _INDEX).write_text(index)
    unfinished.replace(folder)


@torch.no_grad()
def _encode(lisa: LISA, views: list[SceneView], bf16: bool) -> dict[str, np.ndarray]:
    """Encode some views; return the arrays by the names in _ARRAYS."""
    side, device = lisa.config.sam_size, lisa.device
    preprocessing = clip_preprocessing(lisa.config)
    clip_pixels = np.stack(
        [image_processing.clip_pixels(view.image, preprocessing) for view in views]
    )
    sam_pixels = np.stack([image_processing.sam_input(view.image, side).pixels for view in views])
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        clip_states = lisa.clip_states(torch.from_numpy(clip_pixels).to(device))
        image_embeddings = lisa.encode_sam(torch.from_numpy(sam_pixels).to(device))
    return {
        'clip': clip_states.half().cpu().numpy(),
        'sam': image_embeddings.half().cpu().numpy(),
        'ids': np.stack([dataset.to_sam_square(view.ids, side) for view in views]),
    }


def _scenes_hash(scenes: SceneSet) -> str:
    """Return the number of scenes, with a hash of the id images of about 50 of them."""
    sha = hashlib.sha256()
    for i in range(0, len(scenes), max(1, len(scenes) // 50)):
        sha.update(scenes.ids[i].tobytes())
    return f'{len(scenes)} {sha.hexdigest()[:16]}'


def _encoder_hash(lisa: LISA) -> str:
    """Return a hash of the weights of the vision encoders."""
    sha = hashlib.sha256()
    for name, tensor in sorted(lisa.state_dict().items()):
        if name.startswith(_ENCODERS):
            sha.update(tensor.detach().float().cpu().numpy().tobytes())
    return sha.hexdigest()[:16]
