# SPDX-License-Identifier: Apache-2.0
"""The EXIF orientation of an image, 1 to 8, and pixels turned by it. Any thread."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

_TAG = 0x0112  # of EXIF and TIFF
SIDEWAYS = (5, 6, 7, 8)  # orientations that swap width and height


def orientation_in(tags: Mapping[int, Any]) -> int:
    """Return the orientation that tags of EXIF or TIFF name; 1 if it is damaged or missing."""
    value = tags.get(_TAG, 1)
    return value if value in range(1, 9) else 1


def orientation_of(image: Image.Image) -> int:
    """Return the orientation of an opened image; 1 if it is damaged or missing."""
    return orientation_in(exif_tags(image))


def turn_of(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8, that decoding an opened image leaves to be applied."""
    return 1 if image.format == 'TIFF' else orientation_of(image)  # both decoders turn a TIFF


def exif_tags(image: Image.Image) -> Mapping[int, Any]:
    """Return the EXIF tags of an opened image; none if they are damaged or missing."""
    try:
        return image.getexif()
    except Exception:  # noqa: BLE001  # viewers show the stored pixels, too
        return {}


def turned_upright(pixels: np.ndarray, turn: int) -> np.ndarray:
    """Return (H, W) or (H, W, C) pixels upright that are stored with an EXIF orientation."""
    if turn in SIDEWAYS:  # stored column by column
        pixels = pixels.swapaxes(0, 1)
    if turn in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if turn in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
