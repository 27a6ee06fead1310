# SPDX-License-Identifier: Apache-2.0
"""A bag whose messages can be read although parts of it are damaged.

rosbags reads the files; this module names what cannot be read, and goes on behind it. One damaged
chunk, message or message definition is no reason to lose the others.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

from rosbags.interfaces import Connection, ConnectionExtRosbag2
from rosbags.rosbag1 import Reader as Reader1

from lisa_ros.error_text import one_line, short_repr
from lisa_ros.errors import DataError, ErrorHandler
from lisa_ros.messages.bag_message_types import MessageTypes
from lisa_ros.messages.mcap_scan import McapScan

_MOST_NAMED = 6  # topics in an error
_RESOLUTION = 10**5  # of the time behind a damaged part [ns]


class Storage(Protocol):
    """A file or folder of messages: a reader of rosbags, `McapScan` or `SqliteScan`."""

    connections: list[Connection]
    start_time: int  # of the first message [ns]
    end_time: int  # after the last message [ns]

    def messages(
        self, connections: Collection[Connection], start: int | None, stop: int | None
    ) -> Iterator[tuple[Connection, int, bytes]]:
        """Yield connection, time [ns] and data of messages, by rising time."""

    def close(self) -> None:
        """Close all files."""


@dataclass(frozen=True)
class OpenStorage:
    """An open storage and its files, which are read once more if it is damaged."""

    storage: Storage
    files: tuple[Path, ...]
    decompress: Callable[[bytes], bytes] | None = None  # of each message


class _Moment:
    """The messages of the last time that were yielded: others of that time may follow damage.

    Only messages that share their time are hashed as they come: usual bags have none. Only one is
    kept whole: all messages of a bag may have one time.
    """

    def __init__(self) -> None:
        self.time: int | None = None  # [ns]; None: no message yet
        self._newest: tuple[Connection, bytes] | None = None  # not counted yet
        self._counts: Counter[tuple[str, str, bytes]] = Counter()  # with a hash of the data

    def add(self, connection: Connection, time: int, data: bytes) -> None:
        """Note a message that was yielded."""
        if time != self.time:
            self.time = time
            self._counts.clear()
        else:
            self._count_newest()
        self._newest = connection, data

    def take(self, connection: Connection, data: bytes) -> bool:
        """Return whether a message of that time was yielded, once for each that was."""
        self._count_newest()
        message = _identity(connection, data)
        if not self._counts[message]:
            return False
        self._counts[message] -= 1
        return True

    def _count_newest(self) -> None:
        if self._newest is not None:
            self._counts[_identity(*self._newest)] += 1
            self._newest = None


def _identity(connection: Connection, data: bytes) -> tuple[str, str, bytes]:
    return connection.topic, connection.msgtype, hashlib.blake2b(data, digest_size=16).digest()


class BagReader:
    """The connections and messages of an open bag.

    Threads: one thread reads at a time.
    """

    def __init__(
        self, bag: Path, storages: Sequence[OpenStorage], on_error: ErrorHandler, is2: bool = True
    ):
        """Take over open storages; `close` closes them.

        Args:
            bag: for error messages.
            storages: of the bag.
            on_error: called for each part that cannot be read; if it returns, the part is left
                out.
            is2: False for a bag of ROS 1.
        """
        self.is2 = is2
        self._bag, self._storages, self._on_error = bag, storages, on_error
        self.foreign_topics: dict[str, str] = {}  # kind of message of topics that are not of ROS 2
        self._own = [self._usable_connections(open_storage) for open_storage in storages]
        self._recovered: list[McapScan] = []
        self.connections = [connection for usable in self._own for connection in usable]
        self._types = MessageTypes(bag, self.connections, is2)

    @property
    def start_time(self) -> int:
        """Time of the first message [ns]."""
        times = (open_storage.storage.start_time for open_storage in self._storages)
        return min((time for time in times if isinstance(time, int)), default=2**63 - 1)

    @property
    def end_time(self) -> int:
        """Time after the last message [ns]."""
        times = (open_storage.storage.end_time for open_storage in self._storages)
        return max((time for time in times if isinstance(time, int)), default=0)

    def describe_topics(self) -> str:
        """Return the topics with their types, for an error; 'no topics' if there are none."""
        kinds = {c.topic: c.msgtype for c in self.connections} | self.foreign_topics
        topics = [f'{name} ({kind})' for name, kind in sorted(kinds.items())]
        more = len(topics) - _MOST_NAMED
        shown = ', '.join(topics[:_MOST_NAMED]) or 'no topics'
        return f'{shown} and {more} more' if more > 0 else shown

    def close(self) -> None:
        """Close all files."""
        for storage in (
            *(open_storage.storage for open_storage in self._storages),
            *self._recovered,
        ):
            storage.close()

    def _usable_connections(self, open_storage: OpenStorage) -> list[Connection]:
        """Return the connections with messages of ROS; note the others in `foreign_topics`.

        Raises:
            DataError: a name or type is not text, and `on_error` raised it.
        """
        usable = []
        for connection in open_storage.storage.connections:
            if not _is_of_ros(connection):
                kind = f'{connection.msgtype} in {connection.ext.serialization_format}'
                self.foreign_topics[str(connection.topic)] = kind
                continue
            # a column of SQLite holds values of any type
            if isinstance(connection.topic, str) and isinstance(connection.msgtype, str):
                usable.append(connection)
            else:
                names = short_repr((connection.topic, connection.msgtype))
                self._on_error(
                    DataError(
                        f'{self._bag}: expected a topic and its type as text, got {names}; '
                        f'{cure(open_storage.files[0])}'
                    )
                )
        return usable

    # ---- messages

    def messages(
        self,
        connections: Collection[Connection] = (),
        start: int | None = None,
        stop: int | None = None,
    ) -> Iterator[tuple[Connection, int, bytes]]:
        """Yield connection, time [ns] and data of messages, by rising time.

        Args:
            connections: of this bag; empty: all.
            start: first time [ns]; None: from the beginning.
            stop: time after the last [ns]; None: to the end.

        Raises:
            DataError: a part cannot be read, and `on_error` raised it.
        """
        connection_ids = {id(connection) for connection in connections or self.connections}
        streams = []
        for open_storage, usable in zip(self._storages, self._own, strict=True):
            chosen = [connection for connection in usable if id(connection) in connection_ids]
            if chosen:
                streams.append(self._readable(open_storage, chosen, start, stop))
        return heapq.merge(*streams, key=lambda message: message[1])

    def no_messages(self, connections: Collection[Connection], expected: str) -> DataError:
        """Return the error of a topic without any message that can be read.

        Args:
            connections: of the topic; the bag has them, but none of their messages came.
            expected: what the messages were to be, for example "images".
        """
        topic = ', '.join(sorted({connection.topic for connection in connections}))
        claimed = sum(connection.msgcount for connection in connections)
        if claimed:
            advice = cure(self._storages[0].files[0])
            problem = f'none of the {claimed} messages on {topic} can be read'
        else:
            problem = f'no messages on {topic}'
            advice = 'record the bag again while they are published, or choose another topic'
        return DataError(f'{self._bag}: {problem}; expected {expected}: {advice}')

    def _readable(
        self,
        open_storage: OpenStorage,
        chosen: list[Connection],
        start: int | None,
        stop: int | None,
    ) -> Iterator[tuple[Connection, int, bytes]]:
        """Yield the messages of a storage; behind a damaged part, go on."""
        position: int | None = start
        moment = _Moment()
        while True:
            try:
                for connection, time, raw_message in open_storage.storage.messages(
                    chosen, position, stop
                ):
                    if not isinstance(time, int) or not isinstance(raw_message, bytes):
                        self._on_error(
                            self._row_error(open_storage, connection, time, raw_message)
                        )
                        continue
                    yield from self._decompressed(open_storage, connection, time, raw_message)
                    position = time + 1
                    moment.add(connection, time, raw_message)
            except DataError:
                raise
            except Exception as error:  # noqa: BLE001  # readers of damaged files raise anything
                damaged_from = self.start_time if position is None else position
                if all(path.suffix == '.mcap' for path in open_storage.files):
                    yield from self._scanned(
                        open_storage, chosen, damaged_from, stop, error, moment
                    )
                    return
                yield from self._rest_of(moment, open_storage, chosen)
                moment = _Moment()
                position = self._behind(open_storage, chosen, damaged_from, stop, error)
                if position is not None:
                    continue
            return

    def _rest_of(
        self, moment: _Moment, open_storage: OpenStorage, chosen: list[Connection]
    ) -> Iterator[tuple[Connection, int, bytes]]:
        """Yield the messages of a moment that a damaged one of the same time has hidden.

        Each connection is read by itself: the damaged message is in one of them.
        """
        if moment.time is None:
            return
        for each in chosen:
            _forget_chunk(open_storage.storage)
            try:
                messages = open_storage.storage.messages([each], moment.time, moment.time + 1)
                for connection, time, raw_message in messages:
                    if isinstance(raw_message, bytes) and not moment.take(connection, raw_message):
                        yield from self._decompressed(open_storage, connection, time, raw_message)
            except DataError:
                raise
            except Exception:  # noqa: BLE001, S112  # the caller reports the damaged part
                continue

    def _row_error(
        self, open_storage: OpenStorage, connection: Connection, time: object, data: object
    ) -> DataError:
        """Return the error of a row of SQLite: its columns hold values of any type."""
        return DataError(
            f'{self._bag}: a message on {connection.topic} cannot be read: expected a time in '
            f'whole nanoseconds and data in bytes, got {short_repr(time)} and '
            f'{type(data).__name__}; {cure(open_storage.files[0])}'
        )

    def _scanned(
        self,
        open_storage: OpenStorage,
        chosen: list[Connection],
        damaged_from: int,
        stop: int | None,
        error: Exception,
        moment: _Moment,
    ) -> Iterator[tuple[Connection, int, bytes]]:
        """Yield the messages of MCAP files from a time on, read without their index.

        Those of `moment`, before that time, come too, unless they were yielded.
        """
        by_name = {(connection.topic, connection.msgtype): connection for connection in chosen}
        scans = [McapScan(path) for path in open_storage.files]
        self._recovered += scans
        for scan, path in zip(scans, open_storage.files, strict=True):
            for damage in scan.damage:
                self._on_error(DataError(f'{self._bag}: {damage}; {cure(path)}'))
        if not any(scan.damage for scan in scans):
            self._on_error(self._error(damaged_from, stop, error, open_storage))
        streams = [
            scan.messages(
                [c for c in scan.connections if (c.topic, c.msgtype) in by_name and _is_of_ros(c)],
                damaged_from if moment.time is None else moment.time,
                stop,
            )
            for scan in scans
        ]
        for connection, time, raw_message in heapq.merge(*streams, key=lambda message: message[1]):
            if time == moment.time and moment.take(connection, raw_message):
                continue
            same_connection = by_name[connection.topic, connection.msgtype]
            yield from self._decompressed(open_storage, same_connection, time, raw_message)

    def _decompressed(
        self, open_storage: OpenStorage, connection: Connection, time: int, raw_message: bytes
    ) -> Iterator[tuple[Connection, int, bytes]]:
        """Yield a message with its data decompressed; nothing if they are damaged."""
        try:
            decompress = open_storage.decompress
            content = decompress(raw_message) if decompress else raw_message
        except Exception as error:  # noqa: BLE001  # decompressors raise many types
            seconds = (time - self.start_time) / 1e9
            self._on_error(
                DataError(
                    f'{self._bag}: a message on {connection.topic}, {seconds:.2f} s after the '
                    f'start, cannot be decompressed ({one_line(error)}); copy the bag again'
                )
            )
            return
        yield connection, time, content

    def _behind(
        self,
        open_storage: OpenStorage,
        chosen: list[Connection],
        damaged_from: int,
        stop: int | None,
        error: Exception,
    ) -> int | None:
        """Return the time from which a storage can be read again [ns]; None if there is none."""
        end = (
            open_storage.storage.end_time
            if stop is None
            else min(stop, open_storage.storage.end_time)
        )
        low, high = damaged_from, damaged_from + 10**6
        while high < end and not _can_read(open_storage.storage, chosen, high, stop):
            low, high = high, high + 2 * (high - damaged_from)
        high = min(high, end)
        while high - low > _RESOLUTION:
            middle = (low + high) // 2
            if _can_read(open_storage.storage, chosen, middle, stop):
                high = middle
            else:
                low = middle
        _forget_chunk(open_storage.storage)
        resumed = high if high < end else None
        self._on_error(self._error(damaged_from, resumed, error, open_storage))
        return resumed

    def _error(
        self, damaged_from: int, until: int | None, error: Exception, open_storage: OpenStorage
    ) -> DataError:
        """Return the error of a part that cannot be read, from a time until another [ns]."""
        start = self.start_time
        first = f'{max(0, damaged_from - start) / 1e9:.2f} s'
        last = '' if until is None else f'{(until - start) / 1e9:.2f} s'
        part = f'between {first} and {last}' if last else f'after {first}'
        return DataError(
            f'{self._bag}: the messages {part} cannot be read ({type(error).__name__}: '
            f'{one_line(error)}); {cure(open_storage.files[0])}'
        )

    def deserialize(self, raw_message: bytes, msgtype: str) -> Any:
        """Return a message; see `MessageTypes.deserialize`."""
        return self._types.deserialize(raw_message, msgtype)

    def deserialize_stamped(self, raw_message: bytes, msgtype: str) -> Any:
        """Return a message with a header; see `MessageTypes.deserialize_stamped`."""
        return self._types.deserialize_stamped(raw_message, msgtype)


def _is_of_ros(connection: Connection) -> bool:
    """Return whether its messages are serialized as those of ROS."""
    ext = connection.ext
    return not isinstance(ext, ConnectionExtRosbag2) or ext.serialization_format in ('cdr', '')


def _can_read(
    storage: Storage, connections: list[Connection], start: int, stop: int | None
) -> bool:
    """Return whether the first message from a time on [ns] can be read, or there is none."""
    _forget_chunk(storage)
    try:
        next(iter(storage.messages(connections, start, stop)), None)
    except Exception:  # noqa: BLE001  # readers of damaged files raise anything
        return False
    return True


def _forget_chunk(storage: Storage) -> None:
    """Let a reader of ROS 1 load its chunk again: after an error, its chunk is closed."""
    if isinstance(storage, Reader1):
        storage.current_chunk = (-1, BytesIO())


def cure(path: Path) -> str:
    """Return how to repair a damaged file of a bag."""
    if path.suffix == '.mcap':
        return f'`mcap recover {path} -o recovered.mcap` copies what can be read'
    if path.suffix == '.db3':
        return f'`sqlite3 {path} .recover | sqlite3 recovered.db3` copies what can be read'
    if '.bag' in path.suffixes:
        return f'`rosbag reindex {path}` restores what can be read'
    return 'expected a rosbag2 folder, .mcap, .db3 or .bag file'
