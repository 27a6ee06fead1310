# SPDX-License-Identifier: Apache-2.0
"""Read the JSON files of a model folder: bounded in size and depth, each value with its type.

Model folders come from other people. An error names the file, the key, the value that came and
what was expected. null counts as a missing key where a key has a default.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from lisa_ros.error_text import one_line, short_repr
from lisa_ros.errors import CheckpointError
from lisa_ros.files.text import checked_characters, unique_keys
from lisa_ros.model.file_checks import check_file

MAX_BYTES = 8 * 2**20  # of a file; the index of a 70B model has 0.1 MB
_MAX_DEPTH = 32  # of nested lists and objects; released configs have 4
_LARGEST = 1e38  # of a number; float32 overflows above it
_MAX_TEXT = 1000  # characters of a value
_REQUIRED = object()
_Number = TypeVar('_Number', int, float)


def read_json(path: Path) -> dict:
    """Return the object in a JSON file.

    Raises:
        CheckpointError: the file is missing, unreadable, too large or not JSON, has a key twice,
            or does not hold an object.
    """
    size = check_file(path)
    if size > MAX_BYTES:
        raise CheckpointError(
            f'{path}: has {size} bytes; expected at most {MAX_BYTES} of a JSON file of a model'
        )
    return parse_json(path.read_bytes(), path)


def parse_json(content: bytes, source: str | Path) -> dict:
    """Return the object in JSON text; `source` names it in messages.

    Raises:
        CheckpointError: as `read_json`.
    """
    try:
        text = content.decode('utf-8-sig')
        value = json.loads(text, object_pairs_hook=unique_keys, parse_constant=_refuse_constant)
        checked_characters(text, value)
        if _depth_exceeds(value, _MAX_DEPTH):
            raise ValueError(f'it is nested more than {_MAX_DEPTH} levels deep')
    except RecursionError as error:
        raise CheckpointError(f'{source}: cannot be read as JSON: nested too deeply') from error
    except ValueError as error:
        is_other = isinstance(error, UnicodeDecodeError)
        cure = 'save it as UTF-8, or download it again' if is_other else 'download it again'
        raise CheckpointError(
            f'{source}: cannot be read as JSON ({one_line(error, 200)}); {cure}'
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(
            f'{source}: holds a {type(value).__name__}; expected an object, {{"name": value}}'
        )
    return value


def _refuse_constant(name: str) -> object:
    raise ValueError(f'{name} is not a number in JSON')


def _depth_exceeds(value: object, limit: int) -> bool:
    """Return whether lists and objects are nested more than `limit` levels deep."""
    level = [value]
    for _ in range(limit + 1):
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return False
    return True


class JsonFields:
    """The values of an object in a JSON file; each method checks the type of one value.

    Raises:
        CheckpointError: a value has another type, is out of its range, or is missing without a
            default.
    """

    def __init__(self, values: Mapping, path: str | Path, prefix: str = ''):
        """Wrap an object.

        Args:
            values: the object.
            path: of its file, for messages.
            prefix: where it is in the file, such as "llama."; '': the whole file.
        """
        self.values, self.path, self._prefix = values, path, prefix

    @classmethod
    def read(cls, path: Path) -> JsonFields:
        """Return the object in a JSON file; see `read_json`."""
        return cls(read_json(path), path)

    def __contains__(self, key: str) -> bool:
        """Return whether a key has a value other than null."""
        return self.values.get(key) is not None

    def error(self, key: str, expected: str) -> CheckpointError:
        """Return the error for the value of a key, which is not what was expected."""
        value = self.values.get(key, _REQUIRED)
        found = 'is missing' if value is _REQUIRED else f'is {short_repr(value)}'
        return CheckpointError(f'{self.path}: {self._prefix}{key} {found}; expected {expected}')

    def text(self, key: str, default: str | None = _REQUIRED) -> str | None:
        """Return a text of ordinary length."""
        value = self._value(key, str, default, 'a text')
        if value is not None and len(value) > _MAX_TEXT:
            raise self.error(key, f'a text of at most {_MAX_TEXT} characters')
        return value

    def flag(self, key: str, default: bool | None = _REQUIRED) -> bool | None:
        """Return true or false."""
        return self._value(key, bool, default, 'true or false')

    def integer(
        self,
        key: str,
        default: int | None = _REQUIRED,
        minimum: int | None = None,
        maximum: int | None = None,
    ) -> int | None:
        """Return an integer within a range."""
        value = self._value(key, int, default, 'an integer')
        return self._in_range(key, value, minimum, maximum)

    def number(
        self,
        key: str,
        default: float | None = _REQUIRED,
        minimum: float | None = None,
        maximum: float | None = None,
    ) -> float | None:
        """Return a finite number within a range."""
        value = self._value(key, (int, float), default, 'a number')
        if value is not None and not abs(value) <= _LARGEST:
            raise self.error(key, 'a finite number')
        return self._in_range(key, value, minimum, maximum)

    def object(self, key: str, default: dict | None = _REQUIRED) -> JsonFields:
        """Return an object as fields."""
        value = self._value(key, dict, default, 'an object')
        return JsonFields(value, self.path, f'{self._prefix}{key}.')

    def numbers(self, key: str, default: list | None = _REQUIRED) -> tuple[float, ...]:
        """Return a list of finite numbers."""
        values = self._value(key, list, default, 'a list of numbers')
        if not all(type(value) in (int, float) and abs(value) <= _LARGEST for value in values):
            raise self.error(key, 'a list of finite numbers')
        return tuple(values)

    def _value(
        self, key: str, kind: type | tuple[type, ...], default: object, expected: str
    ) -> object:
        value = self.values.get(key)
        if value is None and default is not _REQUIRED:
            return default
        is_wrong_bool = isinstance(value, bool) and kind is not bool  # Python counts it as an int
        if is_wrong_bool or not isinstance(value, kind):
            raise self.error(key, expected)
        return value

    def _in_range(
        self, key: str, value: _Number | None, minimum: float | None, maximum: float | None
    ) -> _Number | None:
        if value is None:
            return None
        low, high = (minimum is None or minimum <= value), (maximum is None or value <= maximum)
        if not (low and high):
            limits = f'{"..." if minimum is None else minimum} to {maximum}'
            raise self.error(key, f'{minimum} or more' if maximum is None else limits)
        return value
