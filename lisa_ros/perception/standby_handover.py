# SPDX-License-Identifier: Apache-2.0
"""Hand the standby process of a node that died to the node that is started next.

A standby (`worker_supervisor`) has spent seconds to import PyTorch and has no model yet. If its
node is killed, it waits `PATIENCE` for another node, then ends. So a node that is started again
answers after the seconds that its own imports and the weights take.

The standby listens on a Unix socket in a folder that only its user can enter. The socket's name
has the `fingerprint` of the node: another node takes the standby only if program, search path,
working folder, environment and user are the same. It sends the descriptors of a new channel, and
its own stdout and stderr. Linux only: elsewhere there is no handover.
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
from collections.abc import Iterator, Sequence
from pathlib import Path

PATIENCE = 5.0  # how long a standby waits for the next node [s]
_EXCHANGE = 1.0  # how long one side waits for the other [s]
_TAKEN = b'1'  # the standby's reply
_CREDENTIALS = struct.Struct('3i')  # process, user, group: of SO_PEERCRED
_F_SETSIG = 10  # of fcntl(2)
# systemd gives each start of a service others.
_CHANGING = ('INVOCATION_ID', 'JOURNAL_STREAM', 'SYSTEMD_EXEC_PID')


def fingerprint() -> str:
    """Return what a process must have in common with this one to take over its standby.

    Call it before libraries are imported that change the environment.
    """
    package = Path(__file__).resolve().parents[1]
    changed = max((file.stat().st_mtime_ns for file in package.rglob('*.py')), default=0)
    environment = sorted(item for item in os.environ.items() if item[0] not in _CHANGING)
    content = (sys.executable, sys.path, str(Path.cwd()), str(package), changed, environment)
    return hashlib.sha256(repr(content).encode('utf-8', 'surrogateescape')).hexdigest()[:16]


# ---- in the standby


def wait_for_next_parent(fingerprint: str, count: int) -> list[int] | None:
    """Wait for a node that takes this process over; its stdout and stderr become those of it.

    Args:
        fingerprint: of the node that died.
        count: of descriptors that the next node sends.

    Returns:
        The descriptors, as `adopt` was given them; None if no node came in time.
    """
    _use_output(*[os.open(os.devnull, os.O_RDWR)] * 2)  # who reads the dead node's sees its end
    folder = _private_folder()
    if folder is None:
        return None
    path = folder / f'{fingerprint}-{os.getpid()}'
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
        _, descriptors, _, _ = socket.recv_fds(peer, 1, count + 2, socket.MSG_CMSG_CLOEXEC)
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


def adopt(fingerprint: str, descriptors: Sequence[int]) -> int | None:
    """Take over a standby that waits; return its process id, None if there is none.

    Args:
        fingerprint: of this process.
        descriptors: for the standby, which gets copies.
    """
    for path in _waiting(fingerprint):
        try:
            with socket.socket(socket.AF_UNIX) as standby:
                standby.settimeout(_EXCHANGE)
                standby.connect(str(path))
                process, user, _ = _peer(standby)
                if user != os.getuid():
                    continue
                socket.send_fds(standby, [_TAKEN], [*descriptors, 1, 2])
                if standby.recv(1) == _TAKEN:
                    return process
        except OSError:  # it has ended, or another node was faster
            with contextlib.suppress(OSError):
                path.unlink()
    return None


def _waiting(fingerprint: str) -> Iterator[Path]:
    folder = _private_folder()
    if folder is not None:
        yield from sorted(folder.glob(f'{fingerprint}-*'))


# ---- both


def _private_folder() -> Path | None:
    """Return the folder of the sockets; None if it cannot be kept from other users."""
    if sys.platform != 'linux':
        return None
    user = os.getuid()
    folder = Path(os.environ.get('XDG_RUNTIME_DIR') or tempfile.gettempdir())
    folder /= f'lisa_ros-{user}'
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError:
        return None
    is_private = status.st_uid == user and not stat.S_IMODE(status.st_mode) & 0o077
    return folder if stat.S_ISDIR(status.st_mode) and is_private else None


def _peer(connection: socket.socket) -> tuple[int, int, int]:
    """Return the process, the user and the group at the other end."""
    content = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return _CREDENTIALS.unpack(content)
