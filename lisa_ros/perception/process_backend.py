# SPDX-License-Identifier: Apache-2.0
"""A Backend whose model runs in a child process, which can be ended and loaded again.

So a model that hangs, crashes or eats memory ends one request and not the node. Images and masks
go through shared memory (shared_channel.py); the events are those of the model, bit for bit.

- A child that does not end an answer within `answer_timeout` + `STOP_GRACE` is killed, and so is
  one that uses more memory than allowed.
- A child that has ended is loaded again in the background (worker_supervisor.py). Requests wait
  for that, within `answer_timeout`.

Threads: as every Backend, one thread at a time asks. `interrupt`, `close` and the properties may
be used from any thread.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import os
import pickle
import threading
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from lisa_ros.errors import SettingsError, WorkerError
from lisa_ros.model.cache_use import CacheUse
from lisa_ros.perception.backend import (
    BackendLoader,
    BatchRequest,
    Cancellation,
    Capabilities,
    InferenceOptions,
    LoadOptions,
    Query,
)
from lisa_ros.perception.health import ModelHealth
from lisa_ros.perception.process_memory import GpuMemory
from lisa_ros.perception.registry import find_loader, without_auto
from lisa_ros.perception.request_limits import AnyCancelled, RequestLimits, batch_ends
from lisa_ros.perception.shared_channel import ChannelClosedError
from lisa_ros.perception.stopping import CANCELLED, PartialAnswer
from lisa_ros.perception.worker import Worker
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
    Raised,
    Request,
    exception_of,
    with_masks,
)
from lisa_ros.perception.worker_supervisor import StoppedError, WorkerLog, WorkerSupervisor
from lisa_ros.results import Done, Event, MaskReady

_CANCEL_PERIOD = 0.01  # how often a cancel is looked for while the child answers [s]


class _DiedEarlyError(WorkerError):
    """The child died before its model had accepted the query."""


class ProcessBackend:
    """A model in a child process; see the module's docstring for rules and threads."""

    def __init__(
        self,
        model: str,
        options: LoadOptions,
        *,
        memory_limit: int | None = None,
        has_standby: bool = False,
        log: WorkerLog | None = None,
    ) -> None:
        """Load a model in a child process; returns when it is loaded.

        Args:
            model: as `registry.load_backend` takes it. The loader of a scheme must be a function
                of a module: the child imports it.
            options: device, precision and companions.
            memory_limit: kill the child if its resident memory, without that of a GPU, is above
                this [bytes]; None: no limit. Linux only.
            has_standby: keep a second child ready, which has imported the libraries (about 270 MB)
                and loads the model sooner if the first one ends.
            log: receives the ends of children and the reloads; None: the logger of this module.

        Raises:
            CheckpointError: the files are not a whole model.
            SettingsError: the scheme, the device, the precision or the template is not available,
                or another process cannot import the loader.
            WorkerError: the child died while it loaded the model.
        """
        log = log or logging.getLogger(__name__)
        self._supervisor = WorkerSupervisor(
            model, _load_message(model, options), memory_limit, log, has_standby=has_standby
        )
        self._numbers = itertools.count(1)
        self._asked: Worker | None = None  # answers a request
        self._loaded = self._supervisor.start()
        self._gpu_memory = self._loaded.gpu_memory
        self._cache_use: CacheUse | None = None

    @property
    def device(self) -> str:
        """The device of the model in the child."""
        return self._loaded.device

    @property
    def capabilities(self) -> Capabilities:
        """What the model can do."""
        return self._loaded.capabilities

    @property
    def precision(self) -> str:
        """The number format of the weights in the child; empty if it is unknown."""
        return self._loaded.precision

    @property
    def notices(self) -> tuple[str, ...]:
        """What the user should know of the model, when it was loaded first."""
        return self._loaded.notices

    @property
    def health(self) -> ModelHealth:
        """Whether the model can be asked; OK also while it answers."""
        return self._supervisor.health

    @property
    def memory(self) -> int:
        """Resident memory of the child, without that of a GPU [bytes]; 0 if there is none."""
        return self._supervisor.memory

    @property
    def peak_memory(self) -> int:
        """Largest resident memory of the child so far [bytes]; 0 if it is unknown."""
        return self._supervisor.peak_memory

    @property
    def gpu_memory(self) -> GpuMemory | None:
        """Memory of the model on its GPU after loading or the last answer; None: no GPU."""
        return self._gpu_memory

    @property
    def cache_use(self) -> CacheUse | None:
        """What the model kept of earlier prompts after the last answer; None: nothing."""
        return self._cache_use

    def interrupt(self, cause: str) -> None:
        """Kill the child if it answers a request, which then ends; see `SupervisedBackend`."""
        worker = self._asked
        if worker is not None:
            self._supervisor.discard(worker, f'was ended: {cause}')

    def close(self) -> None:
        """Kill the child for good; requests from now on raise WorkerError."""
        self._supervisor.close()

    # ---- requests

    def stream(
        self,
        image: np.ndarray,
        query: Query,
        options: InferenceOptions,
        cancel: Cancellation,
    ) -> Iterator[Event]:
        """Answer a query; see `Backend.stream`. Waits while the model is being loaded again.

        Raises:
            ImageError, QueryError: as the model raises them, by the call.
            WorkerError: the child died, or cannot be loaded again; by the call or the iteration.
        """
        events = self._events(np.ascontiguousarray(image), query, options, cancel)
        first = next(events)  # None when the model has accepted the query
        return events if first is None else itertools.chain((first,), events)

    def encode_images(self, images: Sequence[np.ndarray]) -> None:
        """Encode several (H, W, 3) uint8 RGB images at once; kept until the next call.

        Raises:
            ImageError: an image has another shape or type.
            WorkerError: the child died, or cannot be loaded again.
        """
        self._call(EncodeImages(next(self._numbers), [np.ascontiguousarray(i) for i in images]))

    def clear_cache(self) -> None:
        """Drop the features of earlier images."""
        self._call(ClearCache(next(self._numbers)))

    def stream_batch(
        self, requests: Sequence[BatchRequest], options: InferenceOptions
    ) -> Iterator[tuple[int, Event]]:
        """Answer several queries at once; see `AnswersBatches`.

        Raises:
            WorkerError: the child died, or cannot be loaded again.
        """
        limits, unfinished = RequestLimits.of(options.answer_timeout), dict(enumerate(requests))
        partial = [PartialAnswer(r.query.text, r.image.shape[:2]) for r in requests]
        while unfinished:
            cancels = [request.cancel for request in unfinished.values()]
            try:
                worker = self._supervisor.ready_worker(AnyCancelled(cancels), limits.answer)
                for number, event in self._ask_batch(worker, unfinished, options, limits):
                    partial[number].add(event)
                    if isinstance(event, Done):
                        del unfinished[number]
                    yield number, event
                return  # maybe without a Done: the caller reports that
            except StoppedError as stopped:
                for number, end in batch_ends(stopped.end, unfinished).items():
                    del unfinished[number]
                    yield number, Done(partial[number].result(end))

    def _call(self, request: EncodeImages | ClearCache) -> None:
        limits = RequestLimits.of(None)
        worker = self._supervisor.ready_worker(threading.Event(), limits.answer)
        try:
            for _ in self._replies(worker, request, {}, limits):
                return
        except ChannelClosedError:
            raise WorkerError(self._supervisor.ended(worker)) from None

    def _events(
        self, image: np.ndarray, query: Query, options: InferenceOptions, cancel: Cancellation
    ) -> Iterator[Event | None]:
        """Yield None when the model has accepted the query, then the events of its answer."""
        limits = RequestLimits.of(options.answer_timeout)
        partial = PartialAnswer(query.text, image.shape[:2])
        try:
            for event in self._tries(Ask(0, image, query, options), cancel, limits):
                if event is not None:
                    partial.add(event)
                yield event
        except StoppedError as stopped:
            yield Done(partial.result(stopped.end))

    def _tries(
        self, ask: Ask, cancel: Cancellation, limits: RequestLimits
    ) -> Iterator[Event | None]:
        """Ask a child, and another one if it died before its model had accepted the query."""
        try:
            yield from self._ask(ask, cancel, limits)
        except _DiedEarlyError:
            yield from self._ask(ask, cancel, limits)

    def _ask(
        self, ask: Ask, cancel: Cancellation, limits: RequestLimits
    ) -> Iterator[Event | None]:
        worker = self._supervisor.ready_worker(cancel, limits.answer)
        number, options = next(self._numbers), limits.options(ask.options)
        ask = dataclasses.replace(ask, number=number, options=options)
        has_begun, masks = False, []
        try:
            for reply in self._replies(worker, ask, {number: cancel}, limits):
                if isinstance(reply, Begun):
                    has_begun = True
                    yield None
                elif isinstance(reply, Answered):
                    yield self._event(reply, masks, limits)
                if _is_last(reply, ask):  # maybe without Done: the caller reports that
                    return
        except ChannelClosedError:
            cause = self._supervisor.ended(worker)
            if cancel.is_set():  # such as when the node stops
                raise StoppedError(CANCELLED) from None
            raise (WorkerError if has_begun else _DiedEarlyError)(cause) from None

    def _ask_batch(
        self,
        worker: Worker,
        requests: Mapping[int, BatchRequest],
        options: InferenceOptions,
        limits: RequestLimits,
    ) -> Iterator[tuple[int, Event]]:
        """Yield the events of several answers, with the numbers of the requests."""
        options = limits.options(options)
        asks = {
            number: Ask(next(self._numbers), np.ascontiguousarray(r.image), r.query, options)
            for number, r in requests.items()
        }
        numbers = {ask.number: number for number, ask in asks.items()}
        cancels = {ask.number: requests[number].cancel for number, ask in asks.items()}
        masks: dict[int, list[MaskReady]] = {number: [] for number in numbers}
        batch = AskBatch(next(self._numbers), list(asks.values()))
        try:
            for reply in self._replies(worker, batch, cancels, limits):
                if isinstance(reply, Answered):
                    event = self._event(reply, masks[reply.number], limits)
                    yield numbers[reply.number], event
                if _is_last(reply, batch):
                    return
        except ChannelClosedError:
            raise WorkerError(self._supervisor.ended(worker)) from None

    def _event(self, reply: Answered, masks: list[MaskReady], limits: RequestLimits) -> Event:
        """Return the event of a reply; `masks`: of the answer so far, extended."""
        self._gpu_memory = reply.gpu_memory or self._gpu_memory
        self._cache_use = reply.cache_use or self._cache_use
        event = reply.event
        if isinstance(event, MaskReady):
            masks.append(event)
        elif reply.has_earlier_masks:
            event = with_masks(event, masks)
        return limits.with_limit(event)

    def _replies(
        self,
        worker: Worker,
        request: Request,
        cancels: Mapping[int, Cancellation],
        limits: RequestLimits,
    ) -> Iterator[Begun | Answered | Ended]:
        """Send a request and yield its replies; forward cancels, and kill the child in the end.

        Args:
            worker: the child.
            request: the request.
            cancels: by the numbers of its queries.
            limits: when the child is killed.

        Raises:
            ChannelClosedError: the child has ended.
            StoppedError: the child was killed.
            Exception: what the model raised.
        """
        self._asked, uncancelled, reply = worker, dict(cancels), None
        try:
            worker.send(request)
            while True:
                reply = worker.receive(_CANCEL_PERIOD)
                if reply is not None and reply.number in (request.number, *cancels):
                    if isinstance(reply, Raised):
                        raise exception_of(reply)
                    yield reply
                if limits.stop.is_over:
                    cause = f'has not returned for {limits.stop.limit:.3g} s'
                    self._supervisor.discard(worker, cause)
                    raise StoppedError(limits.end_of_killed(cancels.values()))
                for number in [n for n, cancel in uncancelled.items() if cancel.is_set()]:
                    del uncancelled[number]
                    worker.send(Cancel(number))
        except GeneratorExit:
            if not _is_last(reply, request):  # the caller gives the request up
                with contextlib.suppress(ChannelClosedError):
                    for number in cancels:
                        worker.send(Cancel(number))
            raise
        finally:
            self._asked = None


def _is_last(reply: object, request: Request) -> bool:
    """Return whether a reply ends its request."""
    if isinstance(request, AskBatch):
        return isinstance(reply, Ended)
    return isinstance(reply, Ended) or (
        isinstance(reply, Answered) and isinstance(reply.event, Done)
    )


def _load_message(model: str, options: LoadOptions) -> Load:
    """Return the message that makes a child load a model.

    Raises:
        SettingsError: the scheme is not registered, the child cannot import its loader, or this
            system has no such processes.
    """
    if os.name != 'posix':
        raise SettingsError('a model in a process of its own needs Linux: set isolation to thread')
    loader, name = find_loader(model)
    return Load(_pickled(loader, model), name, without_auto(options))


def _pickled(loader: BackendLoader, model: str) -> bytes:
    """Return a reference to a loader that the child can import."""
    try:
        content = pickle.dumps(loader)
    except Exception:  # noqa: BLE001  # PicklingError, AttributeError, TypeError: lambda, closure
        content = b'__main__'
    if b'__main__' in content:  # a module of another name in the child
        raise SettingsError(
            f'the loader of {model!r} cannot be imported by the model process: define it as a '
            'function of a module that is not the main script, or set isolation to thread'
        )
    return content
