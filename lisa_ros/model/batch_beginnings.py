# SPDX-License-Identifier: Apache-2.0
"""Read the beginnings of a batch's prompts, up to the image, once for each image.

Prompts about one image share system prompt and image tokens, which are most of their positions.

Letters: L positions of a prompt, D width of the language model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lisa_ros.model.key_values import KeyValues
from lisa_ros.model.language_model import LanguageModel
from lisa_ros.model.packing import IMAGE_TOKEN_INDEX
from lisa_ros.model.prefix_cache import PrefixCache, PromptKey


@torch.inference_mode()
def read_beginnings(
    model: LanguageModel,
    prefixes: PrefixCache,
    keys: Sequence[PromptKey],
    embeddings: Sequence[Tensor],
) -> list[KeyValues | None]:
    """Return keys and values of the first positions of each prompt, for reading.

    Args:
        model: reads what is not known.
        prefixes: what is known of earlier prompts; gets what is read.
        keys: of the prompts.
        embeddings: (L, D) of each prompt.
    """
    known = [
        prefixes.view(key, len(prompt) - 1) for key, prompt in zip(keys, embeddings, strict=True)
    ]
    new: dict[PromptKey, Tensor] = {}  # the embeddings of each beginning
    for key, prompt, part in zip(keys, embeddings, known, strict=True):
        beginning = _beginning(key)
        length = beginning.positions(len(beginning.ids))
        if part is None or part.length < length:
            new.setdefault(beginning, prompt[:length])
    read = _read(model, new)
    for beginning, key_values in read.items():
        prefixes.add(beginning, key_values)
    return [read.get(_beginning(key), part) for key, part in zip(keys, known, strict=True)]


def _read(model: LanguageModel, new: dict[PromptKey, Tensor]) -> dict[PromptKey, KeyValues]:
    """Return keys and values of beginnings; those of one length are read together."""
    by_length: dict[int, list[PromptKey]] = {}
    for beginning, embeddings in new.items():
        by_length.setdefault(len(embeddings), []).append(beginning)
    read = {}
    for length, beginnings in by_length.items():
        cache = model.new_cache(length, len(beginnings))
        model.read(torch.stack([new[beginning] for beginning in beginnings]), cache, last=0)
        for row, beginning in enumerate(beginnings):
            read[beginning] = cache.view(length, slice(row, row + 1))
    return read


def _beginning(key: PromptKey) -> PromptKey:
    """Return the beginning of a prompt, up to and with its image."""
    count = key.ids.index(IMAGE_TOKEN_INDEX) + 1
    return PromptKey(key.ids[:count], key.image, key.image_tokens)
