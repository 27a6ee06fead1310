# SPDX-License-Identifier: Apache-2.0
"""Find the scans of a JPEG: a progressive file has about ten, a bomb thousands. Any thread.

Each scan goes over all pixels once more, however few bytes it has. The data of a scan do not say
where they end: a decoder takes grey for what is missing before the end-of-image marker.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_SEARCH_BYTES = 1 << 18
_MAX_MARKERS = 10_000  # of an image: a file of 30 MB could have millions, read in Python
_ARITHMETIC_FRAMES = (0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
# in the data of a scan: 0xFF is followed by 0, or by a restart marker (0xD0 to 0xD7)
_NEXT_MARKER = re.compile(rb'\xff+([^\x00\xff\xd0-\xd7])')
_FILL = re.compile(rb'\xff*')
_RESTART = re.compile(rb'\xff([\xd0-\xd7])')
# Bits that stand for other values than zeros, which decoders take for missing data.
_MORE_DATA = b'\x55\xaa' * 128


def count_scans(jpeg: bytes) -> int:
    """Return the number of scans of the first image of a JPEG file.

    What follows it, such as the video of a motion photo, is not read.

    Raises:
        ValueError: it has too many markers.
    """
    return sum(marker == _START_OF_SCAN for marker, _, _ in _markers(jpeg))


def with_more_data(jpeg: bytes) -> bytes:
    """Return a JPEG whose last scan has more data than it needs.

    A decoder reads no more data than a scan needs, so the pixels of a whole file stay the same.
    Where data are missing, the pixels change. The data are followed by the next restart marker and
    more data, because a file may be cut between two restart intervals. A JPEG of arithmetic coding
    is returned as it is: its encoder may leave out zeros at the end of a scan.
    """
    data = end = len(jpeg)
    for marker, start, stop in _markers(jpeg):
        if marker in _ARITHMETIC_FRAMES:
            return jpeg
        if marker == _START_OF_SCAN:
            data = stop
        end = start
        if marker == _END_OF_IMAGE:
            break
    restarts = _RESTART.findall(jpeg, data, end)
    following = (restarts[-1][0] + 1) % 8 if restarts else 0  # 0xD0 is a multiple of 8
    restart = bytes([0xFF, 0xD0 + following])
    return jpeg[:end] + _MORE_DATA + restart + _MORE_DATA + jpeg[end:]


def _markers(jpeg: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield marker, its start and the end of its segment, up to the end-of-image marker.

    Raises:
        ValueError: there are too many.
    """
    position, count = 2, 0  # behind the start-of-image marker
    while (match := _next_marker(jpeg, position)) is not None:
        count += 1
        if count > _MAX_MARKERS:
            raise ValueError(f'it has more than {_MAX_MARKERS} markers; expected a few hundred')
        length = int.from_bytes(jpeg[match.end() : match.end() + 2], 'big')
        position = match.end() + max(2, length)
        yield match[1][0], match.start(), position
        if match[1][0] == _END_OF_IMAGE:
            break


def _next_marker(jpeg: bytes, position: int) -> re.Match[bytes] | None:
    """Return the next marker with the fill bytes before it.

    A search holds Python's lock, for a second in a file of restart markers alone: other threads
    run between two searches.
    """
    while position < len(jpeg):
        # a window ends neither within fill bytes nor behind them
        stop = _FILL.match(jpeg, position + _SEARCH_BYTES - 1).end() + 1
        if (match := _NEXT_MARKER.search(jpeg, position, stop)) is not None:
            return match
        position = stop
    return None
