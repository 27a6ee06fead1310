# SPDX-License-Identifier: Apache-2.0
"""Files of data sets are read with errors that name the file, what came and what was expected."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from lisa_ros.errors import DataError

Broken = Callable[[DataError], None]


def fatal(error: DataError) -> None:
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


def entries(path: Path, plain: object, name: str | None, *wanted: str) -> list[dict]:
    """Return the list `name` of a file, or the file itself if it is one; each with these keys.

    Raises:
        DataError: it is no list of such objects.
    """
    found = plain
    if name is not None:
        found = plain.get(name) if isinstance(plain, dict) else None
    what = f'a list "{name}"' if name else 'a list'
    if not isinstance(found, list):
        raise DataError(f'{path}: has not {what}; expected objects with {", ".join(wanted)}')
    for place, one in enumerate(found):
        missing = [key for key in wanted if not isinstance(one, dict) or key not in one]
        if missing:
            raise DataError(
                f'{path}: entry {place} of {what} has no {", ".join(missing)}; expected objects '
                f'with {", ".join(wanted)}'
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
