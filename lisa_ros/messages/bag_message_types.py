# SPDX-License-Identifier: Apache-2.0
"""Messages of a bag from their bytes, by the definitions of their types in the bag.

rosbags reads definitions and messages; this module names what is damaged.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rosbags.interfaces import Connection, MessageDefinitionFormat
from rosbags.typesys import Stores, get_types_from_idl, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from lisa_ros.error_text import one_line, short_repr
from lisa_ros.errors import DataError

_TYPE_NAME = re.compile(r'[A-Za-z]\w*(/[A-Za-z]\w*){1,2}')  # rosbags makes Python code of it
_ANY = '*'  # in place of the hash of a definition, in bags of ROS 1
_IDL_SEPARATOR = '=' * 80 + '\n'


class MessageTypes:
    """The message types of a bag; each is read when a message of it is.

    Threads: one thread at a time.
    """

    def __init__(self, bag: Path, connections: Sequence[Connection], is2: bool):
        """Use the definitions of some connections.

        Args:
            bag: for error messages.
            connections: of the bag.
            is2: False for a bag of ROS 1.
        """
        self._bag, self._connections, self._is2 = bag, connections, is2
        self._typestores: dict[str, Typestore] = {}

    def deserialize(self, raw_message: bytes, msgtype: str) -> Any:
        """Return a message.

        Raises:
            DataError: the data is damaged, or the type is unknown.
        """
        store = self._typestore(msgtype)
        try:
            read = store.deserialize_cdr if self._is2 else store.deserialize_ros1
            return read(raw_message, msgtype)
        except Exception as error:  # damaged data raises many types
            reason = (
                'it is empty' if not raw_message else f'{type(error).__name__}: {one_line(error)}'
            )
            raise DataError(
                f'{self._bag}: a message of {msgtype} cannot be read ({reason}); copy the bag '
                'again, or record again'
            ) from error

    def deserialize_stamped(self, raw_message: bytes, msgtype: str) -> Any:
        """Return a message with a header.

        Raises:
            DataError: as `deserialize`; or the definition in the bag has no header.
        """
        message = self.deserialize(raw_message, msgtype)
        header = getattr(message, 'header', None)
        stamp = getattr(header, 'stamp', None)
        times = [getattr(stamp, name, None) for name in ('sec', 'nanosec')]
        is_header = isinstance(getattr(header, 'frame_id', None), str)
        if not is_header or not all(isinstance(time, int) for time in times):
            raise DataError(
                f'{self._bag}: the definition of {msgtype} in it has no std_msgs/Header'
            )
        return message

    def _typestore(self, msgtype: str) -> Typestore:
        """Return the types of a message: from its definition in the bag, or those of ROS.

        Raises:
            DataError: there is no definition, or it is not that of the messages.
        """
        if msgtype not in self._typestores:
            same_type = [c for c in self._connections if c.msgtype == msgtype]
            bag_types = (_types_in_bag(connection, self._is2) for connection in same_type)
            store = next(filter(None, bag_types), None)
            if store is None:
                store = get_typestore(Stores.LATEST if self._is2 else Stores.ROS1_NOETIC)
            else:
                self._check_digests(store, same_type)
            if msgtype not in store.types:
                raise DataError(
                    f'{self._bag}: the message type {short_repr(msgtype)} has no definition that '
                    'can be read; record the bag again, or convert it with `ros2 bag convert`'
                )
            self._typestores[msgtype] = store
        return self._typestores[msgtype]

    def _check_digests(self, store: Typestore, connections: Sequence[Connection]) -> None:
        """Raise a DataError if a definition has another hash than the bag gives."""
        for connection in connections:
            msgtype, expected = connection.msgtype, connection.digest
            digest = _digest(store, msgtype, self._is2)
            if expected not in ('', _ANY, digest):
                raise DataError(
                    f'{self._bag}: the definition of {msgtype} has the hash {digest}, and the bag '
                    f'gives {expected}; record the bag again'
                )


def _digest(store: Typestore, msgtype: str, is2: bool) -> str:
    """Return the hash of a type and all that it consists of, as bags give it."""
    return store.hash_rihs01(msgtype) if is2 else store.generate_msgdef(msgtype)[1]


def _types_in_bag(connection: Connection, is2: bool) -> Typestore | None:
    """Return the types of a definition in the bag; None if it cannot be read."""
    msgtype, (form, text) = connection.msgtype, connection.msgdef
    # a column of SQLite holds values of any type
    is_text = form is not MessageDefinitionFormat.NONE and isinstance(text, str)
    if not is_text or not text.strip() or not _TYPE_NAME.fullmatch(msgtype):
        return None
    try:
        if form is MessageDefinitionFormat.MSG:
            types = get_types_from_msg(text, msgtype)
        else:
            types = {}
            for part in text.split(_IDL_SEPARATOR):
                body = part.split('\n', 1)[1] if part.startswith('IDL: ') else part
                types |= get_types_from_idl(body) if body.strip() else {}
        store = get_typestore(Stores.EMPTY)
        store.register(types)
        _digest(store, msgtype, is2)  # fails if a part of the type is missing
    except Exception:  # noqa: BLE001  # parsers of damaged text raise many types
        return None
    return store
