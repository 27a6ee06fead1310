# SPDX-License-Identifier: Apache-2.0
"""Run the server: HTTP in this process, replicas on Ray Serve, until a stop signal.

SIGTERM and SIGINT end it: no new requests, then the answers in progress, then the replicas.
SIGHUP reads the token file again, and the weights if they have changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import signal
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn

from lisa_ros.perception.registry import find_loader
from lisa_ros.serving.http_app import HttpState, create_app
from lisa_ros.serving.http_server import http_server, listening_sockets
from lisa_ros.serving.limits import ServerLimits
from lisa_ros.serving.ray_cluster import PoolPlan
from lisa_ros.serving.ray_models import RayModels
from lisa_ros.serving.tokens import TokenTable
from lisa_ros.serving.updates import Updates

_log = logging.getLogger(__name__)
_LOOPBACK = ('127.0.0.1', 'localhost', '::1')


@dataclass(frozen=True)
class ServerPlan:
    """A server: where it listens, who may ask, and which replicas answer."""

    pool: PoolPlan
    host: str = '127.0.0.1'
    port: int = 8000
    token_file: Path | None = None
    limits: ServerLimits = field(default_factory=ServerLimits)


def run_server(plan: ServerPlan) -> None:
    """Serve until a stop signal.

    Raises:
        SettingsError: the address or the cluster cannot be used, Ray Serve is not installed, or
            the model cannot be loaded.
        DataError: the token file cannot be read.
    """
    tokens = TokenTable.read(plan.token_file) if plan.token_file else None
    find_loader(plan.pool.replica.model)  # an unknown scheme fails now
    sockets = listening_sockets(plan.host, plan.port)
    plan = _with_port(plan, sockets[0].getsockname()[1])
    if tokens is None and plan.host not in _LOOPBACK:
        _log.warning(
            'everybody who reaches %s:%d may ask the model: restrict it with --token-file',
            plan.host,
            plan.port,
        )
    asyncio.run(_serve(plan, tokens, sockets))


def _with_port(plan: ServerPlan, port: int) -> ServerPlan:
    """Return the plan with the port that is listened to, in the application's name, too.

    Another server in the same cluster has an application of its own.
    """
    pool = dataclasses.replace(plan.pool, app=f'lisa-ros-{socket.gethostname()}-{port}')
    return dataclasses.replace(plan, pool=pool, port=port)


async def _serve(
    plan: ServerPlan, tokens: TokenTable | None, sockets: list[socket.socket]
) -> None:
    models = RayModels(plan.pool)
    state = HttpState(models, plan.limits, tokens, local_only=plan.host in _LOOPBACK)
    server = http_server(create_app(state), plan.limits)
    listening = asyncio.create_task(server.serve(sockets))
    deploying = asyncio.Lock()  # held while a thread starts or replaces replicas
    updating: asyncio.Task | None = None
    async with _signals(server) as reload:
        try:
            starting = asyncio.create_task(_start(models, plan, deploying))
            await asyncio.wait({starting, listening}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                replica = plan.pool.replica
                updates = Updates(models, state, replica, plan.token_file, deploying)
                updating = asyncio.create_task(updates.follow(reload))
                await listening
            _log.info('stopping')
        finally:
            server.should_exit = True
            await listening
            if deploying.locked():
                models.exit_while_deploying()
            if updating is not None:
                updating.cancel()
            await asyncio.to_thread(models.close)


async def _start(models: RayModels, plan: ServerPlan, deploying: asyncio.Lock) -> None:
    """Start the replicas."""
    replica = plan.pool.replica
    _log.info('loading %s', replica.model)
    async with deploying:
        await asyncio.to_thread(models.start)
    _log.info('%s answers at http://%s:%d', replica.served.model, plan.host, plan.port)


@contextlib.asynccontextmanager
async def _signals(server: uvicorn.Server) -> AsyncIterator[asyncio.Event]:
    """Let stop signals end the server; yield an event that SIGHUP sets."""
    loop, reload = asyncio.get_running_loop(), asyncio.Event()

    def stop() -> None:
        server.should_exit = True

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    loop.add_signal_handler(signal.SIGHUP, reload.set)
    try:
        yield reload
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.remove_signal_handler(number)
