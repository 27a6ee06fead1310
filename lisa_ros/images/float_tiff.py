# SPDX-License-Identifier: Apache-2.0
"""Decode the TIFF files that Pillow does not know: floats of 64 bits, or of several channels."""

from __future__ import annotations

import io

import cv2
import numpy as np
from PIL import TiffImagePlugin

from lisa_ros.images.pixel_limit import check_image_size

TIFF_MAGIC = (b'II*\0', b'MM\0*')
_WIDTH, _HEIGHT, _SAMPLE_FORMAT = 256, 257, 339  # tags of TIFF
_FLOAT = 3  # a sample format


def decode_float_tiff(tiff: bytes, name: str, max_pixels: int) -> np.ndarray | None:
    """Return the samples of a TIFF of floats, (H, W) or (H, W, 3) RGB; None for another file.

    Raises:
        ImageError: it has more than `max_pixels`.
        Exception: it is damaged.
    """
    if tiff[:4] not in TIFF_MAGIC:
        return None
    tags = TiffImagePlugin.ImageFileDirectory_v2(tiff[:8])
    stream = io.BytesIO(tiff)
    stream.seek(tags.next)
    tags.load(stream)
    if set(np.ravel(tags.get(_SAMPLE_FORMAT, ()))) != {_FLOAT}:
        return None
    check_image_size(int(tags[_WIDTH]), int(tags[_HEIGHT]), name, max_pixels)
    samples = cv2.imdecode(np.frombuffer(tiff, np.uint8), cv2.IMREAD_UNCHANGED)
    if samples is None or samples.ndim == 2:
        return samples
    return samples[:, :, 2::-1]
