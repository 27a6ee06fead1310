# SPDX-License-Identifier: Apache-2.0
"""Writes MCAP files record by record, with channels and chunks that rosbags never writes."""

import struct
from binascii import crc32

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
