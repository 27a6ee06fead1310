# SPDX-License-Identifier: Apache-2.0
"""Masks as text: COCO's compressed run lengths, and PNG in base64. Any thread.

Letters: H x W the image [px].

`pycocotools.mask.decode({'size': [H, W], 'counts': text})` reads the run lengths. They run down
the columns, zeros first. Each is written as the difference to the one before the last, in groups
of 5 bits from the lowest, with 32 where a group follows, plus 48.
"""

from __future__ import annotations

import base64
import binascii

import cv2
import numpy as np

from lisa_ros.errors import ImageError
from lisa_ros.images.part_limit import check_chunk_sizes
from lisa_ros.images.pixel_limit import DEFAULT_MAX_IMAGE_PIXELS, check_image_size

_OFFSET, _BITS, _MORE, _NEGATIVE = 48, 5, 0x20, 0x10
_MAX_GROUPS = 8  # of one number: 40 bits
_FULL_LOGIT = 8.0  # of probability 0 or 255 of 255
_BARELY_LOGIT = 1e-3  # on the mask's side where its probability is about half


def encode_rle_text(mask: np.ndarray) -> str:
    """Return COCO's compressed counts of a (H, W) bool mask."""
    pixels = np.asarray(mask, bool).ravel(order='F')
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    first = [0] if pixels.size and pixels[0] else []
    edges = np.concatenate([[0], first, changes, [pixels.size]]).astype(np.int64)
    counts = np.diff(edges)
    counts[3:] -= counts[1:-2].copy()
    return _groups_text(counts)


def decode_rle_text(counts: str, size: tuple[int, int]) -> np.ndarray:
    """Return the (H, W) bool mask of COCO's compressed counts.

    Args:
        counts: the text.
        size: (H, W) of the mask.

    Raises:
        ImageError: the text is damaged, or belongs to a mask of another size.
    """
    try:
        groups = np.frombuffer(counts.encode('ascii'), np.uint8).astype(np.int64) - _OFFSET
    except UnicodeEncodeError as error:
        raise _damaged('it has characters that are not ASCII') from error
    if groups.size and (groups.min() < 0 or groups.max() >= 2 * _MORE):
        raise _damaged('it has characters outside of "0" to "o"')
    runs = _run_lengths(groups)
    if (runs < 0).any() or int(runs.sum()) != size[0] * size[1]:
        raise _damaged(f'its counts do not add up to {size[0]} x {size[1]} pixels')
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(size, order='F')


def _groups_text(numbers: np.ndarray) -> str:
    """Return (n,) signed integers as groups of 5 bits."""
    columns, is_open = [], np.ones(len(numbers), bool)
    while is_open.any():
        group, numbers = numbers & 31, numbers >> _BITS
        is_last = np.where(group & _NEGATIVE, numbers == -1, numbers == 0)
        code = np.where(is_last, group, group | _MORE) + _OFFSET
        columns.append(np.where(is_open, code, 0))
        is_open = is_open & ~is_last
    if not columns:
        return ''
    codes = np.stack(columns, axis=1).ravel()
    return codes[codes > 0].astype(np.uint8).tobytes().decode('ascii')


def _run_lengths(groups: np.ndarray) -> np.ndarray:
    """Return the counts of (n,) groups, (m,) int64."""
    ends = np.flatnonzero((groups & _MORE) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1]) if ends.size else ends
    if groups.size and (not ends.size or ends[-1] != groups.size - 1):
        raise _damaged('its last number is cut')
    lengths = ends - starts + 1
    if lengths.size and lengths.max() > _MAX_GROUPS:
        raise _damaged('it has a number of more than 40 bits')
    numbers = np.zeros(len(ends), np.int64)
    for place in range(int(lengths.max(initial=0))):
        has_group = lengths > place
        group = groups[starts[has_group] + place] & 31
        numbers[has_group] |= group << (_BITS * place)
    is_negative = (groups[ends] & _NEGATIVE) != 0 if ends.size else np.zeros(0, bool)
    numbers[is_negative] -= np.int64(1) << (_BITS * lengths[is_negative])
    # a count is its number plus the count before the last: a running sum of every other one
    for first in (1, 2):
        numbers[first::2] = np.cumsum(numbers[first::2])
    return numbers


def _damaged(reason: str) -> ImageError:
    return ImageError(f'the run lengths of a mask are damaged: {reason}; send the mask again')


def encode_png_text(pixels: np.ndarray) -> str:
    """Return a (H, W) uint8 or bool array as PNG in base64; bool becomes 0 and 255."""
    is_mask = pixels.dtype == bool
    values = pixels.astype(np.uint8) * 255 if is_mask else pixels
    options = [cv2.IMWRITE_PNG_COMPRESSION, 1]
    if is_mask:
        options += [cv2.IMWRITE_PNG_BILEVEL, 1]
    _, encoded = cv2.imencode('.png', values, options)
    return base64.b64encode(encoded).decode('ascii')


def decode_png_text(text: str, size: tuple[int, int]) -> np.ndarray:
    """Return the (H, W) uint8 array of a PNG in base64.

    Raises:
        ImageError: it is damaged, too large, or has another size than `size`, (H, W).
    """
    check_image_size(size[1], size[0], 'a mask', DEFAULT_MAX_IMAGE_PIXELS)
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError('a mask is not base64: send it again') from error
    if data[:8] != b'\x89PNG\r\n\x1a\n' or data[12:16] != b'IHDR':
        raise ImageError('a mask is no PNG file: send it as PNG')
    width, height = (int.from_bytes(data[start : start + 4], 'big') for start in (16, 20))
    if (height, width) != size:
        raise ImageError(
            f'a mask has {width} x {height} pixels; expected {size[1]} x {size[0]}: send the mask '
            'of this image'
        )
    try:
        check_chunk_sizes(data)
    except ValueError as error:
        raise ImageError(f'the PNG of a mask is damaged ({error}): send it again') from error
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    if pixels is None or pixels.shape != size:
        raise ImageError('the PNG of a mask is damaged: send it again')
    return pixels


def logits_of(mask: np.ndarray, confidence: np.ndarray | None) -> np.ndarray:
    """Return mask logits, (H, W) float32, that agree with a mask and its confidence.

    `masks.confidence_image` of them is `confidence` again, and they are above 0 in the mask.

    Args:
        mask: (H, W) bool.
        confidence: (H, W) uint8, probability in 255ths; None: unknown, 0 or 255.
    """
    if confidence is None:
        return np.where(mask, np.float32(_FULL_LOGIT), np.float32(-_FULL_LOGIT))
    logits = cv2.LUT(confidence, _LOGITS)
    is_other = (logits > 0) != mask
    if is_other.any():
        logits[is_other] = np.where(mask[is_other], np.float32(_BARELY_LOGIT), np.float32(0))
    return logits


def _logit_table() -> np.ndarray:
    """Return the logit of each probability in 255ths, (256,) float32."""
    probability = np.arange(256) / 255
    with np.errstate(divide='ignore'):
        logits = np.log(probability) - np.log1p(-probability)
    return np.clip(logits, -_FULL_LOGIT, _FULL_LOGIT).astype(np.float32)


_LOGITS = _logit_table()
