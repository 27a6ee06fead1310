# SPDX-License-Identifier: Apache-2.0
"""End a node with exit status 0 on SIGINT, SIGTERM or SIGHUP: at any moment, without a traceback.

Until the program calls `on_stop`, a signal ends the process at once: while modules are imported or
weights are read, nothing can be lost. Afterwards the program stops cleanly, and ends anyway if
that takes longer than `STOP_DEADLINE`. All further signals change nothing.

Threads: a signal wakes a thread of its own through a pipe, which Python's handler in C writes to.
So a main thread that waits in native code or holds a lock does not delay the end; native code that
keeps Python's global lock does, for as long as it keeps it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOP_DEADLINE = 1.5  # from the first signal to the end of the process [s]

_stop: list[Callable[[], None]] = []  # how the program is asked to stop; empty: it ends at once
_before_exit: list[Callable[[], None]] = []
_installed = threading.Event()


def install() -> None:
    """Handle the signals from now on, and accept those that were blocked until now.

    Call it in the main thread, before all other imports. Further calls have no effect.
    """
    if _installed.is_set():
        return
    _installed.set()
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    for number in STOP_SIGNALS:
        if number is signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
            continue  # started by nohup
        signal.signal(number, lambda *_: None)  # the thread acts
    os.register_at_fork(after_in_child=_uninstall)
    threading.Thread(
        target=_wait_for_signal, args=(read_end,), name='stop-signals', daemon=True
    ).start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def _uninstall() -> None:
    """Restore the defaults in a forked child: its signals must not end the parent."""
    signal.set_wakeup_fd(-1)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def on_stop(request_stop: Callable[[], None]) -> None:
    """Stop cleanly from now on: the first signal calls `request_stop`, in a thread of its own.

    Args:
        request_stop: makes the main thread leave its loop; it then ends the process by `leave`.
    """
    _stop[:] = [request_stop]


def before_exit(callback: Callable[[], None]) -> Callable[[], None]:
    """Call `callback` before `leave` ends the process, such as to kill a child process.

    The last one is called first. It must return at once and may run in any thread.

    Returns:
        The callback, so that this is a decorator, too.
    """
    _before_exit.append(callback)
    return callback


def ignore() -> None:
    """Ignore all further signals: the program has stopped. Call it in the main thread."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def leave(status: int) -> NoReturn:
    """End the process now, without the teardown of the interpreter, which signals can break."""
    for callback in reversed(_before_exit):
        with contextlib.suppress(Exception):
            callback()
    os._exit(status)


def end(status: int) -> NoReturn:
    """End a program that is done, with its output, by `leave`.

    A normal exit destroys the static objects of native libraries while their threads still run:
    those of DDS crash then, now and then, if another process joins or leaves the ROS graph.
    """
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with contextlib.suppress(OSError, ValueError):  # the reader has gone, or it is closed
            stream.flush()
    leave(status)


def _wait_for_signal(read_end: int) -> None:
    while os.read(read_end, 1)[0] not in STOP_SIGNALS:
        pass  # another signal that the program handles
    # Threads whose topics disappear while they publish have no error to report.
    threading.excepthook = sys.unraisablehook = lambda _: None
    for request_stop in _stop:
        threading.Thread(target=request_stop, name='stop', daemon=True).start()
        time.sleep(STOP_DEADLINE)
    leave(0)
