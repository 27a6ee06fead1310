# SPDX-License-Identifier: Apache-2.0
"""Reference answers of LISA++, SESAME and READ, by their own code, and the models of them."""

from __future__ import annotations

import functools
import gzip
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from golden import DATA, unpack_runs
from PIL import Image

from lisa_ros.perception.backend import InferenceOptions, LoadOptions
from lisa_ros.perception.lisa_backend import LisaBackend
from lisa_ros.perception.segmenter import Segmenter

FAMILY = DATA / 'family'  # with the images
# of each set: the folder, and what its file names end with
SETS = {
    'sesame': ('sesame', ''),
    'lisa_plus_56': ('lisa_plus', '_56'),
    'lisa_plus_84': ('lisa_plus', '_84'),
    'read': ('read', ''),
}
# of two scores: below it another CPU may choose the other, because logits differ by up to 4e-4
UNSURE_MARGIN = 0.01


def path(name: str, file: str) -> Path:
    """Return the path of a set's file or folder, such as "ckpt" or "golden.npz"."""
    folder, tag = SETS[name]
    stem, dot, suffix = file.partition('.')
    return DATA / folder / f'{stem}{tag}{dot}{suffix}'


@functools.cache
def texts(name: str, file: str = 'golden') -> dict:
    with gzip.open(path(name, f'{file}.json.gz'), 'rt', encoding='utf-8') as stream:
        return json.load(stream)


@functools.cache
def arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(path(name, 'golden.npz')) as file:
        return dict(file)


@functools.cache
def load_image(image: str) -> np.ndarray:
    return np.asarray(Image.open(FAMILY / 'images' / f'{image}.png').convert('RGB'))


@functools.cache
def backend(name: str) -> LisaBackend:
    """Return the model of a set, loaded once for all tests."""
    options = LoadOptions(device='cpu', precision='fp32', vision_tower=path(name, 'clip'))
    return LisaBackend.load(str(path(name, 'ckpt')), options)


def segmenter(name: str, **options) -> Segmenter:
    return Segmenter(backend(name), InferenceOptions(**options))


def cases(names: Iterable[str] = SETS) -> list[tuple[str, dict]]:
    """Return every case with its set, sorted by image."""
    pairs = [(name, case) for name in names for case in texts(name)['cases']]
    return sorted(pairs, key=lambda pair: (pair[0], pair[1]['image'], pair[1]['case']))


def case_array(name: str, case: dict, key: str) -> np.ndarray:
    return arrays(name)[f'c{case["case"]:02d}_{key}']


def generated_ids(name: str, case: dict) -> list[int]:
    prompt, whole = (case_array(name, case, key) for key in ('input_ids', 'output_ids'))
    return whole[len(prompt) :].tolist()


def expected_mask(name: str, case: dict, index: int, prefix: str = '') -> np.ndarray:
    runs = case_array(name, case, f'{prefix}mask_rle_{index}')
    return unpack_runs(runs, *case['original_size'])


def mask_iou(mask: np.ndarray, expected: np.ndarray) -> float:
    union = (mask | expected).sum()
    return (mask & expected).sum() / union if union else 1.0
