# SPDX-License-Identifier: Apache-2.0
"""Checks the types in JSON of other people before it is used; errors name the file and the key.

A case has a name and perhaps an IoU:

    CASE = Record({'name': TEXT, 'iou': optional(NUMBER)}, {'reason': TEXT})
    check_json(path, content, Record({'cases': ListOf(CASE)}))
    # report.json: cases[3].iou is 'good'; expected a number or null
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lisa_ros.error_text import short_repr
from lisa_ros.errors import DataError
from lisa_ros.files.text import File

_LARGEST = 1e15  # of a number; larger ones overflow in sums and plots


@dataclass(frozen=True)
class Value:
    """A single value of one of some types."""

    types: tuple[type, ...]
    name: str  # for messages, such as "a number"
    may_be_infinite: bool = False  # whether a number may be NaN, infinite or very large

    def accepts(self, value: object) -> bool:
        """Return whether a value has one of the types; numbers must also be finite."""
        if object in self.types:
            return True
        if isinstance(value, bool):  # which Python counts as an int
            return bool in self.types
        is_extreme = isinstance(value, int | float) and not abs(value) <= _LARGEST
        if is_extreme and not self.may_be_infinite:
            return False
        return isinstance(value, self.types)


TEXT = Value((str,), 'a text')
NUMBER = Value((int, float), 'a number')
INTEGER = Value((int,), 'an integer')
TRUTH = Value((bool,), 'true or false')
SCALAR = Value((str, int, float, bool, type(None)), 'a text, a number, true, false or null')
ANYTHING = Value((object,), 'anything')


def optional(value: Value) -> Value:
    """Return a value that may also be null."""
    return Value((*value.types, type(None)), f'{value.name} or null')


@dataclass(frozen=True)
class ListOf:
    """A list whose items have one schema."""

    item: Schema


@dataclass(frozen=True)
class MapOf:
    """An object with any keys, whose values have one schema."""

    value: Schema


@dataclass(frozen=True)
class Record:
    """An object with known keys. Further keys are not checked."""

    required: Mapping[str, Schema]
    optional: Mapping[str, Schema] = field(default_factory=dict)


Schema = Value | ListOf | MapOf | Record


def check_json(path: File, content: object, schema: Schema, key: str = '') -> None:
    """Check a value of a JSON file.

    Args:
        path: of the file, for the message.
        content: the value.
        schema: its types.
        key: where it is in the file, such as `cases[3].iou`; '': the whole file.

    Raises:
        DataError: it has another type; the message names the file and the key.
    """
    match schema:
        case ListOf(item):
            _require(isinstance(content, list), path, key, content, 'a list')
            for index, entry in enumerate(content):
                check_json(path, entry, item, f'{key}[{index}]')
        case MapOf(value):
            _require(isinstance(content, dict), path, key, content, 'an object')
            for name, entry in content.items():
                check_json(path, entry, value, _join(key, name))
        case Record(required, optional_keys):
            _require(isinstance(content, dict), path, key, content, 'an object')
            for name, own in {**required, **optional_keys}.items():
                if name in content:
                    check_json(path, content[name], own, _join(key, name))
                elif name in required:
                    raise DataError(f'{path}: {_join(key, name)} is missing; expected {_of(own)}')
        case _:
            _require(schema.accepts(content), path, key, content, schema.name)


def _require(is_valid: bool, path: Path, key: str, content: object, expected: str) -> None:
    if not is_valid:
        raise DataError(
            f'{path}: {key or "the content"} is {_shown(content)}; expected {expected}'
        )


def _shown(content: object) -> str:
    if isinstance(content, float) and not math.isfinite(content):
        return str(content)
    return short_repr(content)


def _of(schema: Schema) -> str:
    match schema:
        case ListOf():
            return 'a list'
        case MapOf() | Record():
            return 'an object'
    return schema.name


def _join(key: str, name: str) -> str:
    return f'{key}.{name}' if key else name
