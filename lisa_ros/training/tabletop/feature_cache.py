# SPDX-License-Identifier: Apache-2.0
"""What the vision parts make of a training set, kept on disk, for a training in which they stand.

Most of a training step goes into the eyes. The original never trains them (section 3.2: CLIP and
SAM's encoder are frozen), so each picture need be seen once only: then a step is three to five
times as fast. A folder of memory serves every training that starts with the same eyes:

    clip.npy     (n, P, W) float16, CLIP's states of the patches, before `mm_projector`
    sam.npy      (n, C, h, w) float16, SAM's features
    ids.npy      (n, S, S) uint8, ids in SAM's square, 0 on padding
    tables.json  what each view shows; whose eyes, which scenes, how many views of each

n = scenes x views; the views of a scene are crops in other lights, as `data.augment` draws them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lisa_ros.errors import DataError
from lisa_ros.model import image_processing
from lisa_ros.model.lisa import LISA
from lisa_ros.model.tokenizer import Tokenizer
from lisa_ros.tabletop.queries import TabletopQuery
from lisa_ros.tabletop.scene_graph import SceneGraph, SceneObject
from lisa_ros.training.tabletop import batches, dataset

_EYES = ('clip.', 'sam.vision_encoder.')
_AT_ONCE = 32  # pictures


@dataclass(frozen=True, kw_only=True)
class CachedBatch(batches.QueryBatch):
    """Requests about pictures, and what the eyes made of these."""

    clip_states: Tensor  # (B, P, W) float16
    image_embeddings: Tensor  # (B, C, h, w) float16


@dataclass(frozen=True)
class FeatureCache:
    """The views of a training set as the eyes saw them; arrays are read from disk as needed."""

    clip: np.ndarray
    sam: np.ndarray
    ids: np.ndarray
    tables: list[SceneGraph]
    shape: tuple[int, int]  # (height, width) of every view [px]

    def __len__(self) -> int:
        """Return the number of views."""
        return len(self.tables)

    def lesson(
        self,
        lisa: LISA,
        tokenizer: Tokenizer,
        views: Sequence[int],
        requests: Sequence[Sequence[TabletopQuery]],
    ) -> CachedBatch:
        """Return the lesson of some views, with what is asked about each."""
        asked = batches.make_query_batch(
            lisa.config, tokenizer, self.shape, [self.ids[i] for i in views], requests
        )
        return CachedBatch(
            **vars(asked),
            clip_states=torch.from_numpy(np.stack([self.clip[i] for i in views])),
            image_embeddings=torch.from_numpy(np.stack([self.sam[i] for i in views])),
        )


def load_or_build(
    folder: Path,
    lisa: LISA,
    clip: image_processing.ClipPreprocessing,
    scenes: dataset.SceneSet,
    views: int,
    bf16: bool = False,
) -> FeatureCache:
    """Return the memory in a folder; look at every scene `views` times first if there is none.

    Raises:
        DataError: what lies there was seen by other eyes, or is of other scenes.
    """
    about = {
        'eyes': _eyes(lisa),
        'scenes': _scenes(scenes),
        'views': views,
        'shape': list(scenes.ids.shape[1:]),  # of each view
    }
    if not (folder / 'tables.json').exists():
        if folder.exists() and any(folder.iterdir()):
            raise DataError(
                f'{folder} holds something else: give --feature-cache a folder of its own'
            )
        _look(folder, lisa, clip, scenes, about, bf16)
    kept = json.loads((folder / 'tables.json').read_text())
    other = [
        f'{key} {kept[key]}, not {value}' for key, value in about.items() if kept[key] != value
    ]
    if other:
        raise DataError(
            f'{folder} remembers another training set ({"; ".join(other)}): give '
            '--feature-cache another folder, or remove this one'
        )
    arrays = {name: np.load(folder / f'{name}.npy', mmap_mode='r') for name in _ARRAYS}
    tables = [SceneGraph(tuple(SceneObject(**o) for o in table)) for table in kept['tables']]
    return FeatureCache(**arrays, tables=tables, shape=tuple(kept['shape']))


_ARRAYS = ('clip', 'sam', 'ids')


@torch.no_grad()
def _look(
    folder: Path,
    lisa: LISA,
    clip: image_processing.ClipPreprocessing,
    scenes: dataset.SceneSet,
    about: dict,
    bf16: bool,
) -> None:
    """Show every view to the eyes and write down what they make of it."""
    new = folder.with_name(folder.name + '.new')
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    total, side = len(scenes) * about['views'], lisa.config.sam_size
    device = lisa.mm_projector.weight.device
    files: dict[str, np.ndarray] = {}
    tables = []
    for start in tqdm(range(0, total, _AT_ONCE), desc='looking', unit='batch'):
        views = []
        for number in range(start, min(start + _AT_ONCE, total)):
            i = number % len(scenes)
            rng = np.random.default_rng((_VIEWS, number))
            views.append(dataset.augment(rng, scenes.colour[i], scenes.ids[i], scenes.tables[i]))
        pixels = [
            np.stack([image_processing.clip_pixels(colour, clip) for colour, *_ in views]),
            np.stack([image_processing.sam_input(colour, side).pixels for colour, *_ in views]),
        ]
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            of_clip, of_sam = (torch.from_numpy(p).to(device) for p in pixels)
            states, features = lisa.clip_states(of_clip), lisa.encode_sam(of_sam)
        made = {
            'clip': states.half().cpu().numpy(),
            'sam': features.half().cpu().numpy(),
            'ids': np.stack([dataset.to_sam_square(ids, side) for _, ids, _ in views]),
        }
        for name, some in made.items():
            if name not in files:
                files[name] = np.lib.format.open_memmap(
                    new / f'{name}.npy', 'w+', some.dtype, (total, *some.shape[1:])
                )
            files[name][start : start + len(some)] = some
        tables += [[dataclasses.asdict(o) for o in table.there] for *_, table in views]
    for file in files.values():
        file.flush()
    (new / 'tables.json').write_text(json.dumps({**about, 'tables': tables}))
    new.replace(folder)


_VIEWS = 7919  # views draw from other seeds than lessons


def _scenes(scenes: dataset.SceneSet) -> str:
    """Return what tells these scenes from others: their number, and a checksum of some."""
    sha = hashlib.sha256()
    for i in range(0, len(scenes), max(1, len(scenes) // 50)):
        sha.update(scenes.ids[i].tobytes())
    return f'{len(scenes)} {sha.hexdigest()[:16]}'


def _eyes(lisa: LISA) -> str:
    """Return what tells these eyes from others."""
    sha = hashlib.sha256()
    for name, tensor in sorted(lisa.state_dict().items()):
        if name.startswith(_EYES):
            sha.update(tensor.detach().float().cpu().numpy().tobytes())
    return sha.hexdigest()[:16]
