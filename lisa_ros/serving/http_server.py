# SPDX-License-Identifier: Apache-2.0
"""Serve the HTTP application with uvicorn, with time limits that uvicorn does not have.

One thread with an asyncio loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from lisa_ros.errors import SettingsError
from lisa_ros.serving.limits import ServerLimits
from lisa_ros.serving.problems import PROBLEM_TYPE, Problem, ProblemError

_HEAD_BYTES = 16 << 10  # of the head of a request
_KEEP_ALIVE = 75  # of an idle connection [s]


def http_server(app: ASGIApp, host: str, port: int, limits: ServerLimits) -> uvicorn.Server:
    """Return a server; `await server.serve()` runs it until `server.should_exit`.

    Raises:
        SettingsError: the address is in use, or not one of this machine.
    """
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=_protocol(limits),
        ws='none',
        lifespan='off',
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=10,
        h11_max_incomplete_event_size=_HEAD_BYTES,
    )
    return _Server(config)


class _Server(uvicorn.Server):
    """Leaves signals to its caller."""

    def capture_signals(self) -> contextlib.AbstractContextManager:
        """Capture no signals."""
        return contextlib.nullcontext()


def _protocol(limits: ServerLimits) -> type[H11Protocol]:
    """Return uvicorn's protocol with limits on connections and on the time of a head."""

    class LimitedProtocol(H11Protocol):
        """Closes connections that are too many or too slow with the head of a request."""

        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            if len(self.connections) > limits.connections:
                self.send_400_response('')
            else:
                self._watch_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            super().connection_lost(exc)

        def send_400_response(self, msg: str) -> None:
            """Answer what is no HTTP, or a connection too many, and close."""
            error = _overfull(limits) if not msg else _no_http()
            body = json.dumps(error.document()).encode()
            headers = [
                (b'content-type', PROBLEM_TYPE.encode()),
                (b'content-length', str(len(body)).encode()),
                (b'connection', b'close'),
            ]
            if not msg:
                headers.append((b'retry-after', b'5'))
            try:
                for event in (
                    h11.Response(status_code=error.problem.status, headers=headers),
                    h11.Data(data=body),
                    h11.EndOfMessage(),
                ):
                    self.transport.write(self.conn.send(event))
            except h11.LocalProtocolError:  # an answer has begun
                pass
            self.transport.close()

        def _watch_head(self) -> None:
            """Start the timer while a head is incomplete, else stop it."""
            if self.conn.their_state is not h11.IDLE:
                self._stop_timer()
            elif self._timer is None and self.timeout_keep_alive_task is None:
                self._timer = self.loop.call_later(limits.header_seconds, self.transport.close)

        def _stop_timer(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return LimitedProtocol


def _no_http() -> ProblemError:
    return ProblemError(
        Problem.MALFORMED,
        'the request is no HTTP/1.1, or its head is too large; see GET /openapi.json',
    )


def _overfull(limits: ServerLimits) -> ProblemError:
    return ProblemError(
        Problem.OVERLOADED,
        f'expected at most {limits.connections} connections: keep one open, or try later',
    )


def check_address(host: str, port: int) -> None:
    """Check that an address can be listened to.

    Raises:
        SettingsError: it is in use, or not one of this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise SettingsError(
            f'{host}:{port} cannot be listened to ({error.strerror or error}); give another with '
            '--host and --port'
        ) from error
