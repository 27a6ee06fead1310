# SPDX-License-Identifier: Apache-2.0
"""Reference answers of the original LISA code (data/reference), and the models that gave them."""

from __future__ import annotations

import functools
import gzip
import json
from pathlib import Path

import numpy as np
from PIL import Image

from lisa_ros.perception.backend import InferenceOptions, LoadOptions
from lisa_ros.perception.lisa_backend import LisaBackend
from lisa_ros.perception.segmenter import Segmenter

DATA = Path(__file__).parent / 'data' / 'reference'
SIZES = (256, 1024)


@functools.cache
def texts(size: int) -> dict:
    return json.loads((DATA / f'golden_{size}.json').read_text(encoding='utf-8'))


@functools.cache
def arrays(size: int) -> dict[str, np.ndarray]:
    with np.load(DATA / f'golden_{size}.npz') as file:
        return dict(file)


@functools.cache
def load_image(name: str) -> np.ndarray:
    return np.asarray(Image.open(DATA / 'images' / f'{name}.webp').convert('RGB'))


@functools.cache
def backend(size: int, template: str | None = None) -> LisaBackend:
    """Return the model, loaded once for all tests. Without a template it uses its own one."""
    if template is not None:
        lisa = backend(size)
        return LisaBackend(lisa.model, lisa.tokenizer, lisa.clip_preprocessing, template)
    options = LoadOptions(device='cpu', precision='fp32', vision_tower=DATA / f'clip_{size}')
    return LisaBackend.load(str(DATA / f'ckpt_{size}'), options)


def segmenter(size: int, template: str | None = None, **options) -> Segmenter:
    """Return the model with a template and inference options."""
    return Segmenter(backend(size, template), InferenceOptions(**options))


def cases(*sizes: int) -> list[tuple[int, dict]]:
    """Return every case with its size, sorted by image."""
    pairs = [(size, case) for size in sizes or SIZES for case in texts(size)['cases']]
    return sorted(pairs, key=lambda pair: (pair[0], pair[1]['image'], pair[1]['case']))


def case_id(value: object) -> str:
    return f'{value["case"]:02d}-{value["kind"]}' if isinstance(value, dict) else str(value)


def case_array(size: int, case: dict, name: str) -> np.ndarray:
    return arrays(size)[f'c{case["case"]:02d}_{name}']


def generated_ids(size: int, case: dict) -> list[int]:
    prompt, whole = (case_array(size, case, name) for name in ('input_ids', 'output_ids'))
    return whole[len(prompt) :].tolist()


def unpack_runs(runs: np.ndarray, height: int, width: int) -> np.ndarray:
    values = np.zeros(len(runs), bool)
    values[1::2] = True
    return np.repeat(values, runs).reshape(height, width)


def weight_shapes(model: str) -> dict[str, tuple[int, ...]]:
    with gzip.open(DATA / f'keys_lisa_{model}.json.gz', 'rt', encoding='utf-8') as file:
        return {key: tuple(shape) for key, shape in json.load(file).items()}
