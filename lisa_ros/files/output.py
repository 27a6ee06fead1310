# SPDX-License-Identifier: Apache-2.0
"""Check that results can be written, before the work that takes minutes.

Nothing is changed: files keep their content, and nothing is left where nothing was. A disk that
becomes full later is found only when the result is written.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from lisa_ros.errors import OutputError
from lisa_ros.files.folder_lock import check_not_held


def check_output_file(path: Path, cure: str) -> None:
    """Check that a file can be written; its folder must exist.

    Args:
        path: of the file, which may be missing. A device such as /dev/stdout is not opened.
        cure: ends the message, such as "give another --plot".

    Raises:
        OutputError: it cannot.
    """
    try:
        if path.is_file() or path.is_dir():
            path.open('ab').close()
        elif not path.exists():
            tempfile.TemporaryFile(dir=path.resolve().parent).close()
    except OSError as error:
        raise output_error(path, error, cure) from error


def check_output_folder(path: Path, cure: str = 'give another --out') -> None:
    """Check that files can be written into a folder, which may be missing.

    Args:
        path: of the folder.
        cure: ends the message.

    Raises:
        OutputError: they cannot, or a run of another process uses the folder.
    """
    check_not_held(path)
    try:
        existing = next(folder for folder in (path, *path.parents) if folder.exists())
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        raise output_error(path, error, cure) from error


def output_error(path: Path, error: OSError, cure: str) -> OutputError:
    """Return the error of a file or folder that cannot be written, with the cause and a cure."""
    return OutputError(f'{path}: cannot be written ({error.strerror}); {cure}')
