# SPDX-License-Identifier: Apache-2.0
"""Run a function in a process of its own, which takes its memory along when it ends.

Each of several models gets such a process: the next one starts with free memory, the peak is that
of one model, and a model that crashes or is killed ends only its own evaluation.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import NoReturn, TypeVar

from lisa_ros import native_settings
from lisa_ros.error_text import error_summary
from lisa_ros.errors import LisaError, SettingsError, WorkerError
from lisa_ros.perception.backend import BackendLoader
from lisa_ros.perception.registry import register_backend, registered_backends
from lisa_ros.perception.worker import describe_exit

Argument = TypeVar('Argument')

_STOP_TIMEOUT = 5.0  # how long a process may take to stop before it is killed [s]


def run_isolated(function: Callable[[Argument], None], argument: Argument) -> None:
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
    context = multiprocessing.get_context('spawn')
    receiving, sending = context.Pipe(duplex=False)
    arguments = (sending, function, argument, _picklable_backends())
    process = context.Process(target=_run, args=arguments)
    process.start()
    sending.close()
    try:
        wait([receiving, process.sentinel])  # a process that it has started may hold the pipe
        error = _received(receiving)
        process.join()
    finally:
        _end(process)  # if this one was interrupted
    if error is not None:
        raise error
    if process.exitcode:
        raise WorkerError(f'its process {describe_exit(process.exitcode)}')


def _end(process: BaseProcess) -> None:
    """End a process: it may stop what it has started, such as a node, and is killed then."""
    if process.is_alive():
        process.terminate()
        process.join(_STOP_TIMEOUT)
    process.kill()
    process.join()


def _received(connection: Connection) -> LisaError | None:
    """Return the error of the other process; None if it sent none."""
    try:
        if not connection.poll():
            return None
        kind, message = connection.recv()
    except EOFError:
        return None
    return kind(message)


def _picklable_backends() -> Mapping[str, BackendLoader]:
    """Return the registered backends.

    Raises:
        SettingsError: one cannot be sent to another process.
    """
    backends = registered_backends()
    try:
        pickle.dumps(backends)
    except Exception as error:  # PicklingError, AttributeError, TypeError: lambda, closure
        raise SettingsError(
            f'a registered backend cannot be imported by another process ({error_summary(error)}):'
            ' define its loader as a function of a module'
        ) from error
    return backends


def _run(
    connection: Connection,
    function: Callable[[Argument], None],
    argument: Argument,
    backends: Mapping[str, BackendLoader],
) -> None:
    """Call the function; send its error as a class of `lisa_ros.errors` and a message."""
    signal.signal(signal.SIGTERM, _exit_terminated)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    native_settings.apply()
    for scheme, loader in backends.items():
        register_backend(scheme, loader)
    try:
        function(argument)
    except LisaError as error:
        known = (kind for kind in type(error).__mro__ if kind.__module__ == LisaError.__module__)
        connection.send((next(known), str(error)))
    except Exception as error:  # noqa: BLE001  # a backend may raise anything
        traceback.print_exc()
        connection.send((WorkerError, error_summary(error)))
    except KeyboardInterrupt:  # the parent reports it
        os._exit(128 + signal.SIGINT)


def _exit_terminated(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def _end_with_parent() -> None:
    """End this process when the one that started it has ended."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
