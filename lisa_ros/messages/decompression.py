# SPDX-License-Identifier: Apache-2.0
"""Decompress the chunks and messages of a bag, up to a limit.

30 kB of a bag may decompress to 1 GB, and rosbags decompresses whatever a chunk holds. Its two
tables of decompressors get those of this module when it is imported. Any thread.
"""

from __future__ import annotations

import bz2
from collections.abc import Callable
from typing import Protocol

from lz4.frame import LZ4FrameDecompressor
from rosbags.rosbag1 import reader as rosbag1_reader
from rosbags.rosbag2 import storage_mcap
from rosbags.rosbag2.reader import zstd  # of Python from 3.14 on, or its backport

_PIECE = 2**24  # at once [bytes]
MAX_BYTES = 2**29  # of a chunk or message; a large image of 16-bit colours has 0.4 GB


class _Decompressor(Protocol):
    """Decompresses one frame, as those of bz2, lz4 and zstd do."""

    eof: bool  # whether the frame is complete
    unused_data: bytes | None  # what follows the frame

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """Return up to `max_length` bytes."""


def decompress_zstd(raw: bytes) -> bytes:
    """Return the content of Zstandard frames.

    Raises:
        ValueError: they are cut, or have more than MAX_BYTES.
        Exception: of another type, if they are damaged.
    """
    return _decompress(raw, zstd.ZstdDecompressor)


def _decompress(raw: bytes, make: Callable[[], _Decompressor]) -> bytes:
    """Return the content of all frames in some bytes; see `decompress_zstd`."""
    contents: list[bytes] = []
    rest, size = raw, 0
    while rest or not contents:
        decompressor = make()
        while not decompressor.eof:
            piece = decompressor.decompress(rest, _PIECE)  # lz4 allocates as much
            rest = b''  # the decompressor keeps what it has not used
            size += len(piece)
            if size > MAX_BYTES or not (piece or decompressor.eof):
                raise ValueError(f'it is cut, or decompresses to more than {MAX_BYTES} bytes')
            contents.append(piece)
        rest = decompressor.unused_data or b''
    return b''.join(contents)


def _decompress_lz4(raw: bytes) -> bytes:
    return _decompress(raw, LZ4FrameDecompressor)


# of the chunks of MCAP, by the name of their compression
DECOMPRESSORS: dict[str, Callable[[bytes, int], bytes]] = {
    '': lambda raw, _: raw,
    'zstd': lambda raw, _: decompress_zstd(raw),
    'lz4': lambda raw, _: _decompress_lz4(raw),
}


def _limit_rosbags() -> None:
    # Not in all versions of rosbags; without the tables, its own decompressors are used.
    getattr(storage_mcap, 'DECOMPRESSORS', {}).update(DECOMPRESSORS)
    getattr(rosbag1_reader, 'decompressors', {}).update(
        bz2=lambda raw: _decompress(raw, bz2.BZ2Decompressor),
        lz4=_decompress_lz4,
    )


_limit_rosbags()
