# SPDX-License-Identifier: Apache-2.0
"""Read a request within its limits, and notice when its client leaves. One asyncio loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request

from lisa_ros.error_text import short_repr
from lisa_ros.server_connection import is_loopback
from lisa_ros.serving.problems import Problem, ProblemError
from lisa_ros.serving.wire_format import EVENTS_TYPE

_Result = TypeVar('_Result')


async def unless_gone(request: Request, work: Awaitable[_Result]) -> _Result:
    """Return the result of some work; cancel it if the client leaves.

    Raises:
        ClientDisconnect: it has left.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(request.receive())  # after the body: only a disconnect
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, leaving):
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task


def content_length(request: Request, limit: int) -> int:
    """Return the length of the body.

    Raises:
        ProblemError: LENGTH_REQUIRED, TOO_LARGE, or UNSUPPORTED_MEDIA: it is compressed.
    """
    text = request.headers.get('content-length', '')
    # with both, HTTP says that the body comes in chunks, and is as long as they are
    if not (text.isascii() and text.isdecimal()) or 'transfer-encoding' in request.headers:
        raise ProblemError(
            Problem.LENGTH_REQUIRED,
            'the request has no Content-Length, or comes in chunks; expected a length: send the '
            'body whole',
        )
    if len(text) > 15 or int(text) > limit:
        raise ProblemError(
            Problem.TOO_LARGE,
            f'the body has {text[:20]} bytes; expected at most {limit}: send a smaller image',
        )
    coding = request.headers.get('content-encoding', 'identity')
    if coding.lower() != 'identity':
        raise ProblemError(
            Problem.UNSUPPORTED_MEDIA,
            f'the Content-Encoding is {short_repr(coding)}; expected none: send the body as it is',
        )
    return int(text)


async def read_body(request: Request, size: int, seconds: float) -> bytes:
    """Return the body.

    Raises:
        ProblemError: TOO_SLOW.
        ClientDisconnect: the client has left.
    """
    body = bytearray()

    async def read() -> None:
        async for chunk in request.stream():
            body.extend(chunk)

    try:
        await asyncio.wait_for(read(), seconds)
    except asyncio.TimeoutError as error:
        raise ProblemError(
            Problem.TOO_SLOW,
            f'{len(body)} of {size} bytes arrived in {seconds:g} s; expected all: send a smaller '
            'image',
        ) from error
    return bytes(body)


def names_this_machine(host: str) -> bool:
    """Return whether a Host header, a name with or without a port, names this machine."""
    name = host.rpartition(':')[0] if not host.endswith(']') and ':' in host else host
    return is_loopback(name.strip('[]').lower())


def wants_events(request: Request) -> bool:
    """Return whether the Accept headers name server-sent events."""
    return any(EVENTS_TYPE in value.lower() for value in request.headers.getlist('accept'))
