# SPDX-License-Identifier: Apache-2.0
"""Texts about model folders and the errors of libraries, for messages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def describe_folder(folder: Path) -> str:
    """Return the file names in a folder, at most 12, for error messages."""
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        return f'nothing: {error.strerror}'
    return listed(names) or 'an empty folder'


def listed(names: Sequence[str], limit: int = 12) -> str:
    """Return names, separated by commas, at most `limit` of them."""
    more = f' and {len(names) - limit} more' if len(names) > limit else ''
    return ', '.join(names[:limit]) + more
