# SPDX-License-Identifier: Apache-2.0
"""Reads rosbag2 databases (.db3) that are cut or damaged, row by row.

SQLite refuses a file that is shorter than its header says, and a query that touches a damaged
page. `PRAGMA writable_schema` opens the file, as in SQLite's own `.recover`. Each row is a query.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator
from pathlib import Path
from urllib.parse import quote

from rosbags.interfaces import (
    Connection,
    ConnectionExtRosbag2,
    MessageDefinition,
    MessageDefinitionFormat,
)

_MOST_LOST_ROWS = 2000  # in a row; then the rest of the table is given up
_LEAST_ROW = 16  # size of a row with a stamp and a message [bytes]
_DEFINITION_FORMATS = {
    'ros2msg': MessageDefinitionFormat.MSG,
    'ros2idl': MessageDefinitionFormat.IDL,
}
_NEXT_ROW = 'SELECT id, topic_id, timestamp FROM messages WHERE id > ? ORDER BY id LIMIT 1'


class SqliteScan:
    """The messages of one database; what cannot be read is described in `damage`."""

    def __init__(self, path: Path):
        """Read all rows, except the contents of the messages.

        Raises:
            sqlite3.Error: it is no database, or its table of topics cannot be read.
        """
        self.damage: list[str] = []
        self._most_rows = path.stat().st_size // _LEAST_ROW + _MOST_LOST_ROWS
        location = f'file:{quote(str(path.absolute()))}?mode=ro&immutable=1'
        # a bag may be read in another thread than the one that closes it
        self._database = sqlite3.connect(location, uri=True, check_same_thread=False)
        try:
            self._database.execute('PRAGMA writable_schema = ON')
            topics = self._database.execute(
                'SELECT id, name, type, serialization_format FROM topics ORDER BY id'
            ).fetchall()
            self._rows = sorted(self._scan(), key=lambda row: row[2])
        except BaseException:
            self._database.close()
            raise
        definitions = self._definitions()
        counts: dict[int, int] = {}
        for _, topic, _ in self._rows:
            counts[topic] = counts.get(topic, 0) + 1
        no_definition = MessageDefinition(MessageDefinitionFormat.NONE, '')
        self.connections = [
            Connection(
                number,
                name,
                msgtype,
                definitions.get(msgtype, no_definition),
                '',
                counts.get(number, 0),
                ConnectionExtRosbag2(encoding, []),
                self,
            )
            for number, name, msgtype, encoding in topics
        ]

    @property
    def start_time(self) -> int:
        """Time of the first message [ns]; 2**63 - 1 without any."""
        return self._rows[0][2] if self._rows else 2**63 - 1

    @property
    def end_time(self) -> int:
        """Time after the last message [ns]; 0 without any."""
        return self._rows[-1][2] + 1 if self._rows else 0

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def messages(
        self,
        connections: Collection[Connection],
        start: int | None = None,
        stop: int | None = None,
    ) -> Iterator[tuple[Connection, int, bytes]]:
        """Yield connection, time [ns] and data of messages, by rising time.

        Data that cannot be read is empty.

        Args:
            connections: of this file.
            start: first time [ns]; None: from the beginning.
            stop: time after the last [ns]; None: to the end.
        """
        by_topic = {connection.id: connection for connection in connections}
        for number, topic, time in self._rows:
            is_due = (start is None or time >= start) and (stop is None or time < stop)
            if is_due and topic in by_topic:
                yield by_topic[topic], time, self._data(number)

    def _data(self, number: int) -> bytes:
        try:
            row = self._database.execute('SELECT data FROM messages WHERE id = ?', (number,))
            (data,) = row.fetchone()
        except (sqlite3.Error, TypeError):
            return b''
        # a column of SQLite holds values of any type, and bytes() of a number takes its memory
        return data if isinstance(data, bytes) else b''

    def _scan(self) -> Iterator[tuple[int, int, int]]:
        """Yield id, topic id and time [ns] of each row that can be read."""
        number, last, lost = -1, 0, 0
        is_damaged = False
        for _ in range(self._most_rows):  # a damaged tree may have no end
            try:
                row = self._database.execute(_NEXT_ROW, (number,)).fetchone()
            except sqlite3.Error:
                row = ()
            if row is None:
                break
            if not _is_row(row, number):
                number, lost, is_damaged = number + 1, lost + 1, True
                if lost > _MOST_LOST_ROWS:
                    break
                continue
            number = last = row[0]
            lost = 0
            yield row
        if is_damaged:
            readable = (
                f'the last that can be read is number {last}' if last else 'none can be read'
            )
            self.damage.append(f'the database is cut or damaged; of its messages, {readable}')

    def _definitions(self) -> dict[str, MessageDefinition]:
        """Return the message definitions by type; none in databases of earlier versions."""
        try:
            rows = self._database.execute(
                'SELECT topic_type, encoding, encoded_message_definition FROM message_definitions'
            ).fetchall()
        except sqlite3.Error:
            return {}
        return {
            msgtype: MessageDefinition(_DEFINITION_FORMATS[encoding], text)
            for msgtype, encoding, text in rows
            if encoding in _DEFINITION_FORMATS
        }


def _is_row(row: tuple, last_id: int) -> bool:
    """Return whether a row has an id above another, a topic id and a time [ns]."""
    return len(row) == 3 and all(type(value) is int for value in row) and row[0] > last_id
