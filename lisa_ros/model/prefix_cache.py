# SPDX-License-Identifier: Apache-2.0
"""Keep keys and values of prompts, so that the next prompt reads only what is new in it.

A further question about an image shares system prompt and image with the one before; a further
turn of a dialogue shares all earlier turns. Any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable
from dataclasses import dataclass

from lisa_ros.model.cache_use import CacheUse
from lisa_ros.model.key_values import KeyValues
from lisa_ros.model.packing import IMAGE_TOKEN_INDEX

DEFAULT_CACHE_BYTES = 512 * 2**20
MAX_PROMPTS = 32  # each image of a camera makes one, which a small model would keep by the hundred
_MIN_POSITIONS = 8  # a shorter prefix is read again


@dataclass(frozen=True)
class PromptKey:
    """What a prompt consists of."""

    ids: tuple[int, ...]  # with one IMAGE_TOKEN_INDEX
    image: Hashable  # which image stands there
    image_tokens: int  # positions that it takes

    def positions(self, count: int) -> int:
        """Return how many positions the first `count` ids take."""
        return count + (self.image_tokens - 1) * (IMAGE_TOKEN_INDEX in self.ids[:count])

    def common_ids(self, other: PromptKey) -> int:
        """Return how many first ids two prompts share."""
        count = 0
        for own, its in zip(self.ids, other.ids, strict=False):
            if own != its or (own == IMAGE_TOKEN_INDEX and self.image != other.image):
                break
            count += 1
        return count


class PrefixCache:
    """Keys and values by prompt; the least recently used one goes first."""

    def __init__(self, max_bytes: int = DEFAULT_CACHE_BYTES):
        """Begin empty; `max_bytes` 0: keep nothing."""
        self._max_bytes, self._lock = max_bytes, threading.Lock()
        self._entries: dict[PromptKey, KeyValues] = {}  # the least recently used first

    @property
    def use(self) -> CacheUse:
        """What it holds."""
        with self._lock:
            return CacheUse(len(self._entries), self._bytes(), self._max_bytes)

    def find(self, key: PromptKey, max_positions: int, capacity: int) -> KeyValues | None:
        """Return a copy of what is known of a prompt's beginning; None: too little.

        Args:
            key: the prompt.
            max_positions: of the prefix: states from there on are needed.
            capacity: positions of the copy.
        """
        known = self.view(key, max_positions)
        return None if known is None else known.copy(known.length, capacity)

    def view(self, key: PromptKey, max_positions: int) -> KeyValues | None:
        """Return what `find` copies, in the memory of this cache: for reading."""
        with self._lock:
            longest, shared = None, 0  # prompt, and positions that it has in common
            for prompt in self._entries:
                positions = key.positions(key.common_ids(prompt))
                if positions > shared:
                    longest, shared = prompt, positions
            if longest is None:
                return None
            key_values = self._entries[longest] = self._entries.pop(longest)
        shared = min(shared, max_positions, key_values.length)
        return key_values.view(shared) if shared >= _MIN_POSITIONS else None

    def add(self, key: PromptKey, key_values: KeyValues) -> None:
        """Keep a prompt with its answer.

        Args:
            key: the ids of both; those that `key_values` lacks at the end are not kept.
            key_values: of the positions; copied.
        """
        missing = key.positions(len(key.ids)) - key_values.length
        key = PromptKey(key.ids[: len(key.ids) - missing], key.image, key.image_tokens)
        if key_values.length * key_values.bytes_per_position > self._max_bytes:
            return
        copied = key_values.copy(key_values.length, key_values.length)
        with self._lock:
            for prompt in [p for p in self._entries if key.common_ids(p) == len(p.ids)]:
                del self._entries[prompt]  # the new one contains it
            self._entries[key] = copied
            while self._bytes() > self._max_bytes or len(self._entries) > MAX_PROMPTS:
                del self._entries[next(iter(self._entries))]

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self._entries.clear()

    def _bytes(self) -> int:
        return sum(entry.bytes for entry in self._entries.values())
