# SPDX-License-Identifier: Apache-2.0
"""Decode the TIFF files that Pillow does not know. Any thread.

These are floats of 64 bits or of several channels, and grey of 16 bits with the high byte first
that has white as 0.
"""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np
from PIL import TiffImagePlugin

from lisa_ros.images.bit_depth import exchange_black_and_white
from lisa_ros.images.pixel_limit import check_image_size

TIFF_MAGIC = (b'II*\0', b'MM\0*')
WHITE_IS_ZERO = 262, 0  # the tag PhotometricInterpretation and its value
_WIDTH, _HEIGHT, _BITS, _SAMPLE_FORMAT = 256, 257, 258, 339  # tags of TIFF
_UNSIGNED, _FLOAT = 1, 3  # sample formats


def decode_rare_tiff(tiff: bytes, name: str, max_pixels: int) -> np.ndarray | None:
    """Return the samples of a TIFF, (H, W) or (H, W, 3) RGB; None for another kind of file.

    They are floats, or grey of 16 bits. Black is 0.

    Raises:
        ImageError: it has more than `max_pixels`.
        Exception: it is damaged.
    """
    if tiff[:4] not in TIFF_MAGIC:
        return None
    tags = tiff_tags(tiff)
    formats = {int(value) for value in np.ravel(tags.get(_SAMPLE_FORMAT, _UNSIGNED))}
    photometric, white_is_zero = WHITE_IS_ZERO
    is_inverted = tags.get(photometric) == white_is_zero
    is_wide_grey = is_inverted and formats == {_UNSIGNED} and tags.get(_BITS) == (16,)
    if formats != {_FLOAT} and not is_wide_grey:
        return None
    check_image_size(int(tags[_WIDTH]), int(tags[_HEIGHT]), name, max_pixels)
    samples = cv2.imdecode(np.frombuffer(tiff, np.uint8), cv2.IMREAD_UNCHANGED)
    if samples is None or samples.ndim == 2:
        return (
            exchange_black_and_white(samples) if samples is not None and is_inverted else samples
        )
    return samples[:, :, 2::-1]


def tiff_tags(tiff: bytes) -> dict[int, Any]:
    """Return the tags of the first image of a TIFF.

    Raises:
        Exception: it is damaged.
    """
    tags = TiffImagePlugin.ImageFileDirectory_v2(tiff[:8])
    stream = io.BytesIO(tiff)
    stream.seek(tags.next)
    tags.load(stream)
    return dict(tags)
