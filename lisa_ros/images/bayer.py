# SPDX-License-Identifier: Apache-2.0
"""Bayer mosaics: one colour per pixel, as the sensor has it. Any thread."""

from __future__ import annotations

import cv2
import numpy as np

from lisa_ros.errors import ImageError

# ROS names a pattern by the first two rows; OpenCV's old names start at row two.
_CONVERSIONS = {
    'rggb': cv2.COLOR_BayerBG2RGB,
    'bggr': cv2.COLOR_BayerRG2RGB,
    'gbrg': cv2.COLOR_BayerGR2RGB,
    'grbg': cv2.COLOR_BayerGB2RGB,
}
# encoding of sensor_msgs -> the pattern of the first two rows
BAYER_PATTERNS = {
    f'bayer_{pattern}{bits}': pattern for bits in (8, 16) for pattern in _CONVERSIONS
}
# The same of cameras of 10, 12 and 14 bits, which drivers write with 16 bits into a compressed
# image: encoding -> pattern and bits. sensor_msgs does not define them.
DEEP_BAYER_PATTERNS = {
    f'bayer_{pattern}{bits}': (pattern, bits) for bits in (10, 12, 14) for pattern in _CONVERSIONS
}
_MOSAIC_CONTRAST = 1.5  # in a mosaic, neighbours differ this much more than second neighbours


def demosaic(mosaic: np.ndarray, pattern: str) -> np.ndarray:
    """Return a mosaic as RGB, (H, W, 3) of the same type.

    Args:
        mosaic: (H, W) uint8 or uint16.
        pattern: one of rggb, bggr, gbrg, grbg: the first two pixels of the first two rows.

    Raises:
        ImageError: a side has fewer than 2 pixels, or the values have another type.
    """
    if mosaic.dtype not in (np.uint8, np.uint16):
        raise ImageError(
            f'a Bayer image of {mosaic.dtype}; expected values of 8 or 16 bits: publish it as PNG'
        )
    height, width = mosaic.shape
    if min(height, width) < 2:
        raise ImageError(
            f'a Bayer image of {width} x {height} pixels; expected 2 or more in each direction'
        )
    return cv2.cvtColor(mosaic, _CONVERSIONS[pattern])


def is_mosaic(grey: np.ndarray) -> bool:
    """Return whether (H, W) grey values look like a mosaic, not like a picture.

    In a mosaic of coloured surfaces direct neighbours have different colours, and second
    neighbours the same. The mosaic of a colourless surface is a picture of it, too.
    """
    values = grey.astype(np.float32)
    if min(values.shape) < 3:
        return False
    contrasts = [
        np.abs(values[:, step:] - values[:, :-step]).mean()
        + np.abs(values[step:] - values[:-step]).mean()
        for step in (1, 2)
    ]
    return bool(contrasts[0] > _MOSAIC_CONTRAST * contrasts[1])
