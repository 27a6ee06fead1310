# SPDX-License-Identifier: Apache-2.0
"""Prepare an image for CLIP and SAM on the model's device.

On a CPU, Pillow resizes, as in the original. On a GPU, the image goes there once as uint8, and
the GPU resizes it, so that the host, which has the node's other work, has nothing to do. Both give
the same pixels to the bit (test/test_image_preparation.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from lisa_ros.model import pillow_resize
from lisa_ros.model.image_processing import (
    SAM_MEAN,
    SAM_STD,
    ClipPreprocessing,
    check_rgb,
    clip_pixels,
    clip_resized_shape,
    normalized_levels,
    sam_input,
    sam_resized_shape,
)


@dataclass(frozen=True)
class PreparedImage:
    """An image as the inputs of CLIP and SAM, normalized, on the device of the model."""

    clip: Tensor  # (3, h, w) float32
    sam: Tensor  # (3, S, S) float32; zeros right of and below the image


class ImagePreparation(Protocol):
    """How images are prepared."""

    def prepare(self, image: np.ndarray) -> PreparedImage:
        """Prepare an image, (H, W, 3) uint8 RGB.

        Raises:
            ImageError: it has another shape or type.
        """


class PillowPreparation:
    """Prepares images with Pillow and uploads the results."""

    def __init__(self, clip: ClipPreprocessing, sam_size: int, device: torch.device):
        self._clip, self._sam_size, self._device = clip, sam_size, device

    def prepare(self, image: np.ndarray) -> PreparedImage:
        """Prepare an image; see ImagePreparation."""
        clip = torch.from_numpy(clip_pixels(image, self._clip)).to(self._device)
        sam = torch.from_numpy(sam_input(image, self._sam_size).pixels).to(self._device)
        return PreparedImage(clip, sam)


class GpuPreparation:
    """Uploads an image and prepares it on the GPU."""

    def __init__(self, clip: ClipPreprocessing, sam_size: int, device: torch.device):
        """Prepare for a CLIP of which `can_prepare` is true."""
        self._clip, self._sam_size, self._device = clip, sam_size, device
        clip_values = normalized_levels(clip.scale, tuple(clip.mean), tuple(clip.std))
        self._clip_values = torch.tensor(clip_values, device=device)
        self._sam_values = torch.tensor(normalized_levels(1.0, SAM_MEAN, SAM_STD), device=device)

    @staticmethod
    def can_prepare(clip: ClipPreprocessing) -> bool:
        """Return whether there is the filter, and the image keeps its proportions."""
        has_proportions = clip.crop is not None and isinstance(clip.size, int)
        return has_proportions and pillow_resize.has_filter(clip.resample)

    @torch.inference_mode()
    def prepare(self, image: np.ndarray) -> PreparedImage:
        """Prepare an image; see ImagePreparation."""
        frame = torch.from_numpy(np.ascontiguousarray(check_rgb(image))).to(self._device)
        return PreparedImage(self._for_clip(frame), self._for_sam(frame))

    def _for_clip(self, frame: Tensor) -> Tensor:
        rows, columns = self._clip.used_part(*frame.shape[:2])
        frame = frame[rows, columns]
        shape = clip_resized_shape(*frame.shape[:2], self._clip)
        resized = pillow_resize.resize(frame, shape, self._clip.resample)
        return _normalized(_center_crop(resized, *self._clip.crop), self._clip_values)

    def _for_sam(self, frame: Tensor) -> Tensor:
        size = self._sam_size
        height, width = sam_resized_shape(tuple(frame.shape[:2]), size)
        resized = pillow_resize.resize(frame, (height, width), Image.Resampling.BILINEAR)
        values = _normalized(resized, self._sam_values)
        return F.pad(values, (0, size - width, 0, size - height))


def image_preparation(
    clip: ClipPreprocessing, sam_size: int, device: torch.device
) -> ImagePreparation:
    """Return the preparation that suits a device."""
    if device.type == 'cuda' and GpuPreparation.can_prepare(clip):
        return GpuPreparation(clip, sam_size, device)
    return PillowPreparation(clip, sam_size, device)


def _center_crop(frame: Tensor, height: int, width: int) -> Tensor:
    """Return the middle of (H, W, 3); a smaller image is padded with zeros first."""
    missing_y, missing_x = max(0, height - frame.shape[0]), max(0, width - frame.shape[1])
    top, left = -(-missing_y // 2), -(-missing_x // 2)
    frame = F.pad(frame, (0, 0, left, missing_x - left, top, missing_y - top))
    top, left = (frame.shape[0] - height) // 2, (frame.shape[1] - width) // 2
    return frame[top : top + height, left : left + width]


def _normalized(frame: Tensor, values: Tensor) -> Tensor:
    """Return (h, w, 3) uint8 as (3, h, w) float32, by the values of each grey level."""
    levels = frame.permute(2, 0, 1).int().flatten(1)
    return values.gather(1, levels.long()).view(3, *frame.shape[:2])
