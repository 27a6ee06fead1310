# SPDX-License-Identifier: Apache-2.0
"""A server that is hostile or broken: each answer ends with a cause, and in limited memory."""

import json
import socket
import threading
import time

import numpy as np
import pytest
import segment_server
from scripted_backend import ScriptedBackend

from lisa_ros.errors import LisaError, ModelError, SettingsError
from lisa_ros.perception.backend import InferenceOptions, Query
from lisa_ros.perception.health import HealthState
from lisa_ros.perception.roi import stream_in_region
from lisa_ros.results import Segmentation, Status
from lisa_ros.serving import http_client
from lisa_ros.serving.http_client import HttpClient
from lisa_ros.serving.image_transfer import ImageCoding, ImageFormat
from lisa_ros.serving.mask_coding import encode_rle_text
from lisa_ros.serving.query_format import SegmentQuery
from lisa_ros.serving.served_backend import ServedBackend
from lisa_ros.serving.server_address import ServerAddress
from lisa_ros.serving.server_monitor import MonitorPeriods, read_models
from lisa_ros.serving.wire_format import (
    DONE_EVENT,
    ERROR_EVENT,
    EVENTS_TYPE,
    MASK_EVENT,
    TOKEN_EVENT,
    Served,
    answer_json,
    event_bytes,
    result_of,
)

GRAY = np.full((48, 64, 3), 90, np.uint8)
LONG = 60.0  # time that suffices on a busy machine [s]
NEVER = MonitorPeriods(reachable=1e6, unreachable=1e6)
TOKEN = 'correct-horse-battery'  # noqa: S105  # of this test


@pytest.fixture
def server():
    with segment_server.running(ScriptedBackend({'': {'masks': 'all'}}), token=TOKEN) as running:
        yield running


@pytest.fixture
def served(server):
    client = HttpClient(ServerAddress(server.url, TOKEN))
    backend = ServedBackend(client, ImageCoding(ImageFormat.RAW), periods=NEVER)
    yield backend
    backend.close()


def ask(backend, timeout=LONG):
    """Return status and reason of an answer; an error of the call is FAILED."""
    options, cancel = InferenceOptions(answer_timeout=timeout), threading.Event()
    try:
        *_, done = stream_in_region(backend, GRAY, Query('it'), options, cancel)
    except LisaError as error:
        return Status.FAILED, str(error)
    return done.result.status, done.result.reason


def wait_until(condition):
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def answers(*content):
    """Return a fault: a stream of these bytes."""

    def fault(handler):
        handler._send(200, EVENTS_TYPE, b''.join(content))
        return True

    return fault


def endless(content):
    """Return a fault: a stream that repeats these bytes until the client leaves."""

    def fault(handler):
        handler.begin_events()
        piece = b'%x\r\n%s\r\n' % (len(content), content)
        while True:
            handler.wfile.write(piece)

    return fault


def mask_event(index=0, width=64, height=48, counts=None, **fields):
    counts = encode_rle_text(np.ones((48, 64), bool)) if counts is None else counts
    mask = {'rle': {'size': [height, width], 'counts': counts}, 'score': 0.5, **fields}
    return event_bytes(MASK_EVENT, {'index': index, 'width': width, 'height': height, **mask})


def done_event(command='it', **fields):
    logits = np.ones((1, 48, 64), np.float32)
    scores = np.ones(1, np.float32)
    result = Segmentation(command, 'a', 'a [SEG]', logits > 0, logits, scores, Status.FOUND)
    document = answer_json(result, SegmentQuery(command), (48, 64), Served('m'))
    return event_bytes(DONE_EVENT, {**document, **fields})


WORD = event_bytes(TOKEN_EVENT, {'text': 'a', 'token_id': None})


def test_an_answer_as_below_is_taken(server, served):
    server.faults.append(answers(WORD, mask_event(), done_event()))
    assert ask(served) == (Status.FOUND, '')


@pytest.mark.parametrize(
    ('content', 'reason'),
    [
        ([mask_event(width=65)], 'an image of 65 x 48 pixels; the one that was sent has 64 x 48'),
        ([mask_event(width=10**6, height=10**6, counts='')], 'an image of 1000000 x 1000000'),
        ([mask_event(width=-64, height=-48)], 'an image of -64 x -48'),
        ([mask_event(width=1e999)], 'this API'),
        ([mask_event(counts='0' * 1000)], 'run lengths'),
        ([mask_event(), mask_event()], 'the mask 0; expected each once'),
        ([mask_event(score=float('nan'))], 'score'),
        ([mask_event(score='high')], 'this API'),
        ([mask_event(index=10**400)], 'expected each once'),
        ([mask_event(index=-1)], 'the mask -1'),
        ([done_event(width=63)], 'an image of 63 x 48'),
        ([done_event('the bomb')], "answered another command, 'the bomb'"),
        ([done_event(masks=[{}] * 300)], 'this API'),
        ([done_event(masks=[{'score': 1}])], 'this API'),
        ([done_event(yes_probability=2)], 'probability of yes'),
        ([done_event(status='LOST')], 'this API'),
        ([done_event(times=[1])], 'this API'),
        ([b'event: token\ndata: ' + b'[' * 100_000 + b'\n\n'], 'nested too deeply'),
        ([b'event: token\ndata: ' + b'9' * 100_000 + b'\n\n'], 'no JSON'),
        ([b'event: token\ndata: {"text": "\xff"}\n\n'], 'this API'),
        ([event_bytes('command', {'run': 'rm'})], "an event 'command'"),
        ([event_bytes(ERROR_EVENT, {'type': 'x', 'detail': ['a']})], "'a'"),
    ],
)
def test_a_wrong_answer_is_a_failure_with_its_cause(server, served, content, reason):
    server.faults.append(answers(*content, done_event()))
    status, text = ask(served)
    assert status is Status.FAILED
    assert reason in text
    assert len(text) < 2000
    assert ask(served)[0] is Status.FOUND  # the next one is answered


@pytest.mark.parametrize(
    ('content', 'reason'),
    [
        (100 * WORD, 'sent 501 events'),
        (event_bytes(TOKEN_EVENT, {'text': 9000 * 'a', 'token_id': None}), 'characters without'),
        (b'data: ' + 9000 * b'a', 'byte limit'),
        (b': ' + 9000 * b'a', 'byte limit'),
        (9000 * b'data:\n', 'byte limit'),
    ],
)
def test_an_answer_without_an_end_is_given_up(server, served, monkeypatch, content, reason):
    monkeypatch.setattr(http_client, '_MAX_EVENTS', 500)
    monkeypatch.setattr(http_client, '_MAX_EVENT_BYTES', 1_000_000)
    monkeypatch.setattr(http_client, '_MAX_ANSWER_CHARS', 2_000_000)
    server.faults.append(endless(content))
    status, text = ask(served)
    assert (status, reason in text) == (Status.FAILED, True), text
    assert server.left.wait(LONG)


def test_interim_responses_without_an_end_are_given_up_in_time(server, served):
    def fault(handler):
        while True:
            handler.wfile.write(b'HTTP/1.1 100 Continue\r\n\r\n')

    server.faults.append(fault)
    assert ask(served, timeout=1.0)[0] is Status.TIMED_OUT
    assert server.left.wait(LONG)


def test_a_head_without_an_end_is_unreachable(server, served):
    def fault(handler):
        handler.wfile.write(b'HTTP/1.1 200 OK\r\n')
        while True:
            handler.wfile.write(b'A: ' + 9000 * b'a' + b'\r\n')

    server.faults += [fault] * 3
    assert ask(served)[0] is Status.UNREACHABLE


@pytest.mark.parametrize('status', [301, 302, 303, 307, 308])
def test_a_redirect_takes_no_token_elsewhere(server, served, status):
    with socket.create_server(('127.0.0.1', 0)) as other:
        other.setblocking(False)
        for address in (f'http://127.0.0.1:{other.getsockname()[1]}/', 'file:///etc/passwd'):

            def fault(handler, address=address):
                handler._send(status, 'text/plain', b'', {'Location': address})
                return True

            server.faults.append(fault)
            assert ask(served)[0] is Status.FAILED
        with pytest.raises(BlockingIOError):
            other.accept()


def test_a_compressed_answer_is_refused(server, served):
    def fault(handler):
        headers = {'Content-Encoding': 'gzip'}
        handler._send(200, EVENTS_TYPE, b'\x1f\x8b', headers)
        return True

    server.faults.append(fault)
    assert 'compresses its answer unasked' in ask(served)[1]


@pytest.mark.parametrize(
    'content',
    [
        event_bytes(ERROR_EVENT, {'type': 'x', 'detail': f'\x1b[2J\n{TOKEN} ' + 9000 * 'a'}),
        done_event(status='FAILED', masks=[], reason=f'\x1b[2J\n{TOKEN} ' + 9000 * 'a'),
    ],
)
def test_what_a_server_says_is_short_printable_and_without_the_token(server, served, content):
    server.faults.append(answers(content))
    status, reason = ask(served)
    assert status is Status.FAILED
    assert '*** aaa' in reason
    assert reason.isprintable()
    assert len(reason) < 2000


MODEL = {'name': 'm', 'capabilities': {'scores': 'calibrated', 'dialogue': True, 'new': 1}}


@pytest.mark.parametrize(
    'fields',
    [
        {'input_side': float('inf')},
        {'input_side': float('nan')},
        {'input_side': []},
        {'input_side': True},
        {'capabilities': {'scores': 'calibrated', 'dialogue': 'yes'}},
        {'capabilities': {'scores': ['calibrated']}},
        {'capabilities': 3},
        {'capabilities': {}},
    ],
)
def test_a_wrong_description_of_the_model_is_an_error(fields):
    assert read_models({'models': [MODEL]}).capabilities.dialogue is True
    with pytest.raises(ModelError, match='expected the models of `lisa-ros serve`'):
        read_models({'models': [{**MODEL, **fields}]})


def test_a_monitor_goes_on_after_a_wrong_description(server):
    server.input_side = float('inf')
    client = HttpClient(ServerAddress(server.url, TOKEN))
    with pytest.raises(SettingsError, match='expected the models'):
        ServedBackend(client, periods=NEVER)
    server.input_side = None
    client = HttpClient(ServerAddress(server.url, TOKEN))
    backend = ServedBackend(client, periods=MonitorPeriods(0.02, 0.02, LONG))
    server.input_side = float('inf')
    wait_until(lambda: backend.health.state is HealthState.UNREACHABLE)
    server.input_side = None
    wait_until(lambda: backend.health.state is HealthState.OK)
    backend.close()


def test_an_answer_of_any_size_is_bounded_without_a_request():
    document = json.loads(done_event(width=10**5, height=10**5, masks=[]).split(b'data: ')[1])
    with pytest.raises(ModelError, match='expected at most'):
        result_of(document)
