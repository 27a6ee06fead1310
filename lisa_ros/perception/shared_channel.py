# SPDX-License-Identifier: Apache-2.0
"""A two-way channel between processes: objects through a socket, their arrays through memory.

An object is pickled with its arrays out of band (pickle protocol 5): the bytes go through the
socket, the arrays are copied into memory that both processes map, and the receiver copies them
out. So types, shapes and bits are those of the sender, and nobody sees a later change.

The memory has no name in the file system: it is freed with the last process that maps it, however
that ends, and the size of /dev/shm does not limit it. It grows with the largest message; what
the last messages did not use goes back to the system.

Threads: one thread at a time sends, one at a time receives; both may do so at the same time.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import select
import tempfile
import weakref
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import Connection

_ALIGNMENT = 64  # of arrays in memory [bytes]
_GRANULARITY = 1 << 20  # the memory grows and shrinks by multiples of this [bytes]
_RECENT = 8  # exchanges whose largest size the memory keeps

Span = tuple[int, int]  # start and end of an array in the memory [bytes]


class ChannelClosedError(Exception):
    """The process at the other end has ended."""


class SharedMemory:
    """Memory of one sender and one receiver, known by its file descriptor."""

    def __init__(self, descriptor: int):
        """Use memory that another process has made; see `create`.

        Args:
            descriptor: closed with this object.
        """
        self.descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)
        self._map: mmap.mmap | None = None
        self._end = 0  # of the arrays that were written [bytes]
        self._reserved = 0  # what the system has set aside for this memory [bytes]
        self._recent: deque[int] = deque(maxlen=_RECENT)  # `_end` of the last exchanges

    @classmethod
    def create(cls) -> SharedMemory:
        """Make memory of size 0; children inherit it by `pass_fds`."""
        if hasattr(os, 'memfd_create'):
            return cls(os.memfd_create('lisa_ros'))
        with tempfile.TemporaryFile() as file:  # without a name from the beginning
            return cls(os.dup(file.fileno()))

    def clear(self) -> None:
        """Let the next array overwrite the first; the receiver must have read all it needs."""
        self._recent.append(self._end)
        self._end = 0
        self._shrink(max(self._recent))

    def write(self, arrays: Sequence[memoryview]) -> list[Span]:
        """Append arrays, each as flat bytes; return where they are."""
        spans = []
        for array in arrays:
            start = -(-self._end // _ALIGNMENT) * _ALIGNMENT
            self._end = start + array.nbytes
            spans.append((start, self._end))
        self._grow(self._end)
        for array, (start, end) in zip(arrays, spans, strict=True):
            if end > start:
                self._map[start:end] = array
        return spans

    def read(self, spans: Sequence[Span]) -> list[bytearray]:
        """Return copies of arrays."""
        end = max((end for _, end in spans), default=0)
        if end > self._size:
            self._remap(os.fstat(self.descriptor).st_size)
        if not end:
            return [bytearray() for _ in spans]
        with memoryview(self._map) as memory:
            return [bytearray(memory[start:end]) for start, end in spans]

    @property
    def _size(self) -> int:
        return 0 if self._map is None else len(self._map)

    def _grow(self, size: int) -> None:
        """Make the memory at least this large [bytes]; OSError if there is not that much."""
        if size <= self._reserved:
            return
        size = _rounded(size)
        if hasattr(os, 'posix_fallocate'):  # an error now, instead of SIGBUS when it is written
            os.posix_fallocate(self.descriptor, 0, size)
        elif size > self._size:
            os.ftruncate(self.descriptor, size)
        self._reserved = size
        if size > self._size:
            self._remap(size)

    def _shrink(self, size: int) -> None:
        """Give memory above this size [bytes] back if it is more than half; its pages become zero.

        The receiver may still map all of it: a message that nobody wants any more reads zeros.
        """
        size = _rounded(size)
        if self._map is None or self._reserved <= 2 * size or not hasattr(mmap, 'MADV_REMOVE'):
            return
        with contextlib.suppress(OSError):  # a file system that cannot; Linux's memfd can
            self._map.madvise(mmap.MADV_REMOVE, size, self._reserved - size)
            self._reserved = size

    def _remap(self, size: int) -> None:
        if self._map is not None:
            self._map.close()
        self._map = mmap.mmap(self.descriptor, size)


def _rounded(size: int) -> int:
    """Return the smallest size of a memory that holds this [bytes]."""
    return max(1, -(-size // _GRANULARITY)) * _GRANULARITY


class Channel:
    """One end of the channel; the other end has the two memories the other way round.

    Socket and memory are closed with this object.
    """

    def __init__(self, connection: Connection, outgoing: SharedMemory, incoming: SharedMemory):
        self._connection, self._outgoing, self._incoming = connection, outgoing, incoming
        self._poll = select.poll()  # Connection.poll makes one for each call
        self._poll.register(connection.fileno(), select.POLLIN)

    def clear(self) -> None:
        """Reuse the memory: all that was sent has been received, or is not wanted any more."""
        self._outgoing.clear()

    def send(self, message: object) -> None:
        """Send an object.

        Raises:
            ChannelClosedError: the other process has ended.
        """
        buffers: list[pickle.PickleBuffer] = []
        content = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
        spans = self._outgoing.write([buffer.raw() for buffer in buffers])
        try:
            self._connection.send_bytes(pickle.dumps((content, spans)))
        except OSError as error:  # broken pipe, connection reset
            raise ChannelClosedError(str(error)) from error

    def receive(self, timeout: float | None = None) -> object | None:
        """Return the next object; None if there is none within `timeout` [s].

        Raises:
            ChannelClosedError: the other process has ended, and all that it sent was received.
        """
        try:
            if timeout is not None and not self._poll.poll(1000 * timeout):
                return None
            content, spans = pickle.loads(self._connection.recv_bytes())  # noqa: S301  # our own
        except (EOFError, OSError) as error:
            raise ChannelClosedError(str(error)) from error
        return pickle.loads(content, buffers=self._incoming.read(spans))  # noqa: S301
