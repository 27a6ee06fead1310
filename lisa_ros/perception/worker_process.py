# SPDX-License-Identifier: Apache-2.0
"""The child process of a `ProcessBackend`: it loads a model and answers one request at a time.

The parent starts it with a socket and two memories (`shared_channel.Channel`). It ends when the
parent ends, even if the model hangs. Only a standby, which has no model yet, waits for the next
node then (`standby_handover`). SIGINT, SIGTERM and SIGHUP do not end it: who stops a robot
may send them to every process, and the parent ends it when its own requests have ended.

Threads: the main thread runs the model, a second one reads the socket.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import importlib
import os
import pickle
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NoReturn

from lisa_ros import garbage_collection, native_settings, stop_signals
from lisa_ros.errors import LisaError
from lisa_ros.perception import standby_handover
from lisa_ros.perception.backend import (
    Backend,
    BatchRequest,
    ReportsCache,
    ReportsNotices,
    precision_of,
)
from lisa_ros.perception.device_memory import memory_errors
from lisa_ros.perception.process_memory import gpu_memory
from lisa_ros.perception.shared_channel import Channel, ChannelClosedError, SharedMemory
from lisa_ros.perception.worker_messages import (
    Answered,
    Ask,
    AskBatch,
    Begun,
    Cancel,
    ClearCache,
    EncodeImages,
    Ended,
    Load,
    Loaded,
    Prepare,
    Raised,
    Request,
    without_masks,
)
from lisa_ros.results import Done, Event, MaskReady

_PR_SET_PDEATHSIG = 1  # of prctl(2)
_LONGEST_IMPORT = 300.0  # after which a standby that still imports ends [s]
_HANDED_DESCRIPTORS = 4  # socket, memory to write, memory to read, lifeline: from the next node
# The kernel ends this process first when memory runs out: it can be loaded again, the rest of the
# robot cannot.
_OOM_SCORE_ADJUSTMENT = '500'


def main(connection: int, outgoing: int, incoming: int, parent: int) -> None:
    """Serve the parent until it ends.

    Args:
        connection: descriptor of the socket.
        outgoing: descriptor of the memory that this process writes.
        incoming: descriptor of the memory that it reads.
        parent: process id of the parent.
    """
    for descriptor in (connection, outgoing, incoming):
        os.set_inheritable(descriptor, False)  # children of this process are not the model
    stop_signals.ignore()
    native_settings.apply()
    _end_with(parent)
    with contextlib.suppress(OSError):  # a container may forbid it
        Path('/proc/self/oom_score_adj').write_text(_OOM_SCORE_ADJUSTMENT)
    ModelServer(_channel(connection, outgoing, incoming), parent).run()


def _channel(connection: int, outgoing: int, incoming: int) -> Channel:
    return Channel(Connection(connection), SharedMemory(outgoing), SharedMemory(incoming))


def _end_with(parent: int) -> None:
    """Let the kernel end this process with its parent; the socket tells it, too (any system).

    The kernel keeps this setting for each thread: call it in the main thread.
    """
    if sys.platform != 'linux':
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended already
        os._exit(0)


def _outlive_parent() -> None:
    """Do not end with the parent any more."""
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, 0)


class ModelServer:
    """Loads a model and answers requests; see the module's docstring for threads."""

    def __init__(self, channel: Channel, parent: int):
        """Make a server; `run` serves.

        Args:
            channel: to the parent.
            parent: process id of the parent.
        """
        self._channel, self._parent = channel, parent
        # Read end of the pipe of a node that took this process over; None: the parent started it.
        self._lifeline: int | None = None
        self._fingerprint = ''  # of the parent, while this process is a standby
        self._inbox: queue.SimpleQueue[Prepare | Load | Request] = queue.SimpleQueue()
        self._cancels: dict[int, threading.Event] = {}  # by the number of an Ask

    def run(self) -> NoReturn:
        """Load the model and serve; ends with the process."""
        threading.Thread(target=self._read, name='lisa-parent', daemon=True).start()
        try:
            backend = self._load(self._first_load())
            while True:
                self._serve(backend, self._inbox.get())
        except ChannelClosedError:  # the parent has ended while something was sent
            _exit(0)
        except BaseException as error:  # noqa: BLE001  # SystemExit and the like end the process
            traceback.print_exc()
            _exit(_exit_status(error))

    def _first_load(self) -> Load:
        """Return the message to load a model; prepare for it if that is asked for."""
        message = self._inbox.get()
        while isinstance(message, Prepare):
            _outlive_parent()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # blocked unless it waits for a node
            # An import that hangs in native code must not live for ever.
            faulthandler.dump_traceback_later(_LONGEST_IMPORT, exit=True)
            with garbage_collection.paused():
                importlib.import_module(message.module)
            faulthandler.cancel_dump_traceback_later()
            message = self._inbox.get()
        stop_signals.ignore()
        if self._lifeline is not None:
            standby_handover.end_with_lifeline(self._lifeline)
        else:
            _end_with(self._parent)
        return message

    def _read(self) -> None:
        """Receive the parent's messages; end the process when the last parent has ended."""
        try:
            while True:
                message = self._receive()
                if isinstance(message, Prepare | Load):
                    is_standby = isinstance(message, Prepare)
                    self._fingerprint = message.fingerprint if is_standby else ''
                if isinstance(message, Cancel):
                    self._cancels.get(message.number, threading.Event()).set()
                    continue
                for ask in _asks(message):
                    self._cancels[ask.number] = threading.Event()
                self._inbox.put(message)
        except ChannelClosedError:
            _exit(0)
        except BaseException:  # noqa: BLE001  # nobody reads any more: the parent loads it again
            traceback.print_exc()
            _exit(1)

    def _receive(self) -> object:
        """Return the next message, of the next parent if this one has ended."""
        while True:
            try:
                return self._channel.receive()
            except ChannelClosedError:
                if not self._fingerprint:
                    raise
            descriptors = standby_handover.wait_for_next_parent(
                self._fingerprint, _HANDED_DESCRIPTORS
            )
            if descriptors is None:
                raise ChannelClosedError('no node has taken this process over')
            if self._lifeline is not None:  # of a node that died before it sent a Load
                os.close(self._lifeline)
            *ends, self._lifeline = descriptors
            self._channel = _channel(*ends)

    def _load(self, message: Load) -> Backend:
        """Load the model and tell the parent; an error ends the process."""
        try:
            with garbage_collection.paused():
                backend = pickle.loads(message.loader)(message.model, message.options)  # noqa: S301
            garbage_collection.ignore_present_objects()
        except Exception as error:  # noqa: BLE001  # sent to the parent
            self._channel.send(_raised(0, error))
            _exit(1)
        notices = backend.notices if isinstance(backend, ReportsNotices) else ()
        self._channel.send(
            Loaded(
                str(backend.device),
                backend.capabilities,
                precision_of(backend),
                gpu_memory(),
                type(backend).__module__,
                notices,
            )
        )
        return backend

    def _serve(self, backend: Backend, request: Request) -> None:
        self._channel.clear()
        try:
            with memory_errors():  # the parent may have no PyTorch
                self._run_request(backend, request)
        except ChannelClosedError:
            raise
        except Exception as error:  # noqa: BLE001  # sent to the parent
            self._channel.send(_raised(request.number, error))
        finally:
            for ask in _asks(request):
                self._cancels.pop(ask.number, None)

    def _run_request(self, backend: Backend, request: Request) -> None:
        if isinstance(request, Ask):
            self._answer(backend, request)
            return
        if isinstance(request, AskBatch):
            self._answer_batch(backend, request)
        elif isinstance(request, EncodeImages):
            backend.encode_images(request.images)
        elif isinstance(request, ClearCache):
            backend.clear_cache()
        self._channel.send(Ended(request.number))

    def _answer(self, backend: Backend, ask: Ask) -> None:
        events = backend.stream(ask.image, ask.query, ask.options, self._cancels[ask.number])
        self._channel.send(Begun(ask.number))
        masks: list[MaskReady] = []
        for event in events:
            self._send_event(backend, ask.number, event, masks)
            if isinstance(event, Done):
                return
        self._channel.send(Ended(ask.number))

    def _answer_batch(self, backend: Backend, batch: AskBatch) -> None:
        requests = [
            BatchRequest(ask.image, ask.query, self._cancels[ask.number]) for ask in batch.asks
        ]
        masks: list[list[MaskReady]] = [[] for _ in requests]
        for place, event in backend.stream_batch(requests, batch.asks[0].options):
            self._send_event(backend, batch.asks[place].number, event, masks[place])

    def _send_event(
        self, backend: Backend, number: int, event: Event, masks: list[MaskReady]
    ) -> None:
        """Send an event of an answer; `masks`: those that were sent, extended."""
        if isinstance(event, Done):
            done = without_masks(event, masks)
            cache = backend.cache_use if isinstance(backend, ReportsCache) else None
            answered = Answered(number, done or event, gpu_memory(), cache, done is not None)
            self._channel.send(answered)
            return
        if isinstance(event, MaskReady):
            masks.append(event)
        self._channel.send(Answered(number, event))


def _asks(message: object) -> Sequence[Ask]:
    """Return the queries of a message."""
    if isinstance(message, AskBatch):
        return message.asks
    return [message] if isinstance(message, Ask) else []


def _raised(number: int, error: Exception) -> Raised:
    """Return the exception that is being handled as a message."""
    description = f'{type(error).__name__}: {error}'
    trace = '' if isinstance(error, LisaError) else traceback.format_exc()
    return Raised(number, _pickled(error), description, trace)


def _pickled(error: Exception) -> bytes:
    """Return an exception as bytes, empty if it does not survive that.

    An error that a user can fix stays one: as the nearest class of `lisa_ros.errors`.
    """
    try:
        content = pickle.dumps(error)
        copy = pickle.loads(content)  # noqa: S301  # what was pickled just now
    except Exception:  # noqa: BLE001  # it may hold anything, or need other arguments
        copy = None
    if type(copy) is type(error) and str(copy) == str(error):
        return content
    known = (kind for kind in type(error).__mro__ if kind.__module__ == LisaError.__module__)
    return pickle.dumps(next(known)(str(error))) if isinstance(error, LisaError) else b''


def _exit_status(error: BaseException) -> int:
    """Return the exit status of an exception that ends the process, as Python chooses it."""
    if not isinstance(error, SystemExit):
        return 1
    if error.code is None or isinstance(error.code, int):
        return (error.code or 0) & 0xFF
    return 1


def _exit(status: int) -> NoReturn:
    """End the process at once, without waiting for threads of the model."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)
