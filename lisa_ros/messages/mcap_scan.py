# SPDX-License-Identifier: Apache-2.0
"""Reads MCAP files that rosbags refuses: cut, damaged, without index, or with foreign channels.

The file is read record by record from its start (mcap.dev/spec), never by its index at the end. A
power cut loses the end of a file, a bad sector a chunk; the rest can be read. Channels without CDR
and a ROS 2 schema (JSON, Protobuf, no schema) are left out: loggers write them beside images.
"""

from __future__ import annotations

import contextlib
import re
import struct
from binascii import crc32
from collections import OrderedDict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from rosbags.interfaces import (
    Connection,
    ConnectionExtRosbag2,
    MessageDefinition,
    MessageDefinitionFormat,
)
from rosbags.rosbag2.reader import zstd  # of Python from 3.14 on, or its backport

from lisa_ros.error_text import one_line
from lisa_ros.messages.decompression import DECOMPRESSORS, MAX_BYTES

MAGIC = b'\x89MCAP0\r\n'
_FOOTER, _SCHEMA, _CHANNEL, _MESSAGE, _CHUNK, _DATA_END = 0x02, 0x03, 0x04, 0x05, 0x06, 0x0F
# The head of a chunk: opcode, size of the record, 28 bytes, the name of its compression, and the
# size of its data
_CHUNK_HEAD = re.compile(
    rb'(?=\x06(.{8}).{28}(\0{4}|\x04\0{3}zstd|\x03\0{3}lz4)(.{8}))', re.DOTALL
)
_LONGEST_HEAD = 53  # of a chunk [bytes]
_WINDOW = 1 << 22  # of a file, searched at once [bytes]
_MOST_RECORDS = 2_000_000  # in a chunk; one of 1 MB has some thousand
_PIECE = 1 << 16  # of a cut chunk, decompressed at once [bytes]
_CACHED_CHUNKS = 4  # chunks overlap in time if several topics are recorded
_DEFINITION_FORMATS = {
    'ros2msg': MessageDefinitionFormat.MSG,
    'ros2idl': MessageDefinitionFormat.IDL,
    'omgidl': MessageDefinitionFormat.IDL,
    '': MessageDefinitionFormat.NONE,
}
_NO_DEFINITION = MessageDefinitionFormat.NONE


@dataclass(frozen=True)
class _Entry:
    """Where a message is."""

    time: int  # of the log [ns]
    channel: int  # id
    chunk: int | None  # offset of its chunk's record content in the file; None: in no chunk
    start: int  # of its data, in the chunk or the file
    size: int  # of its data [bytes]


@dataclass(frozen=True)
class _Chunk:
    """The header of a chunk."""

    first: int  # time of its first message [ns]
    last: int  # of its last message [ns]
    raw_size: int  # of its decompressed data [bytes]
    checksum: int  # CRC32 of the decompressed data; 0: none
    compression: str
    start: int  # of its data in the file
    size: int  # of its data in the file [bytes]
    is_cut: bool  # the file ends in it


def starts_as_mcap(path: Path) -> bool:
    """Return whether a file starts as an MCAP file.

    Raises:
        OSError: it cannot be read.
    """
    with path.open('rb') as stream:
        return stream.read(len(MAGIC)) == MAGIC


def is_cut(path: Path) -> bool:
    """Return whether an MCAP file lacks the end of its messages, as after a power cut.

    What comes after them, an index, is not needed. Only the heads of the records are read.

    Raises:
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    with path.open('rb') as stream:
        stream.seek(max(0, size - len(MAGIC)))
        if stream.read() == MAGIC:
            return False
        return not any(opcode == _DATA_END for opcode, _, _ in _records(stream, size))


class McapScan:
    """The messages of one MCAP file; what cannot be read is described in `damage`."""

    def __init__(self, path: Path):
        """Read the file once, except the contents of its messages.

        Raises:
            OSError: it cannot be read.
            ValueError: it is no MCAP file.
        """
        self.connections: list[Connection] = []
        self.damage: list[str] = []  # parts that cannot be read, each in words
        self._entries: list[_Entry] = []
        self._schemas: dict[int, tuple[str, str, bytes]] = {}  # name, encoding, data
        self._channels: dict[int, tuple[str, int, str]] = {}  # topic, schema id, encoding
        self._chunks: OrderedDict[int, bytes] = OrderedDict()  # cache of decompressed ones
        self._chunk_headers: dict[int, _Chunk] = {}  # by offset
        self._size = path.stat().st_size
        self._stream = path.open('rb')
        try:
            if self._stream.read(len(MAGIC)) != MAGIC:
                raise ValueError('it does not start as an MCAP file')
            self._scan()
        except BaseException:
            self._stream.close()
            raise
        self._entries.sort(key=lambda entry: entry.time)
        self._make_connections()

    @property
    def start_time(self) -> int:
        """Time of the first message [ns]; 2**63 - 1 without any."""
        return self._entries[0].time if self._entries else 2**63 - 1

    @property
    def end_time(self) -> int:
        """Time after the last message [ns]; 0 without any."""
        return self._entries[-1].time + 1 if self._entries else 0

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def messages(
        self,
        connections: Collection[Connection],
        start: int | None = None,
        stop: int | None = None,
    ) -> Iterator[tuple[Connection, int, bytes]]:
        """Yield connection, time [ns] and data of messages, by rising time.

        Args:
            connections: of this file.
            start: first time [ns]; None: from the beginning.
            stop: time after the last [ns]; None: to the end.
        """
        by_channel = {connection.id: connection for connection in connections}
        for entry in self._entries:
            is_due = (start is None or entry.time >= start) and (stop is None or entry.time < stop)
            if is_due and entry.channel in by_channel:
                yield by_channel[entry.channel], entry.time, self._data(entry)

    def _data(self, entry: _Entry) -> bytes:
        if entry.chunk is None:
            self._stream.seek(entry.start)
            return self._stream.read(entry.size)
        return self._chunk(entry.chunk)[entry.start : entry.start + entry.size]

    # ---- the first pass

    def _scan(self) -> None:
        """Index all records up to the end of the data."""
        position: int | None = len(MAGIC)
        while position is not None:
            position = self._scan_from(position)

    def _scan_from(self, position: int) -> int | None:
        """Index the records from a position on, up to the first damage.

        Returns:
            The position of the next chunk behind the damage; None: there is none.
        """
        for opcode, start, size in _records(self._stream, self._size, position):
            end = start + size
            if opcode == _DATA_END:
                return None
            if opcode == _CHUNK:
                self._scan_chunk(start, min(end, self._size), is_cut=end > self._size)
            elif opcode in (_SCHEMA, _CHANNEL, _MESSAGE) and end <= self._size:
                self._stream.seek(start)
                record = self._stream.read(22 if opcode == _MESSAGE else size)
                try:
                    self._index(opcode, record, None, start, size)
                except (struct.error, ValueError) as error:
                    self.damage.append(f'a record at byte {start} is damaged ({one_line(error)})')
            if end > self._size or opcode == 0:
                following = self._next_chunk(start - 8)
                self.damage.append(
                    f'the file ends or is damaged at byte {start} of {self._size}'
                    if following is None
                    else f'the bytes {start} to {following} of {self._size} are damaged'
                )
                return following
        return None

    def _next_chunk(self, position: int) -> int | None:
        """Return the position of the first whole chunk from a position on; None without one."""
        while position < self._size:
            self._stream.seek(position)
            window = self._stream.read(_WINDOW + _LONGEST_HEAD)
            for head in _CHUNK_HEAD.finditer(window):
                record_size, data_size = (struct.unpack('<Q', head[n])[0] for n in (1, 3))
                start = position + head.start()
                is_whole = start + 9 + record_size <= self._size
                if is_whole and record_size == 36 + len(head[2]) + data_size:
                    return start
            position += _WINDOW
        return None

    def _scan_chunk(self, offset: int, end: int, is_cut: bool) -> None:
        """Index the records of a chunk, of a cut one as many as there are."""
        try:
            chunk = self._chunk_headers[offset] = self._chunk_header(offset, end, is_cut)
        except (struct.error, ValueError) as error:
            self.damage.append(f'a chunk at byte {offset} is damaged ({one_line(error)})')
            return
        try:
            for opcode, start, size, record in _records_of_chunk(self._chunk(offset), is_cut):
                self._index(opcode, record, offset, start, size)
        except Exception as error:  # noqa: BLE001  # decompressors raise many types
            seconds = max(0, chunk.last - chunk.first) / 1e9
            self.damage.append(
                f'a chunk of {seconds:.2f} s at byte {offset} of {self._size} is damaged '
                f'({type(error).__name__}: {one_line(error)})'
            )

    def _chunk_header(self, offset: int, end: int, is_cut: bool) -> _Chunk:
        """Return the header of a chunk.

        Raises:
            ValueError, struct.error: it is damaged.
        """
        self._stream.seek(offset)
        first, last, raw_size, checksum = struct.unpack('<QQQI', self._stream.read(28))
        (length,) = struct.unpack('<I', self._stream.read(4))
        if length > 64 or raw_size > MAX_BYTES:
            raise ValueError(f'it claims {raw_size} bytes')
        compression = self._stream.read(length).decode()
        (size,) = struct.unpack('<Q', self._stream.read(8))
        start = self._stream.tell()
        if start + size > end and not is_cut:
            raise ValueError('its data is longer than the chunk')
        if compression not in DECOMPRESSORS:
            raise ValueError(f'its compression is {compression!r}')
        size = min(size, end - start)
        return _Chunk(first, last, raw_size, checksum, compression, start, size, is_cut)

    def _chunk(self, offset: int) -> bytes:
        """Return the decompressed data of a chunk; of a cut one, as much as there is.

        Raises:
            Exception: what the decompressor raises; or a size or checksum is wrong.
        """
        if offset in self._chunks:
            return self._chunks[offset]
        chunk = self._chunk_headers[offset]
        self._stream.seek(chunk.start)
        raw = self._stream.read(chunk.size)
        if chunk.is_cut:
            content = _decompressed_start(raw, chunk.compression)
        else:
            content = DECOMPRESSORS[chunk.compression](raw, chunk.raw_size)
            if len(content) != chunk.raw_size:
                raise ValueError(f'{len(content)} bytes instead of {chunk.raw_size}')
            if chunk.checksum and crc32(content) != chunk.checksum:
                raise ValueError('its checksum is wrong')
        self._chunks[offset] = content
        sizes = [len(each) for each in self._chunks.values()]
        while len(sizes) > _CACHED_CHUNKS or (len(sizes) > 1 and sum(sizes) > MAX_BYTES):
            self._chunks.popitem(last=False)
            sizes.pop(0)
        return content

    def _index(self, opcode: int, record: bytes, chunk: int | None, start: int, size: int) -> None:
        """Remember a schema, a channel or where a message is; see `_Entry`."""
        if opcode == _MESSAGE:
            channel, _, time, _ = struct.unpack_from('<HIQQ', record)
            self._entries.append(_Entry(time, channel, chunk, start + 22, size - 22))
        elif opcode == _SCHEMA:
            (number,) = struct.unpack_from('<H', record)
            name, encoding, definition = _strings(record, 2, 3)
            self._schemas[number] = (name.decode(), encoding.decode(), definition)
        else:
            number, schema = struct.unpack_from('<HH', record)
            topic, encoding = _strings(record, 4, 2)
            self._channels[number] = (topic.decode(), schema, encoding.decode())

    def _make_connections(self) -> None:
        """Make a connection of each channel; its format tells whether it is one of ROS 2."""
        counts: dict[int, int] = {}
        for entry in self._entries:
            counts[entry.channel] = counts.get(entry.channel, 0) + 1
        self.damage += [
            f'the channel {number} of {count} messages is not described'
            for number, count in counts.items()
            if number not in self._channels
        ]
        for number, (topic, schema, encoding) in sorted(self._channels.items()):
            name, kind, definition = self._schemas.get(schema, ('no schema', None, b''))
            serialization = encoding or 'an unknown encoding'
            if encoding == 'cdr' and kind not in _DEFINITION_FORMATS:
                serialization = f'cdr, defined as {kind}'
            text = definition.decode(errors='replace')
            ext = ConnectionExtRosbag2(serialization, [])
            self.connections.append(
                Connection(
                    number,
                    topic,
                    name,
                    MessageDefinition(_DEFINITION_FORMATS.get(kind, _NO_DEFINITION), text),
                    '',
                    counts.get(number, 0),
                    ext,
                    self,
                )
            )


def _records(
    stream: BinaryIO, end: int, position: int = len(MAGIC)
) -> Iterator[tuple[int, int, int]]:
    """Yield opcode, start and size of each record's content, up to the footer.

    The last one may be longer than the file, up to byte `end`. Opcode 0 is no record: the file
    ends without a footer, or is damaged.
    """
    opcode = None
    while position < end and opcode != _FOOTER:
        stream.seek(position)
        head = stream.read(9)
        opcode, size = struct.unpack('<BQ', head) if len(head) == 9 else (0, 0)
        yield opcode, position + 9, size
        if opcode == 0:
            return
        position += 9 + size
    if position == end:
        yield 0, position, 0


def _records_of_chunk(content: bytes, is_cut: bool) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield opcode, start, size and content of the records in a chunk that are needed.

    Raises:
        ValueError, struct.error: the chunk is damaged.
    """
    position = count = 0
    while position < len(content):
        count += 1
        if count > _MOST_RECORDS:
            raise ValueError(f'it has more than {_MOST_RECORDS} records')
        if is_cut and position + 9 > len(content):
            return
        opcode, size = struct.unpack_from('<BQ', content, position)
        position += 9
        if position + size > len(content):
            if is_cut:
                return
            raise ValueError('a record is longer than its chunk')
        if opcode == 0:
            raise ValueError('a record has the opcode 0')
        if opcode in (_SCHEMA, _CHANNEL, _MESSAGE):
            yield opcode, position, size, content[position : position + size]
        position += size


def _decompressed_start(raw: bytes, compression: str) -> bytes:
    """Return what can be decompressed of the start of a chunk; nothing of LZ4."""
    if compression != 'zstd':
        return b'' if compression else raw
    decompressor, content = zstd.ZstdDecompressor(), bytearray()
    with contextlib.suppress(Exception):  # decompressors raise many types
        for start in range(0, len(raw), _PIECE):
            content += decompressor.decompress(raw[start : start + _PIECE])
    return bytes(content)


def _strings(record: bytes, position: int, count: int) -> list[bytes]:
    """Return texts of a record, each after its length."""
    texts = []
    for _ in range(count):
        (length,) = struct.unpack_from('<I', record, position)
        position += 4
        if position + length > len(record):
            raise ValueError('a text is longer than its record')
        texts.append(record[position : position + length])
        position += length
    return texts
