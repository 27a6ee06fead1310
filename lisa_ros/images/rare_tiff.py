# SPDX-License-Identifier: Apache-2.0
"""Decode the TIFF files that Pillow does not know. Any thread.

These are floats of 64 bits or of several channels, and grey of 16 bits with the high byte first
that has white as 0.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from PIL import TiffImagePlugin

from lisa_ros.errors import ImageError
from lisa_ros.images.bit_depth import exchange_black_and_white
from lisa_ros.images.pixel_limit import check_image_size

TIFF_MAGIC = (b'II*\0', b'MM\0*')
WHITE_IS_ZERO = 262, 0  # the tag PhotometricInterpretation and its value
_WIDTH, _HEIGHT, _BITS, _SAMPLE_FORMAT = 256, 257, 258, 339  # tags of TIFF
_UNSIGNED, _FLOAT = 1, 3  # sample formats
_FLOAT_BITS = 32, 64
_CHANNELS, _LAYOUT, _PLANES = 277, 284, 2  # two tags, and the layout with a plane for each channel


def decode_rare_tiff(tiff: bytes, name: str, max_pixels: int) -> np.ndarray | None:
    """Return the samples of a TIFF, (H, W) or (H, W, 3) RGB; None for another kind of file.

    They are floats, or grey of 16 bits. Black is 0.

    Raises:
        ImageError: it has more than `max_pixels`; or as `check_planes`.
        Exception: it is damaged.
    """
    if tiff[:4] not in TIFF_MAGIC:
        return None
    tags = tiff_tags(tiff)
    formats = {int(value) for value in np.ravel(tags.get(_SAMPLE_FORMAT, _UNSIGNED))}
    photometric, white_is_zero = WHITE_IS_ZERO
    is_inverted = tags.get(photometric) == white_is_zero
    is_wide_grey = is_inverted and formats == {_UNSIGNED} and tags.get(_BITS) == (16,)
    bits = max(int(bits) for bits in np.ravel(tags.get(_BITS, 1)))
    is_float = formats == {_FLOAT} and bits in _FLOAT_BITS  # of others, OpenCV logs an error
    if not is_float and not is_wide_grey:
        return None
    check_image_size(int(tags[_WIDTH]), int(tags[_HEIGHT]), name, max_pixels)
    check_planes(tags, name)
    samples = cv2.imdecode(np.frombuffer(tiff, np.uint8), cv2.IMREAD_UNCHANGED)
    if samples is None or samples.ndim == 2:
        return (
            exchange_black_and_white(samples) if samples is not None and is_inverted else samples
        )
    return samples[:, :, 2::-1]


def check_planes(tags: Mapping[int, Any], name: str) -> None:
    """Check that the deep channels of a TIFF do not lie in a plane each.

    Pillow and OpenCV read such planes as if the channels of each pixel followed one another, and
    return other colours.

    Raises:
        ImageError: they do.
    """
    bits = max(int(bits) for bits in np.ravel(tags.get(_BITS, 1)))
    if tags.get(_LAYOUT) == _PLANES and tags.get(_CHANNELS, 1) > 1 and bits > 8:
        raise ImageError(
            f'{name} has channels of {bits} bits in a plane each (PlanarConfiguration 2); '
            'expected the channels of each pixel together: save it so, or as PNG'
        )


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
