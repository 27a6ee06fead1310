# SPDX-License-Identifier: Apache-2.0
"""Encode images with SAM 2; keep the features of the newest images and of one batch.

Each camera of a node has an image of its own, so that more than one is kept. Threads: as
`ImageEncoder`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lisa_ros.model.image_processing import check_rgb, image_key
from lisa_ros.model.sam2 import Sam2, Sam2Features
from lisa_ros.perception.image_encoder import StageTimer

MAX_IMAGES = 8  # 17 MB each for an input of 1024 pixels


class Sam2Encoder:
    """SAM 2's image encoder with a cache: a known image is not encoded again."""

    def __init__(self, sam2: Sam2):
        """Wrap a model."""
        self._sam2 = sam2
        self._newest: dict[tuple, Sam2Features] = {}  # the least recently used first
        self._batch: dict[tuple, Sam2Features] = {}

    def encode(self, image: np.ndarray, timer: StageTimer) -> Sam2Features:
        """Return the features of an image, from the cache if they are there.

        Args:
            image: (H, W, 3) uint8 RGB.
            timer: gets the stage "sam" if they are computed.

        Raises:
            ModelError: the features are not finite.
        """
        key = image_key(image)
        features = self._newest.get(key) or self._batch.get(key)
        if features is None:
            with timer.stage('sam'):
                features = self._sam2.encode(image)
        newest = {known: own for known, own in self._newest.items() if known != key}
        kept = list(newest.items())[1 - MAX_IMAGES :]
        self._newest = dict([*kept, (key, features)])
        return features

    def encode_batch(self, images: Sequence[np.ndarray]) -> None:
        """Encode several images at once, which a GPU does faster; kept until the next call.

        Args:
            images: each (H, W, 3) uint8 RGB, of any size.

        Raises:
            ImageError: an image has another shape or type.
            ModelError: the features are not finite.
        """
        by_key = {image_key(check_rgb(image)): image for image in images}
        known = {**self._batch, **self._newest}
        self._batch = {key: known[key] for key in by_key if key in known}
        new = {key: image for key, image in by_key.items() if key not in known}
        if new:
            features = self._sam2.encode_batch(list(new.values()))
            self._batch = self._batch | dict(zip(new, features, strict=True))

    def clear(self) -> None:
        """Drop all features."""
        self._newest, self._batch = {}, {}
