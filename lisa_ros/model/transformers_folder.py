# SPDX-License-Identifier: Apache-2.0
"""Check a folder in the format of transformers before the library builds the model, and after.

The library believes config.json: a layer count of 10^9 fills the memory. Weights that are missing
become random numbers, with a warning.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from lisa_ros.error_text import error_summary, short_repr
from lisa_ros.errors import CheckpointError
from lisa_ros.model.file_checks import check_folder
from lisa_ros.model.finite import all_finite
from lisa_ros.model.json_file import read_json
from lisa_ros.model.model_folder import listed
from lisa_ros.model.weight_files import WeightFiles

_COUNTS = ('layers', 'blocks', 'depth', 'labels')  # in keys whose value is a number of modules


def check_claims(folder: Path) -> None:
    """Compare the numbers in config.json with the weights of a local folder.

    Raises:
        CheckpointError: a number is larger than the weights allow, a file is damaged or may not be
            read, or there are no safetensors files.
    """
    shapes = WeightFiles.of_folder(folder).shapes()
    numbers = sum(map(math.prod, shapes.values()))
    config = read_json(folder / 'config.json')
    _check_weight_files(folder, config)
    for key, value in _integers(config):
        is_count = any(word in key for word in _COUNTS)
        limit = len(shapes) if is_count else numbers
        if value > limit:
            raise CheckpointError(
                f'{folder}/config.json: {key} is {short_repr(value)}; the weights have {limit} '
                f'{"tensors" if is_count else "numbers"}: files of two models are mixed'
            )


def _check_weight_files(folder: Path, config: Mapping) -> None:
    """Check that the library loads the files that are checked here, and no others.

    Raises:
        CheckpointError: it would load others.
    """
    if 'transformers_weights' in config:
        raise CheckpointError(
            f'{folder}/config.json: transformers_weights names other files of weights: remove the '
            'key, and name them model.safetensors'
        )


def read_model_type(folder: Path) -> object:
    """Return the type that config.json names; None without config.json.

    Raises:
        CheckpointError: the folder or the file cannot be read.
    """
    check_folder(folder)
    path = folder / 'config.json'
    return read_json(path).get('model_type') if os.path.lexists(path) else None


def load_model(
    model_class: type[PreTrainedModel],
    source: str | Path,
    kind: str,
    dtype: torch.dtype,
    *,
    may_download: bool = False,
) -> PreTrainedModel:
    """Return a model with its weights, on the CPU; no code in its folder runs.

    Args:
        model_class: transformers' class.
        source: folder, which `check_claims` has checked, or a hub id.
        kind: what the model is to be, for messages.
        dtype: of the weights.
        may_download: whether a hub id may be downloaded.

    Raises:
        CheckpointError: it cannot be loaded, or see `check_loaded`.
    """
    try:
        model, info = model_class.from_pretrained(
            str(source),
            dtype=dtype,
            attn_implementation='sdpa',  # whatever config.json names
            use_safetensors=True,
            local_files_only=not may_download,
            output_loading_info=True,
        )
    except Exception as error:  # the library raises many types for files that do not fit
        raise CheckpointError(
            f'{source} cannot be loaded as {kind} ({error_summary(error)})'
        ) from error
    check_loaded(model, info, source)
    return model


def check_loaded(model: nn.Module, info: Mapping, source: str | Path) -> None:
    """Check a model that transformers has loaded.

    Args:
        model: with its weights.
        info: of `from_pretrained(..., output_loading_info=True)`.
        source: folder or hub id, for messages.

    Raises:
        CheckpointError: a weight was missing, had another shape, or is not finite.
    """
    problems = [*info['missing_keys'], *(str(key) for key in info['mismatched_keys'])]
    if problems:
        raise CheckpointError(
            f'{source}: weights are missing or of another shape: {listed(sorted(problems))}; '
            'download the folder again'
        )
    for name, weight in model.named_parameters():
        if not all_finite(weight.detach()):
            raise CheckpointError(
                f'{source}: the weight {name} has NaN or infinite numbers: the file is damaged; '
                'download it again'
            )


def _integers(value: object, key: str = '') -> Iterator[tuple[str, int]]:
    """Yield each integer in a config with its key; those in a list have the key of the list."""
    if isinstance(value, dict):
        for name, child in value.items():
            yield from _integers(child, name)
    elif isinstance(value, list):
        for child in value:
            yield from _integers(child, key)
    elif type(value) is int:
        yield key, value
