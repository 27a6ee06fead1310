# SPDX-License-Identifier: Apache-2.0
"""Serve the HTTP application with uvicorn, and listen to addresses.

One thread with an asyncio loop.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from lisa_ros.errors import SettingsError
from lisa_ros.serving.http_protocol import limited_protocol
from lisa_ros.serving.limits import ServerLimits
from lisa_ros.tcp_delay import send_at_once

_HEAD_BYTES = 16 << 10  # of the head of a request
_KEEP_ALIVE = 75  # of an idle connection [s]
_BACKLOG = 2048  # connections that wait to be accepted


def http_server(app: ASGIApp, limits: ServerLimits) -> uvicorn.Server:
    """Return a server; `await server.serve(sockets)` runs it until `server.should_exit`.

    At the end it finishes the answers in progress, for at most `default_deadline`.
    """
    config = uvicorn.Config(
        app,
        http=limited_protocol(limits),
        ws='none',
        lifespan='off',
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=math.ceil(limits.default_deadline),
        h11_max_incomplete_event_size=_HEAD_BYTES,
    )
    return _Server(config)


class _Server(uvicorn.Server):
    """Leaves signals to its caller."""

    def capture_signals(self) -> contextlib.AbstractContextManager:
        """Capture no signals."""
        return contextlib.nullcontext()


def listening_sockets(host: str, port: int) -> list[socket.socket]:
    """Listen at all addresses of a host; port 0: one that is free.

    Raises:
        SettingsError: it is in use, or not one of this machine.
    """
    sockets: list[socket.socket] = []
    try:
        for family, _, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            if sockets:
                port = sockets[0].getsockname()[1]
            at = (address[0], port, *address[2:])
            with _absence_ignored():
                sockets.append(socket.create_server(at, family=family, backlog=_BACKLOG))
        if not sockets:
            raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
        for each in sockets:
            send_at_once(each)
        return sockets
    except OSError as error:
        for each in sockets:
            each.close()
        raise SettingsError(
            f'{host}:{port} cannot be listened to ({error.strerror or error}); give another with '
            '--host and --port'
        ) from error


@contextlib.contextmanager
def _absence_ignored() -> Iterator[None]:
    """Ignore that this machine has no such address: localhost may have ::1 in name only."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            raise
