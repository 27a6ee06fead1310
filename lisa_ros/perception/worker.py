# SPDX-License-Identifier: Apache-2.0
"""A child process that runs a model, as its parent sees it: start, exchange messages, end.

It may also be a process that another node has started (`standby_handover`).

Threads: `send` and `receive` belong to one thread at a time, `start`, `adopt` and `wait` to the
thread that supervises the process, which must outlive it: the kernel ends the child with the
thread that started it. All other methods may be called from any thread.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import time
import weakref
from multiprocessing import Pipe, connection

from lisa_ros.perception import standby_handover
from lisa_ros.perception.process_memory import process_memory
from lisa_ros.perception.shared_channel import Channel, ChannelClosedError, SharedMemory
from lisa_ros.perception.worker_messages import Cancel
from lisa_ros.stop_signals import STOP_SIGNALS

# The parent's own search path comes before any other import, so the child finds the same modules.
_CODE = (
    'import sys; sys.path[:] = sys.argv[5:]; '
    'from lisa_ros.perception.worker_process import main; main(*map(int, sys.argv[1:5]))'
)
_REAP_TIMEOUT = 5.0  # how long a killed process may take to go: longer if a driver holds it [s]
_REAP_WAIT = 0.1  # for a process that has ended, if another thread reads its status [s]
_UNKNOWN_END = 'has ended (exit status unknown: an earlier node started it)'
_EXIT_TIMEOUT = 5.0  # how long a process may take to end after it has closed its socket [s]


class Worker:
    """A running child; see the module's docstring for threads."""

    def __init__(
        self,
        pid: int,
        channel: Channel,
        process: subprocess.Popen | None = None,
        exit_descriptor: int | None = None,
        lifeline: int | None = None,
    ) -> None:
        """Wrap a process; use `start` or `adopt`. Descriptors are closed with this object.

        Args:
            pid: of the process.
            channel: to it.
            process: None if another process has started it.
            exit_descriptor: readable when the process has ended; None if the system has no such.
            lifeline: write end of a pipe; the kernel kills the process when it is closed.
        """
        self.pid = pid
        self._process, self._channel = process, channel
        self._kill_cause = ''
        self._killed_at = math.inf  # [s, monotonic]
        self._exit_descriptor = exit_descriptor
        for descriptor in (exit_descriptor, lifeline):
            if descriptor is not None:
                weakref.finalize(self, os.close, descriptor)

    @classmethod
    def start(cls) -> Worker:
        """Start a child that waits for a `Load` message.

        It has a group of processes of its own, with the processes that it starts. Blocks the stop
        signals for the calling thread and for the child: who stops a robot may send them to every
        process, and the child ends when the parent does.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        channel, other, descriptors = _new_channel()
        with other:  # only the child keeps it: it ends with the child
            process = subprocess.Popen(  # noqa: S603  # our own code, no shell
                [sys.executable, '-c', _CODE, *map(str, descriptors), str(os.getpid()), *sys.path],
                stdin=subprocess.DEVNULL,
                pass_fds=descriptors,
                start_new_session=True,
            )
        has_descriptors = hasattr(os, 'pidfd_open')
        exit_descriptor = os.pidfd_open(process.pid) if has_descriptors else None
        return cls(process.pid, channel, process, exit_descriptor)

    @classmethod
    def adopt(cls, fingerprint: str) -> Worker | None:
        """Take over the standby of a node that died; it waits for a `Load` message, as a child.

        Args:
            fingerprint: of this process, see `standby_handover`.

        Returns:
            None if there is no such standby.
        """
        channel, other, descriptors = _new_channel()
        read_end, lifeline = os.pipe()
        with other:
            standby = standby_handover.adopt(fingerprint, [*descriptors, read_end])
        os.close(read_end)
        if standby is None:
            os.close(lifeline)
            return None
        return cls(standby.pid, channel, None, standby.exit_descriptor, lifeline)

    def send(self, message: object) -> None:
        """Send a request; it may overwrite the arrays of the one before.

        Raises:
            ChannelClosedError: the child has ended.
        """
        if not isinstance(message, Cancel):  # the other queries of its batch may not be read yet
            self._channel.clear()
        self._channel.send(message)

    def receive(self, timeout: float) -> object | None:
        """Return the next reply; None if there is none within `timeout` [s].

        Raises:
            ChannelClosedError: the child has ended.
        """
        reply = self._channel.receive(timeout)
        if reply is not None or not self.wait(0):
            return reply
        reply = self._channel.receive(0)
        if reply is None:  # a process that it has started may hold the socket
            raise ChannelClosedError('the process has ended')
        return reply

    def kill(self, cause: str) -> None:
        """End the child and the processes that it has started, at once.

        Args:
            cause: "has not answered ..."; the first one stays.
        """
        self._kill_cause = self._kill_cause or cause
        self._killed_at = min(self._killed_at, time.monotonic())
        if self._process is None and self.wait(0):
            return  # its number may belong to another process
        with contextlib.suppress(OSError):  # they have ended
            os.killpg(self.pid, signal.SIGKILL)

    @property
    def is_lost(self) -> bool:
        """Whether it was killed but does not go: a driver holds it."""
        return time.monotonic() - self._killed_at > _REAP_TIMEOUT

    def wait(self, timeout: float) -> bool:
        """Wait at most `timeout` [s] for the end of the child; return whether it has ended."""
        if self._exit_descriptor is not None:
            has_ended = bool(connection.wait([self._exit_descriptor], timeout))
            if self._process is None:
                return has_ended
            timeout = _REAP_WAIT if has_ended else 0.0  # another thread may be reaping it
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)
        return self._process.returncode is not None

    def exit_cause(self) -> str:
        """Return why the child has ended: "died of signal 11 (SIGSEGV)".

        A child that has closed its socket, but does not exit within 5 s, is killed.
        """
        if not self._kill_cause and not self.wait(_EXIT_TIMEOUT):
            self.kill('has closed its connection')
        if self._kill_cause:
            return self._kill_cause
        return describe_exit(self._process.returncode) if self._process else _UNKNOWN_END

    def memory(self) -> int:
        """Return the resident memory of the child [bytes]; 0 if the system does not tell."""
        return process_memory(self.pid).now


def _new_channel() -> tuple[Channel, connection.Connection, list[int]]:
    """Return a channel, the other end's connection, and the other end's descriptors."""
    own, other = Pipe()
    incoming, outgoing = SharedMemory.create(), SharedMemory.create()
    descriptors = [other.fileno(), incoming.descriptor, outgoing.descriptor]
    return Channel(own, outgoing, incoming), other, descriptors


def describe_exit(status: int) -> str:
    """Return how a process has ended; `status` is that of `subprocess.Popen.returncode`."""
    if status >= 0:
        return f'exited with status {status}'
    try:
        name = signal.Signals(-status).name
    except ValueError:  # a real-time signal
        name = 'unknown'
    hint = '; the kernel sends it when memory runs out' if name == 'SIGKILL' else ''
    return f'died of signal {-status} ({name}{hint})'
