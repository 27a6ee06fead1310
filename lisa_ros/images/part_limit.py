# SPDX-License-Identifier: Apache-2.0
"""Limits on the segments of a JPEG and the chunks of a PNG, before they are read. Any thread.

Pillow reads each part of a file in Python. A file of 30 MB with parts of a few bytes would keep a
core busy for 20 s. Files of cameras and editors have less than a hundred parts, and a PNG one for
each 8 KiB of pixels.
"""

from __future__ import annotations

from collections.abc import Iterator

_MAX_PARTS = 1000
_PART_BYTES = 1024  # a file may have one more part for each KiB
_PNG_START, _JPEG_START = b'\x89PNG\r\n\x1a\n', b'\xff\xd8'
_START_OF_SCAN = 0xDA
_WITHOUT_LENGTH = range(0xD0, 0xD8)  # restart markers


def check_parts(content: bytes) -> None:
    """Raise a ValueError for a JPEG or PNG file that has too many parts."""
    limit = _MAX_PARTS + len(content) // _PART_BYTES
    for number, _ in enumerate(_parts(content)):
        if number >= limit:
            raise ValueError(f'it has more than {limit} parts; expected fewer, and larger ones')


def check_chunk_sizes(png: bytes) -> None:
    """Raise a ValueError if a chunk of a PNG claims more bytes than follow.

    OpenCV allocates what a chunk claims, up to 4 GB, before it reads the bytes.
    """
    position, name = len(_PNG_START), b''
    while name != b'IEND' and position + 8 <= len(png):
        name = png[position + 4 : position + 8]
        position += 12 + int.from_bytes(png[position : position + 4], 'big')
        if position > len(png):
            raise ValueError(f'its chunk {name!r} ends after {position} of {len(png)} bytes')


def _parts(content: bytes) -> Iterator[int]:
    """Yield where each part of a file begins."""
    if content.startswith(_PNG_START):
        return _chunks(content)
    return _segments(content) if content.startswith(_JPEG_START) else iter(())


def _chunks(png: bytes) -> Iterator[int]:
    """Yield where each chunk before the last one begins; what follows is not read."""
    position = len(_PNG_START)
    while position + 8 <= len(png) and png[position + 4 : position + 8] != b'IEND':
        yield position
        position += 12 + int.from_bytes(png[position : position + 4], 'big')


def _segments(jpeg: bytes) -> Iterator[int]:
    """Yield where each segment, restart marker and fill byte before the first scan begins."""
    position = len(_JPEG_START)
    while position + 4 <= len(jpeg) and jpeg[position + 1] != _START_OF_SCAN:
        yield position
        marker = jpeg[position + 1]
        if jpeg[position] != 0xFF or marker in (0x00, 0xFF):
            position += 1
        elif marker in _WITHOUT_LENGTH:
            position += 2
        else:
            length = int.from_bytes(jpeg[position + 2 : position + 4], 'big')
            position += 2 + max(2, length)
