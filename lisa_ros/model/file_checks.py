# SPDX-License-Identifier: Apache-2.0
"""Check files and folders of other people before they are opened: present, readable, whole.

A path that is missing and a path that may not be read are different faults with different cures.
Any thread.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from lisa_ros.errors import CheckpointError
from lisa_ros.files.access import describe_error

_KINDS = (
    (stat.S_ISDIR, 'a folder'),
    (stat.S_ISCHR, 'a device'),
    (stat.S_ISBLK, 'a device'),
    (stat.S_ISFIFO, 'a pipe'),
    (stat.S_ISSOCK, 'a socket'),
)
_MAX_HOLES = 1000  # extents that are looked at


def exists(path: Path) -> bool:
    """Return whether something is at a path, `~` expanded.

    Raises:
        CheckpointError: that cannot be known, because a folder may not be entered.
    """
    try:
        path.expanduser().stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: no home of a "~user"
        raise CheckpointError(f'{path}: {describe_error(path, error)}') from error
    return True


def check_file(path: Path, expected: str = 'a file') -> int:
    """Return the size of a regular file that may be read [bytes].

    Args:
        path: of the file.
        expected: what it should be, for the message.

    Raises:
        CheckpointError: it is missing, not a regular file, or may not be read.
    """
    try:
        status = path.stat()
        for has_kind, kind in _KINDS:  # opening a pipe would wait for ever
            if has_kind(status.st_mode):
                raise CheckpointError(f'{path}: is {kind}; expected {expected}')
        path.open('rb').close()
    except (OSError, ValueError) as error:
        hint = f'; expected {expected}' if isinstance(error, FileNotFoundError) else ''
        raise CheckpointError(f'{path}: {describe_error(path, error)}{hint}') from error
    return status.st_size


def check_folder(folder: Path) -> None:
    """Check that a folder can be listed and entered.

    Raises:
        CheckpointError: it is missing, not a folder, or may not be read.
    """
    try:
        os.scandir(folder).close()
        with suppress(FileNotFoundError):
            (folder / 'config.json').lstat()  # needs the permission to enter
    except (OSError, ValueError) as error:
        raise CheckpointError(f'{folder}: {describe_error(folder, error)}') from error


def check_whole(path: Path) -> None:
    """Check that a weight file is not mostly holes, which a download that broke off leaves.

    Raises:
        CheckpointError: less than half of the file's size is on the disk.
    """
    size = check_file(path)
    holes = _hole_bytes(path, size)
    if holes > size / 2:
        raise CheckpointError(
            f'{path}: claims {size} bytes, but {holes} of them are holes without data: the '
            'download broke off; download it again'
        )


def _hole_bytes(path: Path, size: int) -> int:
    """Return how many bytes of a file are holes; 0 where the file system does not tell."""
    holes = position = 0
    try:
        with path.open('rb') as file:
            for _ in range(_MAX_HOLES):
                start = os.lseek(file.fileno(), position, os.SEEK_HOLE)
                if start >= size:
                    break
                try:
                    position = os.lseek(file.fileno(), start, os.SEEK_DATA)
                except OSError:  # no data up to the end
                    return holes + size - start
                holes += position - start
    except (OSError, AttributeError):  # not supported by this system
        return 0
    return holes
