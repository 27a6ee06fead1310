# SPDX-License-Identifier: Apache-2.0
"""Encode images with CLIP and SAM; keep the features of the newest images and of one batch.

Threads: one thread at a time encodes. A cancelled thread may still run beside the next one; each
gets the features of its own image.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from lisa_ros.model.finite import all_finite, check_finite
from lisa_ros.model.image_preparation import ImagePreparation
from lisa_ros.model.image_processing import check_rgb, image_key, sam_resized_shape
from lisa_ros.model.lisa import LISA
from lisa_ros.perception.newest_images import NewestImages


@dataclass
class EncodedImage:
    """An image and its features; SAM encodes it only when an answer has its first [SEG]."""

    key: tuple
    image: np.ndarray  # (H, W, 3) uint8 RGB
    clip_tokens: Tensor  # (P, D)
    sam_pixels: Tensor  # (3, S, S) float32
    sam_features: Tensor | None = None  # (1, C, h, w), checked
    sam_started: Tensor | None = None  # the same while a GPU may still compute it
    image_states: Tensor | None = None  # (P, D) of the language model, once a query needs them
    # of encoding, by stage, until an answer counts them
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def sam_shape(self) -> tuple[int, int]:
        """(height, width) of the image inside of SAM's square [px]."""
        return sam_resized_shape(self.image.shape[:2], self.sam_pixels.shape[-1])

    @property
    def has_sam(self) -> bool:
        """Whether SAM has encoded it, or has begun to."""
        return self.sam_features is not None or self.sam_started is not None

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
        """Time a block; on a GPU wait for the kernels of this stream, so that they count."""
        start = time.perf_counter()
        yield
        if self._device.type == 'cuda':
            torch.cuda.current_stream(self._device).synchronize()
        self.add({name: time.perf_counter() - start})

    def add(self, seconds: dict[str, float]) -> None:
        """Add seconds that were measured elsewhere."""
        for name, duration in seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + duration


class ImageEncoder:
    """CLIP and SAM of a LISA with a cache: a known image is not encoded again."""

    def __init__(self, model: LISA, preparation: ImagePreparation):
        """Wrap a model; `preparation` makes its inputs."""
        self._model, self._preparation = model, preparation
        self._sam_stream = torch.cuda.Stream(self.device) if self.device.type == 'cuda' else None
        self._newest: NewestImages[EncodedImage] = NewestImages()
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
            encoded = self._newest.get(key) or self._batch.get(key)
            if encoded is not None:
                encoded.image = image  # the caller of then may have overwritten its own
                timer.add(encoded.take_seconds())
                self._newest.add(key, encoded)
                return encoded
            prepared = self._preparation.prepare(image)
        with timer.stage('clip'), torch.inference_mode():
            clip_tokens = self._model.encode_clip(prepared.clip[None])[0]
            check_finite(clip_tokens, "CLIP's features of the image")
        encoded = EncodedImage(key, image, clip_tokens, prepared.sam)
        self._newest.add(key, encoded)
        return encoded

    def start_sam(self, encoded: EncodedImage) -> None:
        """On a GPU, start SAM's encoder beside what follows; elsewhere do nothing."""
        if self._sam_stream is None or encoded.has_sam:
            return
        self._sam_stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._sam_stream), torch.inference_mode():
            encoded.sam_started = self._model.encode_sam(encoded.sam_pixels[None])

    def sam_features(self, encoded: EncodedImage, timer: StageTimer) -> Tensor:
        """Return SAM's features of an encoded image, (1, C, h, w), computed at the first call.

        The timer gets the stage "sam" if they are computed.

        Raises:
            ModelError: the features are not finite.
        """
        if encoded.sam_features is None:
            with timer.stage('sam'), torch.inference_mode():
                features = self._started(encoded)
                if features is None:
                    features = self._model.encode_sam(encoded.sam_pixels[None])
                check_finite(features, "SAM's features of the image")
            encoded.sam_features = features
        return encoded.sam_features

    def _started(self, encoded: EncodedImage) -> Tensor | None:
        """Return what `start_sam` began, for use on this stream; None: nothing."""
        features, encoded.sam_started = encoded.sam_started, None
        if features is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_stream(self._sam_stream)
            features.record_stream(stream)  # its memory is not given away before this stream ends
        return features

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
        timer = StageTimer(self.device)
        with timer.stage('preprocess'):
            by_key = {image_key(check_rgb(image)): image for image in images}
            known = {key: self._newest.get(key) or self._batch.get(key) for key in by_key}
            new = {key: image for key, image in by_key.items() if known[key] is None}
            prepared = [self._preparation.prepare(image) for image in new.values()]
        self._batch = {key: encoded for key, encoded in known.items() if encoded is not None}
        if new:
            with timer.stage('clip'), torch.inference_mode():
                tokens = self._model.encode_clip(torch.stack([own.clip for own in prepared]))
            share = {name: duration / len(new) for name, duration in timer.seconds.items()}
            for (key, image), own, clip in zip(new.items(), prepared, tokens, strict=True):
                if all_finite(clip):
                    encoded = EncodedImage(key, image, clip, own.sam, seconds=dict(share))
                    self._batch[key] = encoded
        self._encode_sam([encoded for encoded in self._batch.values() if not encoded.has_sam])

    def _encode_sam(self, images: Sequence[EncodedImage]) -> None:
        """Run SAM on several encoded images at once."""
        if not images:
            return
        timer = StageTimer(self.device)
        with timer.stage('sam'), torch.inference_mode():
            pixels = torch.stack([encoded.sam_pixels for encoded in images])
            features = self._model.encode_sam(pixels).split(1)
        for encoded, own in zip(images, features, strict=True):
            if all_finite(own):
                encoded.sam_features = own
            seconds = encoded.seconds.get('sam', 0.0) + timer.seconds['sam'] / len(images)
            encoded.seconds['sam'] = seconds

    def clear(self) -> None:
        """Drop all features."""
        self._newest.clear()
        self._batch = {}
