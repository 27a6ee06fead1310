# SPDX-License-Identifier: Apache-2.0
"""An HTTP server with chat completions: a toy Qwen-VL answers, or the answer has a fault."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import io
import json
import math
import ssl
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from lisa_ros.vlm.profiles import ResizeRule

CHOICES = [*map(str, range(10)), 'Yes', 'yes', 'No', 'no']  # that have a probability


class ChatHandler(BaseHTTPRequestHandler):
    """Answers one request as the server's `answer` does."""

    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm = True

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        self.server.requests.append((self.path, dict(self.headers), body))
        try:
            self.server.answer(self, body)
        except (ConnectionError, ssl.SSLError):
            self.close_connection = True
            self.server.client_has_gone.set()

    def begin(self, status=200, kind='text/event-stream', **headers):
        self.send_response(status)
        self.send_header('Content-Type', kind)
        for name, value in headers.items():
            self.send_header(name.replace('_', '-'), value)
        if 'Content_Length' not in headers:
            self.send_header('Transfer-Encoding', 'chunked')
        self.end_headers()

    def send(self, data):
        data = data if isinstance(data, bytes) else data.encode()
        self.wfile.write(b'%x\r\n%s\r\n' % (len(data), data))

    def event(self, value):
        self.send(f'data: {value if isinstance(value, str) else json.dumps(value)}\n\n')

    def piece(self, text, finish_reason=None, logprobs=None):
        choice = {'index': 0, 'delta': {'content': text}, 'finish_reason': finish_reason}
        if logprobs is not None:
            choice['logprobs'] = {'content': logprobs}
        self.event({'object': 'chat.completion.chunk', 'choices': [choice]})

    def error(self, status, message, **headers):
        content = json.dumps({'error': {'message': message}}).encode()
        self.begin(status, 'application/json', Content_Length=str(len(content)), **headers)
        self.wfile.write(content)

    def end(self):
        self.event('[DONE]')
        self.wfile.write(b'0\r\n\r\n')

    def log_message(self, *_):
        pass


class ChatServer(ThreadingHTTPServer):
    """A server of 127.0.0.1; `answer` is a function of a handler and the body of a request."""

    daemon_threads = True

    def __init__(self, answer, certificate=None):
        super().__init__(('127.0.0.1', 0), ChatHandler)
        self.answer, self.requests, self.client_has_gone = answer, [], threading.Event()
        self._scheme = 'http'
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True)
            self._scheme = 'https'

    @property
    def url(self):
        return f'{self._scheme}://127.0.0.1:{self.server_address[1]}'

    def handle_error(self, request, client_address):
        pass


@contextlib.contextmanager
def running(answer, certificate=None):
    """Run a server while the block runs."""
    with ChatServer(answer, certificate) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def sent_image(part):
    """Return the image of a part of a message."""
    content = base64.b64decode(part['image_url']['url'].partition(',')[2])
    return Image.open(io.BytesIO(content)).convert('RGB')


class PointsAtRed:
    """The answer of a Qwen2.5-VL that sees well, at a server with limits of pixels.

    Images are resized as vLLM does, with transformers' own rule of sizes; the box is that of what
    is red in the resized image, in its pixels. `seen` has the sizes of images, as they were sent
    and as they were resized.
    """

    def __init__(self, min_pixels=56 * 56, max_pixels=16384 * 28 * 28, context=10**6):
        """Be at a server.

        Args:
            min_pixels: smaller images are enlarged to it.
            max_pixels: larger images are reduced to it.
            context: image tokens that a prompt may have; a longer one is refused.
        """
        self._limits, self._context, self.seen = (min_pixels, max_pixels), context, []

    def __call__(self, handler, body):
        *_, message = body['messages']
        image = sent_image(message['content'][0])
        height, width = smart_resize(image.height, image.width, 28, *self._limits)
        self.seen.append((image.size, (width, height)))
        if width * height > self._context * 28 * 28:
            handler.error(400, 'This model has a maximum context length')
            return
        pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
        red = pixels[..., 0] - pixels[..., 1:].max(axis=2) > 100
        rows, columns = (np.flatnonzero(red.any(axis)) for axis in (1, 0))
        box = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        handler.begin()
        handler.piece(f'[{{"bbox_2d": {[int(n) for n in box]}, "label": "the red rectangle"}}]')
        handler.piece('', 'stop')
        handler.end()


class ModelAnswer:
    """The answer of a real model, as vLLM streams it."""

    def __init__(self, vlm, *, gives_logprobs=True, refuses_logprobs=False):
        """Wrap a QwenVL, whose profile's image size does not count: the client resizes."""
        self._vlm = vlm
        vlm.profile = dataclasses.replace(vlm.profile, resize=ResizeRule())
        self.gives_logprobs, self.refuses_logprobs = gives_logprobs, refuses_logprobs
        self._lock = threading.Lock()

    def __call__(self, handler, body):
        if self.refuses_logprobs and 'logprobs' in body:
            handler.error(422, 'Unsupported fields in the request: logprobs')
            return
        _, *earlier, last = (message['content'] for message in body['messages'])
        image, *_ = earlier[0] if earlier else last
        requests = [content[-1]['text'] for content in earlier[::2]]
        turns = list(zip(requests, earlier[1::2], strict=True))
        pixels = np.asarray(sent_image(image))
        handler.begin()
        handler.event({'choices': [{'delta': {'role': 'assistant'}}]})
        with self._lock:
            self._stream(handler, body, pixels, last[-1]['text'], turns)
        handler.event({'choices': [], 'usage': {'total_tokens': 1}})
        handler.end()

    def _stream(self, handler, body, pixels, text, turns):
        inputs = self._vlm._inputs(pixels, text, exchanges=turns)
        assert inputs.resized == (pixels.shape[1], pixels.shape[0])  # it is not resized again
        others = []
        if 'top_logprobs' in body:
            others = self._vlm.choice_probabilities(inputs, CHOICES).values
        for token in self._vlm.generate(inputs, body['max_tokens']):
            if token.is_end:
                handler.piece('', 'stop')
                return
            entry = {'token': token.text, 'logprob': math.log(token.probability)}
            entry['top_logprobs'] = [
                {'token': choice, 'logprob': math.log(max(p, 1e-30))}
                for choice, p in zip(CHOICES, others, strict=False)
            ]
            handler.piece(token.text, None, [entry] if self.gives_logprobs else None)
        handler.piece('', 'length')


def make_certificate(folder):
    """Return the files of a certificate for 127.0.0.1, signed by itself, and of its key."""
    files = folder / 'certificate.pem', folder / 'key.pem'
    command = ['openssl', 'req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '2']
    command += ['-subj', '/CN=toy', '-addext', 'subjectAltName=IP:127.0.0.1']
    command += ['-out', str(files[0]), '-keyout', str(files[1])]
    subprocess.run(command, check=True, capture_output=True)
    return files
