# SPDX-License-Identifier: Apache-2.0
"""Files of data sets are read with errors that name the file, what came and what was expected."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from lisa_ros.errors import DataError

Broken = Callable[[DataError], None]


def raise_error(error: DataError) -> None:
    """End the reading at what is broken; the other way is to note it, as `list.append` does."""
    raise error


def read_json(path: Path) -> object:
    """Return what a JSON file holds.

    Raises:
        DataError: it cannot be read.
    """
    try:
        raw = path.read_bytes()
        try:
            return json.loads(raw.decode('utf-8'))
        except UnicodeDecodeError:
            return json.loads(raw.decode('cp1252'))  # some of ReasonSeg's own
    except (OSError, ValueError) as error:
        raise DataError(
            f'{path}: no JSON that can be read ({error}); copy or save it again'
        ) from error


def validated_entries(
    path: Path, plain: object, name: str | None, /, **wanted: type | tuple
) -> list[dict]:
    """Return the list `name` of a file, or the file itself if it is one.

    Args:
        path: for messages.
        plain: what the file holds.
        name: of the list; None: the file is the list.
        wanted: what each entry must have, with its type; any for `object`.

    Raises:
        DataError: it is no list of such objects.
    """
    found = plain
    if name is not None:
        found = plain.get(name) if isinstance(plain, dict) else None
    what = f'a list "{name}"' if name else 'a list'
    form = f'expected objects with {", ".join(wanted)}'
    if not isinstance(found, list):
        raise DataError(f'{path}: has not {what}; {form}')
    for place, one in enumerate(found):
        for key, kind in wanted.items():
            if not isinstance(one, dict) or key not in one:
                raise DataError(f'{path}: entry {place} of {what} has no {key}; {form}')
            if not isinstance(one[key], kind):
                raise DataError(
                    f'{path}: entry {place} of {what} has {key} {one[key]!r}, which it cannot be'
                )
    return found


def folder(path: str | Path, holds: str) -> Path:
    """Return the path of a folder that is there.

    Raises:
        DataError: it is not.
    """
    path = Path(path)
    if not path.is_dir():
        raise DataError(f'{path}: there is no such folder; expected one with {holds}')
    return path
