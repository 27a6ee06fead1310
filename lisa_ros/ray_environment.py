# SPDX-License-Identifier: Apache-2.0
"""The environment of Ray, set before it is imported: no telemetry, nobody else in our clusters.

Ray's ports accept work from whoever reaches them. A cluster that a command starts for itself
listens on the loopback device only, and only the processes of that command know its token.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

_TOKENS = ('RAY_AUTH_TOKEN', 'RAY_AUTH_TOKEN_PATH')
_OWN_CLUSTER_ADDRESS = '127.0.0.1'  # of its only node
_PREFIX, _LOCK = 'ray-', 'lisa-ros.lock'


def prepare_ray(address: str | None) -> None:
    """Set what Ray reads when it is imported; what the user has set stays.

    A program that has imported Ray before keeps Ray's own defaults: any address, no token.

    Args:
        address: of a cluster that runs already; None: the command starts one of its own.
    """
    os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')  # no telemetry
    os.environ.setdefault('RAY_BACKEND_LOG_LEVEL', 'fatal')
    os.environ.setdefault('RAY_SERVE_LOG_TO_STDERR', '0')
    os.environ.setdefault('RAY_DISABLE_FAILURE_SIGNAL_HANDLER', '1')  # SIGTERM is ours
    # a Ray that is imported has read its settings, and would not agree with its own cluster
    is_late = 'ray' in sys.modules
    if address is not None or is_late:
        return
    # without it Ray takes the address of a network device, as for a cluster of machines
    os.environ.setdefault('RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER', '0')
    # a program that has used Ray, and starts this one, leaves the mode behind, and no token
    has_token = any(name in os.environ for name in _TOKENS)
    if os.environ.setdefault('RAY_AUTH_MODE', 'token') == 'token' and not has_token:
        os.environ['RAY_AUTH_TOKEN'] = secrets.token_hex(32)


def own_cluster_options() -> dict[str, object]:
    """Return the options of `ray.init` for a cluster that ends with this process.

    Its folder is a new one: Ray keeps the logs of each cluster, and programs look for a running
    cluster in the folder that they share. `delete_cluster_folders` deletes it, at the latest when
    the process ends; if that was killed, the next call here. Its path is short, since those of
    sockets are limited.
    """
    parent = Path(os.environ.get('RAY_TMPDIR') or tempfile.gettempdir())
    _delete_abandoned_folders(parent)
    folder = _ClusterFolder.create(parent)
    _folders.append(folder)
    atexit.register(delete_cluster_folders)
    return {
        'address': 'local',
        'include_dashboard': False,
        '_node_ip_address': _OWN_CLUSTER_ADDRESS,
        '_temp_dir': str(folder.path),
    }


def exit_with_own_cluster() -> NoReturn:
    """End this process at once, and with it a cluster of its own, while a thread calls Ray.

    Ray's calls can neither be interrupted nor be left behind in a thread: Python would wait for
    it, until a large model is loaded.
    """
    for process in _descendants(os.getpid()):
        with contextlib.suppress(OSError):  # it has ended
            os.kill(process, signal.SIGKILL)
    delete_cluster_folders()
    os._exit(0)


def _descendants(process: int) -> list[int]:
    """Return the processes that a process has started, and theirs (Linux)."""
    texts = []
    for file in Path(f'/proc/{process}/task').glob('*/children'):
        with contextlib.suppress(OSError):  # the thread has ended
            texts.append(file.read_text())
    children = [int(word) for text in texts for word in text.split()]
    return [*children, *(each for child in children for each in _descendants(child))]


def delete_cluster_folders() -> None:
    """Delete the folders of clusters that have been shut down."""
    while _folders:
        _folders.pop().delete()


@dataclass(frozen=True)
class _ClusterFolder:
    """The folder of a cluster; its owner holds the lock of a file in it, until it ends."""

    path: Path
    lock: int  # descriptor

    @classmethod
    def create(cls, parent: Path) -> _ClusterFolder:
        """Make a folder that belongs to this process."""
        while True:
            path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
            lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            with contextlib.suppress(OSError):  # a file system without locks: it is never deleted
                fcntl.flock(lock, fcntl.LOCK_EX)
            if (path / _LOCK).exists():
                return cls(path, lock)
            os.close(lock)  # it was deleted before it had an owner

    @classmethod
    def take_over(cls, path: Path) -> _ClusterFolder | None:
        """Return a folder whose owner has ended; None: it has not, or is not of our user.

        Raises:
            OSError: it is no such folder.
        """
        if path.is_symlink() or path.stat().st_uid != os.geteuid():
            return None
        lock = os.open(path / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            return None
        return cls(path, lock)

    def delete(self) -> None:
        """Delete it, the lock last: what cannot be deleted now is found again."""
        with contextlib.suppress(OSError):  # another process deletes in it, or writes
            for entry in list(self.path.iterdir()):
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry, ignore_errors=True)
                elif entry.name != _LOCK:
                    entry.unlink(missing_ok=True)
            if [entry.name for entry in self.path.iterdir()] == [_LOCK]:
                shutil.rmtree(self.path, ignore_errors=True)
        os.close(self.lock)


def _delete_abandoned_folders(parent: Path) -> None:
    """Delete the folders of clusters whose processes were killed."""
    for path in parent.glob(f'{_PREFIX}*'):
        with contextlib.suppress(OSError):  # it has no such file: it is not ours
            folder = _ClusterFolder.take_over(path)
            if folder is not None:
                folder.delete()


_folders: list[_ClusterFolder] = []  # of the clusters of this process
