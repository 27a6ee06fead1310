# SPDX-License-Identifier: Apache-2.0
"""Files and folders of other people: say why one cannot be read, and contain the paths in them.

A path that is missing and a path that may not be read are different faults with different cures.
"""

from __future__ import annotations

import getpass
import os
import stat
from pathlib import Path, PurePosixPath, PureWindowsPath

from lisa_ros.error_text import one_line
from lisa_ros.errors import DataError


def access_problem(path: Path) -> str:
    """Return why a file or folder cannot be read, with the cure; '' if it can.

    The text starts with "no such file or folder" or "permission denied", or names another cause.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            os.scandir(path).close()
            if not _may_enter(path):  # names can be listed, and no file opened
                raise PermissionError
        elif stat.S_ISREG(mode):
            path.open('rb').close()
        else:
            return 'neither a file nor a folder, but a device, pipe or socket'
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        return describe_error(path, error)
    return ''


def is_missing(path: Path) -> bool:
    """Return whether there is nothing at a path; False if that cannot be known."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        return False
    return False


def describe_error(path: Path, error: Exception) -> str:
    """Return the cause of an error and its cure, on one line.

    Args:
        path: that was accessed.
        error: what was raised, an OSError or another exception.
    """
    if isinstance(error, FileNotFoundError):
        target = f' (a link to {path.readlink()})' if path.is_symlink() else ''
        return f'no such file or folder{target}'
    if isinstance(error, NotADirectoryError):
        return 'no such file or folder: a part of the path is a file'
    if isinstance(error, PermissionError):
        blocked = _blocking_folder(path)
        return (
            f'permission denied for user {_user()}: {blocked} may not be read; its owner can '
            f'allow it with: chmod -R a+rX {blocked}'
        )
    if isinstance(error, IsADirectoryError):
        return 'is a folder; expected a file'
    return one_line((isinstance(error, OSError) and error.strerror) or error)


def _blocking_folder(path: Path) -> Path:
    """Return the outermost parent folder that may not be entered; the path itself if all may."""
    for parent in reversed(path.absolute().parents):
        if not _may_enter(parent):
            return parent
    return path


def _may_enter(folder: Path) -> bool:
    return os.access(folder, os.X_OK, effective_ids=os.access in os.supports_effective_ids)


def _user() -> str:
    try:
        import pwd

        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a container's user without a name
        return str(os.geteuid())
    except ImportError:  # not Unix
        return getpass.getuser()


def readable_folder(path: str | Path, content: str) -> Path:
    """Return the path of an existing folder that can be listed.

    Args:
        path: of the folder.
        content: what the folder should contain, for the message.

    Raises:
        DataError: there is no such folder, it is a file, or it may not be read.
    """
    path = Path(path)
    problem = access_problem(path)
    if problem.startswith('no such'):
        raise DataError(f'{path}: no such folder; expected one with {content}')
    if problem:
        raise DataError(f'{path}: {problem}')
    if not path.is_dir():
        raise DataError(f'{path}: is a file; expected a folder with {content}')
    return path


def list_folder(path: Path, suffix: str = '') -> list[Path]:
    """Return the entries of a folder by name; with `suffix`, only those that end with it.

    The suffix is in lower case, those of the files in any ("A.PNG"). The files "._NAME" are left
    out: macOS adds them to archives, with its own attributes of NAME. `Path.glob` returns nothing
    for a folder that may not be read. This function raises.

    Raises:
        DataError: the folder may not be read.
    """
    try:
        entries = sorted(
            entry
            for entry in path.iterdir()
            if entry.name.lower().endswith(suffix) and not entry.name.startswith('._')
        )
        if not _may_enter(path):
            raise PermissionError
        return entries
    except OSError as error:
        raise DataError(f'{path}: {describe_error(path, error)}') from error


# ---- paths that a file of other people contains


def path_below(folder: Path, name: str) -> Path | None:
    """Return the path of a name in a data set's file, below the folder that it belongs to.

    Names are relative to the folder; backslashes of Windows are read as slashes. An absolute path
    is accepted if it is below the folder. `..` may not lead out. Symbolic links are followed: who
    made the folder made them.

    Args:
        folder: of the images.
        name: from the file.

    Returns:
        None if the name leads out of the folder, or is no path.
    """
    if not name.strip() or '\0' in name:
        return None
    if '\\' in name and not (folder / name).is_file():
        name = name.replace('\\', '/')
    target = _normalized(folder / name)
    is_below = any(root in target.parents for root in (_normalized(folder), folder.resolve()))
    return folder / name if is_below else None


def _normalized(path: Path) -> Path:
    """Return an absolute path without `..`; unlike `resolve`, it follows no link."""
    return Path(os.path.normpath(path.absolute()))


def path_inside(folder: Path, name: str) -> Path | None:
    """Return the path of a name in a report's file, inside the folder of the report.

    Nothing may lead out: no absolute path, no `..`, no symbolic link.

    Returns:
        None if it does.
    """
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    is_absolute = posix.is_absolute() or windows.drive or windows.root
    if not name.strip() or '\0' in name or is_absolute or '..' in (*posix.parts, *windows.parts):
        return None
    path = folder / name
    try:
        return path if path.resolve().is_relative_to(folder.resolve()) else None
    except (OSError, RuntimeError):  # a loop of links
        return None
