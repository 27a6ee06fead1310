# SPDX-License-Identifier: Apache-2.0
"""Resize images on a GPU with the pixels of Pillow, to the bit.

Pillow computes each pixel as a weighted sum of neighbours, first along rows, then along columns,
in integers: weights have 22 bits behind the point, and each sum is rounded to a grey level. The
same integers are used here (Pillow: src/libImaging/Resample.c).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

_BITS = 22  # of a weight, behind the point


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(0, 1 - np.abs(x))


def _cubic(x: np.ndarray) -> np.ndarray:
    """Return the cubic convolution with a = -0.5."""
    x = np.abs(x)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


# function and its largest argument that is not 0
_FILTERS: dict[int, tuple[Callable[[np.ndarray], np.ndarray], float]] = {
    Image.Resampling.BILINEAR: (_triangle, 1.0),
    Image.Resampling.BICUBIC: (_cubic, 2.0),
}


def has_filter(resample: int) -> bool:
    """Return whether `resize` knows a filter of Pillow."""
    return resample in _FILTERS


def resize(image: Tensor, shape: tuple[int, int], resample: int) -> Tensor:
    """Resize an image.

    Both sides grow, or both shrink: newer versions of Pillow begin with the columns otherwise.

    Args:
        image: (H, W, C) uint8.
        shape: (height, width) of the result.
        resample: a number of PIL.Image.Resampling; see `has_filter`.

    Returns:
        (height, width, C) uint8, on the device of the image.
    """
    for axis in (1, 0):
        if image.shape[axis] != shape[axis]:
            image = _resize_axis(image, axis, shape[axis], resample)
    return image


def _resize_axis(image: Tensor, axis: int, size: int, resample: int) -> Tensor:
    """Resize one axis."""
    indices, weights = _taps(image.shape[axis], size, resample, image.device)
    total = torch.full((1,), 1 << (_BITS - 1), dtype=torch.int32, device=image.device)
    shape = (-1, 1) if axis == 1 else (-1, 1, 1)
    for index, weight in zip(indices, weights, strict=True):
        total = total + image.index_select(axis, index).int() * weight.view(shape)
    return (total >> _BITS).clamp(0, 255).byte()


@functools.lru_cache(maxsize=64)
def _taps(inputs: int, outputs: int, resample: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return which pixels a new pixel is the sum of, (K, outputs), and their int32 weights."""
    function, reach = _FILTERS[resample]
    step = inputs / outputs
    width = max(step, 1.0)  # of the filter: wider where an image shrinks
    centers = (np.arange(outputs) + 0.5) * step
    first = np.maximum(0, (centers - reach * width + 0.5).astype(np.int64))
    end = np.minimum(inputs, (centers + reach * width + 0.5).astype(np.int64))
    indices = first + np.arange((end - first).max())[:, None]
    weights = function((indices - centers + 0.5) / width) * (indices < end)
    scaled = weights / weights.sum(0) * (1 << _BITS)
    whole = np.trunc(scaled + np.copysign(0.5, scaled)).astype(np.int32)
    indices = torch.from_numpy(np.minimum(indices, inputs - 1)).to(device)
    return indices, torch.from_numpy(whole).to(device)
