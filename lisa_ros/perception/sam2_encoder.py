# SPDX-License-Identifier: Apache-2.0
"""Encode images with SAM 2; keep the features of the newest images and of one batch.

Threads: as `ImageEncoder`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lisa_ros.model.image_processing import check_rgb, image_key
from lisa_ros.model.sam2 import Sam2, Sam2Features
from lisa_ros.perception.image_encoder import StageTimer
from lisa_ros.perception.newest_images import NewestImages


class Sam2Encoder:
    """SAM 2's image encoder with a cache: a known image is not encoded again."""

    def __init__(self, sam2: Sam2):
        """Wrap a model."""
        self._sam2 = sam2
        self._newest: NewestImages[Sam2Features] = NewestImages()
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
        self._newest.add(key, features)
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
        cached = {key: self._newest.get(key) or self._batch.get(key) for key in by_key}
        batch = {key: features for key, features in cached.items() if features is not None}
        new = {key: image for key, image in by_key.items() if key not in batch}
        if new:
            features = self._sam2.encode_batch(list(new.values()))
            batch |= dict(zip(new, features, strict=True))
        self._batch = batch

    def clear(self) -> None:
        """Drop all features."""
        self._newest.clear()
        self._batch = {}
