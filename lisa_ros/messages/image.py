# SPDX-License-Identifier: Apache-2.0
"""Convert image messages to arrays and back, field by field: no ROS import, no cv_bridge.

Messages may be of rclpy or rosbags, or a `SimpleNamespace`: only `height`, `width`, `encoding`,
`is_bigendian`, `step`, `data` (sensor_msgs/Image) and `format`, `data` (CompressedImage) are read.
Works with NumPy 1 and 2, OpenCV 4 and 5.

Encodings are those of sensor_msgs/image_encodings.hpp. Depth follows REP-118: 16UC1 in millimetres
with 0 as invalid, 32FC1 in metres with NaN as invalid. Rows may be padded: `step` is the length of
a row in bytes, at least width times bytes per pixel. Functions may be called in any thread.
"""

from __future__ import annotations

import array
import re
import sys
from typing import Any

import cv2
import numpy as np

from lisa_ros.errors import ImageError
from lisa_ros.geometry.rgbd import is_valid_depth

# encoding -> (element type, channels, channel order). 8UC3 and 8UC4 define no order: BGR, as
# OpenCV drivers publish it and RViz shows it.
_INTERLEAVED = {
    'rgb8': ('u1', 3, 'RGB'),
    'bgr8': ('u1', 3, 'BGR'),
    'rgba8': ('u1', 4, 'RGB'),
    'bgra8': ('u1', 4, 'BGR'),
    '8UC3': ('u1', 3, 'BGR'),
    '8UC4': ('u1', 4, 'BGR'),
    'mono8': ('u1', 1, 'GRAY'),
    '8UC1': ('u1', 1, 'GRAY'),
    'mono16': ('u2', 1, 'GRAY'),
    '16UC1': ('u2', 1, 'RANGE'),
    '32FC1': ('f4', 1, 'RANGE'),
    'rgb16': ('u2', 3, 'RGB'),
    'bgr16': ('u2', 3, 'BGR'),
    'rgba16': ('u2', 4, 'RGB'),
    'bgra16': ('u2', 4, 'BGR'),
}
_PACKED_YUV = {  # two bytes per pixel; a pair of pixels shares its colour
    'yuv422': cv2.COLOR_YUV2RGB_UYVY,
    'uyvy': cv2.COLOR_YUV2RGB_UYVY,
    'yuv422_yuy2': cv2.COLOR_YUV2RGB_YUY2,
    'yuyv': cv2.COLOR_YUV2RGB_YUY2,
}
_PLANAR_YUV = {  # a Y plane, then half as many rows of colour pairs
    'nv12': cv2.COLOR_YUV2RGB_NV12,
    'nv21': cv2.COLOR_YUV2RGB_NV21,
}
_BAYER = {  # ROS names an encoding by the first two rows; OpenCV's old names start at row two
    'bayer_rggb8': cv2.COLOR_BayerBG2RGB,
    'bayer_bggr8': cv2.COLOR_BayerRG2RGB,
    'bayer_gbrg8': cv2.COLOR_BayerGR2RGB,
    'bayer_grbg8': cv2.COLOR_BayerGB2RGB,
}
SUPPORTED_ENCODINGS = (*_INTERLEAVED, *_PACKED_YUV, *_PLANAR_YUV, *_BAYER)
DEPTH_ENCODINGS = ('16UC1', 'mono16', '32FC1')


def image_to_rgb(message: Any) -> np.ndarray:
    """Return a sensor_msgs/Image as RGB, (H, W, 3) uint8; its rows may be padded.

    rgb8 is a view of the message's data, read-only if the data are; other encodings are copied.
    Grey images get three equal channels; 16 bit colour and mono16 keep their upper byte; 16UC1 and
    32FC1 have no known range, so their valid (finite, non-zero) values are scaled to 0..255 for
    display.

    Raises:
        ImageError: an encoding not in `SUPPORTED_ENCODINGS`, or data of a wrong size.
    """
    encoding = message.encoding
    if encoding in _PACKED_YUV:
        _check_even(message, 'width')
        return cv2.cvtColor(_pixels(message, 'u1', 2), _PACKED_YUV[encoding])
    if encoding in _PLANAR_YUV:
        _check_even(message, 'width', 'height')
        planes = _pixels(message, 'u1', 1, rows=message.height * 3 // 2)[:, :, 0]
        return cv2.cvtColor(np.ascontiguousarray(planes), _PLANAR_YUV[encoding])
    if encoding in _BAYER:
        return cv2.cvtColor(_pixels(message, 'u1', 1)[:, :, 0], _BAYER[encoding])
    if encoding not in _INTERLEAVED:
        raise ImageError(
            f'image encoding {encoding!r} is not supported; expected one of '
            f'{", ".join(SUPPORTED_ENCODINGS)}'
        )
    element_type, channels, order = _INTERLEAVED[encoding]
    pixels = _pixels(message, element_type, channels)
    if order == 'RANGE':
        pixels = _scaled_for_display(pixels)
    elif element_type == 'u2':
        pixels = (pixels >> 8).astype(np.uint8)
    if channels == 1:
        return np.repeat(pixels, 3, axis=2)
    # BGR is copied: a reversed view would do for NumPy, but torch refuses negative strides.
    return pixels[:, :, :3] if order == 'RGB' else np.ascontiguousarray(pixels[:, :, 2::-1])


def depth_to_metres(message: Any) -> np.ndarray:
    """Return a depth image in metres, (H, W) float32, NaN where invalid (REP-118).

    16UC1 and mono16 are millimetres, 32FC1 is metres; 0, negative and non-finite values are
    invalid. Always a copy.

    Raises:
        ImageError: another encoding, or data of a wrong size.
    """
    if message.encoding not in DEPTH_ENCODINGS:
        raise ImageError(
            f'depth encoding {message.encoding!r} is not supported; expected 16UC1 [mm] or '
            '32FC1 [m] as in REP-118'
        )
    element_type = _INTERLEAVED[message.encoding][0]
    depth = _pixels(message, element_type, 1)[:, :, 0].astype(np.float32)
    if element_type == 'u2':
        depth *= np.float32(0.001)
    depth[~is_valid_depth(depth)] = np.nan
    return depth


def compressed_to_rgb(message: Any) -> np.ndarray:
    """Return a sensor_msgs/CompressedImage as RGB, (H, W, 3) uint8; JPEG, PNG or similar.

    `format`, as image_transport writes it, has the channel order of the file after "compressed"
    ("rgb8; jpeg compressed bgr8"). With "compressed rgb" red and blue are swapped in the file, and
    are swapped back here. 16 bit images keep their upper byte.

    Raises:
        ImageError: data that OpenCV cannot decode, or depth; the message names the format.
    """
    if 'compressedDepth' in message.format:
        raise ImageError(
            f'format {message.format!r} is depth, expected a colour image: remap image to a '
            'colour topic'
        )
    decoded = _decode(_data_bytes(message), message.format, cv2.IMREAD_UNCHANGED)
    if decoded.dtype == np.uint16:
        decoded = (decoded >> 8).astype(np.uint8)
    if decoded.ndim == 2:
        return np.repeat(decoded[:, :, None], 3, axis=2)
    swapped = re.search(r'compressed rgb', message.format) is not None
    return np.ascontiguousarray(decoded[:, :, :3] if swapped else decoded[:, :, 2::-1])


def image_fields(pixels: np.ndarray, encoding: str) -> dict[str, Any]:
    """Return the fields of a sensor_msgs/Image except `header`, for pixels without row padding.

    The byte order is that of this machine; `data` is an array('B'), which rclpy takes without a
    check.

    Args:
        pixels: (H, W) or (H, W, C) of the encoding's type: uint8 for rgb8 and mono8, uint16 for
            16UC1, float32 for 32FC1.
        encoding: an encoding whose channels are interleaved, such as rgb8, mono8 or 32FC1.

    Raises:
        ImageError: type or channels are not those of the encoding.
    """
    element_type, channels, _ = _INTERLEAVED[encoding]
    height, width = pixels.shape[:2]
    if pixels.dtype != np.dtype(element_type) or pixels.size != height * width * channels:
        raise ImageError(
            f'{pixels.dtype} {pixels.shape} is no {encoding}: expected {np.dtype(element_type)} '
            f'with {channels} channel(s)'
        )
    pixel_bytes = array.array('B')
    pixel_bytes.frombytes(np.ascontiguousarray(pixels).tobytes())
    return {
        'height': height,
        'width': width,
        'encoding': encoding,
        'is_bigendian': int(sys.byteorder == 'big'),
        'step': width * channels * pixels.dtype.itemsize,
        'data': pixel_bytes,
    }


def mask_fields(mask: np.ndarray) -> dict[str, Any]:
    """Return a (H, W) bool mask as the fields of a mono8 Image with values 0 and 255."""
    return image_fields(mask.astype(np.uint8) * np.uint8(255), 'mono8')


def _pixels(message: Any, element_type: str, channels: int, rows: int | None = None) -> np.ndarray:
    """Return an image's data as (rows, W, channels) in native byte order; a view if possible.

    `rows` is the image's height, except in planar encodings, where planes follow one another.
    """
    rows = message.height if rows is None else rows
    width = message.width
    item_size = np.dtype(element_type).itemsize
    row_size = width * channels * item_size
    step = message.step or row_size  # 0: the publisher did not set it
    if rows == 0 or width == 0:
        raise ImageError(f'image of {width} x {message.height} pixels is empty')
    if step < row_size:
        raise ImageError(
            f'image step {step} is too small: {width} pixels of {message.encoding} '
            f'need {row_size} bytes per row'
        )
    message_bytes = _data_bytes(message)
    min_bytes = step * (rows - 1) + row_size  # some drivers omit the padding of the last row
    if message_bytes.size < min_bytes:
        raise ImageError(
            f'image data is short: {message_bytes.size} bytes, but {width} x {message.height} '
            f'{message.encoding} with step {step} needs {min_bytes}'
        )
    stored = np.dtype(('>' if message.is_bigendian else '<') + element_type)
    pixels = np.ndarray(
        (rows, width, channels),
        stored,
        message_bytes,
        strides=(step, channels * item_size, item_size),
    )
    return pixels.astype(stored.newbyteorder('='), copy=False)


def _data_bytes(message: Any) -> np.ndarray:
    """Return a message's data as (n,) uint8: no copy of array('B'), bytes or a NumPy array."""
    try:
        return np.frombuffer(message.data, np.uint8)
    except TypeError:  # a list, in messages written by hand
        return np.asarray(message.data, dtype=np.uint8)


def _decode(file_bytes: np.ndarray, name: str, flags: int) -> np.ndarray:
    """Return an image file in memory as OpenCV decodes it, colours as BGR."""
    try:
        image = cv2.imdecode(file_bytes, flags) if file_bytes.size else None
    except cv2.error as error:
        raise ImageError(f'compressed image {name!r} cannot be decoded: {error.err}') from None
    if image is None:
        raise ImageError(
            f'compressed image {name!r} cannot be decoded: {file_bytes.size} bytes, expected '
            'a JPEG or PNG file'
        )
    return image


def _scaled_for_display(pixels: np.ndarray) -> np.ndarray:
    """Scale values of any range to uint8: the lowest valid value becomes 0, the highest 255."""
    values = pixels.astype(np.float32)
    valid = np.isfinite(values) & (values != 0)
    if not valid.any():
        return np.zeros(pixels.shape, np.uint8)
    low, high = values[valid].min(), values[valid].max()
    scaled = (np.where(valid, values, low) - low) * (255.0 / max(high - low, 1e-12))
    return np.clip(scaled, 0, 255).astype(np.uint8)


def _check_even(message: Any, *names: str) -> None:
    """Raise an ImageError if one of these sides is odd: pairs of pixels share their colour."""
    for name in names:
        if getattr(message, name) % 2:
            raise ImageError(
                f'{message.encoding} needs an even {name}, not {getattr(message, name)}'
            )
