# SPDX-License-Identifier: Apache-2.0
"""Reading of data set files, with errors that name the file, its content and what was expected."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from lisa_ros.error_text import short_repr
from lisa_ros.errors import DataError, ErrorHandler, raise_error
from lisa_ros.files.access import access_problem, list_folder, path_below
from lisa_ros.files.text import read_json

__all__ = [
    'ErrorHandler',
    'check_image',
    'image_path',
    'raise_error',
    'read_json',
    'read_or_skip',
    'split_entries',
    'validated_entries',
]

_EXACT = 2.0**53  # a float below it may be an integer exactly
_Result = TypeVar('_Result')


def read_or_skip(read: Callable[[], _Result], on_error: ErrorHandler) -> _Result | None:
    """Return what `read` returns; None if it raises a DataError and `on_error` returns."""
    try:
        return read()
    except DataError as error:
        on_error(error)
        return None


def validated_entries(
    path: Path,
    content: object,
    name: str | None,
    /,
    on_error: ErrorHandler = raise_error,
    **required: type | tuple,
) -> list[dict]:
    """Return a list of objects from a file, after a check of their keys and types.

    Args:
        path: of the file, for messages.
        content: of the file.
        name: key of the list in `content`; None: `content` is the list.
        on_error: called for each object that has not these keys; if it returns, the object is
            left out.
        required: the type of each key that every object must have; `object` accepts any. 1.0 is
            the integer 1, as in JSON Schema: pandas writes it so where another row has none.

    Raises:
        DataError: it is not a list, or `on_error` raised it.
    """
    return split_entries(path, content, name, on_error, required)[0]


def split_entries(
    path: Path,
    content: object,
    name: str | None,
    on_error: ErrorHandler,
    required: Mapping[str, type | tuple],
) -> tuple[list[dict], list[object]]:
    """Return the objects that `validated_entries` returns, and the entries that it leaves out."""
    entries = content
    if name is not None:
        entries = content.get(name) if isinstance(content, dict) else None
    list_name = f'a list "{name}"' if name else 'a list'
    expected = f'expected objects with {", ".join(required)}'
    if not isinstance(entries, list):
        raise DataError(f'{path}: does not have {list_name}; {expected}')
    valid, invalid = [], []
    for index, raw_entry in enumerate(entries):
        entry = _with_integers(raw_entry, required)
        problem = _entry_problem(entry, required, expected)
        if problem:
            on_error(DataError(f'{path}: entry {index} of {list_name} has {problem}'))
            invalid.append(entry)
        else:
            valid.append(entry)
    return valid, invalid


def _with_integers(entry: object, required: Mapping[str, type | tuple]) -> object:
    """Return an entry with integers where it has floats like 1.0; the same entry without them."""
    if not isinstance(entry, dict):
        return entry
    integers = {
        key: int(entry[key])
        for key, value_type in required.items()
        if value_type is int
        and isinstance(entry.get(key), float)
        and entry[key].is_integer()
        and abs(entry[key]) < _EXACT
    }
    return {**entry, **integers} if integers else entry


def _entry_problem(entry: object, required: Mapping[str, type | tuple], expected: str) -> str:
    """Return what is wrong with an entry; '' if nothing is."""
    for key, value_type in required.items():
        if not isinstance(entry, dict) or key not in entry:
            return f'no {key}; {expected}'
        value = entry[key]
        if not isinstance(value, value_type) or (value_type is int and isinstance(value, bool)):
            return f'{key} {short_repr(value)}; expected {_type_names(value_type)}'
    return ''


def _type_names(value_type: type | tuple) -> str:
    types = value_type if isinstance(value_type, tuple) else (value_type,)
    return ' or '.join(t.__name__ for t in types)


def image_path(file: Path, source: str, folder: Path, name: str) -> Path:
    """Return the path of an image that a data set's file names; see `files.access.path_below`.

    Args:
        file: that names the image.
        source: the entry in it, for the message.
        folder: of the images.
        name: from the file, relative to the folder.

    Raises:
        DataError: the name leads out of the folder.
    """
    path = path_below(folder, name)
    if path is None:
        raise DataError(
            f'{file}: {source} has the file name {short_repr(name)}, which leads out of the image '
            f'folder {folder}; expected a name relative to this folder'
        )
    return path


def check_image(path: Path, source: str) -> Path:
    """Return the path of an entry's image, a file that may be read.

    Raises:
        DataError: it is not; the message says whether it is missing or may not be read.
    """
    problem = access_problem(path)
    if problem.startswith('no such'):
        similar = _names_by_spelling(path.parent).get(_spelling(path.name))
        cure = (
            f'the folder has {similar!a} in place of {path.name!a}: rename it'
            if similar
            else 'add it'
        )
        raise DataError(f'{source}: its image {path} is missing; {cure}')
    if problem or not path.is_file():
        raise DataError(f'{source}: its image {path}: {problem or "is a folder"}')
    return path


@lru_cache(maxsize=8)
def _names_by_spelling(folder: Path) -> dict[str, str]:
    """Return the names in a folder by what `_spelling` makes of them; none if it has no names."""
    try:
        return {_spelling(path.name): path.name for path in list_folder(folder)}
    except DataError:
        return {}


def _spelling(name: str) -> str:
    """Return a name as Windows and macOS compare it: by letters, in upper or lower case."""
    return unicodedata.normalize('NFC', name).casefold()
