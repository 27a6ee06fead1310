# SPDX-License-Identifier: Apache-2.0
"""A client of one HTTP server: JSON, and answers that arrive as server-sent events.

A request is tried again only before the server has begun an answer: if there is no connection, if
a connection that was kept open turns out to be closed, and after 429 and 503, as Retry-After says.
Proxies come from the environment, see `server_connection.async_client`, certificates from the
system or SSL_CERT_FILE; redirects are not followed. A token is in no message.

Threads: an event loop in a thread of its own holds the connections, so that a stop closes one at
once, whatever the server does. Every method may be called from any thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import queue
import threading
import weakref
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import Any, Protocol

import httpx2

from lisa_ros.error_text import MAX_CHARS, error_summary, one_line, printable
from lisa_ros.errors import LisaError, ModelError, UnreachableError
from lisa_ros.perception.backend import Cancellation
from lisa_ros.perception.stopping import Deadline
from lisa_ros.server_connection import (
    async_client,
    connection_fault,
    is_loopback,
    retry_after,
    tls_fault,
)
from lisa_ros.serving.problems import Problem, ProblemError, problem_named
from lisa_ros.serving.server_address import ServerAddress, parsed_url

LAST_EVENTS = ('done', 'error')  # names of the event that ends an answer
_MAX_TRIES = 3
_FIRST_PAUSE = 0.25  # between two tries, if the server asks for none; doubled each time [s]
_LONGEST_PAUSE = 30.0  # that a server may ask for, if the request has no deadline [s]
_CONNECT_TIMEOUT = 5.0  # of one try [s]
_SILENCE = 600.0  # longest time without a byte; requests have deadlines of their own [s]
_DRAIN_TIMEOUT = 0.2  # how long the end of a stream may take after its last event [s]
_CLOSE_TIMEOUT = 1.0  # how long the closing of all connections may take [s]
_KEPT_IDLE = 60.0  # how long an unused connection stays open [s]
_STOP_PERIOD = 0.01  # how often a stop is looked for while nothing arrives [s]
_MAX_EVENT_BYTES = 64 * 2**20  # masks of 254 objects in a large image
_MAX_EVENTS = 10_000  # of an answer; a word has one
_MAX_ANSWER_CHARS = 2 * _MAX_EVENT_BYTES  # each mask comes twice
_MAX_BODY_BYTES = 2**20  # of an answer that is no stream
# not REPLICA_LOST: the server itself has tried others, and each further one may end as well
_WITH_RETRY = (Problem.OVERLOADED, Problem.RATE_LIMITED, Problem.NOT_READY)
_BUSY = (429, 503)
_GATEWAY_FAILED = (502, 504)  # a proxy does not reach the server


@dataclass(frozen=True)
class RequestBody:
    """What is sent with a request."""

    media_type: str
    content: bytes


class Sendable(Protocol):
    """A request that may be sent several times."""

    def body(self) -> RequestBody:
        """Return what is sent now. Any thread."""


@dataclass(frozen=True)
class ServerEvent:
    """One server-sent event."""

    name: str
    data: Any  # of JSON


class _TryAgainError(Exception):
    """A request failed before the server began an answer."""

    def __init__(
        self, error: LisaError, pause: float | None = None, problem: Problem | None = None
    ):
        """Make an error.

        Args:
            error: to raise if there is no further try.
            pause: how long the server asks to wait [s]; None: it does not.
            problem: what the server reports; None: nothing.
        """
        super().__init__(str(error))
        self.error, self.pause, self.problem = error, pause, problem


class _BrokenOffError(_TryAgainError):
    """A connection broke: maybe it was kept, and the server closed it at this moment."""

    def __init__(self, error: LisaError):
        """Make an error; there is no reason to wait."""
        super().__init__(error, 0.0)


class HttpClient:
    """The connections to one server; see the module's docstring for rules and threads."""

    def __init__(self, address: ServerAddress):
        """Make a client; it connects with the first request.

        Raises:
            SettingsError: the address is none, or a proxy or certificates of the environment
                cannot be used.
        """
        self._url, self._token = parsed_url(address.url), address.token
        self.name = str(self._url).rstrip('/')  # for messages
        # whether nobody in between can read what is sent
        self.is_private = self._url.scheme == 'https' or is_loopback(self._url.host)
        headers = {'Accept-Encoding': 'identity'}  # a small answer cannot become a large one
        if address.token:
            headers['Authorization'] = f'Bearer {address.token}'
        self._client = async_client(self._url, headers, _KEPT_IDLE)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name='lisa-http', daemon=True).start()
        self._shut_down = weakref.finalize(self, _shut_down, self._loop, self._client)

    def close(self) -> None:
        """End all requests and close the connections; later requests raise UnreachableError."""
        self._shut_down()

    def readable(self, text: str) -> str:
        """Return what a server says on one line, of limited length, without control characters.

        The token is left out: a server may repeat what it was sent.
        """
        text = text.replace(self._token, '***') if self._token else text
        return printable(one_line(text, MAX_CHARS))

    def get_json(self, path: str, timeout: float) -> Any:
        """Return the JSON of a path such as "/v1/models"; one try, two if a connection breaks.

        Args:
            path: of the resource.
            timeout: of all of it [s].

        Raises:
            UnreachableError: there is no answer within the time, or the server has no capacity.
            ProblemError: the server does not give it; RATE_LIMITED: the token has used its rate.
            ModelError: its answer is not JSON.
        """
        answer = self._run(self._get(path, timeout))
        try:
            return answer.result(timeout)
        except _TryAgainError as error:
            if error.problem is Problem.RATE_LIMITED:
                raise ProblemError(error.problem, str(error), error.pause) from None
            raise error.error from None
        except CancelledError:
            raise self._closed() from None
        except FutureTimeoutError:
            answer.cancel()
            raise UnreachableError(
                f'{self.name} has not answered within {timeout:.3g} s: see whether it is busy'
            ) from None

    def post_events(
        self,
        path: str,
        request: Sendable,
        deadline: Deadline,
        stop: Cancellation,
    ) -> Iterator[ServerEvent]:
        """Send a request, and yield the events of the answer as they arrive.

        Ends early when `stop` is set. Then, and if the iteration is given up before an event of
        LAST_EVENTS, the connection is closed.

        Args:
            path: such as "/v1/segment".
            request: asked for its body before each try.
            deadline: of all tries together.
            stop: looked at before each event, and while none arrives.

        Raises:
            UnreachableError: there is no connection, the server has no capacity, or it broke off.
            ProblemError: the server does not accept the request.
            ModelError: its answer is not a stream of events, or too large.
        """
        events: queue.SimpleQueue[ServerEvent | None] = queue.SimpleQueue()
        answer, is_complete = self._run(self._ask(path, request, deadline, events)), False
        try:
            while not stop.is_set():
                try:
                    event = events.get(timeout=_STOP_PERIOD)
                except queue.Empty:
                    continue
                if event is None:
                    self._end(answer)
                    return
                is_complete = event.name in LAST_EVENTS
                yield event
        finally:
            if not is_complete:
                answer.cancel()  # no effect after the end

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Future:
        if not self._shut_down.alive:
            coroutine.close()
            raise self._closed()
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def _end(self, answer: Future) -> None:
        """Raise what ended an answer."""
        try:
            answer.result()
        except CancelledError:
            raise self._closed() from None

    def _closed(self) -> UnreachableError:
        return UnreachableError(f'the connection to {self.name} was closed')

    # ---- on the thread of the event loop

    async def _get(self, path: str, timeout: float) -> Any:
        try:
            content = await self._get_content(path, timeout)
        except _BrokenOffError:
            content = await self._get_content(path, timeout)
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ModelError(
                f'{self.name}{path} is not JSON ({one_line(error)}): is a lisa_ros server there?'
            ) from None

    async def _get_content(self, path: str, timeout: float) -> bytes:
        async with self._response('GET', path, timeout) as response:
            return await _content(response)

    async def _ask(
        self,
        path: str,
        request: Sendable,
        deadline: Deadline,
        events: queue.SimpleQueue[ServerEvent | None],
    ) -> None:
        """Ask, and put the events of the answer into a queue; None at its end."""
        try:
            for number in range(1, _MAX_TRIES + 1):
                try:
                    await self._try(path, request.body(), deadline, events)
                    return
                except _TryAgainError as error:  # noqa: PERF203
                    await self._pause(number, error, deadline)
        except LisaError:
            raise
        except Exception as error:  # noqa: BLE001  # of the library: any type
            raise ModelError(f'{self.name}: {self.readable(error_summary(error))}') from None
        finally:
            events.put(None)

    async def _pause(self, number: int, error: _TryAgainError, deadline: Deadline) -> None:
        """Wait before the next try; raise the error if there is none: too many, or too late."""
        pause = _FIRST_PAUSE * 2 ** (number - 1) if error.pause is None else error.pause
        longest = _LONGEST_PAUSE if deadline.limit is None else deadline.seconds_left
        if number == _MAX_TRIES or pause >= longest:
            raise error.error from None
        await asyncio.sleep(pause)

    async def _try(
        self,
        path: str,
        body: RequestBody,
        deadline: Deadline,
        events: queue.SimpleQueue[ServerEvent | None],
    ) -> None:
        seconds = deadline.seconds_left
        # half of the time: the cause can still be told
        connect = _CONNECT_TIMEOUT if seconds is None else min(_CONNECT_TIMEOUT, seconds / 2)
        async with self._response('POST', path, _SILENCE, connect, body) as response:
            kind = response.headers.get('Content-Type', '')
            if not kind.lower().startswith('text/event-stream'):
                raise ModelError(
                    f'{self.name} answers with {one_line(kind) or "no type"}, not with a stream '
                    'of events: is a lisa_ros server there?'
                )
            if response.headers.get('Content-Encoding', 'identity').lower() != 'identity':
                raise ModelError(f'{self.name} compresses its answer unasked: see its proxy')
            received = self._events(response)
            async for event in received:
                if event.name in LAST_EVENTS:  # the connection is free before the next request
                    await _drain(received)
                events.put(event)

    async def _events(self, response: httpx2.Response) -> AsyncIterator[ServerEvent]:
        """Yield the events of a stream."""
        count = size = 0
        try:
            async for event in httpx2.EventSource(response, max_event_size=_MAX_EVENT_BYTES):
                count, size = count + 1, size + len(event.data)
                if count > _MAX_EVENTS or size > _MAX_ANSWER_CHARS:
                    raise ModelError(
                        f'{self.name} sent {count} events of {size} characters without an end; '
                        f'expected at most {_MAX_EVENTS} and {_MAX_ANSWER_CHARS}: see its log'
                    )
                if event.data:  # one without is none, by the standard
                    yield ServerEvent(event.event, json.loads(event.data))
        except httpx2.SSEError as error:
            raise ModelError(f'{self.name}: {one_line(error)}') from None
        except (ValueError, RecursionError) as error:
            raise ModelError(
                f'{self.name} sent an event that is no JSON: {one_line(error)}'
            ) from (None)

    @contextlib.asynccontextmanager
    async def _response(
        self,
        method: str,
        path: str,
        timeout: float,
        connect: float = _CONNECT_TIMEOUT,
        body: RequestBody | None = None,
    ) -> AsyncIterator[httpx2.Response]:
        """Give the answer to a request if it is one; raise what went wrong instead."""
        url = self._url.copy_with(path=self._url.path.rstrip('/') + path)
        headers = {'Accept': 'application/json'}
        if body is not None:
            headers = {'Accept': 'text/event-stream', 'Content-Type': body.media_type}
        has_begun = False
        try:
            async with self._client.stream(
                method,
                url,
                content=None if body is None else body.content,
                headers=headers,
                timeout=httpx2.Timeout(timeout, connect=min(connect, timeout)),
            ) as response:
                await self._check(response)
                has_begun = True
                yield response
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError) as error:
            raise self._not_connected(error, connect) from None
        except httpx2.ReadTimeout:
            raise UnreachableError(f'{self.name} sent nothing for {timeout:.3g} s') from None
        except httpx2.TransportError as error:
            cause = self.readable(error_summary(error))
            broken = UnreachableError(f'{self.name} broke off the connection ({cause})')
            if has_begun:
                raise broken from None
            raise _BrokenOffError(broken) from None

    async def _check(self, response: httpx2.Response) -> None:
        """Return if a server accepts a request.

        Raises:
            _TryAgainError: it has no capacity.
            ProblemError, UnreachableError, ModelError: there will be no answer.
        """
        status = response.status_code
        if status == 200:
            return
        problem, detail = self._problem(await _content(response))
        summary = f'{status} {response.reason_phrase}' + (f': {detail}' if detail else '')
        if problem in _WITH_RETRY or (problem is None and status in _BUSY):
            headers = response.headers
            pause = retry_after(headers.get('Retry-After', ''), headers.get('Date', ''))
            wait = '' if pause is None else f', and asks to wait {pause:.3g} s'
            error = UnreachableError(f'{self.name} has no capacity ({summary}){wait}')
            raise _TryAgainError(error, pause, problem)
        if problem is not None:
            raise ProblemError(problem, f'{self.name}: {detail}')
        if status in _GATEWAY_FAILED:
            raise UnreachableError(f'a proxy does not reach the server of {self.name} ({summary})')
        if 300 <= status < 400:
            raise ModelError(
                f'{self.name} sends to another address ({summary}), which is not followed: '
                'correct the address of the server'
            )
        raise ModelError(
            f'{self.name} refuses the request ({summary}): is a lisa_ros server there?'
        )

    def _problem(self, content: bytes) -> tuple[Problem | None, str]:
        """Return the problem of an answer, None if it is not one of ours, and what it says."""
        text = content.decode('utf-8', 'replace')
        with contextlib.suppress(ValueError, RecursionError):
            document = json.loads(text)
            if isinstance(document, dict):
                detail = document.get('detail')
                text = detail if isinstance(detail, str) else text
                return problem_named(str(document.get('type'))), self.readable(text)
        return None, self.readable(text)

    def _not_connected(self, error: httpx2.TransportError, seconds: float) -> Exception:
        """Return why there is no connection: an error to raise."""
        if fault := tls_fault(error):
            return UnreachableError(f'{self.name} {fault}')
        if isinstance(error, httpx2.ConnectTimeout):
            return _TryAgainError(
                UnreachableError(f'{self.name} accepted no connection within {seconds:.3g} s')
            )
        text = self.readable(connection_fault(error))
        return _TryAgainError(UnreachableError(f'{self.name} cannot be reached: {text}'))


def _shut_down(loop: asyncio.AbstractEventLoop, client: httpx2.AsyncClient) -> None:
    """End all requests of an event loop, then the loop and its thread."""

    async def close() -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await client.aclose()

    closed = asyncio.run_coroutine_threadsafe(close(), loop)
    with contextlib.suppress(Exception):  # a connection that cannot be closed is gone
        closed.result(_CLOSE_TIMEOUT)
    loop.call_soon_threadsafe(loop.stop)


async def _drain(events: AsyncIterator[ServerEvent]) -> None:
    """Read the end of a complete answer, so that its connection serves the next request."""

    async def read() -> None:
        async for _ in events:
            pass

    with contextlib.suppress(LisaError, httpx2.TransportError, asyncio.TimeoutError):
        await asyncio.wait_for(read(), _DRAIN_TIMEOUT)


async def _content(response: httpx2.Response) -> bytes:
    """Return an answer that is no stream, or its beginning."""
    content = b''
    async for part in response.aiter_raw():
        content += part
        if len(content) > _MAX_BODY_BYTES:
            break
    return content[:_MAX_BODY_BYTES]
