# SPDX-License-Identifier: Apache-2.0
"""Image messages to arrays and back, by field: no ROS import, no cv_bridge.

A live message, one that rosbags read, or a `SimpleNamespace` all fit: only `height`, `width`,
`encoding`, `is_bigendian`, `step`, `data` (Image), `format`, `data` (CompressedImage) and `width`,
`height`, `k`, `p`, `d`, `distortion_model`, `roi`, `binning_x`, `binning_y` (CameraInfo) are read.
Works with NumPy 1 and 2, OpenCV 4 and 5.

What an encoding means is written in sensor_msgs/image_encodings.hpp; depth is REP-118: 16UC1 in
millimetres with 0 invalid, 32FC1 in metres with NaN invalid. Rows may be padded: `step` counts
the bytes of a row and is at least width * bytes a pixel. Functions may be called in any thread.
"""

from __future__ import annotations

import array
import re
import sys
from typing import Any

import cv2
import numpy as np

from lisa_ros.errors import ImageError
from lisa_ros.geometry.camera import Camera

# encoding -> (element type, channels, order of the colours). 8UC3 says no order: BGR, as OpenCV
# drivers publish it and RViz shows it; likewise 8UC4.
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
_PACKED_YUV = {  # two bytes a pixel, a pair of pixels shares its colour
    'yuv422': cv2.COLOR_YUV2RGB_UYVY,
    'uyvy': cv2.COLOR_YUV2RGB_UYVY,
    'yuv422_yuy2': cv2.COLOR_YUV2RGB_YUY2,
    'yuyv': cv2.COLOR_YUV2RGB_YUY2,
}
_PLANAR_YUV = {  # a plane of Y, then half as many rows of colour pairs
    'nv12': cv2.COLOR_YUV2RGB_NV12,
    'nv21': cv2.COLOR_YUV2RGB_NV21,
}
_BAYER = {  # ROS names the first two rows' pixels; OpenCV's old names name the second row's
    'bayer_rggb8': cv2.COLOR_BayerBG2RGB,
    'bayer_bggr8': cv2.COLOR_BayerRG2RGB,
    'bayer_gbrg8': cv2.COLOR_BayerGR2RGB,
    'bayer_grbg8': cv2.COLOR_BayerGB2RGB,
}
SUPPORTED_ENCODINGS = (*_INTERLEAVED, *_PACKED_YUV, *_PLANAR_YUV, *_BAYER)
DEPTH_ENCODINGS = ('16UC1', 'mono16', '32FC1')


def image_to_rgb(message: Any) -> np.ndarray:
    """Return a sensor_msgs/Image as RGB, (H, W, 3) uint8, contiguous rows or not.

    rgb8 is a view on the message's data, and so read-only if those are; the rest are copies. Grey
    pictures get three equal channels; 16 bit colour and mono16 keep their upper byte; 16UC1 and
    32FC1 have no known range, so that their valid (finite, non-zero) values are stretched to
    0..255 for looking at.

    Raises:
        ImageError: an encoding that is none of `SUPPORTED_ENCODINGS`, or data too short.
    """
    encoding = message.encoding
    if encoding in _PACKED_YUV:
        _check_even(message, 'width')
        return cv2.cvtColor(_rows(message, 'u1', 2), _PACKED_YUV[encoding])
    if encoding in _PLANAR_YUV:
        _check_even(message, 'width', 'height')
        planes = _rows(message, 'u1', 1, rows=message.height * 3 // 2)[:, :, 0]
        return cv2.cvtColor(np.ascontiguousarray(planes), _PLANAR_YUV[encoding])
    if encoding in _BAYER:
        return cv2.cvtColor(_rows(message, 'u1', 1)[:, :, 0], _BAYER[encoding])
    if encoding not in _INTERLEAVED:
        raise ImageError(
            f'image encoding {encoding!r} is not supported; the supported ones are '
            f'{", ".join(SUPPORTED_ENCODINGS)}'
        )
    kind, channels, order = _INTERLEAVED[encoding]
    pixels = _rows(message, kind, channels)
    if order == 'RANGE':
        pixels = _stretched(pixels)
    elif kind == 'u2':
        pixels = (pixels >> 8).astype(np.uint8)
    if channels == 1:
        return np.repeat(pixels, 3, axis=2)
    # The view backwards in the last axis would do for numpy, but torch refuses negative strides.
    return pixels[:, :, :3] if order == 'RGB' else np.ascontiguousarray(pixels[:, :, 2::-1])


def depth_to_metres(message: Any) -> np.ndarray:
    """Return a depth image in metres, (H, W) float32, NaN where invalid (REP-118).

    16UC1 and mono16 count millimetres, 32FC1 metres; 0, negative and non-finite values are
    invalid. Always a copy.

    Raises:
        ImageError: another encoding, or data too short.
    """
    if message.encoding not in DEPTH_ENCODINGS:
        raise ImageError(
            f'depth encoding {message.encoding!r} is not supported; expected 16UC1 [mm] or '
            '32FC1 [m] as in REP-118'
        )
    kind = _INTERLEAVED[message.encoding][0]
    depth = _rows(message, kind, 1)[:, :, 0].astype(np.float32)
    if kind == 'u2':
        depth *= np.float32(0.001)
    return _without_invalid(depth)


def compressed_to_rgb(message: Any) -> np.ndarray:
    """Return a sensor_msgs/CompressedImage as RGB, (H, W, 3) uint8: jpeg, png, what OpenCV reads.

    The format of image_transport says how the file was made ("rgb8; jpeg compressed bgr8"): with
    "compressed rgb" the channels lie swapped in the file, and are swapped back. Sixteen bit
    pictures keep their upper byte.

    Raises:
        ImageError: data that OpenCV cannot read; the format is named.
    """
    if 'compressedDepth' in message.format:
        raise ImageError(
            f'{message.format!r} is depth, not a colour picture: remap image to a colour topic'
        )
    decoded = _decoded(_buffer(message), message.format, cv2.IMREAD_UNCHANGED)
    if decoded.dtype == np.uint16:
        decoded = (decoded >> 8).astype(np.uint8)
    if decoded.ndim == 2:
        return np.repeat(decoded[:, :, None], 3, axis=2)
    swapped = re.search(r'compressed rgb', message.format) is not None
    return np.ascontiguousarray(decoded[:, :, :3] if swapped else decoded[:, :, 2::-1])


def image_fields(pixels: np.ndarray, encoding: str) -> dict[str, Any]:
    """Return the fields of a sensor_msgs/Image but its header, rows not padded, native byte order.

    Args:
        pixels: (H, W) or (H, W, C), of the encoding's own type: uint8 for rgb8 and mono8, uint16
            for 16UC1, float32 for 32FC1. `data` comes as array('B'), which rclpy takes as it is.
        encoding: one of the interleaved encodings above.

    Raises:
        ImageError: type or channels are not those of the encoding.
    """
    kind, channels, _ = _INTERLEAVED[encoding]
    height, width = pixels.shape[:2]
    if pixels.dtype != np.dtype(kind) or pixels.size != height * width * channels:
        raise ImageError(
            f'{pixels.dtype} {pixels.shape} is no {encoding}: expected {np.dtype(kind)} '
            f'with {channels} channel(s)'
        )
    data = array.array('B')
    data.frombytes(np.ascontiguousarray(pixels).tobytes())
    return {
        'height': height,
        'width': width,
        'encoding': encoding,
        'is_bigendian': int(sys.byteorder == 'big'),
        'step': width * channels * pixels.dtype.itemsize,
        'data': data,
    }


def mask_fields(mask: np.ndarray) -> dict[str, Any]:
    """Return a (H, W) bool mask as the fields of a mono8 Image: 0 or 255."""
    return image_fields(mask.astype(np.uint8) * np.uint8(255), 'mono8')


def camera_from_info(message: Any, rectified: bool = False) -> Camera:
    """Return the camera that a sensor_msgs/CameraInfo tells of, on the pixels that were published.

    CameraInfo gives K for the full sensor; a region of interest moves the centre and binning
    shrinks it.

    Args:
        message: its `width` and `height` are the full sensor's; 0 if unknown.
        rectified: the picture is an image_rect: P holds, and the lens is a pinhole.

    Raises:
        ImageError: an uncalibrated camera (K[0] is 0, as CameraInfo.msg defines it).
    """
    # in capitals: bags of ROS 1
    values = {name: getattr(message, name, getattr(message, name.upper(), ())) for name in 'kpd'}
    k = np.array(values['k'], dtype=np.float64).reshape(3, 3)
    if rectified:
        k = np.array(values['p'], dtype=np.float64).reshape(3, 4)[:, :3].copy()
    if not k[0, 0] > 0 or not k[1, 1] > 0:
        raise ImageError(
            f'camera_info is not calibrated: fx {k[0, 0]:g}, fy {k[1, 1]:g}; expected both above 0'
        )
    binning = max(message.binning_x, 1), max(message.binning_y, 1)  # 0 means the same as 1
    k[0, 2] -= message.roi.x_offset
    k[1, 2] -= message.roi.y_offset
    k[0] /= binning[0]
    k[1] /= binning[1]
    width, height = message.roi.width or message.width, message.roi.height or message.height
    lens = () if rectified else np.array(values['d'], dtype=np.float64)
    size = (width // binning[0], height // binning[1])
    return Camera(k, size, lens, message.distortion_model)


def _rows(message: Any, kind: str, channels: int, rows: int | None = None) -> np.ndarray:
    """Return the data as (rows, W, channels) in the machine's byte order; a view where it can be.

    `rows` is the height unless planes lie below one another.
    """
    rows = message.height if rows is None else rows
    width = message.width
    item = np.dtype(kind).itemsize
    least = width * channels * item
    step = message.step or least  # 0: the publisher did not fill it in
    if rows == 0 or width == 0:
        raise ImageError(f'image of {width} x {message.height} pixels is empty')
    if step < least:
        raise ImageError(
            f'image step {step} is too small: {width} pixels of {message.encoding} '
            f'need {least} bytes a row'
        )
    data = _buffer(message)
    needed = step * (rows - 1) + least  # some drivers leave out the padding of the last row
    if data.size < needed:
        raise ImageError(
            f'image data is short: {data.size} bytes, but {width} x {message.height} '
            f'{message.encoding} with step {step} needs {needed}'
        )
    stored = np.dtype(('>' if message.is_bigendian else '<') + kind)
    pixels = np.ndarray(
        (rows, width, channels), stored, data, strides=(step, channels * item, item)
    )
    return pixels.astype(stored.newbyteorder('='), copy=False)


def _buffer(message: Any) -> np.ndarray:
    """Return the data as (bytes,) uint8 without a copy: array('B'), bytes and numpy all fit."""
    try:
        return np.frombuffer(message.data, np.uint8)
    except TypeError:  # a list, as hand-written messages have it
        return np.asarray(message.data, dtype=np.uint8)


def _decoded(data: np.ndarray, name: str, flags: int) -> np.ndarray:
    """Return what OpenCV reads from an image file in memory, colours as BGR."""
    try:
        picture = cv2.imdecode(data, flags) if data.size else None
    except cv2.error as error:
        raise ImageError(f'compressed image {name!r} cannot be decoded: {error.err}') from None
    if picture is None:
        raise ImageError(
            f'compressed image {name!r} cannot be decoded: {data.size} bytes that are no '
            'jpeg or png'
        )
    return picture


def _stretched(pixels: np.ndarray) -> np.ndarray:
    """Return values of any range as uint8: the least valid one becomes 0, the greatest 255."""
    values = pixels.astype(np.float32)
    valid = np.isfinite(values) & (values != 0)
    if not valid.any():
        return np.zeros(pixels.shape, np.uint8)
    low, high = values[valid].min(), values[valid].max()
    scaled = (np.where(valid, values, low) - low) * (255.0 / max(high - low, 1e-12))
    return np.clip(scaled, 0, 255).astype(np.uint8)


def _without_invalid(depth: np.ndarray) -> np.ndarray:
    """Put NaN for everything that is no distance, in place, and return it."""
    depth[~(np.isfinite(depth) & (depth > 0))] = np.nan
    return depth


def _check_even(message: Any, *names: str) -> None:
    """Raise an ImageError if a side that pixels share colours along is odd."""
    for name in names:
        if getattr(message, name) % 2:
            raise ImageError(
                f'{message.encoding} needs an even {name}, not {getattr(message, name)}'
            )
