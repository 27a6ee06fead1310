# SPDX-License-Identifier: Apache-2.0
"""Run a function in a process of its own, which takes its memory along when it ends.

Each of several models gets such a process: the next one starts with free memory, the peak is that
of one model, and a model that crashes or is killed ends only its own evaluation. The process is
started by `exec`, not by multiprocessing, which would run the main script again.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from types import FrameType
from typing import NoReturn, TypeVar

from lisa_ros import native_settings
from lisa_ros.error_text import error_summary
from lisa_ros.errors import LisaError, SettingsError, WorkerError
from lisa_ros.perception.backend import Backend, BackendLoader, LoadOptions
from lisa_ros.perception.registry import register_backend, registered_backends
from lisa_ros.perception.worker import describe_exit

Argument = TypeVar('Argument')

# The parent's own search path comes before any other import, so the child finds the same modules.
_CODE = (
    'import sys; sys.path[:] = sys.argv[2:]; '
    'from lisa_ros.evaluation.isolated_run import main; main(int(sys.argv[1]))'
)
_POLL_PERIOD = 0.2  # how often the end of the process is looked for [s]
_STOP_TIMEOUT = 5.0  # how long a process may take to stop before it is killed [s]


def run_isolated(function: Callable[[Argument], object], argument: Argument) -> None:
    """Call a function in a new process and wait for its end.

    The process has the backends that are registered in this one. It ends with this one.

    Args:
        function: of a module that another process can import.
        argument: can be pickled.

    Raises:
        LisaError: the function raised it.
        WorkerError: the function raised another error, or its process died.
        SettingsError: the loader of a registered backend cannot be imported by another process.
    """
    job = pickle.dumps((function, argument, _pickled_backends()))
    own, other = Pipe()
    with own:
        with other:  # only the child keeps it: it ends with the child
            process = subprocess.Popen(  # noqa: S603  # our own code, no shell
                [sys.executable, '-c', _CODE, str(other.fileno()), *sys.path],
                stdin=subprocess.DEVNULL,
                pass_fds=[other.fileno()],
            )
        try:
            with contextlib.suppress(OSError):  # it has died already
                own.send_bytes(job)
            while not own.poll(_POLL_PERIOD) and process.poll() is None:
                pass
            error = _received(own)
            process.wait()
        finally:
            _end(process)  # if this one was interrupted
    if error is not None:
        raise error
    if process.returncode:
        raise WorkerError(f'its process {describe_exit(process.returncode)}')


def _received(connection: Connection) -> LisaError | None:
    """Return the error of the other process; None if it sent none."""
    try:
        if not connection.poll():
            return None
        kind, message = connection.recv()
    except (EOFError, OSError):
        return None
    return kind(message)


def _end(process: subprocess.Popen) -> None:
    """End a process: it may stop what it has started, such as a node, and is killed then."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_TIMEOUT)
    process.kill()  # no effect if it has ended
    process.wait()


def _pickled_backends() -> dict[str, bytes]:
    """Return the loader of each registered backend as another process can import it.

    Raises:
        SettingsError: it cannot import one.
    """
    return {scheme: _pickled(scheme, loader) for scheme, loader in registered_backends().items()}


def _pickled(scheme: str, loader: BackendLoader) -> bytes:
    cause = 'it is in the main script'
    try:
        content = pickle.dumps(loader)
    except Exception as error:  # noqa: BLE001  # PicklingError, AttributeError, TypeError: lambda
        cause, content = error_summary(error), b'__main__'
    if b'__main__' in content:  # a module of another name in the child
        raise SettingsError(
            f'the backend "{scheme}:" cannot be imported by another process ({cause}): define its '
            'loader as a function of a module'
        )
    return content


# ---- in the other process


def main(descriptor: int) -> None:
    """Call the function that the parent sends; answer with its error.

    Args:
        descriptor: of the socket to the parent.
    """
    os.set_inheritable(descriptor, False)  # processes that this one starts are not the model
    signal.signal(signal.SIGTERM, _exit_terminated)
    native_settings.apply()
    connection = Connection(descriptor)
    job = connection.recv_bytes()
    threading.Thread(target=_end_with_parent, args=(connection,), daemon=True).start()
    try:
        function, argument, backends = pickle.loads(job)  # noqa: S301  # from our own parent
        for scheme, content in backends.items():
            register_backend(scheme, partial(_load_backend, scheme, content))
        function(argument)
    except LisaError as error:
        known = (kind for kind in type(error).__mro__ if kind.__module__ == LisaError.__module__)
        connection.send((next(known), str(error)))
    except Exception as error:  # noqa: BLE001  # a backend may raise anything
        traceback.print_exc()
        connection.send((WorkerError, error_summary(error)))
    except KeyboardInterrupt:  # the parent reports it
        os._exit(128 + signal.SIGINT)


def _load_backend(scheme: str, content: bytes, name: str, options: LoadOptions) -> Backend:
    """Import the loader of a backend, which may take seconds, and load a model with it."""
    try:
        loader: BackendLoader = pickle.loads(content)  # noqa: S301  # from our own parent
    except Exception as error:  # the import of a module may raise anything
        raise SettingsError(
            f'the loader of "{scheme}:" cannot be imported by the process of the model '
            f'({error_summary(error)}): put its module on the Python path'
        ) from error
    return loader(name, options)


def _exit_terminated(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def _end_with_parent(connection: Connection) -> None:
    """End this process when the one that started it has ended."""
    with contextlib.suppress(EOFError, OSError):
        connection.recv_bytes()
    os._exit(1)
