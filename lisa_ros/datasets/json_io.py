# SPDX-License-Identifier: Apache-2.0
"""Reading of data set files, with errors that name the file, its content and what was expected."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from lisa_ros.errors import DataError

ErrorHandler = Callable[[DataError], None]  # returns: skip the broken file and go on


def raise_error(error: DataError) -> None:
    """Stop at the first broken file. `list.append` is an ErrorHandler that collects them."""
    raise error


def read_json(path: Path) -> object:
    """Return the content of a JSON file, in UTF-8 or, as some of ReasonSeg's, in cp1252.

    Raises:
        DataError: it cannot be read.
    """
    try:
        raw = path.read_bytes()
        try:
            return json.loads(raw.decode('utf-8'))
        except UnicodeDecodeError:
            return json.loads(raw.decode('cp1252'))
    except (OSError, ValueError) as error:
        raise DataError(
            f'{path}: cannot be read as JSON ({error}); copy or save it again'
        ) from error


def validated_entries(
    path: Path, content: object, name: str | None, /, **required: type | tuple
) -> list[dict]:
    """Return a list of objects from a file, after a check of their keys and types.

    Args:
        path: of the file, for messages.
        content: of the file.
        name: key of the list in `content`; None: `content` is the list.
        required: the type of each key that every object must have; `object` accepts any.

    Raises:
        DataError: it is not a list of such objects.
    """
    entries = content
    if name is not None:
        entries = content.get(name) if isinstance(content, dict) else None
    list_name = f'a list "{name}"' if name else 'a list'
    expected = f'expected objects with {", ".join(required)}'
    if not isinstance(entries, list):
        raise DataError(f'{path}: does not have {list_name}; {expected}')
    for index, entry in enumerate(entries):
        for key, value_type in required.items():
            if not isinstance(entry, dict) or key not in entry:
                raise DataError(f'{path}: entry {index} of {list_name} has no {key}; {expected}')
            if not isinstance(entry[key], value_type):
                raise DataError(
                    f'{path}: entry {index} of {list_name} has {key} {entry[key]!r}; expected '
                    f'{_type_names(value_type)}'
                )
    return entries


def _type_names(value_type: type | tuple) -> str:
    types = value_type if isinstance(value_type, tuple) else (value_type,)
    return ' or '.join(t.__name__ for t in types)


def existing_folder(path: str | Path, content: str) -> Path:
    """Return the path of an existing folder.

    Args:
        path: of the folder.
        content: what the folder should contain, for the message.

    Raises:
        DataError: there is no such folder.
    """
    path = Path(path)
    if not path.is_dir():
        raise DataError(f'{path}: no such folder; expected one with {content}')
    return path
