# SPDX-License-Identifier: Apache-2.0
"""A client of servers with OpenAI's chat completions: vLLM, SGLang, llama.cpp, clouds.

A request is streamed, and tried again only before the server has begun an answer: if there is no
connection, after 429 and 503, as Retry-After says, and once if the connection breaks: a server may
close one that was kept at the moment when a request arrives. Every end has a cause in words, and
the key is in none of them. Proxies come from the environment, see
`server_connection.async_client`, certificates from the system or SSL_CERT_FILE; redirects are not
followed.

Threads: one thread at a time asks. An event loop in a thread of its own holds the connection, so
that a cancel closes it at once, whatever the server does.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import queue
import threading
import time
import weakref
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass

import httpx2

from lisa_ros.error_text import error_summary, one_line
from lisa_ros.errors import ModelError, SettingsError, UnreachableError
from lisa_ros.server_connection import (
    async_client,
    connection_fault,
    is_loopback,
    retry_after,
    tls_fault,
)
from lisa_ros.vlm.chat_chunks import AnswerPiece, WholeCharacters, read_chunk
from lisa_ros.vlm.pointing_model import StopSignal

_MAX_TRIES = 3
_FIRST_PAUSE = 0.5  # between two tries, if the server asks for none; doubled each time [s]
_LONGEST_PAUSE = 30.0  # that a server may ask for, if the answer has no deadline [s]
_CONNECT_TIMEOUT = 10.0  # of one try [s]
_SILENCE = 600.0  # longest time without a byte [s]; the deadline of an answer may end it sooner
_CLOSE_TIMEOUT = 1.0  # how long the end of a stream may take after the end of its answer [s]
_KEPT_IDLE = 4.0  # how long an unused connection stays open; uvicorn closes it after 5 s [s]
_STOP_PERIOD = 0.02  # how often a stop is looked for [s]
_MAX_ANSWER_BYTES = 16 * 2**20  # a token with probabilities has about 500
_MAX_EVENT_BYTES = 2**20
_MAX_ERROR_BYTES = 4096  # of the text of an error that is read
_BUSY = (429, 503)
_GATEWAY_FAILED = (502, 504)  # a proxy does not reach the server
_BROKEN_OFF = (httpx2.NetworkError, httpx2.RemoteProtocolError)


class RefusedError(ModelError):
    """A server does not accept a request as it is."""

    def __init__(self, message: str, status: int = 0):
        """Make an error; `status` is that of HTTP."""
        super().__init__(message)
        self.status = status


class _TryAgainError(Exception):
    """A request failed before the server began an answer."""

    def __init__(self, cause: str, pause: float | None = None):
        """Make an error; `pause` is how long the server asks to wait [s], None: it does not."""
        super().__init__(cause)
        self.pause = pause


class _BrokenOffError(UnreachableError):
    """A connection broke before the server began an answer."""


@dataclass(frozen=True)
class _Deadline:
    """The time limit of one request, over all tries."""

    at: float | None  # [s, monotonic]; None: no limit

    @property
    def seconds_left(self) -> float | None:
        return None if self.at is None else max(0.0, self.at - time.monotonic())


def completions_url(url: str) -> httpx2.URL:
    """Return where chat completions are asked for.

    Args:
        url: of the server, "http://host:8000" or "https://host/v1".

    Raises:
        SettingsError: it is no such address, or contains a password or a query.
    """
    example = 'expected an address such as http://gpu-server:8000/v1'
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise SettingsError(f'vlm_url cannot be read ({one_line(error)}); {example}') from error
    if parsed.userinfo or parsed.query or parsed.fragment:
        raise SettingsError(
            'vlm_url has a user, a password, a query or a fragment, which would be logged: give '
            'the key with api_key_env or api_key_file'
        )
    if parsed.scheme not in ('http', 'https') or not parsed.host:
        raise SettingsError(f'vlm_url is {one_line(url)!r}; {example}')
    path = parsed.path.rstrip('/')
    if not path.endswith('/chat/completions'):
        path = f'{path or "/v1"}/chat/completions'
    return parsed.copy_with(path=path)


class ChatServer:
    """A server of one address; see the module's docstring for threads."""

    def __init__(self, url: str, key: str = ''):
        """Make a client; it connects with the first request.

        Args:
            url: as `completions_url` takes it.
            key: is sent as bearer token; '': none.

        Raises:
            SettingsError: it is no such address, or a proxy or certificates of the environment
                cannot be used.
        """
        self._url, self._key = completions_url(url), key
        self.address = str(self._url.copy_with(path='/')).rstrip('/')
        self.is_private = self._url.scheme == 'https' or is_loopback(self._url.host)
        headers = {'Accept-Encoding': 'identity'}  # a small answer cannot become a large one
        if key:
            headers['Authorization'] = f'Bearer {key}'
        self._client = async_client(self._url, headers, _KEPT_IDLE)
        self._in_flight = asyncio.Lock()  # the connection of a cancelled request is closed first
        self._loop = asyncio.new_event_loop()
        threading.Thread(
            target=_run, args=(self._loop, self._client), name='lisa-vlm', daemon=True
        ).start()
        weakref.finalize(self, self._loop.call_soon_threadsafe, self._loop.stop)

    def stream(self, request: Mapping[str, object], stop: StopSignal) -> Iterator[AnswerPiece]:
        """Ask, and yield the answer as it arrives; ends early when `stop` is set.

        If the iteration is given up, the connection is closed.

        Args:
            request: the body, without "stream".
            stop: looked at before each piece, and while none arrives.

        Raises:
            UnreachableError: there is no connection, the server has no capacity, or it broke off.
            RefusedError: the server does not accept the request.
            ModelError: its answer is not a stream of chat completion chunks, or too large.
        """
        seconds = stop.seconds_left
        deadline = _Deadline(None if seconds is None else time.monotonic() + seconds)
        body = json.dumps({**request, 'stream': True}).encode()
        pieces: queue.SimpleQueue[AnswerPiece | None] = queue.SimpleQueue()
        answer = asyncio.run_coroutine_threadsafe(self._ask(body, deadline, pieces), self._loop)
        is_complete = False
        try:
            while not stop.is_set():
                try:
                    piece = pieces.get(timeout=_STOP_PERIOD)
                except queue.Empty:
                    continue
                if piece is None:
                    answer.result()
                    return
                is_complete = bool(piece.finish_reason)
                yield piece
        finally:
            if not is_complete:
                answer.cancel()

    # ---- on the thread of the event loop

    async def _ask(
        self, body: bytes, deadline: _Deadline, pieces: queue.SimpleQueue[AnswerPiece | None]
    ) -> None:
        """Ask, and put the answer's pieces into a queue; None at its end."""
        try:
            async with self._in_flight:
                for number in itertools.count(1):
                    try:
                        await self._try(body, deadline, pieces)
                        return
                    except _TryAgainError as error:  # noqa: PERF203
                        await self._pause(number, error, deadline)
        finally:
            pieces.put(None)

    async def _pause(self, number: int, error: _TryAgainError, deadline: _Deadline) -> None:
        """Wait before the next try.

        Raises:
            UnreachableError: there is none: too many, or too late.
        """
        seconds = deadline.seconds_left
        pause = _FIRST_PAUSE * 2 ** (number - 1) if error.pause is None else error.pause
        if number >= _MAX_TRIES or pause >= (_LONGEST_PAUSE if seconds is None else seconds):
            tries = '1 try' if number == 1 else f'{number} tries'
            wait = '' if error.pause is None else f', and asks to wait {pause:.3g} s'
            raise UnreachableError(f'{self.address} {error}{wait} ({tries})')
        await asyncio.sleep(pause)

    async def _try(
        self,
        body: bytes,
        deadline: _Deadline,
        pieces: queue.SimpleQueue[AnswerPiece | None],
    ) -> None:
        try:
            await self._send(body, deadline, pieces)
        except _BrokenOffError:  # it was kept, and the server closed it: on a new one
            await self._send(body, deadline, pieces)

    async def _send(
        self,
        body: bytes,
        deadline: _Deadline,
        pieces: queue.SimpleQueue[AnswerPiece | None],
    ) -> None:
        seconds = deadline.seconds_left
        # half of the time: the cause can still be told
        connect = _CONNECT_TIMEOUT if seconds is None else min(_CONNECT_TIMEOUT, seconds / 2)
        has_begun = False
        try:
            async with self._client.stream(
                'POST',
                self._url,
                content=body,
                headers={'Content-Type': 'application/json', 'Accept': 'text/event-stream'},
                timeout=httpx2.Timeout(_SILENCE, connect=connect),
            ) as response:
                has_begun = True
                await self._check(response)
                async for piece in self._read(response):
                    pieces.put(piece)
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError) as error:
            raise self._not_connected(error, connect) from None
        except httpx2.ReadTimeout:
            raise UnreachableError(f'{self.address} sent nothing for {_SILENCE:g} s') from None
        except httpx2.SSEError as error:
            raise ModelError(f'{self.address}: {one_line(error)}') from None
        except httpx2.RequestError as error:
            cause = self._safe(error_summary(error))
            message = f'{self.address} broke off the connection ({cause})'
            is_lost = not has_begun and isinstance(error, _BROKEN_OFF)
            raise (_BrokenOffError if is_lost else UnreachableError)(message) from None

    def _not_connected(self, error: httpx2.TransportError, seconds: float) -> Exception:
        """Return why there is no connection: an error to raise."""
        if fault := tls_fault(error):
            return UnreachableError(f'{self.address} {fault}')
        if isinstance(error, httpx2.ConnectTimeout):
            return _TryAgainError(f'accepted no connection within {seconds:.3g} s')
        return _TryAgainError(f'cannot be reached: {self._safe(connection_fault(error))}')

    async def _check(self, response: httpx2.Response) -> None:
        """Check the status and the type of an answer that begins.

        Raises:
            _TryAgainError: the server has no capacity.
            UnreachableError, RefusedError, ModelError: there will be no answer.
        """
        status, kind = response.status_code, response.headers.get('Content-Type', '')
        if status == 200:
            if not kind.lower().startswith('text/event-stream'):
                text = await _beginning(response)
                raise ModelError(
                    f'{self.address} answers with {one_line(kind) or "no type"}, not with a '
                    f'stream of events: {self._safe(text)!r}; is vlm_url an OpenAI-compatible '
                    'server?'
                )
            if response.headers.get('Content-Encoding', 'identity').lower() != 'identity':
                raise ModelError(f'{self.address} compresses its answer unasked')
            return
        name = one_line(f'{status} {response.reason_phrase}')
        text = await _beginning(response)
        message = f'{name}: {self._safe(text)}' if text else name
        if status in _BUSY:
            headers = response.headers
            pause = retry_after(headers.get('Retry-After', ''), headers.get('Date', ''))
            raise _TryAgainError(f'has no capacity ({message})', pause)
        if status in _GATEWAY_FAILED:
            raise UnreachableError(f'{self.address} does not reach the model ({message})')
        if status in (401, 403):
            raise RefusedError(
                f'{self.address} refuses access ({message}): give the key with api_key_env '
                'or api_key_file',
                status,
            )
        if 300 <= status < 400:
            raise RefusedError(
                f'{self.address} sends to another address ({name}), which is not followed: '
                'correct vlm_url',
                status,
            )
        verb = 'fails' if status >= 500 else 'refuses the request'
        raise RefusedError(f'{self.address} {verb} ({message})', status)

    async def _read(self, response: httpx2.Response) -> AsyncIterator[AnswerPiece]:
        """Yield the pieces of an answer; after the last one wait for the end of the stream."""
        characters = WholeCharacters()
        events = aiter(httpx2.EventSource(response, max_event_size=_MAX_EVENT_BYTES))
        async for event in events:
            if response.num_bytes_downloaded > _MAX_ANSWER_BYTES:
                size = _MAX_ANSWER_BYTES // 2**20
                raise ModelError(f'{self.address} sent more than {size} MiB for one answer')
            if not event.data:  # by the standard it is no event
                continue
            if event.data.strip() == '[DONE]':
                break
            try:
                piece = read_chunk(self._without_key(event.data))
            except ModelError as error:
                raise ModelError(f'{self.address}: {error}') from None
            piece = piece and characters.join(piece)
            if piece is None:
                continue
            yield piece
            if piece.finish_reason:  # keep the connection for the next request
                with contextlib.suppress(asyncio.TimeoutError, httpx2.TransportError):
                    await asyncio.wait_for(_drain(events), _CLOSE_TIMEOUT)
                return
        raise UnreachableError(f'{self.address} ended its answer before it was complete')

    def _without_key(self, text: str) -> str:
        """Return a text without the key: a server may repeat what it was sent."""
        return text.replace(self._key, '***') if self._key else text

    def _safe(self, text: str) -> str:
        """Return a text on one line, without the key."""
        return one_line(self._without_key(text))


def _run(loop: asyncio.AbstractEventLoop, client: httpx2.AsyncClient) -> None:
    """Run an event loop until it is stopped; close the connections then."""
    try:
        loop.run_forever()
        loop.run_until_complete(client.aclose())
    finally:
        loop.close()


async def _drain(events: AsyncIterator[httpx2.ServerSentEvent]) -> None:
    async for _ in events:
        pass


async def _beginning(response: httpx2.Response) -> str:
    """Return the message of an answer that is an error, or the beginning of its text."""
    content = b''
    async for part in response.aiter_raw():
        content += part[:_MAX_ERROR_BYTES]
        if len(content) >= _MAX_ERROR_BYTES:
            break
    text = content[:_MAX_ERROR_BYTES].decode('utf-8', 'replace')
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if not isinstance(values, dict):
        return text
    error = values.get('error', values)
    message = error.get('message', error.get('detail')) if isinstance(error, dict) else error
    return message if isinstance(message, str) else text
