# SPDX-License-Identifier: Apache-2.0
"""Clients of `lisa-ros serve` that do what no honest one does; each of them costs little."""

import asyncio
import contextlib
import dataclasses
import socket
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('python_multipart', reason='the extra `serve` is not installed')
pytest.importorskip('prometheus_client', reason='the extra `serve` is not installed')
from served_model import RunningServer, encoded, wait_until

from lisa_ros.errors import SettingsError
from lisa_ros.serving.limits import ServerLimits
from lisa_ros.serving.models import ModelsState
from lisa_ros.serving.query_format import SegmentQuery
from lisa_ros.serving.replies import Answer, ReplyFigures
from lisa_ros.serving.tokens import TokenTable
from lisa_ros.serving.wire_format import SEGMENT_PATH, encode_request

LONG = 300.0  # more than anything takes on a busy machine [s]
LIMITS = ServerLimits(header_seconds=LONG, upload_seconds=LONG, send_seconds=LONG)
PNG = encoded(np.zeros((4, 5, 3), np.uint8))
EVENTS, TOKEN = 'Accept: text/event-stream\r\n', b'event: token\ndata: {}\n\n'


class GatedModels:
    """Models that answer once their gate is open; they count whom they answer, and who left."""

    state = ModelsState(1, 1, 0, 9, 0, {})

    def __init__(self, document='{"status": "FOUND"}'):
        self.gate, self.document = threading.Event(), document
        self.begun = self.given_up = 0

    async def answer(self, request):
        self.begun += 1
        try:
            while not self.gate.is_set():
                await asyncio.sleep(0.005)
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        return Answer(self.document, ReplyFigures())

    async def stream(self, request):
        yield TOKEN
        yield await self.answer(request)


@pytest.fixture
def models():
    return GatedModels()


@pytest.fixture
def server(models):
    with RunningServer(models, limits=LIMITS) as running:
        yield running
        models.gate.set()


def segment_request(headers='', image=PNG):
    """Return the bytes of a request."""
    content_type, body = encode_request(image, 'image/png', SegmentQuery('x'))
    return head(f'Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n{headers}') + body


def head(headers, method='POST', path=SEGMENT_PATH):
    return f'{method} {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n'.encode()


@contextlib.contextmanager
def connected(server, content=b'', buffer=None):
    """Give a connection on which some bytes were sent."""
    with socket.socket() as connection:
        connection.settimeout(LONG)
        if buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        connection.connect(('127.0.0.1', server.port))
        connection.sendall(content)
        yield connection


def rest(connection):
    """Return what comes until the server closes the connection."""
    received = b''
    while chunk := connection.recv(1 << 20):
        received += chunk
    return received


# ---- clients that end their input, leave, or do not read


@pytest.mark.parametrize(('headers', 'end'), [('', b'"FOUND"}'), (EVENTS, b'\n\n\r\n0\r\n\r\n')])
def test_a_client_that_ends_its_input_is_answered(server, models, headers, end):
    with connected(server, segment_request(headers)) as connection:
        wait_until(lambda: models.begun)
        connection.shutdown(socket.SHUT_WR)
        models.gate.set()
        answer = rest(connection)
    assert b'HTTP/1.1 200 OK\r\n' in answer
    assert answer.endswith(end)


def test_a_request_and_the_end_of_the_input_may_come_at_once(server):
    with connected(server, head('', 'GET', '/healthz')) as connection:
        connection.shutdown(socket.SHUT_WR)
        assert rest(connection).endswith(b'{"status":"alive"}')


def test_pipelined_requests_are_answered_when_the_input_has_ended(server):
    with connected(server, head('', 'GET', '/healthz') * 3) as connection:
        connection.shutdown(socket.SHUT_WR)
        assert rest(connection).count(b'{"status":"alive"}') == 3


@pytest.mark.parametrize('headers', ['', EVENTS])
def test_a_client_that_leaves_is_noticed(server, models, headers):
    with connected(server, segment_request(headers)):
        wait_until(lambda: models.begun)
    wait_until(lambda: models.given_up == 1)


@pytest.mark.parametrize('headers', ['', EVENTS])
def test_an_answer_that_is_not_read_is_dropped(headers):
    models = GatedModels('{"status": "FOUND", "a": "' + 'x' * 30_000_000 + '"}')
    models.gate.set()
    limits = dataclasses.replace(LIMITS, send_seconds=0.2)
    with (
        RunningServer(models, limits=limits) as server,
        connected(server, segment_request(headers), buffer=4096) as connection,
    ):
        connection.recv(100)
        with pytest.raises(ConnectionResetError):
            while True:
                connection.sendall(b'a')


def test_uploads_that_break_off_leave_no_handles(server):
    def handles():
        return sum(1 for _ in Path('/proc/self/fd').glob('*'))

    request = segment_request()
    before = handles()
    for count in range(200):
        with connected(server, request[: 1 + count * (len(request) - 1) // 200]):
            pass
    wait_until(lambda: server.state.body_bytes == 0 and handles() <= before)


def test_a_head_that_never_ends_is_cut_off_behind_an_answer_too(models):
    limits = dataclasses.replace(LIMITS, header_seconds=0.5)
    healthy = head('', 'GET', '/healthz')
    with (
        RunningServer(models, limits=limits) as server,
        connected(server, healthy + healthy[:20]) as connection,
    ):
        assert rest(connection).endswith(b'{"status":"alive"}')


def test_many_requests_whose_answers_are_not_read_are_dropped(models):
    limits = dataclasses.replace(LIMITS, send_seconds=0.2)
    with (
        RunningServer(models, limits=limits) as server,
        connected(server, buffer=4096) as connection,
        pytest.raises(ConnectionError),
    ):
        while True:
            connection.sendall(head('', 'GET', '/openapi.json'))


# ---- bodies


def test_chunks_do_not_evade_the_limit_of_a_body(server):
    headers = 'Content-Length: 5\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n'
    with connected(
        server, head(headers) + b'400\r\n' + b'a' * 1024 + b'\r\n0\r\n\r\n'
    ) as connection:
        answer = rest(connection)
    assert answer.startswith(b'HTTP/1.1 411 ')
    assert b'"length_required"' in answer


def test_a_compressed_body_is_refused(server):
    status, _, document = server.request('POST', SEGMENT_PATH, b'a', Content_Encoding='gzip')
    assert (status, document['type']) == (415, 'unsupported_media')
    assert "Content-Encoding is 'gzip'" in document['detail']


def chunk(kind, content=b''):
    checksum = zlib.crc32(kind + content)
    return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', checksum)


JPEG = encoded(np.zeros((4, 5, 3), np.uint8), 'JPEG')


@pytest.mark.parametrize(
    ('image', 'media_type'),
    [
        (PNG[:33] + 5000 * chunk(b'tEXt', b'a\0b') + PNG[33:], 'image/png'),
        (PNG[:33] + 5000 * chunk(b'IDAT') + PNG[33:], 'image/png'),
        (PNG[:-12] + 5000 * chunk(b'abCd') + PNG[-12:], 'image/png'),
        (JPEG[:2] + 5000 * b'\xff\xfe\0\2' + JPEG[2:], 'image/jpeg'),
        (JPEG[:2] + 5000 * b'\xff' + JPEG[2:], 'image/jpeg'),
        (JPEG[:2] + 5000 * b'\xff\xd0' + JPEG[2:], 'image/jpeg'),
    ],
)
def test_an_image_of_very_many_parts_is_refused(server, image, media_type):
    status, _, document = server.segment(image, 'x', media_type)
    assert (status, document['type']) == (422, 'invalid_image')
    assert 'parts; expected fewer, and larger ones' in document['detail']


def test_bytes_behind_an_image_are_no_parts(server, models):
    models.gate.set()
    assert server.segment(PNG + bytes(100_000), 'x')[0] == 200
    assert server.segment(JPEG + 99_999 * b'\xff', 'x', 'image/jpeg')[0] == 200


def test_only_the_reader_of_the_given_type_sees_an_image(server):
    for content in (
        encoded(np.zeros((4, 5, 3), np.uint8), 'WEBP'),
        b'GIF89a',
        b'II*\0',
        b'<svg/>',
    ):
        status, _, document = server.segment(content, 'x')
        assert (status, document['type']) == (422, 'invalid_image')
        assert 'but its Content-Type is image/png' in document['detail']


# ---- hosts and tokens


def test_names_of_hosts_have_no_case(server):
    assert server.request('GET', '/healthz', Host='LocalHost:80')[0] == 200


def token_table(tmp_path, content):
    file = tmp_path / 'tokens'
    file.write_bytes(content)
    return TokenTable.read(file)


def test_of_two_tokens_in_a_request_none_counts(models, tmp_path):
    table = token_table(tmp_path, b'arm arm-arm-arm-arm-arm\n')
    header = 'Authorization: Bearer arm-arm-arm-arm-arm\r\n'
    with RunningServer(models, tokens=table) as server:
        for headers, status in ((header, b'200'), (header * 2, b'401'), (header.lower(), b'200')):
            request = head(headers + 'Connection: close\r\n', 'GET', '/v1/models')
            with connected(server, request) as connection:
                assert rest(connection).split()[1] == status


def test_a_token_file_of_an_editor_is_read(tmp_path):
    content = (
        b'\xef\xbb\xbfarm arm#arm#arm#arm#arm\r\n# legs\r\n\r\nleg leg-leg-leg-leg-leg 2 #x\r\n'
    )
    table = token_table(tmp_path, content)
    assert table.client(['Bearer arm#arm#arm#arm#arm']).name == 'arm'
    assert table.client(['bearer  leg-leg-leg-leg-leg ']).rate == 2


def test_a_token_belongs_to_one_client(tmp_path):
    with pytest.raises(SettingsError, match='line 2: this token has another name, too'):
        token_table(tmp_path, b'arm arm-arm-arm-arm-arm\nleg arm-arm-arm-arm-arm\n')


def test_a_token_file_that_has_become_wrong_changes_nothing(models, tmp_path, caplog):
    file = tmp_path / 'tokens'
    table = token_table(tmp_path, b'arm arm-arm-arm-arm-arm\n')
    with RunningServer(models, tokens=table) as server:

        def status(name):
            headers = {'Authorization': f'Bearer {"-".join([name] * 5)}'}
            return server.request('GET', '/v1/models', **headers)[0]

        for content in (b'leg leg-leg-leg-leg-leg\nleg', b'\xff\xfe', b'', None):
            file.unlink() if content is None else file.write_bytes(content)
            server.state.tokens = server.state.tokens.reloaded(file)
            assert (status('arm'), status('leg')) == (200, 401)
        file.write_bytes(b'leg leg-leg-leg-leg-leg\n')
        server.state.tokens = server.state.tokens.reloaded(file)
        assert (status('arm'), status('leg')) == (401, 200)
    assert caplog.text.count('the tokens stay as they were') == 4
    assert 'leg-leg-leg' not in caplog.text
