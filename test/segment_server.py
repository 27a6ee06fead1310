# SPDX-License-Identifier: Apache-2.0
"""A small HTTP server that answers POST /v1/segment with a Backend, one request after the other.

It is for the tests of clients, so that they need no Ray and may have faults: `SegmentServer.fault`
is done instead of an answer, once for each entry. As a program:

    python test/segment_server.py PORT MODEL     # prints "ready PORT" when it listens
"""

import importlib
import io
import json
import select
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import scripted_backend  # noqa: F401  # registers "scripted:"
from PIL import Image

from lisa_ros import native_settings
from lisa_ros.perception.backend import InferenceOptions, LoadOptions
from lisa_ros.perception.registry import load_backend
from lisa_ros.perception.roi import stream_in_region
from lisa_ros.results import Done
from lisa_ros.serving import wire_format
from lisa_ros.serving.problems import PROBLEM_TYPE, Problem, ProblemError
from lisa_ros.serving.query_reading import QueryLimits, parse_query


class SegmentServer(ThreadingHTTPServer):
    """Answers with a backend; `seen` has each request's query, image and headers."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, backend, port=0, token='', input_side=None, certificate=None):
        super().__init__(('127.0.0.1', port), _Handler)
        self.backend, self.token, self.input_side = backend, token, input_side
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True)
        self.is_loading = False
        self.is_rate_limited = False  # for GET /v1/models, as of earlier versions
        self.polls = 0  # of /v1/models
        self.version = ''  # of the weights
        self.scheme = 'http' if certificate is None else 'https'
        self.faults, self.seen, self.connections, self.left = [], [], 0, threading.Event()
        self.open_sockets = set()
        self.busy = threading.Lock()  # the backend answers one request at a time

    @property
    def url(self):
        return f'{self.scheme}://127.0.0.1:{self.server_port}'

    def drop_connections(self):
        """Close all connections, as a server does that was idle for a while."""
        for connection in tuple(self.open_sockets):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request, client_address):
        """Say nothing: a client may leave at any time."""


@contextmanager
def running(backend, **options):
    """Run a server in this process."""
    server = SegmentServer(backend, **options)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm = True

    def setup(self):
        super().setup()
        self.server.connections += 1
        self.server.open_sockets.add(self.connection)

    def finish(self):
        self.server.open_sockets.discard(self.connection)
        super().finish()

    def log_message(self, *_):
        """Log nothing."""

    def do_GET(self):
        if self.path != '/v1/models':
            self._send(404, 'text/plain', b'no such page')
            return
        self.server.polls += 1
        if self.server.is_rate_limited:
            self.problem(ProblemError(Problem.RATE_LIMITED, 'the token has used its rate', 1.0))
        elif self._is_authorized() and self.server.is_loading:
            self._send(200, wire_format.JSON_TYPE, b'{"models": [], "replicas": 0}')
        elif self._is_authorized():
            capabilities = asdict(self.server.backend.capabilities)
            capabilities['scores'] = self.server.backend.capabilities.scores.name.lower()
            model = {'name': 'test', 'precision': 'fp32', 'capabilities': capabilities}
            model['input_side'] = self.server.input_side
            model['version'] = self.server.version
            self._send(200, wire_format.JSON_TYPE, json.dumps({'models': [model]}).encode())

    def do_POST(self):
        body = self.rfile.read(int(self.headers['Content-Length']))
        if not self._is_authorized():
            return
        try:
            query, image = self._read(body)
            self.server.seen.append((query, image, dict(self.headers)))
            fault = self.server.faults.pop(0) if self.server.faults else None
            if fault is not None and fault(self):
                return
            self._answer(query, image)
        except ProblemError as error:
            self.problem(error)
        except OSError:  # the client has left
            self.close_connection = True
            self.server.left.set()

    def _is_authorized(self):
        token = self.server.token
        if token and self.headers.get('Authorization') != f'Bearer {token}':
            sent = self.headers.get('Authorization')
            self.problem(ProblemError(Problem.UNAUTHORIZED, f'{sent!r} is no known token'))
            return False
        return True

    def _read(self, body):
        head = f'Content-Type: {self.headers["Content-Type"]}\r\n\r\n'.encode()
        parts = {
            part.get_param('name', header='Content-Disposition'): part
            for part in BytesParser().parsebytes(head + body).walk()
            if not part.is_multipart()
        }
        query = parse_query(parts['query'].get_payload(decode=True), QueryLimits())
        content = parts['image'].get_payload(decode=True)
        if query.raw is not None:
            return query, np.frombuffer(content, np.uint8).reshape(query.raw.shape)
        return query, np.asarray(Image.open(io.BytesIO(content)).convert('RGB'))

    def _answer(self, query, image):
        cancel, shape = threading.Event(), image.shape[:2]
        options = query.inference_options(InferenceOptions(answer_timeout=query.deadline))
        with self.server.busy, self._watch(cancel):
            start = time.perf_counter()
            events = stream_in_region(
                self.server.backend, image, query.backend_query(shape), options, cancel
            )
            self.begin_events()
            try:
                for event in events:
                    if isinstance(event, Done):
                        served = wire_format.Served('test', self.server.version)
                        document = wire_format.answer_json(event.result, query, shape, served)
                        document['times'] = document['times'] or {
                            'model': time.perf_counter() - start
                        }
                        self.event(wire_format.DONE_EVENT, document)
                    else:
                        self.event(*wire_format.event_json(event, query))
            except OSError:  # the client has left
                cancel.set()
                for _ in events:
                    pass
                raise
        self.wfile.write(b'0\r\n\r\n')

    @contextmanager
    def _watch(self, cancel):
        """Set a cancel when the client leaves."""
        is_over = threading.Event()

        def watch():
            while not is_over.is_set() and not isinstance(self.connection, ssl.SSLSocket):
                with suppress(OSError, ValueError):  # it is closed: the handler sees that
                    is_readable, _, _ = select.select([self.connection], [], [], 0.01)
                    if is_readable and not self.connection.recv(1, socket.MSG_PEEK):
                        cancel.set()
                        self.server.left.set()
                        return

        threading.Thread(target=watch, daemon=True).start()
        try:
            yield
        finally:
            is_over.set()

    def begin_events(self):
        self.send_response(200)
        self.send_header('Content-Type', wire_format.EVENTS_TYPE)
        self.send_header('Transfer-Encoding', 'chunked')
        self.end_headers()

    def event(self, name, document):
        content = wire_format.event_bytes(name, document)
        self.wfile.write(f'{len(content):x}\r\n'.encode() + content + b'\r\n')

    def problem(self, error):
        headers = {}
        if error.retry_after is not None:
            headers['Retry-After'] = f'{error.retry_after:g}'
        content = json.dumps(error.document()).encode()
        self._send(error.problem.status, PROBLEM_TYPE, content, headers)

    def _send(self, status, kind, content, headers=None):
        self.send_response(status)
        for name, value in {'Content-Type': kind, **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header('Content-Length', str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class ServerProcess:
    """A server in a process of its own, which can be killed and started again."""

    def __init__(self, model):
        # bound and never listened to: nobody else gets the port while the server is gone
        self._reserved = socket.socket()
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved.bind(('127.0.0.1', 0))
        self.port, self._process, self._model = self._reserved.getsockname()[1], None, model
        self.start()

    @classmethod
    def scripted(cls, folder, replies):
        """Start a server with the scripted backend."""
        (folder / 'replies.json').write_text(json.dumps(replies))
        return cls(f'scripted:{folder / "replies.json"}')

    @property
    def url(self):
        return f'http://127.0.0.1:{self.port}'

    def start(self):
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(self.port), self._model], stdout=subprocess.PIPE
        )
        assert self._process.stdout.readline() == f'ready {self.port}\n'.encode()

    def kill(self):
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()


def main():
    native_settings.apply()  # as the node and the command line do
    port, model = int(sys.argv[1]), sys.argv[2]
    if model == 'centre:':  # of the benchmarks
        sys.path.append(str(Path(__file__).parents[1] / 'benchmarks'))
        importlib.import_module('centre_backend')
    backend = load_backend(model, LoadOptions(device='cpu', threads=1))
    server = SegmentServer(backend, port)
    print('ready', server.server_port, flush=True)
    server.serve_forever()


if __name__ == '__main__':
    main()
