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


class BatchBeginnings:
    """Finds and reads beginnings; what is read is kept in a PrefixCache, too."""

    def __init__(self, model: LanguageModel, prefixes: PrefixCache):
        """Use a model, and what is known of earlier prompts."""
        self._model, self._prefixes = model, prefixes

    @torch.inference_mode()
    def read(
        self, keys: Sequence[PromptKey], embeddings: Sequence[Tensor]
    ) -> list[KeyValues | None]:
        """Return keys and values of the first positions of each prompt.

        Args:
            keys: of the prompts.
            embeddings: (L, D) of each prompt.
        """
        known = [
            self._prefixes.find(key, len(own) - 1, len(own))
            for key, own in zip(keys, embeddings, strict=True)
        ]
        new: dict[PromptKey, int] = {}  # beginning, and the first prompt that has it
        for number, (key, part) in enumerate(zip(keys, known, strict=True)):
            beginning = _beginning(key)
            if part is None or part.length < beginning.positions(len(beginning.ids)):
                new.setdefault(beginning, number)
        read = self._read_new(new, embeddings)
        return [read.get(_beginning(key), part) for key, part in zip(keys, known, strict=True)]

    def _read_new(
        self, new: dict[PromptKey, int], embeddings: Sequence[Tensor]
    ) -> dict[PromptKey, KeyValues]:
        """Return keys and values of beginnings; those of one length are read together."""
        by_length: dict[int, list[PromptKey]] = {}
        for beginning in new:
            by_length.setdefault(beginning.positions(len(beginning.ids)), []).append(beginning)
        read = {}
        for length, beginnings in by_length.items():
            rows = torch.stack([embeddings[new[beginning]][:length] for beginning in beginnings])
            cache = self._model.new_cache(length, len(beginnings))
            self._model.read(rows, cache)
            for row, beginning in enumerate(beginnings):
                read[beginning] = cache.rows([row])
                self._prefixes.add(beginning, read[beginning])
        return read


def _beginning(key: PromptKey) -> PromptKey:
    """Return the beginning of a prompt, up to and with its image."""
    count = key.ids.index(IMAGE_TOKEN_INDEX) + 1
    return PromptKey(key.ids[:count], key.image, key.image_tokens)
