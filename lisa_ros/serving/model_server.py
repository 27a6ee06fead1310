# SPDX-License-Identifier: Apache-2.0
"""One replica: a backend that answers batches in a thread, for requests of one asyncio loop.

It imports no Ray: `ray_models` makes a Serve deployment of the class. Images are decoded and
masks are encoded in threads beside the model's. Requests that share their options are answered
together, by a backend that can; each answer goes out once it is complete.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from lisa_ros import native_settings
from lisa_ros.error_text import error_summary
from lisa_ros.errors import DeviceMemoryError, LisaError
from lisa_ros.perception.backend import (
    BatchRequest,
    InferenceOptions,
    LoadOptions,
    Query,
    ReportsInputSide,
    precision_of,
)
from lisa_ros.perception.batch import can_batch, in_halves, stream_batch
from lisa_ros.perception.process_memory import gpu_memory
from lisa_ros.perception.roi import crop, stream_in_region
from lisa_ros.results import Done, Event, MaskReady, Segmentation, Status, unanswered
from lisa_ros.serving.batch_queue import (
    BatchLimits,
    BatchQueue,
    Ticket,
    deadline_error,
)
from lisa_ros.serving.model_location import load_located
from lisa_ros.serving.multipart import ImageUpload, decode_upload
from lisa_ros.serving.problems import ProblemError
from lisa_ros.serving.query_format import SegmentQuery, invalid
from lisa_ros.serving.replies import Answer, ModelRequest, Refusal, Reply, ReplyFigures
from lisa_ros.serving.wire_format import SentMask, Served, answer_json, event_bytes, event_json

_log = logging.getLogger(__name__)
_Result = TypeVar('_Result')
_HELPERS = 2  # threads that decode images and encode masks
_MAX_BUGS = 3  # failures in a row that are no LisaError, after which the replica is not healthy


@dataclass(frozen=True)
class ReplicaPlan:
    """What each replica loads, and how it answers."""

    served: Served  # the name of the model as clients see it
    model: str  # as `registry.load_backend` takes it
    load_options: LoadOptions = field(default_factory=LoadOptions)
    options: InferenceOptions = field(default_factory=InferenceOptions)
    batches: BatchLimits = field(default_factory=BatchLimits)
    image_pixels: int = 25_000_000
    # a batch that takes longer has hung: the replica is started again [s]
    hang_seconds: float = 600.0
    folder: str = ''  # that `model` led to when `served` was computed, see `model_location`


class ModelServer:
    """Answers requests with one backend; all methods run in one asyncio loop."""

    def __init__(self, plan: ReplicaPlan, name: str = ''):
        """Load the model.

        Args:
            plan: what is loaded.
            name: of the replica among all that answer, for the metrics; '': the process id.

        Raises:
            CheckpointError: the files are not a whole model.
            SettingsError: the device, the precision or the scheme is not available.
        """
        native_settings.apply()
        self._plan, self._name = plan, name or str(os.getpid())
        self._backend = load_located(plan.model, plan.folder, plan.load_options)
        # requests are read and refused while the model has all cores
        lower = native_settings.lower_thread_priority
        self._model_thread = ThreadPoolExecutor(1, 'model', initializer=lower)
        self._helpers = ThreadPoolExecutor(_HELPERS, 'images')
        self._queue: BatchQueue | None = None
        self._worker: asyncio.Task | None = None
        self._batch_start: float | None = None  # [s, monotonic]
        self._bugs = 0

    def describe(self) -> dict[str, object]:
        """Return what the model is and can do, as JSON of GET /v1/models."""
        capabilities = dataclasses.asdict(self._backend.capabilities)
        return {
            'precision': precision_of(self._backend),
            'device': self._backend.device,
            'capabilities': capabilities | {'scores': capabilities['scores'].name.lower()},
            'input_side': self._input_side(),
        }

    def _input_side(self) -> int | None:
        """Return the side to which clients may reduce images [px]; None: they send all pixels."""
        if self._plan.options.refine or not isinstance(self._backend, ReportsInputSide):
            return None
        return self._backend.input_side

    def check_health(self) -> None:
        """Raise if the model hangs or fails again and again: Serve starts another replica.

        Raises:
            RuntimeError: says why.
        """
        start = self._batch_start
        if start is not None and time.monotonic() - start > self._plan.hang_seconds:
            raise RuntimeError(f'a batch takes longer than {self._plan.hang_seconds:g} s')
        if self._bugs >= _MAX_BUGS:
            raise RuntimeError(f'{self._bugs} batches in a row failed')

    async def answer(self, request: ModelRequest) -> Reply:
        """Answer a request; cancelling the call takes it out of the queue, or stops the model."""
        try:
            ticket = await self._enqueue(request, has_events=False)
            with _leaving(ticket, self._started_queue()):
                return await self._answer_of(ticket, await ticket.result, request)
        except ProblemError as error:
            return Refusal.of(error)

    async def stream(self, request: ModelRequest) -> AsyncIterator[bytes | Reply]:
        """Yield server-sent events, then the answer; or a refusal. Cancelled as `answer`."""
        query = request.upload.query
        try:
            ticket = await self._enqueue(request, has_events=True)
            with _leaving(ticket, self._started_queue()):
                sent: list[SentMask] = []
                async for event in _events(ticket):
                    name, document = await self._in_helper(event_json, event, query)
                    if isinstance(event, MaskReady):
                        sent.append(SentMask(document, event))
                    yield event_bytes(name, document)
                yield await self._answer_of(ticket, await ticket.result, request, sent)
        except ProblemError as error:
            yield Refusal.of(error)

    async def close(self) -> None:
        """Stop the worker; requests that wait get no answer."""
        if self._worker is not None:
            self._worker.cancel()
        self._model_thread.shutdown(wait=False, cancel_futures=True)
        self._helpers.shutdown(wait=False)

    def _started_queue(self) -> BatchQueue:
        """Return the queue; the first call starts the worker in the running loop."""
        if self._queue is None:
            limits = self._plan.batches
            if not can_batch(self._backend):  # what waits stays in the queue, for urgent ones
                limits = dataclasses.replace(limits, largest=1)
            self._queue = BatchQueue(limits)
            self._worker = asyncio.create_task(self._work(self._queue))
        return self._queue

    async def _in_helper(self, function: Callable[..., _Result], *arguments: object) -> _Result:
        """Return what a function returns that is called in a helper thread."""
        return await asyncio.get_running_loop().run_in_executor(
            self._helpers, function, *arguments
        )

    async def _enqueue(self, request: ModelRequest, *, has_events: bool) -> Ticket:
        """Decode a request and let it wait.

        Raises:
            ProblemError: the image or the query cannot be used, or the queue is full.
        """
        deadline, queue = time.monotonic() + request.seconds, self._started_queue()
        upload = request.upload
        queue.announce(request.stream)
        try:
            image, query = await self._in_helper(_decoded, upload, self._plan.image_pixels)
            ticket = Ticket(
                image=image,
                query=query,
                options=upload.query.inference_options(self._plan.options),
                deadline=deadline,
                stream=request.stream,
                number=request.number,
                alone=request.alone,
                events=asyncio.Queue() if has_events else None,
            )
            queue.put(ticket)
        finally:
            queue.withdraw()
        return ticket

    async def _answer_of(
        self,
        ticket: Ticket,
        result: Segmentation,
        request: ModelRequest,
        sent: Sequence[SentMask] = (),
    ) -> Answer:
        """Return the JSON of a result, with the time in the queue and the figures."""
        waited = ticket.begun_at - ticket.queued_at
        result = dataclasses.replace(result, timings={'queue': waited, **result.timings})
        document = await self._in_helper(
            _document,
            result,
            request.upload.query,
            ticket.image.shape[:2],
            self._plan.served,
            sent,
        )
        figures = ReplyFigures(
            ticket.batch_size,
            result.timings,
            self._started_queue().length,
            gpu_memory(),
            self._name,
            self._started_queue().largest,
        )
        return Answer(document, figures)

    async def _work(self, queue: BatchQueue) -> None:
        """Answer batch after batch."""
        loop = asyncio.get_running_loop()
        while True:
            batch = await queue.next_batch()
            start = self._batch_start = time.monotonic()
            fitting = await loop.run_in_executor(self._model_thread, self._run, batch, loop)
            self._batch_start = None
            queue.finish(len(batch), time.monotonic() - start)
            if fitting < len(batch):
                queue.lower(fitting)
                _log.warning('a batch has at most %d requests from now on', queue.largest)

    # ---- in the model's thread

    def _run(self, batch: Sequence[Ticket], loop: asyncio.AbstractEventLoop) -> int:
        """Answer a batch; each result is given out once it is complete.

        Returns:
            How many requests a batch may have, as far as this one shows.
        """
        waiting = list(batch)
        fitting = self._run_together(waiting, loop)
        answered = len(batch) - len(waiting)
        failures = self._bugs if answered else self._bugs + 1  # in a row, with this batch
        for ticket in waiting:
            if ticket.is_unwanted:  # since it was taken out of the queue
                _refuse(ticket, loop)
                continue
            try:
                result = self._run_alone(ticket, loop)
                answered += 1
            except DeviceMemoryError as error:  # a new process may have more
                fitting = len(batch)  # this request is too large, not the batch
                self._bugs = failures
                result = _failed(ticket, str(error))
            except Exception as error:  # noqa: BLE001  # a bug; the next ones are answered
                self._bugs = failures
                _log.exception('a request failed')
                reason = (
                    f'the model failed ({error_summary(error)}); the log of the server has more'
                )
                result = _failed(ticket, reason)
            _finish(ticket, result, loop)
        if answered:
            self._bugs = 0
        return fitting

    def _run_together(self, waiting: list[Ticket], loop: asyncio.AbstractEventLoop) -> int:
        """Answer requests at once, in smaller parts if the memory is not enough.

        Args:
            waiting: those that are not answered stay, to be asked alone.
            loop: of the requests.

        Returns:
            How many the memory was enough for.
        """
        parts, left, fitting = [list(waiting)], [], len(waiting)
        while parts:
            part = parts.pop(0)
            count = len(part)
            if count < 2 or self._stream_together(part, loop):
                left += part
            else:
                fitting = min(fitting, count // 2)
                parts = [*in_halves(part, count), *parts]
        waiting[:] = left
        return fitting

    def _stream_together(self, waiting: list[Ticket], loop: asyncio.AbstractEventLoop) -> bool:
        """Answer requests at once; False if the memory is not enough.

        Those that are not answered stay in `waiting`.
        """
        tries = [_Try(ticket, loop) for ticket in waiting]
        for ticket in waiting:
            ticket.batch_size = len(waiting)
        requests = [BatchRequest(t.image, t.query, _TicketCancel(t)) for t in waiting]
        try:
            for number, event in stream_batch(self._backend, requests, waiting[0].options):
                tries[number].add(event)
        except DeviceMemoryError as error:
            _log.warning('%d requests at once are too many: %s', len(tries), error)
            return False
        except LisaError:  # asked alone, the request at fault names its error
            _log.info('a batch is answered one by one', exc_info=True)
        except Exception:  # noqa: BLE001  # a bug; asked alone, only the request at fault fails
            _log.exception('a batch of %d failed, and is answered one by one', len(tries))
        finally:
            waiting[:] = [attempt.ticket for attempt in tries if not attempt.has_ended]
        return True

    def _run_alone(self, ticket: Ticket, loop: asyncio.AbstractEventLoop) -> Segmentation:
        """Return the result of one request; its events are sent as they come.

        Raises:
            DeviceMemoryError: the memory is not enough.
            Exception: a bug of the model.
        """
        attempt, cancel = _Try(ticket, loop), _TicketCancel(ticket)
        try:
            for event in stream_in_region(
                self._backend, ticket.image, ticket.query, ticket.options, cancel
            ):
                if isinstance(event, Done):
                    return event.result
                attempt.add(event)
        except DeviceMemoryError:
            raise
        except LisaError as error:
            return _failed(ticket, str(error))
        raise AssertionError('a stream ends with Done')


class _Try:
    """The model answers a request, maybe again: what was sent before is not sent twice."""

    def __init__(self, ticket: Ticket, loop: asyncio.AbstractEventLoop):
        self.ticket, self._loop = ticket, loop
        self._repeated = ticket.sent_events
        self.has_ended = False

    def add(self, event: Event) -> None:
        """Send the next event of the answer, or its result."""
        if isinstance(event, Done):
            self.has_ended = True
            _finish(self.ticket, event.result, self._loop)
        elif self._repeated:
            self._repeated -= 1
        else:
            _send(self.ticket, event, self._loop)


@dataclass(frozen=True)
class _TicketCancel:
    """Ends an answer that nobody waits for any more, as a Cancellation."""

    ticket: Ticket

    def is_set(self) -> bool:
        return self.ticket.is_unwanted


@contextlib.contextmanager
def _leaving(ticket: Ticket, queue: BatchQueue) -> Iterator[None]:
    """Take a request out of the queue, or stop the model, when its call ends."""
    try:
        yield
    finally:
        ticket.has_left = True
        queue.remove(ticket)


async def _events(ticket: Ticket) -> AsyncIterator[Event]:
    """Yield the events of a request until its result is there."""
    assert ticket.events is not None  # noqa: S101  # of `stream`
    while True:
        waiting = asyncio.ensure_future(ticket.events.get())
        try:
            await asyncio.wait({waiting, ticket.result}, return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                yield waiting.result()
                continue
        finally:
            waiting.cancel()
        while not ticket.events.empty():
            yield ticket.events.get_nowait()
        return


def _failed(ticket: Ticket, reason: str) -> Segmentation:
    return unanswered(ticket.query.text, Status.FAILED, reason, ticket.image.shape[:2])


def _finish(ticket: Ticket, result: Segmentation, loop: asyncio.AbstractEventLoop) -> None:
    """Give out a result from the model's thread, behind the events before it."""
    loop.call_soon_threadsafe(ticket.finish, result)


def _refuse(ticket: Ticket, loop: asyncio.AbstractEventLoop) -> None:
    """End a request whose deadline has passed before the model has begun with it."""
    loop.call_soon_threadsafe(ticket.fail, deadline_error(time.monotonic() - ticket.queued_at))


def _send(ticket: Ticket, event: Event, loop: asyncio.AbstractEventLoop) -> None:
    ticket.sent_events += 1
    if ticket.events is not None:
        loop.call_soon_threadsafe(ticket.events.put_nowait, event)


def _document(
    result: Segmentation,
    query: SegmentQuery,
    shape: tuple[int, int],
    served: Served,
    sent: Sequence[SentMask],
) -> str:
    return json.dumps(answer_json(result, query, shape, served, sent))


def _decoded(upload: ImageUpload, max_pixels: int) -> tuple[np.ndarray, Query]:
    """Return image and query with its masks, for a helper thread.

    Raises:
        ProblemError: the image, a mask or the region cannot be used.
    """
    image = decode_upload(upload, max_pixels)
    if upload.query.region is not None:
        try:
            crop(image, upload.query.region)
        except LisaError as error:
            raise invalid(str(error)) from error
    return image, upload.query.backend_query(image.shape[:2])
