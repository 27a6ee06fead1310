# SPDX-License-Identifier: Apache-2.0
"""Convert samples deeper than 8 bits to 8 bits, by stated rules. Any thread.

Cameras of 10, 12 and 14 bits store their values in 16 bits, mostly without scaling them: the upper
byte alone would be nearly black. A file does not say how many bits are used, so
`to_uint8` takes the smallest depth of 8, 10, 12, 14 and 16 bits that holds the largest value.
"""

from __future__ import annotations

import numpy as np

from lisa_ros.errors import ImageError

_CAMERA_DEPTHS = (8, 10, 12, 14, 16)  # [bits]


def to_uint8(samples: np.ndarray, name: str) -> np.ndarray:
    """Return samples of any depth as uint8, in the same shape.

    uint8 is returned as it is. Integers keep the upper 8 of the bits in use (see the module's
    docstring). Floats are 0..1 and become 0..255.

    Args:
        samples: bool, integers or floats, of one image.
        name: of the file or message, for the error.

    Raises:
        ImageError: integers below 0 or above 65535; floats that are not all within 0..1.
    """
    if samples.dtype == np.uint8:
        return samples
    if samples.dtype.kind == 'f':
        return _unit_floats_to_uint8(samples, name)
    if samples.dtype == bool:
        return samples.astype(np.uint8) * np.uint8(255)
    low, high = int(samples.min()), int(samples.max())
    if low < 0 or high > 65535:
        raise ImageError(
            f'{name} has values from {low} to {high}; expected at most 16 bits, 0 to 65535: '
            'convert it to 8 bits'
        )
    depth = next(bits for bits in _CAMERA_DEPTHS if high < 1 << bits)
    return (samples >> (depth - 8)).astype(np.uint8)


def top_byte(samples: np.ndarray, bits: int, name: str) -> np.ndarray:
    """Return 16-bit samples of which some bits are in use as uint8; uint8 as it is. Same shape.

    Args:
        samples: uint8 or uint16.
        bits: in use, 8 to 16.
        name: of the file or message, for the error.

    Raises:
        ImageError: a value needs more bits.
    """
    if samples.dtype == np.uint8:
        return samples
    high = int(samples.max())
    if high >= 1 << bits:
        raise ImageError(
            f'{name} has values up to {high}; expected {bits} bits, 0 to {(1 << bits) - 1}: if '
            'the driver scales them to 16 bits, let it name an encoding of 16 bits'
        )
    return (samples >> (bits - 8)).astype(np.uint8)


def upper_byte(samples: np.ndarray) -> np.ndarray:
    """Return 16-bit samples of full range as uint8; uint8 as it is. Same shape."""
    return (samples >> 8).astype(np.uint8) if samples.dtype == np.uint16 else samples


def exchange_black_and_white(samples: np.ndarray) -> np.ndarray:
    """Return grey samples that have white as 0 with black as 0. Same shape and type.

    White of unsigned integers is their largest value, that of floats is 1.
    """
    white = 1 if samples.dtype.kind == 'f' else np.iinfo(samples.dtype).max
    return samples.dtype.type(white) - samples


def stretch_to_uint8(samples: np.ndarray, name: str) -> np.ndarray:
    """Scale values of any range to uint8: the lowest valid value becomes 0, the highest 255.

    For depth and infrared images, whose range is unknown. 0 and non-finite values are invalid and
    become 0. An image of one value becomes black. Same shape.

    Args:
        samples: integers or floats, of one image.
        name: of the file or message, for the error.

    Raises:
        ImageError: no value is finite.
    """
    values = samples.astype(np.float32)
    finite = np.isfinite(values)
    if not finite.any():
        raise ImageError(
            f'{name} has no finite value; expected distances or brightness: check the camera, or '
            'remap image to a colour topic'
        )
    valid = finite & (values != 0)
    if not valid.any():
        return np.zeros(samples.shape, np.uint8)
    low, high = values[valid].min(), values[valid].max()
    scaled = (np.where(valid, values, low) - low) * (255.0 / max(high - low, 1e-12))
    return np.clip(scaled, 0, 255).astype(np.uint8)


def _unit_floats_to_uint8(samples: np.ndarray, name: str) -> np.ndarray:
    low, high = float(samples.min()), float(samples.max())
    if not (low >= 0 and high <= 1):  # not: they may be NaN
        raise ImageError(
            f'{name} has float values from {low:g} to {high:g}; expected 0 to 1: '
            'scale them, or save it with 8 bits'
        )
    return np.rint(samples * 255).astype(np.uint8)
