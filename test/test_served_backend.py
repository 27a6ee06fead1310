# SPDX-License-Identifier: Apache-2.0
"""A model on a server gives what the same model gives here; each fault of a server has its end."""

import contextlib
import dataclasses
import json
import logging
import re
import secrets
import sys
import threading
import time

import cv2
import numpy as np
import pytest
import segment_server
from chat_server import make_certificate
from scripted_backend import ScriptedBackend

from lisa_ros.errors import ImageError, ModelError, QueryError, SettingsError, UnreachableError
from lisa_ros.images.image_file import read_rgb
from lisa_ros.perception import masks
from lisa_ros.perception.backend import (
    AnswerStyle,
    BatchRequest,
    InferenceOptions,
    LoadOptions,
    Query,
)
from lisa_ros.perception.fallback_backend import FallbackBackend
from lisa_ros.perception.health import HealthState
from lisa_ros.perception.process_backend import ProcessBackend
from lisa_ros.perception.registry import load_backend
from lisa_ros.perception.roi import stream_in_region
from lisa_ros.perception.segmenter import Segmenter
from lisa_ros.resources import SELF_TEST
from lisa_ros.results import Dialogue, Done, MaskReady, Status, Token
from lisa_ros.serving import query_encoding
from lisa_ros.serving.http_client import HttpClient
from lisa_ros.serving.image_transfer import ImageCoding, ImageFormat
from lisa_ros.serving.parallel_requests import IN_FLIGHT
from lisa_ros.serving.problems import Problem, ProblemError
from lisa_ros.serving.query_reading import QueryLimits
from lisa_ros.serving.served_backend import ServedBackend
from lisa_ros.serving.server_address import ServerAddress
from lisa_ros.serving.server_monitor import MonitorPeriods
from lisa_ros.serving.wire_format import EVENTS_TYPE, TOKEN_EVENT

GRAY = np.full((48, 64, 3), 90, np.uint8)
LONG, SOON = 30.0, 5.0  # time that suffices on a busy machine [s]; that nothing may take [s]
OPTIONS = InferenceOptions(answer_timeout=LONG)
FAST = MonitorPeriods(reachable=0.1, unreachable=0.05, timeout=LONG)
NEVER = MonitorPeriods(reachable=1e6, unreachable=1e6)  # requests alone ask the server
REPLIES = {
    '': {'masks': 'all'},
    'bright': {'masks': 'bright'},
    'slow': {'masks': 'all', 'hang': 1},
    'absent': {'answer': 'There is none.'},
    'named': {'masks': 'all bright', 'names': 'mug pan'},
}


@pytest.fixture
def server():
    with segment_server.running(ScriptedBackend(REPLIES)) as running:
        yield running


@pytest.fixture
def connect():
    """Return a function that connects to an address; all connections end with the test."""
    opened = []

    def connect(url, token='', coding=ImageCoding(ImageFormat.RAW), periods=NEVER):  # noqa: B008
        client = HttpClient(ServerAddress(url, token))
        opened.append(ServedBackend(client, coding, periods=periods))
        return opened[-1]

    yield connect
    for backend in opened:
        backend.close()


def ask(backend, text, image=GRAY, options=OPTIONS, cancel=None, **fields):
    """Return the events of an answer, without Done, and the result."""
    query = Query(text, **fields)
    *events, done = stream_in_region(backend, image, query, options, cancel or threading.Event())
    return events, done.result


def wait_until(condition):
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextlib.contextmanager
def once_sent(server, action):
    """Call an action in a thread once the server has a request more."""
    count = len(server.seen)

    def wait():
        wait_until(lambda: len(server.seen) > count)
        action()

    thread = threading.Thread(target=wait)
    thread.start()
    yield
    thread.join()


# ---- the same answers as here


@pytest.fixture(scope='module')
def tabletop():
    return load_backend('lisa-tabletop', LoadOptions(device='cpu', threads=1, cache_bytes=0))


@pytest.fixture(scope='module')
def table():
    return read_rgb(SELF_TEST / 'table.webp')


def assert_same(events, result, own_events, own):
    assert [type(event) for event in events] == [type(event) for event in own_events]
    for event, expected in zip(events, own_events, strict=True):
        if isinstance(event, Token):
            assert event == expected
        else:
            assert (event.index, event.score) == (expected.index, pytest.approx(expected.score))
            assert event.name == expected.name
            np.testing.assert_array_equal(event.mask, expected.mask)
    # a new field that does not travel fails here
    arrays, times = ('masks', 'mask_logits', 'scores'), ('timings', 'time_to_first_mask')
    for item in dataclasses.fields(own):
        if item.name not in (*arrays, *times):
            assert getattr(result, item.name) == getattr(own, item.name), item.name
    np.testing.assert_array_equal(result.masks, own.masks)
    np.testing.assert_array_equal(result.scores, own.scores)
    confidence = masks.confidence_image(own.mask_logits)
    np.testing.assert_array_equal(masks.confidence_image(result.mask_logits), confidence)


@pytest.mark.parametrize('image_format', [ImageFormat.RAW, ImageFormat.PNG])
def test_without_loss_the_answer_is_the_local_one(tabletop, table, connect, image_format):
    options = dataclasses.replace(OPTIONS, confidence_threshold=0.1, answer_style=AnswerStyle.AUTO)
    with segment_server.running(tabletop) as server:
        served = connect(server.url, coding=ImageCoding(image_format))
        first = ask(tabletop, 'segment the mug', table, options)
        assert_same(*ask(served, 'segment the mug', table, options), *first)
        dialogue = Dialogue().extended(first[1])
        text = 'what can I drink from? not this, the other one'
        expected = ask(tabletop, text, table, options, dialogue=dialogue, explain=True)
        answer = ask(served, text, table, options, dialogue=dialogue, explain=True)
        assert_same(*answer, *expected)
        region = (40, 20, 200, 180)
        expected = ask(tabletop, 'the mug', table, options, region=region, dialogue=dialogue)
        answer = ask(served, 'the mug', table, options, region=region, dialogue=dialogue)
        assert_same(*answer, *expected)
        assert server.seen[-1][1].shape == (180, 200, 3)  # the region alone was sent
        expected = ask(tabletop, 'is there a mug?', table, options, yes_no=True)
        assert expected[1].yes_probability is not None
        assert_same(*ask(served, 'is there a mug?', table, options, yes_no=True), *expected)
        assert served.capabilities == dataclasses.replace(tabletop.capabilities, batches=True)
        assert served.precision == 'fp32'


def test_a_batch_gives_the_answers_in_order(server, connect):
    images = [np.full((48, 64, 3), level, np.uint8) for level in (0, 255, 0, 255)]
    segmenter = Segmenter(connect(server.url), OPTIONS)
    results = segmenter.segment_batch([(image, 'bright') for image in images])
    assert [bool(result.masks.all()) for result in results] == [False, True, False, True]
    assert all(not query.stream for query, _, _ in server.seen)  # none replaces another


def test_names_of_objects_are_those_of_the_server(server, connect):
    served, white = connect(server.url), np.full_like(GRAY, 255)
    events, result = ask(served, 'named', white)
    assert [event.name for event in events if isinstance(event, MaskReady)] == ['mug', 'pan']
    assert result.names == ('mug', 'pan')
    assert ask(served, 'it')[1].names == ()
    results = Segmenter(served, OPTIONS).segment_batch([(white, 'named'), (white, 'it')])
    assert [result.names for result in results] == [('mug', 'pan'), ()]


def test_one_of_a_batch_may_fail_or_be_cancelled(server, connect):
    served, cancel = connect(server.url), threading.Event()
    served_requests = [
        BatchRequest(GRAY, Query('it'), threading.Event()),
        BatchRequest(GRAY, Query('slow'), cancel),
        BatchRequest(GRAY, Query(' '), threading.Event()),
    ]
    ends = {}
    for number, event in served.stream_batch(served_requests, OPTIONS):
        if isinstance(event, Done):
            ends[number] = event.result.status
        if 2 in ends:  # the server answers one at a time: "it" may wait for "slow"
            cancel.set()
    assert ends == {0: Status.FOUND, 1: Status.CANCELLED, 2: Status.FAILED}


def test_the_time_limit_of_a_batch_is_one_also_for_those_that_wait_for_others(server, connect):
    server.faults += [_one_word_then_nothing] * IN_FLIGHT
    requests = [BatchRequest(GRAY, Query('it'), threading.Event())] * (IN_FLIGHT + 2)
    options = InferenceOptions(answer_timeout=1.0)
    ends = {
        number: event.result
        for number, event in connect(server.url).stream_batch(requests, options)
        if isinstance(event, Done)
    }
    assert len(server.seen) <= IN_FLIGHT  # the others are not sent any more
    for number in (IN_FLIGHT, IN_FLIGHT + 1):
        assert ends[number].status is Status.TIMED_OUT
        assert 'answer_timeout (1 s)' in ends[number].reason


def test_a_batch_that_is_given_up_closes_its_connections(server, connect):
    served = connect(server.url)
    requests = [BatchRequest(GRAY, Query(text), threading.Event()) for text in ('it', 'slow')]
    events = served.stream_batch(requests, OPTIONS)
    next(events)
    wait_until(lambda: len(server.seen) == 2)
    events.close()
    assert server.left.wait(LONG)


# ---- the image on its way


def test_a_jpeg_is_made_as_small_as_what_the_model_sees(connect):
    image = np.zeros((160, 320, 3), np.uint8)
    image[40:120, 80:240] = 255
    with segment_server.running(ScriptedBackend(REPLIES), input_side=160) as server:
        served = connect(server.url, coding=ImageCoding(ImageFormat.JPEG, 95))
        events, result = ask(served, 'bright', image)
        assert server.seen[-1][1].shape == (80, 160, 3)
        expected = image[..., 0] > 0
        assert result.masks.shape == (1, 160, 320)
        assert masks.iou(result.masks[0], expected) > 0.95
        assert events[-1].mask.shape == (160, 320)
        dialogue = Dialogue(shown=expected[None])
        assert ask(served, 'bright', image, dialogue=dialogue)[1].status is Status.FOUND
        assert server.seen[-1][0].shown[0].size == (80, 160)
        ask(served, 'bright', image, dataclasses.replace(OPTIONS, refine=True))
        np.testing.assert_allclose(server.seen[-1][1], image, atol=16)  # whole, a JPEG
        lossless = connect(server.url, coding=ImageCoding(ImageFormat.PNG))
        ask(lossless, 'bright', image)
        np.testing.assert_array_equal(server.seen[-1][1], image)


def test_new_weights_are_noticed_while_requests_follow_one_another(connect):
    image, periods = np.zeros((120, 320, 3), np.uint8), MonitorPeriods(1e6, 0.05, LONG)
    with segment_server.running(ScriptedBackend(REPLIES), input_side=160) as server:
        served = connect(server.url, coding=ImageCoding(ImageFormat.JPEG, 95), periods=periods)
        polls = server.polls
        for _ in range(5):
            ask(served, 'it', image)
        assert server.polls == polls  # the model is the known one
        server.version, server.input_side = 'f' * 64, None

        def is_whole():
            ask(served, 'it', image)
            return server.seen[-1][1].shape == image.shape

        wait_until(is_whole)


def test_two_servers_of_different_weights_behind_one_address_are_not_asked_all_the_time(connect):
    periods = MonitorPeriods(1e6, 0.01, LONG)
    with segment_server.running(ScriptedBackend(REPLIES)) as server:
        served, polls = connect(server.url, periods=periods), server.polls
        for number in range(20):
            server.version = f'{number:064}'
            ask(served, 'it')
            wait_until(lambda: server.polls > polls)  # at once after the first answer
        assert server.polls == polls + 1


def test_a_request_that_finds_a_late_server_makes_its_model_known(server, connect):
    server.is_loading = True
    served = connect(server.url, periods=MonitorPeriods(1e6, 1.0, LONG))
    assert served.precision == ''
    server.is_loading = False

    def is_known():
        assert ask(served, 'it')[1].status is Status.FOUND
        return served.precision == 'fp32'

    wait_until(is_known)


@pytest.mark.parametrize('size', [(4, 5), GRAY.shape[:2]], ids=['of another image', 'fits'])
@pytest.mark.parametrize('region', [None, (20, 20, 8, 8)], ids=['image', 'region'])
def test_masks_of_an_image_of_another_size_are_not_sent(server, connect, size, region):
    dialogue = Dialogue(shown=np.ones((1, *size), bool))
    _, result = ask(connect(server.url), 'bright', dialogue=dialogue, region=region)
    assert result.status is Status.FOUND
    assert len(server.seen[-1][0].shown) == (size == GRAY.shape[:2])


def test_no_more_masks_are_sent_than_the_server_takes(server, connect, monkeypatch):
    shown = np.ones((40, *GRAY.shape[:2]), bool)
    for pixels, count in ((QueryLimits().shown_pixels, 32), (GRAY[..., 0].size * 3 + 1, 3)):
        monkeypatch.setattr(query_encoding, '_LIMITS', QueryLimits(shown_pixels=pixels))
        ask(connect(server.url), 'it', dialogue=Dialogue(shown=shown))
        assert len(server.seen[-1][0].shown) == count


def test_the_quality_of_a_jpeg(server, connect):
    noise = np.random.default_rng(1).integers(0, 256, GRAY.shape, np.uint8)
    sent = {}
    for quality in (20, 95):
        ask(connect(server.url, coding=ImageCoding(ImageFormat.JPEG, quality)), 'it', noise)
        sent[quality] = int(server.seen[-1][2]['Content-Length'])
        assert server.seen[-1][1].shape == GRAY.shape
    assert sent[20] < sent[95]


# ---- connections


def test_one_connection_serves_all_requests(server, connect):
    served = connect(server.url)
    for _ in range(5):
        ask(served, 'it')
    assert server.connections == 1


def test_a_kept_connection_that_was_closed_is_opened_again(server, connect):
    served = connect(server.url)
    ask(served, 'it')
    server.drop_connections()
    assert ask(served, 'it')[1].status is Status.FOUND
    assert server.connections == 2


@pytest.mark.parametrize('closings', [1, 2])
def test_a_connection_that_breaks_is_no_sign_of_a_lost_server(server, monkeypatch, closings):
    client, get = HttpClient(ServerAddress(server.url)), segment_server._Handler.do_GET
    models, left = client.get_json('/v1/models', LONG), [True] * closings

    def close_or_get(handler):
        if left:
            handler.close_connection = left.pop()
        else:
            get(handler)

    monkeypatch.setattr(segment_server._Handler, 'do_GET', close_or_get)
    if closings == 1:
        assert client.get_json('/v1/models', LONG) == models
    else:
        with pytest.raises(UnreachableError, match='broke off the connection'):
            client.get_json('/v1/models', LONG)
    assert server.connections == 2
    client.close()


def test_a_cancel_closes_the_connection(server, connect):
    served, cancel = connect(server.url), threading.Event()
    with once_sent(server, cancel.set):
        _, result = ask(served, 'slow', cancel=cancel)
    assert result.status is Status.CANCELLED
    assert server.left.wait(LONG)  # the server has stopped the model
    assert ask(served, 'it')[1].status is Status.FOUND


def test_an_interrupt_ends_a_request(server, connect):
    served = connect(server.url)
    with once_sent(server, lambda: served.interrupt('the watchdog')):
        _, result = ask(served, 'slow')
    assert result.status is Status.TIMED_OUT
    assert 'the watchdog' in result.reason


def test_an_answer_that_is_given_up_closes_the_connection(server, connect):
    served = connect(server.url)
    server.faults.append(_one_word_then_nothing)
    events = served.stream(GRAY, Query('it'), OPTIONS, threading.Event())
    assert next(events) == Token('Sure')
    del events
    assert server.left.wait(LONG)
    assert ask(served, 'it')[1].status is Status.FOUND


# ---- faults


def _one_word_then_nothing(handler):
    """Send a word, then comments until the client leaves."""
    handler.begin_events()
    handler.event(TOKEN_EVENT, {'text': 'Sure', 'token_id': None})
    while True:
        handler.wfile.write(b'3\r\n:\n\n\r\n')
        time.sleep(0.02)


def _one_word_then_the_end(handler):
    handler.begin_events()
    handler.event(TOKEN_EVENT, {'text': 'Sure', 'token_id': None})
    handler.close_connection = True
    return True


def _no_word(handler):
    handler.close_connection = True
    return True


def _reported(problem):
    def fault(handler):
        handler.begin_events()
        handler.event('error', ProblemError(problem, 'it is lost').document())
        handler.wfile.write(b'0\r\n\r\n')
        return True

    return fault


def _refused(problem, retry_after=None, detail='not now'):
    def fault(handler):
        handler.problem(ProblemError(problem, detail, retry_after))
        return True

    return fault


def _late(fault):
    def late_fault(handler):
        time.sleep(0.2)
        return fault(handler)

    return late_fault


def _other(status, kind, content):
    def fault(handler):
        handler._send(status, kind, content)
        return True

    return fault


def test_the_deadline_is_one_and_the_server_knows_it(server, connect):
    served, start = connect(server.url), time.monotonic()
    server.faults.append(_one_word_then_nothing)
    _, result = ask(served, 'it', options=InferenceOptions(answer_timeout=2.0))
    assert result.status is Status.TIMED_OUT
    assert result.answer_raw == 'Sure'
    assert time.monotonic() - start < LONG
    assert 0 < server.seen[0][0].deadline <= 2.0


@pytest.mark.parametrize('event', ['retry: 3000', 'id: 7', 'event: ping', 'event: ping\ndata:'])
def test_an_event_without_data_is_none(server, connect, event):
    """The standard says so, and proxies may send one."""
    content, is_sent = f'{event}\n\n'.encode(), []

    def send_first(handler):
        begin = handler.begin_events

        def begin_and_send():
            begin()
            handler.wfile.write(f'{len(content):x}\r\n'.encode() + content + b'\r\n')
            is_sent.append(True)

        handler.begin_events = begin_and_send

    server.faults.append(send_first)
    assert ask(connect(server.url), 'it')[1].status is Status.FOUND
    assert is_sent


@pytest.mark.parametrize(
    ('fault', 'status', 'reason'),
    [
        (_one_word_then_the_end, Status.UNREACHABLE, 'broke off|before it was complete'),
        (_reported(Problem.REPLICA_LOST), Status.UNREACHABLE, 'it is lost'),
        (_reported(Problem.DEADLINE), Status.TIMED_OUT, 'it is lost'),
        (_refused(Problem.SUPERSEDED), Status.SUPERSEDED, 'not now'),
        (_refused(Problem.DEADLINE), Status.TIMED_OUT, 'not now'),
        (_refused(Problem.REPLICA_LOST, 0), Status.UNREACHABLE, 'not now'),
        (_refused(Problem.OVERLOADED, 9999), Status.UNREACHABLE, 'asks to wait 1e\\+04 s'),
        (_refused(Problem.TOO_LARGE), Status.FAILED, 'not now'),
        (_reported(Problem.UNAUTHORIZED), Status.UNREACHABLE, 'it is lost'),
        (_other(502, 'text/html', b'<h1>bad gateway</h1>'), Status.UNREACHABLE, 'proxy'),
        (_other(200, 'text/html', b'<h1>hello</h1>'), Status.FAILED, 'not with a stream'),
        (_other(500, 'text/plain', b'oh'), Status.FAILED, '500'),
        (
            _other(200, EVENTS_TYPE, b'event: done\ndata: {}\n\n'),
            Status.FAILED,
            'this API',
        ),
        (_other(200, EVENTS_TYPE, b'event: done\ndata: {\n\n'), Status.FAILED, 'no JSON'),
        (_other(200, EVENTS_TYPE, 10_001 * b'id: 7\n\n'), Status.FAILED, 'without an end'),
    ],
)
def test_each_fault_has_its_own_end(server, connect, fault, status, reason):
    served, start = connect(server.url), time.monotonic()
    server.faults.append(fault)
    try:
        _, result = ask(served, 'it')
    except ModelError as error:  # the call raises it before an answer has begun
        found = Status.FAILED, str(error)
    else:
        found = result.status, result.reason
    assert found[0] is status
    assert re.search(reason, found[1])
    assert '\n' not in found[1]
    assert time.monotonic() - start < SOON + LONG / 2
    assert ask(served, 'it')[1].status is Status.FOUND  # the next one is answered


@pytest.mark.parametrize(
    ('problem', 'error'),
    [(Problem.INVALID_IMAGE, ImageError), (Problem.INVALID_QUERY, QueryError)],
)
def test_a_request_at_fault_is_an_error_of_the_call(server, connect, problem, error):
    served = connect(server.url)
    server.faults.append(_refused(problem, detail='too long'))
    with pytest.raises(error, match='too long'):
        served.stream(GRAY, Query('it'), OPTIONS, threading.Event())


@pytest.mark.parametrize('fault', [_refused(Problem.OVERLOADED, 0), _no_word])
def test_what_no_answer_has_begun_for_is_tried_again(server, connect, fault):
    served = connect(server.url)
    server.faults += [fault, fault]
    assert ask(served, 'it')[1].status is Status.FOUND
    assert len(server.seen) == 3


def test_each_try_sends_what_is_left_of_the_deadline(server, connect):
    served = connect(server.url)
    server.faults += [_refused(Problem.OVERLOADED)] * 2
    assert ask(served, 'it')[1].status is Status.FOUND
    first, second, third = (query.deadline for query, _, _ in server.seen)
    assert LONG >= first > second + 0.2 > third + 0.6  # after pauses of 0.25 and 0.5 s
    contents = {image.tobytes() for _, image, _ in server.seen}
    assert contents == {GRAY.tobytes()}


def test_without_a_deadline_each_try_sends_the_longest(server, connect):
    """With none, the server's own deadline would end the answer after 30 s."""
    served = connect(server.url)
    server.faults.append(_refused(Problem.OVERLOADED, 0))
    options = dataclasses.replace(OPTIONS, answer_timeout=None)
    assert ask(served, 'it', options=options)[1].status is Status.FOUND
    assert [query.deadline for query, _, _ in server.seen] == [QueryLimits().deadline] * 2


def test_a_server_without_capacity_is_unreachable(server, connect):
    served = connect(server.url)
    server.faults += [_refused(Problem.OVERLOADED, 0)] * 3
    _, result = ask(served, 'it')
    assert result.status is Status.UNREACHABLE
    assert 'no capacity (429' in result.reason
    assert served.health.state is HealthState.UNREACHABLE


# ---- the token, the address, TLS


def test_a_token_from_a_file_or_the_environment(tmp_path, monkeypatch):
    file = tmp_path / 'token'
    file.write_text('correct-horse\n')
    monkeypatch.setenv('ROBOT_TOKEN', 'correct-horse')
    with segment_server.running(ScriptedBackend(REPLIES), token='correct-horse') as server:
        for options in (LoadOptions(api_key_file=file), LoadOptions(api_key_env='ROBOT_TOKEN')):
            backend = load_backend(server.url, options)
            assert ask(backend, 'it')[1].status is Status.FOUND
            backend.close()


def test_a_wrong_token_is_refused_and_never_shown(tmp_path, caplog):
    file = tmp_path / 'token'
    file.write_text('wrong-battery')
    with segment_server.running(ScriptedBackend(REPLIES), token='correct-horse') as server:
        with caplog.at_level(logging.DEBUG), pytest.raises(SettingsError) as caught:
            load_backend(server.url, LoadOptions(api_key_file=file))
        address = ServerAddress(server.url, 'wrong-battery')
    assert "'Bearer ***' is no known token" in str(caught.value)  # the server has repeated it
    shown = f'{caught.value}{caught.value.__cause__!r}{caplog.text}{address}'
    assert 'wrong-battery' not in shown


@pytest.mark.parametrize(
    ('model', 'options', 'message'),
    [
        ('http://user:secret@host:1', {}, 'a user, a password'),
        ('http://', {}, 'expected an address'),
        ('http://host:port', {}, 'cannot be read'),
        ('http://127.0.0.1:1', {'api_key_env': 'NO_SUCH_VARIABLE'}, 'environment variable'),
        ('http://127.0.0.1:1', {'api_key_file': '/no/such/file'}, 'api_key_file /no/such'),
        ('http://127.0.0.1:1', {'api_key_file': 'a', 'api_key_env': 'B'}, 'one of them'),
    ],
)
def test_wrong_settings_are_errors(model, options, message):
    with pytest.raises(SettingsError, match=message) as caught:
        load_backend(model, LoadOptions(**options))
    assert 'secret' not in str(caught.value)


@pytest.mark.parametrize('variable', ['http_proxy', 'HTTP_PROXY', 'all_proxy', 'ALL_PROXY'])
def test_a_server_on_this_machine_is_asked_without_a_proxy(server, connect, variable, monkeypatch):
    monkeypatch.delenv('http_proxy', raising=False)
    with segment_server.running(ScriptedBackend(REPLIES)) as proxy:
        monkeypatch.setenv(variable, proxy.url)
        assert ask(connect(server.url), 'it')[1].status is Status.FOUND
        assert ask(connect('http://127.0.0.1:9'), 'it')[1].status is Status.UNREACHABLE
        assert (proxy.polls, proxy.seen) == (0, [])
        monkeypatch.setenv(variable, 'socks5://proxy:1080')
        assert ask(connect(server.url), 'it')[1].status is Status.FOUND


@pytest.mark.parametrize('variable', ['http_proxy', 'all_proxy'])
def test_a_server_elsewhere_is_asked_through_the_proxy(connect, variable, monkeypatch):
    with segment_server.running(ScriptedBackend(REPLIES)) as proxy:
        monkeypatch.setenv(variable, proxy.url)
        with pytest.raises(SettingsError, match='refuses the request'):  # it is no proxy
            connect('http://gpu-server.example:8000')
        monkeypatch.setenv('no_proxy', 'example')
        assert connect('http://gpu-server.example:1').health.state is HealthState.UNREACHABLE


def test_a_proxy_that_cannot_be_used_is_a_clear_error(monkeypatch):
    for address in ('ftp://user:secret@proxy', 'http://user:secret/@proxy:x'):
        monkeypatch.setenv('http_proxy', address)
        with pytest.raises(SettingsError, match=r'not an address.*HTTP_PROXY') as caught:
            HttpClient(ServerAddress('http://gpu-server.example:8000'))
        assert 'secret' not in str(caught.value)


def test_a_socks_proxy_names_the_package_that_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, 'socksio', None)  # as if it were not installed
    monkeypatch.setenv('all_proxy', 'socks5://proxy:1080')
    with pytest.raises(SettingsError, match='pip install socksio'):
        HttpClient(ServerAddress('http://gpu-server.example:8000'))


@pytest.mark.parametrize('content', [None, 'no certificate'])
def test_a_file_of_certificates_that_cannot_be_read_is_a_clear_error(
    server, connect, tmp_path, monkeypatch, content
):
    file = tmp_path / 'issuer.pem'
    if content is not None:
        file.write_text(content)
    monkeypatch.setenv('SSL_CERT_FILE', str(file))
    with pytest.raises(SettingsError, match=r'SSL_CERT_FILE.*issuer\.pem'):
        HttpClient(ServerAddress('https://gpu-server.example:8000'))
    assert ask(connect(server.url), 'it')[1].status is Status.FOUND  # http:// needs none


def test_another_server_is_refused(server, connect):
    with pytest.raises(SettingsError, match='refuses the request'):
        connect(f'{server.url}/elsewhere')


def test_an_unknown_certificate_is_told(tmp_path, connect, monkeypatch):
    certificate = make_certificate(tmp_path)
    with segment_server.running(ScriptedBackend(REPLIES), certificate=certificate) as server:
        _, result = ask(connect(server.url), 'it')
        assert result.status is Status.UNREACHABLE
        assert 'certificate that is not trusted' in result.reason
        monkeypatch.setenv('SSL_CERT_FILE', str(certificate[0]))
        assert ask(connect(server.url), 'it')[1].status is Status.FOUND


# ---- a server that is gone, and comes back


@pytest.fixture
def process(tmp_path):
    process = segment_server.ServerProcess.scripted(tmp_path, REPLIES)
    yield process
    process.kill()


class Lines:
    """A log that keeps its lines."""

    def __init__(self):
        self.lines = []
        self.info = self.error = self.lines.append


def test_a_server_that_was_killed_is_used_again_without_a_restart(process):
    log = Lines()
    served = ServedBackend(
        HttpClient(ServerAddress(process.url)), ImageCoding(ImageFormat.RAW), log=log, periods=FAST
    )
    assert served.health.state is HealthState.OK
    process.kill()
    wait_until(lambda: served.health.state is HealthState.UNREACHABLE)  # nobody has asked
    _, result = ask(served, 'found')
    assert result.status is Status.UNREACHABLE
    assert 'cannot be reached' in served.health.cause
    process.start()
    wait_until(lambda: served.health.state is HealthState.OK)
    assert served.health.reloads == 1
    assert [('every' in line, 'answers again' in line) for line in log.lines] == [
        (True, False),
        (False, True),
    ]
    served.close()


def test_a_server_that_is_not_there_yet_is_waited_for(process, connect):
    process.kill()
    served = connect(process.url, periods=FAST)
    assert served.health.state is HealthState.UNREACHABLE
    assert served.capabilities.explains  # a guess
    process.start()
    wait_until(lambda: served.health.state is HealthState.OK)


def test_a_server_that_loads_its_model_is_waited_for(server, connect):
    server.is_loading = True
    served = connect(server.url, periods=FAST)
    assert served.health.state is HealthState.UNREACHABLE
    assert 'has not loaded its model yet' in served.health.cause
    server.is_loading = False
    wait_until(lambda: served.health.state is HealthState.OK)


@pytest.mark.parametrize('since', ['start', 'later'])
def test_a_server_whose_rate_is_used_up_is_there(server, connect, since):
    server.is_rate_limited = since == 'start'
    served = connect(server.url, periods=FAST)
    server.is_rate_limited, polls, start = True, server.polls, time.monotonic()
    wait_until(lambda: server.polls > polls + 2)
    assert time.monotonic() - start >= 1.0  # the server asks for a pause of this length
    assert served.health.state is HealthState.OK
    assert served.health.failure is None
    assert ask(served, 'it')[1].status is Status.FOUND
    server.is_rate_limited = False
    wait_until(lambda: served.precision == 'fp32')


def test_a_closed_backend_is_unreachable(server, connect):
    served = connect(server.url)
    served.close()
    assert ask(served, 'it')[1].status is Status.UNREACHABLE


def test_a_backend_that_is_closed_ends_its_request_as_unreachable(server, connect):
    served = connect(server.url)
    with once_sent(server, served.close):
        _, result = ask(served, 'slow')
    assert result.status is Status.UNREACHABLE
    assert 'was closed' in result.reason


# ---- the fallback model


def test_the_fallback_model_answers_while_the_server_is_gone(process, connect):
    process.kill()
    local = ScriptedBackend(REPLIES)
    both = FallbackBackend(connect(process.url, periods=FAST), local, 'lisa-tabletop')
    events, result = ask(both, 'it')
    assert result.status is Status.FOUND
    assert result.reason.startswith('answered by lisa-tabletop: http://127.0.0.1')
    assert isinstance(events[-1], MaskReady)
    assert both.health.state is HealthState.UNREACHABLE


def test_memory_and_cache_are_those_of_the_fallback_model(server, connect, tmp_path):
    script = tmp_path / 'script.json'
    script.write_text(json.dumps(REPLIES))
    with contextlib.closing(ProcessBackend(f'scripted:{script}', LoadOptions())) as local:
        both = FallbackBackend(connect(server.url), local, 'lisa-tabletop')
        assert both.memory > 0
        assert both.peak_memory == local.peak_memory > 0
        assert both.cache_use == local.cache_use


def test_a_token_that_is_revoked_makes_the_server_unreachable(connect):
    local, token = ScriptedBackend(REPLIES), secrets.token_hex(8)
    with segment_server.running(ScriptedBackend(REPLIES), token=token) as own:
        served = connect(own.url, token=token, periods=FAST)
        both = FallbackBackend(served, local, 'lisa-tabletop')
        assert ask(served, 'it')[1].status is Status.FOUND
        own.token = secrets.token_hex(8)
        _, result = ask(served, 'it')
        assert result.status is Status.UNREACHABLE
        assert 'no known token' in result.reason
        assert served.health.state is HealthState.UNREACHABLE
        _, result = ask(both, 'it')
        assert result.status is Status.FOUND
        assert result.reason.startswith('answered by lisa-tabletop')
        own.token = token
        wait_until(lambda: served.health.state is HealthState.OK)
        assert ask(both, 'it')[1].reason == ''


def test_the_fallback_model_is_not_asked_while_the_server_answers(server, connect):
    local = ScriptedBackend(REPLIES)
    both = FallbackBackend(connect(server.url), local, 'lisa-tabletop')
    assert ask(both, 'it')[1].reason == ''
    assert ask(both, 'absent')[1].status is Status.NOT_FOUND
    server.faults.append(_one_word_then_the_end)
    _, result = ask(both, 'it')
    assert result.status is Status.UNREACHABLE  # its first word was out
    assert not local.calls


def test_a_request_that_finds_the_server_gone_gets_the_fallback_within_its_time(server, connect):
    local = ScriptedBackend(REPLIES)
    served = connect(server.url)
    both = FallbackBackend(served, local, 'lisa-tabletop')
    server.faults += [_refused(Problem.NOT_READY, 0)] * 3
    _, result = ask(both, 'it')
    assert result.status is Status.FOUND
    assert 'no capacity' in result.reason
    (_, options), *_ = local.calls
    assert options.answer_timeout < LONG
    events = both.stream(GRAY, Query('it'), OPTIONS, threading.Event())
    assert isinstance([*events][-1], Done)


def test_a_fallback_that_takes_too_long_names_the_time_of_both(server, connect, tmp_path):
    script = tmp_path / 'script.json'
    script.write_text(json.dumps(REPLIES))
    with contextlib.closing(ProcessBackend(f'scripted:{script}', LoadOptions())) as local:
        both = FallbackBackend(connect(server.url), local, 'lisa-tabletop')
        server.faults += [_late(_refused(Problem.NOT_READY, 0))] * 3
        _, result = ask(both, 'slow', options=InferenceOptions(answer_timeout=2.0))
    assert result.status is Status.TIMED_OUT
    assert re.search(
        r'answer_timeout: [01]\.\d+ s\).* in what was left of answer_timeout \(2 s\):.*no capac',
        result.reason,
    )


def test_one_of_a_batch_that_the_server_loses_is_asked_again(server, connect):
    both = FallbackBackend(connect(server.url), ScriptedBackend(REPLIES), 'lisa-tabletop')
    server.faults.append(_reported(Problem.REPLICA_LOST))
    results = Segmenter(both, OPTIONS).segment_batch([(GRAY, 'it')] * 3)
    assert [result.status for result in results] == [Status.FOUND] * 3
    assert len(server.seen) == 4
    both.close()
    results = Segmenter(both, OPTIONS).segment_batch([(GRAY, 'it')] * 3)
    assert all(result.reason.startswith('answered by lisa-tabletop') for result in results)


@pytest.mark.parametrize(
    ('shape', 'sent'),
    [
        ((480, 640), (480, 640)),
        ((1440, 1920), (768, 1024)),
        ((720, 2560), (448, 1593)),  # two cameras side by side: CLIP needs its shorter side
        ((300, 2560), (300, 2560)),
        ((5000, 100), (5000, 100)),
    ],
)
def test_an_image_is_made_no_smaller_than_the_model_needs(shape, sent):
    from lisa_ros.serving.image_transfer import fitted_image

    assert fitted_image(np.zeros((*shape, 3), np.uint8), 1024).shape == (*sent, 3)


def test_encoded_images_are_what_opencv_reads():
    """A PNG that is sent is RGB for every other program, too."""
    from lisa_ros.serving.image_transfer import encode_image

    image = np.zeros((4, 4, 3), np.uint8)
    image[..., 0] = 200
    sent = encode_image(image, ImageCoding(ImageFormat.PNG))
    read = cv2.imdecode(np.frombuffer(sent.content, np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(read[..., ::-1], image)
    assert sent.media_type == 'image/png'
