# SPDX-License-Identifier: Apache-2.0
"""The original's answers (data/reference), as the tests read them."""

from __future__ import annotations

import functools
import gzip
import json
from pathlib import Path

import numpy as np
from PIL import Image

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
def picture(name: str) -> np.ndarray:
    return np.asarray(Image.open(DATA / 'images' / f'{name}.webp').convert('RGB'))


@functools.cache
def segmenter(size: int) -> Segmenter:
    """One for all tests: what a test changes, it changes on a `view` of it."""
    return Segmenter.load(
        DATA / f'ckpt_{size}', vision_tower=DATA / f'clip_{size}', device='cpu', precision='fp32'
    )


def view(size: int, **settings) -> Segmenter:
    """The loaded model with other settings."""
    lisa = segmenter(size)
    fresh = Segmenter(lisa.model, lisa.tokenizer, lisa.clip_recipe, **settings)
    fresh._picture = lisa._picture
    return fresh


def cases(*sizes: int) -> list[tuple[int, dict]]:
    """Every case with its size, those about the same picture side by side."""
    found = [(size, case) for size in sizes or SIZES for case in texts(size)['cases']]
    return sorted(found, key=lambda pair: (pair[0], pair[1]['image'], pair[1]['case']))


def case_id(value: object) -> str:
    return f'{value["case"]:02d}-{value["kind"]}' if isinstance(value, dict) else str(value)


def of_case(size: int, case: dict, name: str) -> np.ndarray:
    return arrays(size)[f'c{case["case"]:02d}_{name}']


def new_ids(size: int, case: dict) -> list[int]:
    prompt, whole = (of_case(size, case, name) for name in ('input_ids', 'output_ids'))
    return whole[len(prompt) :].tolist()


def unpack_runs(runs: np.ndarray, height: int, width: int) -> np.ndarray:
    values = np.zeros(len(runs), bool)
    values[1::2] = True
    return np.repeat(values, runs).reshape(height, width)


def weight_shapes(model: str) -> dict[str, tuple[int, ...]]:
    with gzip.open(DATA / f'keys_lisa_{model}.json.gz', 'rt', encoding='utf-8') as file:
        return {key: tuple(shape) for key, shape in json.load(file).items()}
