# SPDX-License-Identifier: Apache-2.0
"""Images as Qwen's vision-language models get them: resized, normalized, cut into patches.

The numbers equal those of transformers' own processor to the bit (test/test_qwen_vl.py), which
needs torchvision for models of which this package needs the image part only.

Letters: p side of a patch, m patches along the side of a cell: an image token stands for m x m
patches. NumPy and Pillow, any thread.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from lisa_ros.errors import ImageError
from lisa_ros.vlm.profiles import ResizeRule

_MAX_RATIO = 200  # of the sides; a longer image is refused by the library, too


@dataclass(frozen=True)
class PatchLayout:
    """How a model cuts an image into patches, and how it normalizes colours."""

    patch: int  # p [px]
    merge: int  # m
    frames: int  # how often a patch is repeated, as if a video stood still
    mean: tuple[float, float, float]  # of RGB 0..1
    std: tuple[float, float, float]


@dataclass(frozen=True)
class ImageInput:
    """An image as the model gets it."""

    patches: np.ndarray  # (rows * columns, 3 * frames * p * p) float32, cell by cell
    rows: int  # of patches
    columns: int
    size: tuple[int, int]  # width and height of the resized image [px]


def prepare_image(image: np.ndarray, rule: ResizeRule, layout: PatchLayout) -> ImageInput:
    """Return an image as the model gets it.

    Args:
        image: (H, W, 3) uint8 RGB.
        rule: of the model's profile.
        layout: of the model.

    Raises:
        ImageError: one side of the image is more than 200 times as long as the other.
    """
    resized = resize_image(image, rule, layout.patch * layout.merge)
    size = resized.size
    pixels = (np.asarray(resized).astype(np.float64) * (1 / 255)).astype(np.float32)
    pixels = (pixels - np.float32(layout.mean)) / np.float32(layout.std)
    patch, merge = layout.patch, layout.merge
    columns, rows = size[0] // patch, size[1] // patch
    cells = pixels.transpose(2, 0, 1).reshape(
        3, rows // merge, merge, patch, columns // merge, merge, patch
    )
    patches = cells.transpose(1, 4, 2, 5, 0, 3, 6)[:, :, :, :, :, None]
    patches = np.broadcast_to(patches, (*patches.shape[:5], layout.frames, patch, patch))
    return ImageInput(patches.reshape(rows * columns, -1), rows, columns, size)


def resize_image(image: np.ndarray, rule: ResizeRule, cell: int) -> Image.Image:
    """Return an image in the size that a model gets.

    Args:
        image: (H, W, 3) uint8 RGB.
        rule: of the model's profile.
        cell: the side of an image token [px].

    Raises:
        ImageError: one side of the image is more than 200 times as long as the other.
    """
    resized = Image.fromarray(image)
    if rule.square is not None:
        resized = resized.resize((rule.square, rule.square), Image.Resampling.BILINEAR)
    size = resized_size(resized.size, rule, cell)
    return resized.resize(size, Image.Resampling.BICUBIC)


def resized_size(size: tuple[int, int], rule: ResizeRule, cell: int) -> tuple[int, int]:
    """Return width and height of the image for the model [px]: multiples of the cell's side.

    Raises:
        ImageError: one side is more than 200 times as long as the other.
    """
    short, long = sorted(size)
    if long > _MAX_RATIO * short:
        raise ImageError(
            f'the image has {size[0]} x {size[1]} pixels; this model takes images whose sides '
            f'differ by at most {_MAX_RATIO} times'
        )
    width, height = (round(side / cell) * cell for side in size)
    if width * height > rule.max_pixels:
        shrink = math.sqrt(short * long / rule.max_pixels)
        width, height = (max(cell, math.floor(side / shrink / cell) * cell) for side in size)
    elif width * height < rule.min_pixels:
        grow = math.sqrt(rule.min_pixels / (short * long))
        width, height = (math.ceil(side * grow / cell) * cell for side in size)
    return width, height
