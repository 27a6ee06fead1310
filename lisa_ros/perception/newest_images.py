# SPDX-License-Identifier: Apache-2.0
"""Keep the features of the newest images; each camera of a node has an image of its own."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

MAX_IMAGES = 4  # SAM and SAM 2 keep 17 MB of each, for an input of 1024 pixels

Features = TypeVar('Features')


class NewestImages(Generic[Features]):
    """Features by image; beyond MAX_IMAGES the least recently used ones go. Any thread."""

    def __init__(self) -> None:
        self._features: dict[tuple, Features] = {}  # the least recently used first
        self._lock = threading.Lock()

    def get(self, key: tuple) -> Features | None:
        """Return the features of an image, which is used now; None if they are not here."""
        with self._lock:
            features = self._features.pop(key, None)
            if features is not None:
                self._features[key] = features
            return features

    def add(self, key: tuple, features: Features) -> None:
        """Keep the features of an image."""
        with self._lock:
            self._features.pop(key, None)
            self._features[key] = features
            while len(self._features) > MAX_IMAGES:
                del self._features[next(iter(self._features))]

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self._features.clear()
