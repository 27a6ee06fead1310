# SPDX-License-Identifier: Apache-2.0
"""The HTTP API as an ASGI application: POST /v1/segment, models, health, metrics.

Each request ends in one answer or in one problem+json. All of it runs in one asyncio loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import math
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from lisa_ros.error_text import short_repr
from lisa_ros.serving.http_input import (
    content_length,
    names_this_machine,
    read_body,
    unless_gone,
    wants_events,
)
from lisa_ros.serving.limits import ServerLimits
from lisa_ros.serving.metrics import ServerMetrics
from lisa_ros.serving.models import Models
from lisa_ros.serving.multipart import ImageUpload, read_upload
from lisa_ros.serving.openapi import openapi
from lisa_ros.serving.problems import PROBLEM_TYPE, Problem, ProblemError
from lisa_ros.serving.query_format import SegmentQuery
from lisa_ros.serving.replies import Answer, ModelRequest
from lisa_ros.serving.tokens import ANYBODY, Client, RateLimiter, TokenTable
from lisa_ros.serving.wire_format import (
    DONE_EVENT,
    ERROR_EVENT,
    EVENTS_TYPE,
    JSON_TYPE,
    SEGMENT_PATH,
    event_bytes,
)

_log = logging.getLogger(__name__)
_KEEP_ALIVE = 1.0  # between two comments in a stream; they show that its client is there [s]
_STATUS_PREFIX = '{"status": "'


@dataclass
class HttpState:
    """What all requests share; the tokens may be replaced while the server runs."""

    models: Models
    limits: ServerLimits = field(default_factory=ServerLimits)
    tokens: TokenTable | None = None  # None: anybody may ask
    local_only: bool = True  # whether only loopback names are accepted as Host, without tokens
    metrics: ServerMetrics = field(default_factory=ServerMetrics)
    rates: RateLimiter = field(default_factory=RateLimiter)
    body_bytes: int = 0  # of all requests that are read or answered


def create_app(state: HttpState) -> ASGIApp:
    """Return the application."""
    api = _Api(state)
    routes = [
        Route(SEGMENT_PATH, api.segment, methods=['POST']),
        Route('/v1/models', api.models, methods=['GET']),
        Route('/healthz', api.health, methods=['GET']),
        Route('/readyz', api.readiness, methods=['GET']),
        Route('/metrics', api.metrics, methods=['GET']),
        Route('/openapi.json', api.openapi, methods=['GET']),
    ]
    app = Starlette(
        routes=routes,
        exception_handlers={
            ProblemError: _answer_problem,
            HTTPException: _answer_http_error,
            ClientDisconnect: _answer_nobody,
            Exception: _answer_bug,
        },
    )
    app.router.redirect_slashes = False
    return app


class _Api:
    """The paths."""

    def __init__(self, state: HttpState):
        self._state = state
        # since the epoch [ns]: those of a server that starts again at the same replicas go on
        self._numbers = itertools.count(time.time_ns())

    async def segment(self, request: Request) -> Response:
        """POST /v1/segment."""
        arrival, ending = time.monotonic(), _Ending(self._state.metrics)
        number = next(self._numbers)
        try:
            client = self._client(request)
            self._state.rates.take(client)
            async with contextlib.AsyncExitStack() as resources:
                upload = await resources.enter_async_context(self._upload(request))
                model_request = self._model_request(upload, client, arrival, number)
                if wants_events(request):
                    return await self._stream(request, model_request, ending, resources)
                answer = await unless_gone(request, self._state.models.answer(model_request))
        except Exception as error:  # each is counted and raised again
            ending.note_error(error)
            raise
        ending.note_answer(answer)
        return Response(answer.document, media_type=JSON_TYPE)

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        self._client(request)  # takes nothing from its rate: each idle robot asks now and then
        state = self._state.models.state
        models = [state.description] if state.description else []
        return JSONResponse({'models': models, 'replicas': state.replicas})

    async def health(self, request: Request) -> Response:
        """GET /healthz: the process answers."""
        self._check_host(request)
        return JSONResponse({'status': 'alive'})

    async def readiness(self, request: Request) -> Response:
        """GET /readyz: a replica answers."""
        self._check_host(request)
        if not self._state.models.state.is_ready:
            raise ProblemError(
                Problem.NOT_READY,
                'no replica answers: the model is being loaded, or Ray is lost; try again later',
                5.0,
            )
        return JSONResponse({'status': 'ready'})

    async def metrics(self, request: Request) -> Response:
        """GET /metrics."""
        self._check_host(request)
        text = self._state.metrics.text(self._state.models.state)
        return Response(text, media_type='text/plain; version=0.0.4')

    async def openapi(self, request: Request) -> Response:
        """GET /openapi.json."""
        self._check_host(request)
        document = openapi(self._state.limits, has_tokens=self._state.tokens is not None)
        return JSONResponse(document)

    def _client(self, request: Request) -> Client:
        """Return who has sent a request.

        Raises:
            ProblemError: UNAUTHORIZED or WRONG_HOST.
        """
        self._check_host(request)
        if self._state.tokens is None:
            return ANYBODY
        return self._state.tokens.client(request.headers.getlist('authorization'))

    def _check_host(self, request: Request) -> None:
        """Refuse requests that a web page of another site makes a browser send.

        Raises:
            ProblemError: WRONG_HOST.
        """
        host, origin = request.headers.get('host', ''), request.headers.get('origin')
        if origin is not None and origin.rpartition('//')[2] != host:
            raise ProblemError(
                Problem.WRONG_HOST,
                f'the Origin is {short_repr(origin)}, but the Host {short_repr(host)}; expected '
                'requests of programs, or of pages of this server',
            )
        is_open = self._state.tokens is None and self._state.local_only
        if is_open and not names_this_machine(host):
            raise ProblemError(
                Problem.WRONG_HOST,
                f'the Host is {short_repr(host)}; expected localhost or 127.0.0.1, since the '
                'server has no tokens: use such an address, or start it with --token-file',
            )

    @contextlib.asynccontextmanager
    async def _upload(self, request: Request) -> AsyncIterator[ImageUpload]:
        """Read and check the body; its bytes count until the end of the block.

        Raises:
            ProblemError: it is too large, too slow or not as expected.
        """
        limits, state = self._state.limits, self._state
        size = content_length(request, limits.body_bytes)
        if state.body_bytes + size > limits.waiting_bytes:
            raise ProblemError(
                Problem.OVERLOADED,
                f'the requests that are read or answered have {state.body_bytes} bytes; expected '
                f'at most {limits.waiting_bytes}: send again later, or smaller images',
                1.0,
            )
        state.body_bytes += size
        try:
            body = await read_body(request, size, limits.upload_seconds)
            content_type = request.headers.get('content-type', '')
            # in a thread: hostile bodies take up to a second
            yield await asyncio.to_thread(read_upload, content_type, body, limits)
        finally:
            state.body_bytes -= size

    def _model_request(
        self, upload: ImageUpload, client: Client, arrival: float, number: int
    ) -> ModelRequest:
        seconds = _deadline_of(upload.query, self._state.limits) - (time.monotonic() - arrival)
        stream = _stream_of(client, upload.query.stream)
        return ModelRequest(upload, max(0.0, seconds), stream, number=number)

    async def _stream(
        self,
        request: Request,
        model_request: ModelRequest,
        ending: _Ending,
        resources: contextlib.AsyncExitStack,
    ) -> Response:
        """Answer with server-sent events; a problem before the first one has its own status."""
        events = self._state.models.stream(model_request)
        resources.push_async_callback(events.aclose)
        first = await unless_gone(request, anext(events))
        resources.callback(ending.note_departure)
        return _EventResponse(_event_stream(first, events, ending), resources.pop_all())


async def _event_stream(
    first: bytes | Answer,
    events: AsyncIterator[bytes | Answer],
    ending: _Ending,
) -> AsyncIterator[bytes]:
    try:
        event: bytes | Answer | None = first
        pending: asyncio.Future | None = None
        while True:
            if isinstance(event, Answer):
                ending.note_answer(event)
                yield event_bytes(DONE_EVENT, event.document)
                return
            yield b': keep-alive\n\n' if event is None else event
            pending = pending or asyncio.ensure_future(anext(events))
            done, _ = await asyncio.wait({pending}, timeout=_KEEP_ALIVE)
            event = None
            if done:
                event, pending = pending.result(), None
    except Exception as error:
        ending.note_error(error)
        if not isinstance(error, ProblemError):
            raise
        yield event_bytes(ERROR_EVENT, error.document())
    finally:
        if pending is not None:
            pending.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await pending


class _Ending:
    """How a request has ended; counted once, as what came first."""

    def __init__(self, metrics: ServerMetrics):
        self._metrics, self._arrival, self._is_counted = metrics, time.monotonic(), False

    def note_answer(self, answer: Answer) -> None:
        """Count an answer by its status, and observe its figures."""
        status = answer.document.removeprefix(_STATUS_PREFIX).partition('"')[0]
        seconds = time.monotonic() - self._arrival
        self._count(status)
        self._metrics.observe(answer.figures, seconds)
        _log.debug('%s in %.3f s, batch of %d', status, seconds, answer.figures.batch_size)

    def note_error(self, error: Exception) -> None:
        """Count a problem, a client that has left, or a bug."""
        if isinstance(error, ClientDisconnect):
            self.note_departure()
        else:
            problem = error.problem if isinstance(error, ProblemError) else Problem.INTERNAL
            self._count(problem.value.name)

    def note_departure(self) -> None:
        """Count a client that has left, unless its request had ended before."""
        self._count('client_left')

    def _count(self, result: str) -> None:
        if not self._is_counted:
            self._is_counted = True
            self._metrics.count(result)


def _deadline_of(query: SegmentQuery, limits: ServerLimits) -> float:
    """Return how long a query may take from its arrival [s].

    One with the longest deadline has as long as one without, at least: a client that knows no
    limit sends it.
    """
    deadline = query.deadline or limits.default_deadline
    is_longest = deadline >= limits.query.deadline
    return max(deadline, limits.default_deadline) if is_longest else deadline


def _stream_of(client: Client, stream: str) -> str:
    """Return the name of a client's stream among those of all clients; '': it has none.

    Names of clients have no spaces, so that no two streams get the same one.
    """
    return f'{client.name} {stream}' if client.name and stream else stream


class _EventResponse(StreamingResponse):
    """Server-sent events; frees what they hold at their end, or when the client leaves."""

    def __init__(self, events: AsyncIterator[bytes], resources: contextlib.AsyncExitStack):
        headers = {'Cache-Control': 'no-store', 'X-Accel-Buffering': 'no'}
        super().__init__(events, headers=headers, media_type=EVENTS_TYPE)
        self._resources = resources

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._resources:
            await super().__call__(scope, receive, send)


def _problem_response(error: ProblemError) -> Response:
    headers = {}
    if error.retry_after is not None:
        headers['Retry-After'] = str(max(1, math.ceil(error.retry_after)))
    if error.problem is Problem.UNAUTHORIZED:
        headers['WWW-Authenticate'] = 'Bearer'
    # else a body goes on: it is dropped, since a client that is cut off would not read the answer
    if error.problem is Problem.TOO_SLOW:
        headers['Connection'] = 'close'
    body = json.dumps(error.document())
    return Response(body, error.problem.status, headers, PROBLEM_TYPE)


async def _answer_problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, ProblemError)  # noqa: S101  # registered for these
    return _problem_response(error)


async def _answer_http_error(request: Request, error: Exception) -> Response:
    """Answer what Starlette refuses: unknown paths and methods."""
    status = getattr(error, 'status_code', 400)
    came = f'{request.method} {short_repr(request.url.path)}'
    if status == 404:
        problem, cure = Problem.NOT_FOUND, 'GET /openapi.json lists the paths'
    elif status == 405:
        problem, cure = Problem.METHOD_NOT_ALLOWED, 'GET /openapi.json lists the methods'
    else:
        problem, cure = Problem.MALFORMED, 'GET /openapi.json describes requests'
    response = _problem_response(ProblemError(problem, f'{came}: {problem.value.title}; {cure}'))
    for name, value in (getattr(error, 'headers', None) or {}).items():
        response.headers[name] = value
    return response


async def _answer_bug(_: Request, error: Exception) -> Response:
    """Answer a request that has met a bug; uvicorn logs the traceback."""
    detail = f'{type(error).__name__}: the log of the server has more; report it'
    return _problem_response(ProblemError(Problem.INTERNAL, detail))


async def _answer_nobody(_: Request, __: Exception) -> Response:
    """Answer a client that has left: nobody reads it."""
    return Response(status_code=400)
