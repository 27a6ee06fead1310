# SPDX-License-Identifier: Apache-2.0
"""Keys and values of prompts with an image, in the memory that transformers' models write.

The next question about an image shares system message and image with the one before. Any thread
may use `PrefixCache`; one thread at a time a `Cache` made here.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from torch import Tensor
from transformers import Cache, DynamicLayer

from lisa_ros.model.key_values import KeyValues
from lisa_ros.model.packing import IMAGE_TOKEN_INDEX
from lisa_ros.model.prefix_cache import PromptKey


class _Layer(DynamicLayer):
    """The keys and values of one layer."""

    def __init__(self, key_values: KeyValues, index: int, is_last: bool):
        super().__init__()
        self._key_values, self._index, self._is_last = key_values, index, is_last

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Write the next positions, (B, G, n, d) each; return all of them."""
        written = self._key_values.write(self._index, key_states, value_states)
        if self._is_last:
            self._key_values.advance(key_states.shape[2])
        return written

    def get_seq_length(self) -> int:
        """Return the number of positions before the present ones."""
        return self._key_values.length


def transformers_cache(key_values: KeyValues) -> Cache:
    """Return a cache for a model of transformers that extends `key_values`."""
    last = key_values.layers - 1
    return Cache(layers=[_Layer(key_values, i, i == last) for i in range(last + 1)])


def prompt_key(ids: Sequence[int], image_id: int, image: Hashable) -> PromptKey:
    """Return what a prompt consists of.

    Args:
        ids: of the prompt, with `image_id` for each position of its one image.
        image_id: of the token that stands for an image.
        image: which image it is.
    """
    first, count = ids.index(image_id), ids.count(image_id)
    return PromptKey(
        (*ids[:first], IMAGE_TOKEN_INDEX, *ids[first + count :]), image, image_tokens=count
    )
