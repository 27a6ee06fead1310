# SPDX-License-Identifier: Apache-2.0
"""Writes MCAP files record by record, with channels and chunks that rosbags never writes."""

import itertools
import struct
from binascii import crc32
from dataclasses import dataclass

import lz4.frame
from rosbags.rosbag2.reader import zstd

MAGIC = b'\x89MCAP0\r\n'
COMPRESS = {'': bytes, 'zstd': zstd.compress, 'lz4': lz4.frame.compress}


def text(value):
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack('<I', len(raw)) + raw


def record(opcode, content):
    return struct.pack('<BQ', opcode, len(content)) + content


def channel(number, topic, encoding, schema=None):
    """Return the records of a channel; schema is (name, encoding, definition)."""
    schema_id = number if schema else 0
    head = b''
    if schema:
        head = record(3, struct.pack('<H', number) + b''.join(map(text, schema)))
    content = struct.pack('<HH', number, schema_id) + text(topic) + text(encoding) + text(b'')
    return head + record(4, content)


def message(number, time, data):
    return record(5, struct.pack('<HIQQ', number, 0, time, time) + data)


def chunk(records, first, last, compression=''):
    """Return a chunk; `first` and `last` are the times of its messages [ns]."""
    data = COMPRESS[compression](records)
    head = struct.pack('<QQQI', first, last, len(records), crc32(records))
    return record(6, head + text(compression) + struct.pack('<Q', len(data)) + data)


def write(path, records, profile='ros2'):
    """Write a file without an index."""
    header = record(1, text(profile) + text('test'))
    footer = record(15, bytes(4)) + record(2, bytes(20))
    path.write_bytes(MAGIC + header + b''.join(records) + footer + MAGIC)
    return path


@dataclass(frozen=True)
class Options:
    """What a recorder may leave out of a file, see McapWriterOptions of foxglove/mcap."""

    chunks: bool = True
    message_index: bool = True
    chunk_index: bool = True
    statistics: bool = True
    repeated_schemas: bool = True
    repeated_channels: bool = True
    summary: bool = True


def write_as(path, channels, messages, options, compression='zstd'):
    """Write a file with an index, as far as the options tell it.

    Args:
        path: of the file.
        channels: records of `channel` by id.
        messages: of each chunk, (id, time [ns], data).
        options: an `Options`.
        compression: of the chunks.
    """
    content = MAGIC + record(1, text('ros2') + text('test'))
    infos, described = [], set()
    for group in messages:
        records, offsets = b'', {}
        for number, time, data in group:
            if number not in described:
                records += channels[number]
                described.add(number)
            offsets.setdefault(number, []).append((time, len(records)))
            records += message(number, time, data)
        if not options.chunks:
            content += records
            continue
        times = [time for _, time, _ in group]
        start, written = len(content), chunk(records, min(times), max(times), compression)
        content += written
        index, places = b'', b''
        for number, entries in offsets.items() if options.message_index else ():
            places += struct.pack('<HQ', number, len(content) + len(index))
            array = b''.join(struct.pack('<QQ', *entry) for entry in entries)
            index += record(7, struct.pack('<HI', number, len(array)) + array)
        content += index
        compressed = len(written) - 9 - 28 - 4 - len(compression) - 8
        infos.append(
            record(
                8,
                struct.pack('<QQQQ', min(times), max(times), start, len(written))
                + struct.pack('<I', len(places)) + places + struct.pack('<Q', len(index))
                + text(compression) + struct.pack('<QQ', compressed, len(records)),
            )
        )  # fmt: skip
    content += record(15, bytes(4))
    summary = b''
    for records in channels.values():
        schema_end = 9 + struct.unpack_from('<Q', records, 1)[0]
        summary += records[:schema_end] if options.repeated_schemas else b''
        summary += records[schema_end:] if options.repeated_channels else b''
    if options.statistics:
        counts = dict.fromkeys(channels, 0)
        for number, _, _ in itertools.chain(*messages):
            counts[number] += 1
        times = [time for _, time, _ in itertools.chain(*messages)]
        head = struct.pack(
            '<QHIIIIQQ', len(times), len(channels), len(channels), 0, 0, len(infos),
            min(times), max(times),
        )  # fmt: skip
        by_channel = b''.join(struct.pack('<HQ', *count) for count in counts.items())
        summary += record(11, head + struct.pack('<I', len(by_channel)) + by_channel)
    summary += b''.join(infos) if options.chunk_index else b''
    has_summary = options.summary and summary
    footer = record(2, struct.pack('<QQI', len(content) if has_summary else 0, 0, 0))
    path.write_bytes(content + (summary if has_summary else b'') + footer + MAGIC)
    return path
