# SPDX-License-Identifier: Apache-2.0
"""Depth images in a sensor_msgs/CompressedImage, field by field; no ROS. Any thread.

compressed_depth_image_transport ("16UC1; compressedDepth png") writes 12 bytes and then a PNG or
an RVL stream of 16-bit values. The bytes are a number without use here and two float32 A and B. Of
a 16UC1 image the values are millimetres; of a 32FC1 image they are inverse depth v, and depth is
A / (v - B) metres. A PNG or TIFF of the transport "compressed" ("16UC1; png compressed") is depth,
too, because these codecs keep 16 bits.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from lisa_ros.errors import ImageError
from lisa_ros.images.image_file import decode_values
from lisa_ros.images.pixel_limit import DEFAULT_MAX_IMAGE_PIXELS, check_image_size
from lisa_ros.images.rvl import decode_rvl
from lisa_ros.messages.compressed_format import CompressedFormat
from lisa_ros.messages.data_bytes import data_bytes

_HEADER = struct.Struct('<iff')
_RVL_SIZE = struct.Struct('<II')  # columns and rows
_PNG_MAGIC = b'\x89PNG'


def decode_compressed_depth(
    message: Any, max_pixels: int = DEFAULT_MAX_IMAGE_PIXELS
) -> np.ndarray:
    """Return the values of a depth image, (H, W): uint16 in millimetres or float32 in metres.

    Args:
        message: its `format` and `data` are read.
        max_pixels: limit of width times height.

    Raises:
        ImageError: the format is not one of depth, or the data cannot be decoded.
    """
    stream, name = data_bytes(message).tobytes(), f'compressed depth {message.format!r}'
    parts = CompressedFormat.parse(message.format)
    if parts.encoding not in ('16uc1', 'mono16', '32fc1'):
        raise ImageError(
            f'format {message.format!r} is not depth; expected such as "16UC1; compressedDepth '
            'png": remap depth to a depth topic, or set depth_transport'
        )
    quantization = None
    if parts.is_compressed_depth and not stream.startswith(_PNG_MAGIC):
        if len(stream) <= _HEADER.size:
            raise ImageError(
                f'{name} cannot be decoded: {len(stream)} bytes, shorter than a header'
            )
        _, *quantization = _HEADER.unpack_from(stream)
        stream = stream[_HEADER.size :]
    if parts.is_compressed_depth and 'rvl' in message.format.lower():
        values = _decode_rvl_image(stream, name, max_pixels)
    else:
        values = decode_values(stream, name, max_pixels=max_pixels)
    _check_type(values, name)
    if parts.encoding == '32fc1' and values.dtype == np.uint16:
        return _metres(values, quantization, name)
    return values


def _decode_rvl_image(stream: bytes, name: str, max_pixels: int) -> np.ndarray:
    """Return the image of an RVL stream with its size, (H, W) uint16."""
    if len(stream) < _RVL_SIZE.size:
        raise ImageError(f'{name} cannot be decoded: {len(stream)} bytes, too few for RVL')
    width, height = _RVL_SIZE.unpack_from(stream)
    check_image_size(width, height, name, max_pixels)
    try:
        return decode_rvl(stream[_RVL_SIZE.size :], width * height).reshape(height, width)
    except ValueError as error:
        raise ImageError(
            f'{name} of {width} x {height} pixels cannot be decoded: {error}'
        ) from error


def _check_type(values: np.ndarray, name: str) -> None:
    if values.ndim != 2 or values.dtype not in (np.uint16, np.float32):
        raise ImageError(
            f'{name} holds {values.dtype} {values.shape}; expected one channel of 16 bits: '
            'compress depth with png or rvl, not with jpeg'
        )


def _metres(values: np.ndarray, quantization: list[float] | None, name: str) -> np.ndarray:
    """Return inverse depth of 16 bits as metres, (H, W) float32, NaN where it is 0."""
    a, b = quantization or (float('nan'), 0.0)
    if not (np.isfinite(a) and a > 0 and np.isfinite(b)):
        raise ImageError(
            f'{name} has the quantization {a:g}, {b:g} of inverse depth; expected a number above '
            '0 and a finite one: its header is missing or damaged'
        )
    with np.errstate(divide='ignore'):
        metres = np.float32(a) / (values.astype(np.float32) - np.float32(b))
    metres[values == 0] = np.nan
    return metres
