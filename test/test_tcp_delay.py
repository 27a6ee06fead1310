# SPDX-License-Identifier: Apache-2.0
"""The connections of our servers send small packets at once."""

import asyncio
import socket

import pytest

from lisa_ros.tcp_delay import send_at_once


def has_delay(listener):
    """Whether the system keeps packets back on a connection that asyncio accepts."""

    async def accept():
        options = asyncio.get_running_loop().create_future()

        def note(reader, writer):
            connection = writer.get_extra_info('socket')
            options.set_result(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        async with await asyncio.start_server(note, sock=listener):
            _, writer = await asyncio.open_connection(*listener.getsockname()[:2])
            is_off = await asyncio.wait_for(options, 10)
            writer.close()
            return not is_off

    return asyncio.run(accept())


def test_a_listener_passes_it_on_to_its_connections():
    assert has_delay(socket.create_server(('127.0.0.1', 0)))
    listener = socket.create_server(('127.0.0.1', 0))
    send_at_once(listener)
    assert not has_delay(listener)


def test_the_model_server_has_no_delay():
    http_server = pytest.importorskip(
        'lisa_ros.serving.http_server', reason='needs config/requirements/serve.txt'
    )
    for listener in http_server.listening_sockets('localhost', 0):
        assert not has_delay(listener)


def test_the_mcp_server_has_no_delay():
    server = pytest.importorskip(
        'lisa_ros.agents.server', reason='needs config/requirements/mcp.txt'
    )
    assert not has_delay(server._listener(server.HttpAddress('127.0.0.1', 0)))
