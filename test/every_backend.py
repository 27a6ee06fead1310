# SPDX-License-Identifier: Apache-2.0
"""One model of each kind at toy size, for tests of what all of them have in common.

Importing this module registers "scripted:" and "counted:NAME", which loads NAME and prints which
earlier models are still in memory.
"""

from __future__ import annotations

import gc
import json
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import golden_family
import numpy as np
import scripted_backend  # noqa: F401  # registers "scripted:"
import torch
import toy_qwen
import toy_sam2
from chat_server import ChatServer, ModelAnswer
from ros_graph import REFERENCE
from torch import nn

from lisa_ros.images.image_file import read_rgb
from lisa_ros.model.family import LISA_PLUS
from lisa_ros.perception.backend import Backend, LoadOptions
from lisa_ros.perception.registry import load_backend, register_backend
from lisa_ros.resources import SELF_TEST
from lisa_ros.vlm.profiles import PROFILES
from lisa_ros.vlm.qwen_vl import QwenVL

_TABLE = read_rgb(SELF_TEST / 'table.webp')
# the toys know these questions
_QUERY = 'What could carry her to the moon? Please output segmentation mask.'
_PLUS_QUERY = f'Please segment the person in this image. {LISA_PLUS.answer_styles["semantic"]}'
_THINK = '<think> The rocket is behind her. </think>'
_POINTED = (
    '{"bbox_2d": [30, 20, 90, 100], "point_2d": [60, 60]}',
    '{"bbox_2d": [5, 5, 60, 80], "point_2d": [20, 40]}',
)
_LABELLED = (
    '{"bbox_2d": [30, 20, 90, 100], "label": "rocket"}',
    '{"bbox_2d": [5, 5, 60, 80], "label": "flag"}',
)
_SCRIPTS = {  # by the folder's name: the type of the model and its answer
    'VisionReasoner': ('qwen2_5_vl', (_THINK, '<answer>[', ', ', ']', '</answer>'), _POINTED),
    'Qwen2.5-VL': ('qwen2_5_vl', ('A rocket.', '```json\n[', ',\n', ']', '```'), _LABELLED),
    'Qwen3-VL': ('qwen3_vl', ('A rocket.', '```json\n[', ',\n', ']', '```'), _LABELLED),
}
NAMES = (
    *('lisa-tabletop', 'LISA', 'LISA++', 'SESAME', 'READ'),
    *('VisionReasoner', 'Qwen2.5-VL', 'Qwen3-VL', 'Qwen2.5-VL at a server', 'scripted'),
)


@dataclass(frozen=True)
class Model:
    """A model, and a question that it answers with a mask."""

    name: str  # for `load_backend`
    companions: dict[str, str] = field(default_factory=dict)  # fields of LoadOptions
    image: np.ndarray = field(default_factory=lambda: golden_family.load_image('astronaut'))
    query: str = _QUERY

    def load(self) -> Backend:
        return load_backend(self.name, LoadOptions(device='cpu', **self.companions))

    @property
    def arguments(self) -> list[str]:
        """Arguments of `lisa-ros` commands that load it."""
        pairs = {'model': self.name, 'device': 'cpu', **self.companions}
        flags = ((f'--{name.replace("_", "-")}', value) for name, value in pairs.items())
        return [part for flag in flags for part in flag]

    @property
    def parameters(self) -> dict[str, str]:
        """Parameters of a node that load it."""
        empty = dict.fromkeys(('vision_tower', 'segmenter_model', 'vlm_url', 'template'), '')
        return {'model': f'counted:{self.name}', **empty, **self.companions}


def make_models(folder: Path) -> dict[str, Model]:
    """Return a model by each of NAMES; those that are made go to a folder."""
    toy_sam2.toy_model().save_pretrained(folder / 'sam2')
    for name, (model_type, texts, objects) in _SCRIPTS.items():
        before, begin, comma, *end = texts
        (folder / name).mkdir()
        pieces = (before, begin, objects[0], comma, objects[1], *end)
        toy_qwen.save_scripted(folder / name, *pieces, model_type=model_type)
    script = {'': {'answer': 'It is here.', 'masks': 'all'}, 'nan': {'masks': 'nan'}}
    (folder / 'script.json').write_text(json.dumps(script))
    models = {
        'lisa-tabletop': Model('lisa-tabletop', image=_TABLE, query='the mug'),
        'LISA': _lisa(REFERENCE / 'ckpt_256', REFERENCE / 'clip_256', template='llava_v1'),
        'scripted': Model(f'scripted:{folder / "script.json"}'),
    }
    for name, key in (('LISA++', 'lisa_plus_56'), ('SESAME', 'sesame'), ('READ', 'read')):
        models[name] = _lisa(golden_family.path(key, 'ckpt'), golden_family.path(key, 'clip'))
    models['LISA++'] = replace(models['LISA++'], query=_PLUS_QUERY)
    for name in _SCRIPTS:
        models[name] = Model(f'vlm+sam:{folder / name}', {'segmenter_model': str(folder / 'sam2')})
    companions = {
        'segmenter_model': str(folder / 'sam2'),
        'vlm_url': _serve(folder / 'Qwen2.5-VL'),
    }
    models['Qwen2.5-VL at a server'] = Model('vlm+sam:Qwen2.5-VL', companions)
    return models


def _serve(folder: Path) -> str:
    """Serve a toy model while this process runs; return the address."""
    vlm = QwenVL.load(folder, PROFILES['qwen2_5_vl'], torch.device('cpu'), 'fp32')
    server = ChatServer(ModelAnswer(vlm))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.url


def _lisa(folder: Path, tower: Path, **companions: str) -> Model:
    return Model(str(folder), {'vision_tower': str(tower), **companions})


def networks(owner: object) -> Iterator[nn.Module]:
    """Yield the networks of a backend, at any depth of its attributes."""
    if isinstance(owner, nn.Module):
        yield owner
    elif type(owner).__module__.startswith('lisa_ros.'):
        for value in getattr(owner, '__dict__', {}).values():
            yield from networks(value)


# ---- a model that is counted

_loaded: list[tuple[str, weakref.ref]] = []


def load_counted(name: str, options: LoadOptions) -> Backend:
    gc.collect()
    alive = [model for model, part in _loaded if part() is not None]
    print(f'still in memory: {alive}', flush=True)
    backend = load_backend(name, options)
    parts = [backend, *networks(backend)]
    _loaded.extend((name, weakref.ref(part)) for part in parts)
    return backend


register_backend('counted', load_counted)
