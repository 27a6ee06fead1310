# SPDX-License-Identifier: Apache-2.0
"""Limits on the size of an image. A file claims its size in a few bytes: check it first.

A PNG of 400 kB can claim 20000 x 20000 pixels, which take 1.2 GB as RGB and several times that
in the model's preprocessing. Any thread.
"""

from __future__ import annotations

from lisa_ros.errors import ImageError

DEFAULT_MAX_IMAGE_PIXELS = 50_000_000  # about 8700 x 5800: 150 MB as RGB
LARGEST_MAX_IMAGE_PIXELS = 1_000_000_000  # OpenCV decodes about 2**30 at most
MAX_SIDE = 32_767  # of OpenCV's remap and of several encoders [px]


def check_image_size(
    width: int, height: int, name: str, max_pixels: int = DEFAULT_MAX_IMAGE_PIXELS
) -> None:
    """Check the size that an image claims, before its pixels are decoded.

    Args:
        width: [px].
        height: [px].
        name: of the file or message, for the error.
        max_pixels: width times height may be this large [px].

    Raises:
        ImageError: a side is 0, a side is longer than MAX_SIDE, or there are too many pixels.
    """
    if min(width, height) < 1:
        raise ImageError(f'{name} of {width} x {height} pixels is empty')
    if width * height > max_pixels:
        raise ImageError(
            f'{name} has {width} x {height} pixels; expected at most {max_pixels:,} in all '
            '(max_image_pixels): scale it down'
        )
    check_sides(width, height, name)


def check_sides(width: int, height: int, name: str) -> None:
    """Check the sides of an image that is in memory already.

    Raises:
        ImageError: a side is longer than MAX_SIDE.
    """
    if max(width, height) > MAX_SIDE:
        raise ImageError(
            f'{name} has {width} x {height} pixels; expected sides of at most {MAX_SIDE:,}: '
            'scale or crop it'
        )
