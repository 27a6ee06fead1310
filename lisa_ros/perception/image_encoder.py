# SPDX-License-Identifier: Apache-2.0
"""Encode images with CLIP and SAM; keep the features of the last image and of one batch.

Threads: one thread at a time encodes. A cancelled thread may still run beside the next one; each
gets the features of its own image, because the cache is read once and replaced as a whole.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from lisa_ros.model.finite import all_finite, check_finite
from lisa_ros.model.image_processing import (
    ClipPreprocessing,
    SamInput,
    check_rgb,
    clip_pixels,
    sam_input,
)
from lisa_ros.model.lisa import LISA


@dataclass
class EncodedImage:
    """An image and its features; SAM encodes it only when an answer has its first [SEG]."""

    key: tuple
    image: np.ndarray  # (H, W, 3) uint8 RGB
    clip_tokens: Tensor  # (P, D)
    sam: SamInput
    sam_features: Tensor | None = None  # (1, C, h, w)
    # of encoding, by stage, until an answer counts them
    seconds: dict[str, float] = field(default_factory=dict)
    image_states: Tensor | None = None  # (P, D) of the language model, once a query needs them

    def take_seconds(self) -> dict[str, float]:
        """Return the seconds that no answer has counted; the next call returns none."""
        seconds, self.seconds = self.seconds, {}
        return seconds


class StageTimer:
    """Seconds by stage, in the order in which stages first ran."""

    def __init__(self, device: torch.device):
        self.seconds: dict[str, float] = {}
        self._device = device

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a block; on a GPU wait for its kernels, so that this stage includes them."""
        start = time.perf_counter()
        yield
        if self._device.type == 'cuda':
            torch.cuda.synchronize(self._device)
        self.add({name: time.perf_counter() - start})

    def add(self, seconds: dict[str, float]) -> None:
        """Add seconds that were measured elsewhere."""
        for name, duration in seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + duration


class ImageEncoder:
    """CLIP and SAM of a LISA with a cache: a known image is not encoded again."""

    def __init__(self, model: LISA, preprocessing: ClipPreprocessing):
        self._model, self._preprocessing = model, preprocessing
        self._last: EncodedImage | None = None
        self._batch: dict[tuple, EncodedImage] = {}

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self._model.device

    def encode(self, image: np.ndarray, timer: StageTimer) -> EncodedImage:
        """Return an image with its CLIP features, from the cache if it is there.

        Args:
            image: (H, W, 3) uint8 RGB.
            timer: gets the stages "preprocess" and "clip".

        Raises:
            ModelError: the features are not finite.
        """
        with timer.stage('preprocess'):
            key = image_key(image)
            last = self._last  # read once: a cancelled thread may still replace it
            if last is not None and last.key == key:
                return last
            encoded = self._batch.get(key)
            if encoded is not None:
                timer.add(encoded.take_seconds())
                self._last = encoded
                return encoded
            pixels = torch.from_numpy(clip_pixels(image, self._preprocessing))
            sam = sam_input(image, self._model.config.sam_size)
        with timer.stage('clip'), torch.inference_mode():
            clip_tokens = self._model.encode_clip(pixels[None].to(self.device))[0]
            check_finite(clip_tokens, "CLIP's features of the image")
        encoded = self._last = EncodedImage(key, image, clip_tokens, sam)
        return encoded

    def sam_features(self, encoded: EncodedImage, timer: StageTimer) -> Tensor:
        """Return SAM's features of an encoded image, (1, C, h, w), computed at the first call.

        The timer gets the stage "sam" if they are computed.

        Raises:
            ModelError: the features are not finite.
        """
        if encoded.sam_features is None:
            with timer.stage('sam'), torch.inference_mode():
                pixels = torch.from_numpy(encoded.sam.pixels)[None].to(self.device)
                features = self._model.encode_sam(pixels)
                check_finite(features, "SAM's features of the image")
            encoded.sam_features = features
        return encoded.sam_features

    def encode_batch(self, images: Sequence[np.ndarray]) -> None:
        """Run CLIP and SAM on several images at once, which a GPU does faster.

        The features are kept until the next call; known ones are not computed again. The `timings`
        of the first answer about an image include its share of the encoding time. Features that
        are not finite are not kept: the query about that image computes them again and reports it.

        Args:
            images: each (H, W, 3) uint8 RGB, of any size.

        Raises:
            ImageError: an image has another shape or type.
        """
        timer, sam_size = StageTimer(self.device), self._model.config.sam_size
        last = self._last
        with timer.stage('preprocess'):
            by_key = {image_key(check_rgb(image)): image for image in images}
            known = {key: self._batch[key] for key in by_key if key in self._batch}
            if last is not None and last.key in by_key and last.sam_features is not None:
                known[last.key] = last
            new = {key: image for key, image in by_key.items() if key not in known}
            sam = [sam_input(image, sam_size) for image in new.values()]
            clip = [clip_pixels(image, self._preprocessing) for image in new.values()]
        self._batch = known
        if not new:
            return
        with torch.inference_mode():
            with timer.stage('clip'):
                pixels = torch.from_numpy(np.stack(clip))
                tokens = self._model.encode_clip(pixels.to(self.device))
            with timer.stage('sam'):
                pixels = torch.from_numpy(np.stack([padded.pixels for padded in sam]))
                features = self._model.encode_sam(pixels.to(self.device))
        share = {name: duration / len(new) for name, duration in timer.seconds.items()}
        self._batch = known | {
            key: EncodedImage(key, image, tokens[i], sam[i], features[i : i + 1], dict(share))
            for i, (key, image) in enumerate(new.items())
            if all_finite(tokens[i]) and all_finite(features[i])
        }

    def clear(self) -> None:
        """Drop all features."""
        self._last, self._batch = None, {}


def image_key(image: np.ndarray) -> tuple:
    """Return the cache key of an image: its shape and a hash of its pixels."""
    return image.shape, hashlib.blake2b(np.ascontiguousarray(image)).digest()
