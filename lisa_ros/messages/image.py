# SPDX-License-Identifier: Apache-2.0
"""Convert image messages to arrays and back, field by field: no ROS import, no cv_bridge.

Messages may be of rclpy or rosbags, or a `SimpleNamespace`: only `height`, `width`, `encoding`,
`is_bigendian`, `step`, `data` (sensor_msgs/Image) and `format`, `data` (CompressedImage) are read.
Works with NumPy 1 and 2, OpenCV 4 and 5.

Encodings are those of sensor_msgs/image_encodings.hpp. Depth follows REP-118: 16UC1 in millimetres
with 0 as invalid, 32FC1 in metres with NaN as invalid. Rows may be padded: `step` is the length of
a row in bytes, at least width times bytes per pixel. More rows than the height are ignored, except
in planar encodings: there they may precede the colours. Compressed images are decoded by
`images.image_file`, as files are. `max_pixels` is compared with the size before anything is
decoded. Functions may be called in any thread.
"""

from __future__ import annotations

import array
import sys
from typing import Any

import cv2
import numpy as np

from lisa_ros.errors import ImageError
from lisa_ros.geometry.rgbd import is_valid_depth
from lisa_ros.images.bayer import BAYER_PATTERNS, DEEP_BAYER_PATTERNS, demosaic, is_mosaic
from lisa_ros.images.bit_depth import stretch_to_uint8, to_uint8, top_byte, upper_byte
from lisa_ros.images.image_file import decode_samples
from lisa_ros.images.pixel_limit import DEFAULT_MAX_IMAGE_PIXELS, check_image_size
from lisa_ros.messages.compressed_depth import decode_compressed_depth
from lisa_ros.messages.compressed_format import CompressedFormat
from lisa_ros.messages.data_bytes import data_bytes

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
SUPPORTED_ENCODINGS = (*_INTERLEAVED, *_PACKED_YUV, *_PLANAR_YUV, *BAYER_PATTERNS)
DEPTH_ENCODINGS = ('16UC1', 'mono16', '32FC1')
# Of nearly all valid pixels: no depth camera measures nearer or farther [m]. A simulated sky is at
# 1000 m, but not the ground.
_NEAREST, _FARTHEST = 0.0099, 200.0  # 10 mm, rounded, is accepted
_NEARLY_ALL = (5, 95)  # percentiles
_SPARSE = 0.05  # share of valid pixels below which they are noise, such as under a covered lens
_SAMPLES = 16_384  # pixels that are enough to tell the unit
_PAGE_SIZE = 4096  # of memory; the size of a driver's buffer is a multiple of it [bytes]
_FULL_RANGE = ('mono16', 'rgb16', 'bgr16', 'rgba16', 'bgra16')  # of 16 bits in compressed images


def message_to_rgb(message: Any, max_pixels: int = DEFAULT_MAX_IMAGE_PIXELS) -> np.ndarray:
    """Return an Image or CompressedImage as RGB, (H, W, 3) uint8.

    Raises:
        ImageError: as `image_to_rgb` and `compressed_to_rgb`.
    """
    to_rgb = compressed_to_rgb if is_compressed(message) else image_to_rgb
    return to_rgb(message, max_pixels)


def is_compressed(message: Any) -> bool:
    """Return whether a message is a CompressedImage, not an Image."""
    return hasattr(message, 'format')


def image_to_rgb(message: Any, max_pixels: int = DEFAULT_MAX_IMAGE_PIXELS) -> np.ndarray:
    """Return a sensor_msgs/Image as RGB, (H, W, 3) uint8; its rows may be padded.

    rgb8 is a view of the message's data, read-only if the data are; other encodings are copied.
    Grey images get three equal channels; 16 bit colour and mono16 keep their upper byte; 16UC1 and
    32FC1 have no known range, so their valid (finite, non-zero) values are scaled to 0..255 for
    display.

    Raises:
        ImageError: an encoding not in `SUPPORTED_ENCODINGS`, data of a wrong size, more than
            `max_pixels`, or no finite value.
    """
    encoding = message.encoding
    check_image_size(message.width, message.height, 'image', max_pixels)
    if encoding in _PACKED_YUV:
        _check_even(message, 'width')
        return cv2.cvtColor(stored_pixels(message, 'u1', 2), _PACKED_YUV[encoding])
    if encoding in _PLANAR_YUV:
        _check_even(message, 'width', 'height')
        planes = stored_pixels(message, 'u1', 1, rows=message.height * 3 // 2)[:, :, 0]
        return cv2.cvtColor(np.ascontiguousarray(planes), _PLANAR_YUV[encoding])
    if encoding in BAYER_PATTERNS:
        mosaic = stored_pixels(message, 'u2' if encoding.endswith('16') else 'u1', 1)[:, :, 0]
        # a copy, as OpenCV needs rows that start at a multiple of two bytes
        return upper_byte(demosaic(np.ascontiguousarray(mosaic), BAYER_PATTERNS[encoding]))
    if encoding not in _INTERLEAVED:
        raise ImageError(
            f'image encoding {encoding!r} is not supported; expected one of '
            f'{", ".join(SUPPORTED_ENCODINGS)}'
        )
    element_type, channels, order = _INTERLEAVED[encoding]
    pixels = stored_pixels(message, element_type, channels)
    if order == 'RANGE':
        pixels = stretch_to_uint8(pixels, f'image of {encoding}')
    else:
        pixels = upper_byte(pixels)
    if channels == 1:
        return np.repeat(pixels, 3, axis=2)
    # BGR is copied: a reversed view would do for NumPy, but torch refuses negative strides.
    return pixels[:, :, :3] if order == 'RGB' else np.ascontiguousarray(pixels[:, :, 2::-1])


def depth_to_metres(message: Any, max_pixels: int = DEFAULT_MAX_IMAGE_PIXELS) -> np.ndarray:
    """Return a depth image in metres, (H, W) float32, NaN where invalid (REP-118).

    16UC1 and mono16 are millimetres, 32FC1 is metres; 0, negative and non-finite values are
    invalid. Always a copy.

    Args:
        message: sensor_msgs/Image, or CompressedImage as `compressed_depth` reads it.
        max_pixels: limit of width times height.

    Raises:
        ImageError: another encoding, data of a wrong size, more than `max_pixels`, or values that
            can only be in another unit.
    """
    if is_compressed(message):
        return depth_in_metres(decode_compressed_depth(message, max_pixels))
    if message.encoding not in DEPTH_ENCODINGS:
        raise ImageError(
            f'depth encoding {message.encoding!r} is not supported; expected 16UC1 [mm] or '
            '32FC1 [m] as in REP-118'
        )
    check_image_size(message.width, message.height, 'depth image', max_pixels)
    element_type = _INTERLEAVED[message.encoding][0]
    return depth_in_metres(stored_pixels(message, element_type, 1)[:, :, 0])


def depth_in_metres(values: np.ndarray) -> np.ndarray:
    """Return depth (H, W) as float32 [m], NaN where it is 0, negative or not finite.

    Integers are millimetres, floats metres. Always a copy.

    Raises:
        ImageError: the values can only be in another unit.
    """
    depth = values.astype(np.float32)
    if values.dtype.kind != 'f':
        depth *= np.float32(0.001)
    depth[~is_valid_depth(depth)] = np.nan
    _check_unit(depth, values.dtype)
    return depth


def _check_unit(depth: np.ndarray, stored: np.dtype) -> None:
    """Raise an ImageError if depth [m], NaN where invalid, cannot come from a depth camera."""
    samples = _valid_samples(depth)
    if not samples.size:
        return
    near, far = np.percentile(samples, _NEARLY_ALL)
    # floats in millimetres are whole numbers; a drone may look down from more than 200 m
    is_far = near > _FARTHEST and (stored.kind != 'f' or bool((samples % 1 == 0).all()))
    if not is_far and far >= _NEAREST:
        return
    extent = f'beyond {near:g} m' if is_far else f'nearer than {far:g} m'
    unit, other = ('metres', 'millimetres') if stored.kind == 'f' else ('millimetres', 'metres')
    raise ImageError(
        f'nearly all of the depth is {extent}, read as {unit} because it is {stored}: '
        f'publish 16UC1 in millimetres or 32FC1 in metres (REP-118); is this in {other}?'
    )


def depth_unit_doubt(message: Any) -> str:
    """Return why the unit of a depth image is doubtful, with the cure; empty if it is not.

    It cannot be told from the message, so `depth_to_metres` reads the image nevertheless.

    Args:
        message: sensor_msgs/Image or CompressedImage; the values of the latter are not looked at.

    Raises:
        ImageError: the data has a wrong size.
    """
    is_file = is_compressed(message)
    encoding = CompressedFormat.parse(message.format).encoding if is_file else message.encoding
    if encoding == 'mono16':
        return (
            'mono16 has no unit in REP-118; it is read as millimetres: if it is in another unit, '
            '3D positions are wrong; publish 16UC1 in millimetres or 32FC1 in metres'
        )
    if encoding != '32FC1':
        return ''
    samples = _valid_samples(stored_pixels(message, 'f4', 1))
    near = np.percentile(samples, _NEARLY_ALL[0]) if samples.size else 0.0
    if near <= _FARTHEST:
        return ''
    return (
        f'nearly all of the depth is beyond {near:g} m: 32FC1 must be in metres (REP-118); if it '
        'is in millimetres, scale it by 0.001'
    )


def _valid_samples(depth: np.ndarray) -> np.ndarray:
    """Return enough valid values of a depth image to judge it, (n,); empty if they are noise."""
    samples = depth.ravel()[:: 1 + depth.size // _SAMPLES]
    valid = samples[is_valid_depth(samples)]
    return valid if valid.size >= _SPARSE * samples.size else valid[:0]


def compressed_to_rgb(message: Any, max_pixels: int = DEFAULT_MAX_IMAGE_PIXELS) -> np.ndarray:
    """Return a sensor_msgs/CompressedImage as RGB, (H, W, 3) uint8; JPEG, PNG or similar.

    `format`, as image_transport writes it, has the encoding of the image before it was
    compressed, and the channel order of the file after "compressed" ("rgb8; jpeg compressed
    bgr8"). With "compressed rgb" red and blue are swapped in the file, and are swapped back here.
    Values of more than 8 bits become what `image_to_rgb` makes of the encoding; without a known
    encoding, see `images.bit_depth`. A Bayer mosaic of 8, 10, 12, 14 or 16 bits becomes RGB.
    Pixels stay as stored, without EXIF orientation: camera_info and depth are those of the stored
    pixels.

    Raises:
        ImageError: data that cannot be decoded, depth, a video stream, a mosaic of an unknown
            encoding, or more than `max_pixels`; the message names the format.
    """
    parts = CompressedFormat.parse(message.format)
    if parts.is_compressed_depth:
        raise ImageError(
            f'format {message.format!r} is depth, expected a colour image: remap image to a '
            'colour topic'
        )
    if parts.is_video:
        raise ImageError(
            f'format {message.format!r} is a video stream, expected single images (JPEG, PNG): '
            'decode it with `ros2 run image_transport republish`, or publish raw or compressed'
        )
    name = f'compressed image {message.format!r}'
    encoded = data_bytes(message).tobytes()
    samples = decode_samples(encoded, name, upright=False, max_pixels=max_pixels)
    pixels = _coded_to_uint8(samples, parts, name)
    if pixels.ndim == 2:
        return np.repeat(pixels[:, :, None], 3, axis=2)
    return np.ascontiguousarray(pixels[:, :, ::-1]) if parts.swaps_red_and_blue else pixels


def _coded_to_uint8(samples: np.ndarray, parts: CompressedFormat, name: str) -> np.ndarray:
    """Return the samples of a compressed image as uint8, (H, W) grey or (H, W, 3)."""
    pattern = BAYER_PATTERNS.get(parts.encoding)
    bits = 16
    if parts.encoding in DEEP_BAYER_PATTERNS:
        pattern, bits = DEEP_BAYER_PATTERNS[parts.encoding]
    if parts.encoding.startswith('bayer') and not pattern and samples.ndim == 2:
        raise ImageError(
            f'{name} is a Bayer mosaic of an encoding that is not supported; expected one of '
            f'{", ".join((*BAYER_PATTERNS, *DEEP_BAYER_PATTERNS))}: let the driver publish one '
            'of them, or colours'
        )
    # image_transport of ROS 2 makes grey ("mono8") of a mosaic before it compresses it, unless
    # jpeg_compress_bayer is set; that of ROS 1 does not. Not all drivers say which they do.
    if pattern and samples.ndim == 2:
        if not parts.stored.startswith('mono') or is_mosaic(samples):
            samples = demosaic(samples, pattern)
        return top_byte(samples, bits, name)
    if parts.is_depth and samples.dtype != np.uint8:
        return stretch_to_uint8(samples, name)
    if parts.encoding in _FULL_RANGE and samples.dtype == np.uint16:
        return upper_byte(samples)
    return to_uint8(samples, name)


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
    pixel_bytes.frombytes(np.ascontiguousarray(pixels).reshape(-1).view(np.uint8).data)
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


def stored_pixels(
    message: Any, element_type: str, channels: int, rows: int | None = None
) -> np.ndarray:
    """Return the values of a sensor_msgs/Image as they are stored, in native byte order.

    Args:
        message: its rows may be padded; the last one may lack the padding. Data after it is
            ignored if it is less than a row, the rest of a memory page, or, unless `rows` is
            given, whole rows.
        element_type: NumPy's name of a value, without byte order: u1, u2, i4, f4.
        channels: values of a pixel.
        rows: None: the image's height; more in planar encodings, whose planes follow one another.

    Returns:
        (rows, W, channels); a view of the message's data if possible.

    Raises:
        ImageError: the data is too short, or so long that the rows do not start where `step` says.
    """
    is_planar = rows is not None
    rows = message.height if rows is None else rows
    width = message.width
    item_size = np.dtype(element_type).itemsize
    row_size = width * channels * item_size
    step = message.step or row_size  # 0: the publisher did not set it
    if step < row_size:
        raise ImageError(
            f'image step {step} is too small: {width} pixels of {message.encoding} '
            f'need {row_size} bytes per row'
        )
    message_bytes = data_bytes(message)
    if step * message.height == message_bytes.size == row_size * rows:
        step = row_size  # some drivers publish the size by the height, whatever the rows
    min_bytes = step * (rows - 1) + row_size  # some drivers omit the padding of the last row
    if message_bytes.size < min_bytes:
        raise ImageError(
            f'image data is short: {message_bytes.size} bytes, but {width} x {message.height} '
            f'{message.encoding} with step {step} needs {min_bytes}'
        )
    excess = message_bytes.size - step * rows
    are_whole_rows = step and message_bytes.size % step in (0, row_size)
    # a buffer ends at a page of memory; a wrong step is wrong by as many bytes in each row, and
    # decoders pad the rows of Y to a multiple of 8
    unit = 8 * step if is_planar else message.height
    is_tail = excess < _PAGE_SIZE and (message.height == 1 or (unit and excess % unit))
    is_tail = is_tail or (are_whole_rows and not is_planar)
    if 0 < step <= excess and not is_tail:
        colours = ', and publish the colours right after the last row of Y' if is_planar else ''
        raise ImageError(
            f'image data is long: {message_bytes.size} bytes, but {width} x {message.height} '
            f'{message.encoding} with step {step} has {step * rows}: set step to the length of a '
            f'stored row in bytes{colours}'
        )
    stored = np.dtype(('>' if message.is_bigendian else '<') + element_type)
    pixels = np.ndarray(
        (rows, width, channels),
        stored,
        message_bytes,
        strides=(step, channels * item_size, item_size),
    )
    return pixels.astype(stored.newbyteorder('='), copy=False)


def _check_even(message: Any, *names: str) -> None:
    """Raise an ImageError if one of these sides is odd: pairs of pixels share their colour."""
    for name in names:
        if getattr(message, name) % 2:
            raise ImageError(
                f'{message.encoding} needs an even {name}, not {getattr(message, name)}'
            )
