# SPDX-License-Identifier: Apache-2.0
"""Helpers of the tests of `lisa-ros serve`: a server in this process, and a plain HTTP client."""

import asyncio
import contextlib
import http.client
import io
import json
import threading
import time

from PIL import Image

from lisa_ros.serving.http_app import HttpState, create_app
from lisa_ros.serving.http_server import http_server, listening_sockets
from lisa_ros.serving.models import ModelsState
from lisa_ros.serving.query_format import SegmentQuery
from lisa_ros.serving.replies import Answer
from lisa_ros.serving.wire_format import SEGMENT_PATH, encode_request


class LocalModels:
    """One `ModelServer` in this process, as `Models`: what `RayModels` is without Ray."""

    def __init__(self, server):
        self.server = server
        self.is_loaded = True

    @property
    def state(self):
        description = {'name': 'test', 'version': '1', **self.server.describe()}
        return ModelsState(1, 1, 0, 9, 0, description if self.is_loaded else None)

    async def answer(self, request):
        reply = await self.server.answer(request)
        if not isinstance(reply, Answer):
            raise reply.error()
        return reply

    async def stream(self, request):
        async with contextlib.aclosing(self.server.stream(request)) as events:
            async for event in events:
                if not isinstance(event, bytes | Answer):
                    raise event.error()
                yield event


class RunningServer:
    """The HTTP server of some models in a thread of its own."""

    def __init__(self, models, **state):
        sockets = listening_sockets('127.0.0.1', 0)
        self.port = sockets[0].getsockname()[1]
        self.state = HttpState(models, **state)
        self._server = http_server(create_app(self.state), self.state.limits)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve(sockets)))

    def __enter__(self):
        self._thread.start()
        while not self._server.started:  # connections wait, but it could not be stopped yet
            assert self._thread.is_alive()
            time.sleep(0.005)
        return self

    def __exit__(self, *_):
        self._server.should_exit = True
        self._thread.join(60)
        assert not self._thread.is_alive()

    def request(self, method, path, body=None, timeout=120, **headers):
        return http_request(self.port, method, path, body, timeout, **headers)

    def segment(self, image, query, media_type='image/png', **headers):
        return post(self.port, image, query, media_type, **headers)


def http_request(port, method, path, body=None, timeout=120, **headers):
    """Return status, headers and body; the body of JSON types is parsed."""
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=timeout)
    with contextlib.closing(connection):
        names = {name.replace('_', '-'): value for name, value in headers.items()}
        connection.request(method, path, body, names)
        response = connection.getresponse()
        content = response.read()
    if 'json' in response.headers.get('content-type', ''):
        content = json.loads(content)
    return response.status, response.headers, content


def post(port, image, query, media_type='image/png', **headers):
    """Send a request of /v1/segment; a text is a query of this command."""
    query = SegmentQuery(query) if isinstance(query, str) else query
    content_type, body = encode_request(image, media_type, query)
    headers = {'Content_Type': content_type, **headers}
    return http_request(port, 'POST', SEGMENT_PATH, body, **headers)


def server_sent(body):
    """Return the events of a body as pairs of name and JSON."""
    blocks = body.decode().strip().split('\n\n')
    pairs = [block.split('\n', 1) for block in blocks if not block.startswith(':')]
    return [
        (name.removeprefix('event: '), json.loads(data.removeprefix('data: ')))
        for name, data in pairs
    ]


def encoded(image, kind='PNG', **options):
    """Return an image file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


def wait_until(condition, seconds=60):
    """Wait until a condition holds; an OSError counts as not yet."""
    end = time.monotonic() + seconds
    while not quietly(condition):
        assert time.monotonic() < end
        time.sleep(0.05)


def quietly(condition):
    try:
        return condition()
    except OSError:
        return False
