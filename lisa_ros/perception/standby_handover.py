# SPDX-License-Identifier: Apache-2.0
"""Hand the standby process of a node that died to the node that is started next.

A standby (`worker_supervisor`) has spent seconds to import PyTorch and has no model yet. If its
node is killed, it waits `PATIENCE` for another node, then ends. So a node that is started again
answers after the seconds that its own imports and the weights take.

The standby listens on a Unix socket in a folder that only its user can enter. The socket's name
has the `fingerprint` of the node: another node takes the standby only if program, libraries,
working folder, environment, groups, cores and limits are the same. It sends the descriptors of a
new channel, and its own stdout and stderr. Linux only: elsewhere there is no handover.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import select
import signal
import socket
import stat
import struct
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PATIENCE = 10.0  # how long a standby waits for the next node [s]
_EXCHANGE = 1.0  # how long one side waits for the other [s]
_TAKEN = b'1'  # the standby's reply
_CREDENTIALS = struct.Struct('3i')  # process, user, group: of SO_PEERCRED
_F_SETSIG = 10  # of fcntl(2)
_LONGEST_FOLDER = 80  # so that the path of a socket has no more than 107 characters
# systemd changes these at each start of a service.
_CHANGING = (
    *('INVOCATION_ID', 'JOURNAL_STREAM', 'SYSTEMD_EXEC_PID', 'WATCHDOG_PID'),
    *('LISTEN_PID', 'MANAGERPID', 'NOTIFY_SOCKET'),
)


def fingerprint() -> str:
    """Return what a process must have in common with this one to take over its standby.

    Call it before libraries are imported that change the environment.

    Returns:
        Empty if this process can neither offer nor take over a standby.
    """
    try:
        content = (_program(), _environment())
    except OSError:  # the working folder was removed, for example
        return ''
    return hashlib.sha256(repr(content).encode('utf-8', 'surrogateescape')).hexdigest()[:16]


def _program() -> list[object]:
    """Return which code a process runs: its own files, and the folders of installed packages."""
    package, files = Path(__file__).resolve().parents[1], []
    for file in sorted(package.rglob('*.py')):
        with contextlib.suppress(OSError):  # an editor's lock, or removed just now
            status = file.stat()
            files.append((file.relative_to(package), status.st_mtime_ns, status.st_size))
    installed = []
    for folder in map(Path, sys.path):
        if folder.name.endswith('-packages'):
            with contextlib.suppress(OSError):
                installed.append((folder, folder.stat().st_mtime_ns))
    return [sys.executable, sys.path, package, files, installed]


def _environment() -> list[object]:
    """Return where a process runs: folder, variables, groups, cores and limits."""
    variables = sorted(item for item in os.environ.items() if item[0] not in _CHANGING)
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else []
    limits = Path('/proc/self/cgroup')
    return [
        *(Path.cwd(), variables, sorted(os.getgroups()), cores),
        limits.read_text(encoding='utf-8') if limits.exists() else '',
    ]


# ---- in the standby


def wait_for_next_parent(node_fingerprint: str, count: int) -> list[int] | None:
    """Wait for a node that takes this process over; then write to that node's stdout and stderr.

    While it waits, SIGTERM ends this process if its action is the default: then nobody who stops
    all processes waits for it.

    Args:
        node_fingerprint: of the node that died.
        count: of descriptors that the next node sends.

    Returns:
        The descriptors, as `adopt` was given them; None if no node came in time.
    """
    # Who reads the dead node's output sees end-of-file.
    _use_output(*[os.open(os.devnull, os.O_RDWR)] * 2)
    folder = _private_folder()
    if folder is None or not node_fingerprint:
        return None
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    try:
        return _listen(folder / f'{node_fingerprint}-{os.getpid()}', count)
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])


def _listen(path: Path, count: int) -> list[int] | None:
    with socket.socket(socket.AF_UNIX) as server:
        try:
            path.unlink(missing_ok=True)
            server.bind(str(path))
            server.listen(1)
            server.settimeout(PATIENCE)
            peer, _ = server.accept()
        except OSError:  # also: nobody came in time
            return None
        finally:
            with contextlib.suppress(OSError):
                path.unlink()
    with peer:
        return _receive(peer, count)


def _receive(peer: socket.socket, count: int) -> list[int] | None:
    try:
        peer.settimeout(_EXCHANGE)
        if _peer(peer)[1] != os.getuid():
            return None
        _, descriptors, _, _ = socket.recv_fds(peer, 1, count + 2)
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        if len(descriptors) != count + 2:
            return None
        _use_output(*descriptors[count:])
        peer.sendall(_TAKEN)
    except OSError:
        return None
    return descriptors[:count]


def _use_output(stdout: int, stderr: int) -> None:
    """Write to these descriptors from now on, and close them."""
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    for descriptor in {stdout, stderr}:
        os.close(descriptor)


def end_with_lifeline(read_end: int) -> None:
    """Let the kernel end this process when the pipe's other end is closed, even while it hangs.

    The kernel ends the child of a process that ends (PR_SET_PDEATHSIG), but not one that another
    process has started.
    """
    fcntl.fcntl(read_end, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(read_end, _F_SETSIG, signal.SIGKILL)
    flags = fcntl.fcntl(read_end, fcntl.F_GETFL)
    fcntl.fcntl(read_end, fcntl.F_SETFL, flags | os.O_ASYNC)
    poll = select.poll()
    poll.register(read_end, 0)
    if poll.poll(0):  # it was closed before
        os._exit(0)


# ---- in the node


@dataclass(frozen=True)
class Standby:
    """A standby that was taken over."""

    pid: int
    exit_descriptor: int  # of pidfd_open(2): readable when the process has ended


def adopt(node_fingerprint: str, descriptors: Sequence[int]) -> Standby | None:
    """Take over a standby that waits; return None if there is none.

    Args:
        node_fingerprint: of this process.
        descriptors: for the standby, which gets copies.
    """
    can_adopt = node_fingerprint and hasattr(os, 'pidfd_open')
    folder = _private_folder() if can_adopt else None
    if folder is None:
        return None
    waiting = sorted(folder.glob(f'{node_fingerprint}-*'))
    return next(filter(None, (_connect(path, descriptors) for path in waiting)), None)


def _connect(path: Path, descriptors: Sequence[int]) -> Standby | None:
    """Take over the standby that listens on a socket; return None if that fails."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_EXCHANGE)
            connection.connect(str(path))
            return _take(connection, descriptors)
    except ConnectionRefusedError:  # it was killed while it waited
        with contextlib.suppress(OSError):
            path.unlink()
    except OSError:  # another node was faster, or it does not answer
        pass
    return None


def _take(connection: socket.socket, descriptors: Sequence[int]) -> Standby | None:
    process, user, _ = _peer(connection)
    if user != os.getuid() or process <= 1:  # 0: it belongs to another container
        return None
    exit_descriptor = os.pidfd_open(process)  # before its number can belong to another process
    try:
        socket.send_fds(connection, [_TAKEN], [*descriptors, 1, 2])
        if connection.recv(1) == _TAKEN:
            kept, exit_descriptor = exit_descriptor, None
            return Standby(process, kept)
    finally:
        if exit_descriptor is not None:
            os.close(exit_descriptor)
    return None


# ---- both


def _private_folder() -> Path | None:
    """Return the folder of the sockets; None if none can be kept from other users."""
    if sys.platform != 'linux':
        return None
    for parent in (os.environ.get('XDG_RUNTIME_DIR'), tempfile.gettempdir()):
        folder = Path(parent or '') / f'lisa_ros-{os.getuid()}'
        if parent and len(os.fsencode(folder)) <= _LONGEST_FOLDER and _is_private(folder):
            return folder
    return None


def _is_private(folder: Path) -> bool:
    """Make a folder if there is none; return whether only this user can enter it."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError:
        return False
    is_own = status.st_uid == os.getuid() and not stat.S_IMODE(status.st_mode) & 0o077
    return stat.S_ISDIR(status.st_mode) and is_own


def _peer(connection: socket.socket) -> tuple[int, int, int]:
    """Return the process, the user and the group at the other end."""
    content = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return _CREDENTIALS.unpack(content)
