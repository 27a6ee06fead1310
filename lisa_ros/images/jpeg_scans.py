# SPDX-License-Identifier: Apache-2.0
"""Count the scans of a JPEG: a progressive file has about ten, a bomb thousands.

Each scan goes over all pixels once more, however few bytes it has.
"""

from __future__ import annotations

import re

_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
# in the data of a scan: 0xFF is followed by 0, or by a restart marker (0xD0 to 0xD7)
_NEXT_MARKER = re.compile(rb'\xff+([^\x00\xff\xd0-\xd7])')


def count_scans(jpeg: bytes) -> int:
    """Return the number of scans of the first image of a JPEG file.

    What follows it, such as the video of a motion photo, is not read.
    """
    scans, position = 0, 2  # behind the start-of-image marker
    while (match := _NEXT_MARKER.search(jpeg, position)) is not None:
        marker = match[1][0]
        if marker == _END_OF_IMAGE:
            break
        scans += marker == _START_OF_SCAN
        length = int.from_bytes(jpeg[match.end() : match.end() + 2], 'big')
        position = match.end() + max(2, length)
    return scans
