# SPDX-License-Identifier: Apache-2.0
"""Keeps two runs out of one folder, where each would replace files of the other.

The operating system locks the file `.lock` in the folder. The lock ends with its process, however
that ends; child processes do not have it. The file stays, and names its last process.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from lisa_ros.errors import OutputError

_LOCK_FILE = '.lock'
_MAX_OWNER = 200  # of the name of a process [bytes]
_held: set[Path] = set()  # by this process, which the operating system would let in again
_held_guard = threading.Lock()


@contextlib.contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Hold a folder for a run, so that no other run uses it; any thread may do so.

    Where the file system has no locks, or the file cannot be written, the run goes on with a
    warning.

    Args:
        folder: exists.

    Raises:
        OutputError: another run uses it.
    """
    path = folder.resolve() / _LOCK_FILE
    with _held_guard:
        if path in _held:
            raise _in_use(folder, _own_name())
        descriptor = _lock(path, folder)
        _held.add(path)
    try:
        yield
    finally:
        with _held_guard:
            _held.discard(path)
            if descriptor is not None:
                os.close(descriptor)


def check_not_held(folder: Path) -> None:
    """Check that no other process holds a folder, which may be missing; nothing is written.

    Raises:
        OutputError: another run uses it.
    """
    path = folder.resolve() / _LOCK_FILE
    with _held_guard, contextlib.suppress(OSError):  # `hold_folder` warns of a missing lock
        if path in _held:
            return  # closing the file here would end the lock
        with path.open('rb', buffering=0) as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                owner = file.read(_MAX_OWNER).decode(errors='replace')
                raise _in_use(folder, owner.strip() or 'another process') from None


def _lock(path: Path, folder: Path) -> int | None:
    """Return the descriptor that holds the lock; None: the file system has none.

    Raises:
        OutputError: another process has it.
    """
    descriptor = None
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        # not flock: a child process would inherit it, and could outlive its parent
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if descriptor is not None:
            owner = os.read(descriptor, _MAX_OWNER).decode(errors='replace')
            os.close(descriptor)
            if isinstance(error, BlockingIOError | PermissionError):
                raise _in_use(folder, owner.strip() or 'another process') from None
        print(
            f'warning: {path} cannot be locked ({error.strerror}): start no second run in '
            f'{folder} while this one lasts',
            file=sys.stderr,
        )
        return None
    with contextlib.suppress(OSError):  # the disk is full; the lock holds without a name
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, _own_name().encode(errors='replace'), 0)
    return descriptor


def _own_name() -> str:
    return f'process {os.getpid()} on {socket.gethostname()}'


def _in_use(folder: Path, owner: str) -> OutputError:
    return OutputError(
        f'{folder}: a run of {owner} uses it; wait until that has ended, or give another --out'
    )
