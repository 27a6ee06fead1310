# SPDX-License-Identifier: Apache-2.0
"""Decode RVL, a lossless code for depth images (Wilson, "Fast Lossless Depth Image Compression").

The code is a stream of numbers: how many pixels are 0, how many follow that are not, then the
difference of each of these from the one before. A number is a run of nibbles with three bits each,
low bits first; the highest bit of a nibble says that another follows. Eight nibbles make a 32-bit
word, the first one highest. Any thread.
"""

from __future__ import annotations

import numpy as np

_NIBBLE_SHIFTS = np.arange(28, -1, -4, dtype=np.uint32)
_MAX_NIBBLES = 11  # of a number of 32 bits


def decode_rvl(stream: bytes, count: int) -> np.ndarray:
    """Return the pixels of an RVL stream, (count,) uint16.

    Args:
        stream: of RVL, in little-endian words.
        count: of pixels; memory is allocated for them, so compare it with a limit first.

    Raises:
        ValueError: the stream ends early, or has more pixels.
    """
    numbers = _numbers(stream)
    pixels = np.zeros(count, np.uint16)
    runs, differences = [], []
    position = start = 0
    while position < count:
        if start + 2 > len(numbers):
            raise ValueError('the RVL stream ends early')
        zeros, length = int(numbers[start]), int(numbers[start + 1])
        run = slice(position + zeros, position + zeros + length)
        part = numbers[start + 2 : start + 2 + length]
        if run.stop > count or run.stop == position or len(part) < length:
            raise ValueError('the RVL stream does not fit the size of the image')
        runs.append(run)
        differences.append(part)
        position, start = run.stop, start + 2 + length
    coded = np.concatenate([*differences, np.zeros(0, np.int64)])
    values = np.cumsum((coded >> 1) ^ -(coded & 1)).astype(np.uint16)  # 0, -1, 1, -2, ...
    start = 0
    for run in runs:
        pixels[run] = values[start : start + run.stop - run.start]
        start += run.stop - run.start
    return pixels


def _numbers(stream: bytes) -> np.ndarray:
    """Return the numbers of a stream, (n,) int64; the padding at its end becomes zeros."""
    words = np.frombuffer(stream, '<u4', count=len(stream) // 4)
    nibbles = ((words[:, None] >> _NIBBLE_SHIFTS) & 15).ravel().astype(np.int64)
    last_nibbles = np.flatnonzero(nibbles < 8)
    starts = np.concatenate([[0], last_nibbles[:-1] + 1])
    lengths = last_nibbles - starts + 1
    if not len(last_nibbles) or lengths.max() > _MAX_NIBBLES:
        raise ValueError('the RVL stream is damaged')
    places = np.arange(last_nibbles[-1] + 1) - np.repeat(starts, lengths)
    return np.add.reduceat((nibbles[: last_nibbles[-1] + 1] & 7) << (3 * places), starts)
