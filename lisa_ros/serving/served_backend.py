# SPDX-License-Identifier: Apache-2.0
"""A Backend whose model is on a server: `model: http://server:8000`.

Image and query go to `POST /v1/segment` of `lisa-ros serve`, words and masks come back as they are
made. Neither torch nor transformers is imported.

- `answer_timeout` is one deadline for connecting, waiting, answering and all tries. The server
  gets what is left of it.
- A cancel closes the connection, which ends the work on the server.
- A server that cannot be reached, has no capacity or breaks off gives status UNREACHABLE, with the
  cause. The next request tries it again.

Threads: as every Backend, one thread at a time asks. `interrupt`, `close` and the properties may
be used from any thread.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
import uuid
from collections.abc import Iterator, Sequence

import numpy as np

from lisa_ros.api_key import read_api_key
from lisa_ros.error_text import short_repr
from lisa_ros.errors import (
    ImageError,
    ModelError,
    QueryError,
    SettingsError,
    UnreachableError,
)
from lisa_ros.model.image_processing import check_rgb
from lisa_ros.perception.backend import (
    STOP_GRACE,
    BatchRequest,
    Cancellation,
    Capabilities,
    InferenceOptions,
    LoadOptions,
    Query,
)
from lisa_ros.perception.health import ModelHealth
from lisa_ros.perception.masks import MAX_MASKS
from lisa_ros.perception.stopping import CANCELLED, Deadline, EarlyEnd, PartialAnswer, timed_out
from lisa_ros.results import Done, Event, MaskReady, Segmentation, Status
from lisa_ros.serving.http_client import HttpClient
from lisa_ros.serving.image_transfer import (
    DEFAULT_JPEG_QUALITY,
    ImageCoding,
    ImageFormat,
    enlarged_mask,
    enlarged_result,
)
from lisa_ros.serving.parallel_requests import parallel_events
from lisa_ros.serving.problems import Problem, ProblemError, problem_named
from lisa_ros.serving.query_encoding import QuerySending, SentQuery, encode_query
from lisa_ros.serving.server_address import ServerAddress
from lisa_ros.serving.server_monitor import (
    MODELS_PATH,
    MonitorLog,
    MonitorPeriods,
    ServedModel,
    ServerMonitor,
    read_models,
)
from lisa_ros.serving.wire_format import (
    DONE_EVENT,
    ERROR_EVENT,
    SEGMENT_PATH,
    SentMask,
    event_of,
    result_of,
    served_of,
)


def load_http(model: str, options: LoadOptions) -> ServedBackend:
    """Connect to "http:" + `model`; see `ServedBackend.load`."""
    return ServedBackend.load(f'http:{model}', options)


def load_https(model: str, options: LoadOptions) -> ServedBackend:
    """Connect to "https:" + `model`; see `ServedBackend.load`."""
    return ServedBackend.load(f'https:{model}', options)


def ask_models(model: str, options: LoadOptions, timeout: float) -> ServedModel:
    """Return what a server says of its model, without a connection that is kept.

    Args:
        model: as in `ServedBackend.load`.
        options: `api_key_env` or `api_key_file`.
        timeout: of the answer [s].

    Raises:
        SettingsError: the address or the token is none.
        UnreachableError: there is no answer.
        ProblemError, ModelError: it is no such server, or refuses the token.
    """
    token = read_api_key(options.api_key_env, options.api_key_file)
    client = HttpClient(ServerAddress(model, token))
    try:
        return read_models(client.get_json(MODELS_PATH, timeout))
    finally:
        client.close()


class _Stop:
    """A cancel, an interrupt from outside, or the end of the time; a `Cancellation`."""

    def __init__(self, cancel: Cancellation, deadline: Deadline):
        """Begin; `deadline` is the end of `answer_timeout`."""
        self.cancel, self.deadline = cancel, deadline
        self._cause = ''

    def interrupt(self, cause: str) -> None:
        """End the request."""
        self._cause = self._cause or cause

    def is_set(self) -> bool:
        """Return whether the request must end."""
        is_late = time.monotonic() >= self.deadline.at + STOP_GRACE
        return bool(self._cause) or self.cancel.is_set() or is_late

    @property
    def early_end(self) -> EarlyEnd:
        """How the request ends."""
        if self.cancel.is_set():
            return CANCELLED
        if self._cause:
            return EarlyEnd(Status.TIMED_OUT, f'the connection was closed: {self._cause}')
        return timed_out(self.deadline.limit or 0.0)


class ServedBackend:
    """A model on a server; see the module's docstring for rules and threads."""

    def __init__(
        self,
        client: HttpClient,
        coding: ImageCoding | None = None,
        *,
        log: MonitorLog | None = None,
        periods: MonitorPeriods | None = None,
    ):
        """Contact a server; one that cannot be reached yet is an UNREACHABLE model, not an error.

        Args:
            client: of the server; it belongs to this object.
            coding: how images are sent; None: as JPEG.
            log: receives a line when the server is gone, and when it is back.
            periods: how often the server is asked while no request asks it; None: see there.

        Raises:
            SettingsError: it is no such server, or refuses the token.
        """
        self._client, self._coding = client, coding or ImageCoding()
        self._name = f'lisa_ros-{uuid.uuid4().hex[:12]}'  # of the stream of requests
        self._running: set[_Stop] = set()  # of the requests that run
        self._monitor = ServerMonitor(client, log, periods)
        try:
            self._monitor.start()
        except SettingsError:
            self.close()
            raise

    @classmethod
    def load(
        cls, model: str, options: LoadOptions, log: MonitorLog | None = None
    ) -> ServedBackend:
        """Contact a server.

        Args:
            model: "http://host:8000" or "https://host/path".
            options: `api_key_env` or `api_key_file`, `server_image` and `server_jpeg_quality`;
                the others are the server's matter.
            log: as in `__init__`.

        Raises:
            SettingsError: the address is none, a file or variable of the options does not exist,
                it is no such server, or it refuses the token.
        """
        token = read_api_key(options.api_key_env, options.api_key_file)
        address = ServerAddress(model, token)
        coding = ImageCoding(
            ImageFormat(options.server_image or ImageFormat.JPEG.value),
            options.server_jpeg_quality or DEFAULT_JPEG_QUALITY,
        )
        return cls(HttpClient(address), coding, log=log)

    @property
    def device(self) -> str:
        """The address of the server."""
        return self._client.name

    @property
    def capabilities(self) -> Capabilities:
        """What the model can do; a guess until the server was reached.

        Any model answers several requests at a time: they wait at the server.
        """
        return dataclasses.replace(self._monitor.model.capabilities, batches=True)

    @property
    def precision(self) -> str:
        """The number format of the weights on the server; empty if it is unknown."""
        return self._monitor.model.precision

    @property
    def notices(self) -> tuple[str, ...]:
        """Who gets the images."""
        notice = f'images and commands are sent to {self.device} (model)'
        if not self._client.is_private:
            notice += ' without encryption: whoever is in between can read them; prefer https'
        return (notice,)

    @property
    def health(self) -> ModelHealth:
        """Whether the server can be reached; OK also while it answers."""
        return self._monitor.health

    @property
    def memory(self) -> int:
        """0: the model is not on this machine."""
        return 0

    @property
    def gpu_memory(self) -> None:
        """None: the model is not on this machine."""
        return

    def interrupt(self, cause: str) -> None:
        """Close the connection of the running request, which then ends."""
        for stop in tuple(self._running):
            stop.interrupt(cause)

    def close(self) -> None:
        """Close all connections; requests from now on are UNREACHABLE."""
        self._monitor.close()
        self._client.close()

    def encode_images(self, images: Sequence[np.ndarray]) -> None:
        """Do nothing: the server encodes images."""

    def clear_cache(self) -> None:
        """Do nothing: the server keeps what it has encoded."""

    # ---- requests

    def stream(
        self,
        image: np.ndarray,
        query: Query,
        options: InferenceOptions,
        cancel: Cancellation,
    ) -> Iterator[Event]:
        """Answer a query; see `Backend.stream`. Waits until the server has begun to answer.

        Raises:
            ImageError, QueryError: as the server reports them, by the call.
        """
        stop = _Stop(cancel, Deadline(options.answer_timeout))
        return self._begun(image, query, options, stop, self._name)

    def stream_batch(
        self, requests: Sequence[BatchRequest], options: InferenceOptions
    ) -> Iterator[tuple[int, Event]]:
        """Answer several queries at a time, of which the server makes batches.

        See `AnswersBatches`. They are no stream: none replaces another one.
        """
        deadline = Deadline(options.answer_timeout)  # also of those that wait for a thread

        def ask(request: BatchRequest) -> Iterator[Event]:
            stop = _Stop(request.cancel, deadline)
            return self._begun(request.image, request.query, options, stop, '')

        return parallel_events(requests, ask)

    def _begun(
        self,
        image: np.ndarray,
        query: Query,
        options: InferenceOptions,
        stop: _Stop,
        stream: str,
    ) -> Iterator[Event]:
        """Ask; return the events when the first one is there."""
        check_rgb(image)
        sending = QuerySending(self._coding, self._monitor.model.input_side, stream)
        sent = encode_query(image, query, options, sending, stop.deadline)
        events = self._events(sent, stop)
        return itertools.chain((next(events),), events)

    def _events(self, sent: SentQuery, stop: _Stop) -> Iterator[Event]:
        """Yield the events of an answer, then one Done, whatever happens on the way."""
        partial = PartialAnswer(sent.query.text, sent.shape)
        if stop.deadline.is_over:  # it has waited for others of its batch
            yield Done(partial.result(stop.early_end))
            return
        start = time.perf_counter()
        self._running.add(stop)
        try:
            for event in self._received(sent, stop):
                self._monitor.note_answer()
                if isinstance(event, Done):
                    yield Done(
                        _with_times(event.result, sent.seconds, time.perf_counter() - start)
                    )
                    return
                partial.add(event)
                yield event
            if not stop.is_set():
                raise UnreachableError(f'{self.device} ended its answer before it was complete')
            yield Done(partial.result(stop.early_end))
        except UnreachableError as error:
            self._monitor.note_unreachable(str(error))
            yield Done(partial.result(EarlyEnd(Status.UNREACHABLE, str(error))))
        except ProblemError as error:
            if error.problem is Problem.UNAUTHORIZED:  # no request gets an answer
                self._monitor.note_unreachable(str(error))
            else:
                self._monitor.note_answer()
            yield Done(partial.result(_end_of(error)))
        finally:
            self._running.discard(stop)

    def _received(self, sent: SentQuery, stop: _Stop) -> Iterator[Event]:
        """Yield what the server sends, in the size of the whole image."""
        masks: dict[int, SentMask] = {}
        for event in self._client.post_events(SEGMENT_PATH, sent, stop.deadline, stop):
            if event.name == ERROR_EVENT:
                raise self._reported(event.data)
            if event.name == DONE_EVENT:
                result = result_of(event.data, tuple(masks.values()), sent.sent_shape)
                self._monitor.note_answer(served_of(event.data))
                yield Done(enlarged_result(self._checked(result, sent), sent.shape))
                return
            piece = event_of(event.name, event.data, sent.sent_shape)
            if isinstance(piece, MaskReady):
                if piece.index in masks or not 0 <= piece.index < MAX_MASKS:
                    raise ModelError(
                        f'{self.device} sent the mask {short_repr(piece.index)}; expected each '
                        f'once, and less than {MAX_MASKS}: see its log'
                    )
                masks[piece.index] = SentMask(event.data, piece)
                piece = enlarged_mask(piece, sent.shape)
            yield piece

    def _checked(self, result: Segmentation, sent: SentQuery) -> Segmentation:
        """Return the result of a query, with a reason that can be shown.

        Raises:
            ModelError: it is the answer to another one.
        """
        if result.query != sent.query.text:
            raise ModelError(
                f'{self.device} answered another command, {short_repr(result.query)}: see '
                'whether a proxy in between mixes up answers'
            )
        return dataclasses.replace(result, reason=self._client.readable(result.reason))

    def _reported(self, document: object) -> Exception:
        """Return the error of an `error` event."""
        if not isinstance(document, dict):
            return ModelError('the server reports an error without a reason: see its log')
        problem = problem_named(str(document.get('type')))
        detail = self._client.readable(str(document.get('detail')))
        return ModelError(detail) if problem is None else ProblemError(problem, detail)


_WITHOUT_SERVER = (
    *(Problem.OVERLOADED, Problem.RATE_LIMITED, Problem.NOT_READY, Problem.REPLICA_LOST),
    *(Problem.TOO_SLOW, Problem.UNAUTHORIZED),
)


def _end_of(error: ProblemError) -> EarlyEnd:
    """Return how a request ends that the server has refused.

    Raises:
        ImageError, QueryError, ModelError: a person can correct it.
    """
    reason = str(error)
    if error.problem is Problem.SUPERSEDED:
        return EarlyEnd(Status.SUPERSEDED, reason)
    if error.problem is Problem.DEADLINE:
        return EarlyEnd(Status.TIMED_OUT, reason)
    if error.problem in _WITHOUT_SERVER:
        return EarlyEnd(Status.UNREACHABLE, reason)
    if error.problem is Problem.INVALID_IMAGE:
        raise ImageError(reason) from error
    if error.problem is Problem.INVALID_QUERY:
        raise QueryError(reason) from error
    raise ModelError(reason) from error


def _with_times(result: Segmentation, encode: float, total: float) -> Segmentation:
    """Return a result with the time of the client and of the network [s] among its stages."""
    network = max(0.0, total - sum(result.timings.values()))
    return dataclasses.replace(
        result, timings={'encode': encode, **result.timings, 'network': network}
    )
