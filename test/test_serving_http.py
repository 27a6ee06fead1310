# SPDX-License-Identifier: Apache-2.0
"""The HTTP API of `lisa-ros serve` in front of lisa-tabletop: answers, errors, limits, tokens."""

import asyncio
import dataclasses
import http.client
import io
import json
import socket
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip('python_multipart', reason='the extra `serve` is not installed')
pytest.importorskip('prometheus_client', reason='the extra `serve` is not installed')
from served_model import LocalModels, RunningServer, encoded, server_sent, wait_until

from lisa_ros.errors import DataError, SettingsError
from lisa_ros.images.image_file import read_rgb
from lisa_ros.perception.backend import AnswerStyle, InferenceOptions, LoadOptions, Query
from lisa_ros.perception.masks import confidence_image
from lisa_ros.perception.segmenter import Segmenter
from lisa_ros.resources import SELF_TEST
from lisa_ros.results import Dialogue, MaskReady, Token
from lisa_ros.serving.limits import ServerLimits
from lisa_ros.serving.model_server import ModelServer, ReplicaPlan
from lisa_ros.serving.models import ModelsState
from lisa_ros.serving.multipart import read_upload
from lisa_ros.serving.problems import PROBLEM_TYPE, Problem, ProblemError
from lisa_ros.serving.query_format import MaskFormat, RawImage, SegmentQuery, query_json
from lisa_ros.serving.replies import Answer, ReplyFigures
from lisa_ros.serving.server_monitor import read_models
from lisa_ros.serving.tokens import Client, RateLimiter, TokenTable
from lisa_ros.serving.wire_format import (
    SEGMENT_PATH,
    Served,
    encode_request,
    event_of,
    result_of,
)

REFERENCE = Path(__file__).parent / 'data/reference'
LONG = 300.0  # more than anything takes on a busy machine [s]
LIMITS = ServerLimits(
    body_bytes=2_000_000,
    image_pixels=1_000_000,
    header_seconds=LONG,
    upload_seconds=LONG,
    default_deadline=LONG,
    connections=40,
)
COMMANDS = ['segment the mug', 'something to drink from', 'segment the elephant']
RAW = 'application/octet-stream'


@pytest.fixture(scope='module')
def image():
    return read_rgb(SELF_TEST / 'table.webp')


@pytest.fixture(scope='module')
def png(image):
    return encoded(image)


@pytest.fixture(scope='module')
def local():
    return Segmenter.load('lisa-tabletop')


@pytest.fixture(scope='module')
def server():
    models = LocalModels(ModelServer(ReplicaPlan(Served('lisa-tabletop', '1'), 'lisa-tabletop')))
    with RunningServer(models, limits=LIMITS) as running:
        yield running


def huge_png(side):
    """Return a PNG that claims a square of black pixels, in a few bytes."""
    blank = encoded(np.zeros((1, 1), np.uint8))
    header = side.to_bytes(4, 'big') * 2 + blank[24:29]
    head = b'IHDR' + header
    return blank[:12] + head + zlib.crc32(head).to_bytes(4, 'big') + blank[33:]


def assert_same(remote, local):
    for name in ('query', 'answer', 'answer_raw', 'status', 'reason', 'token_ids'):
        assert getattr(remote, name) == getattr(local, name), name
    assert np.array_equal(remote.masks, local.masks)
    assert np.allclose(remote.scores, local.scores, atol=1e-6)


# ---- answers


@pytest.mark.parametrize('masks', MaskFormat)
def test_answers_are_those_of_a_local_model(server, local, image, png, masks):
    for command in COMMANDS:
        query = SegmentQuery(command, masks=masks, confidence=True)
        status, headers, document = server.segment(png, query)
        assert (status, headers['content-type']) == (200, 'application/json')
        remote, expected = result_of(document), local.segment(image, command)
        assert_same(remote, expected)
        assert remote.details.score_features == pytest.approx(expected.details.score_features)
        assert np.array_equal(
            confidence_image(remote.mask_logits), confidence_image(expected.mask_logits)
        )
        assert (document['model'], document['version']) == ('lisa-tabletop', '1')
        assert {'queue', 'prompt'} <= document['times'].keys()


def test_requests_at_once_are_answered_together_and_alike(server, local, image, png):
    commands = COMMANDS * 3
    before = batches(server)
    with ThreadPoolExecutor(len(commands)) as pool:
        answers = list(pool.map(lambda command: server.segment(png, command), commands))
    for command, (_, _, document) in zip(commands, answers, strict=True):
        assert_same(result_of(document), local.segment(image, command))
    assert batches(server) - before > len(commands)  # the sum of their batches' sizes


def batches(server):
    text = server.request('GET', '/metrics')[2].decode()
    line = next(line for line in text.splitlines() if line.startswith('lisa_batch_size_sum'))
    return float(line.split()[1])


def test_raw_pixels_are_as_good_as_a_file(server, local, image, png):
    height, width, _ = image.shape
    for encoding, pixels in (('rgb8', image), ('bgr8', image[:, :, ::-1])):
        query = SegmentQuery(COMMANDS[0], raw=RawImage(width, height, encoding))
        status, _, document = server.segment(pixels.tobytes(), query, RAW)
        assert status == 200
        assert_same(result_of(document), local.segment(image, COMMANDS[0]))


def test_a_jpeg_is_answered(server, local, image):
    jpeg = encoded(image, 'JPEG', quality=95)
    _, _, document = server.segment(jpeg, COMMANDS[0], 'image/jpeg')
    with Image.open(io.BytesIO(jpeg)) as opened:
        assert_same(result_of(document), local.segment(np.asarray(opened), COMMANDS[0]))


def test_region_and_dialogue_travel_with_the_request(server, local, image, png):
    height, width, _ = image.shape
    region = (10, 10, width - 20, height - 20)
    first = local.segment(image, COMMANDS[0], region=region)
    dialogue = Dialogue().extended(first)
    query = Query('segment the other one', dialogue, region=region)
    expected = local.segment(image, query.text, dialogue, region=region)
    status, _, document = server.segment(png, SegmentQuery.of(query, InferenceOptions()))
    assert status == 200
    assert_same(result_of(document), expected)


def test_options_of_the_client_apply(server, png):
    options = {'max_new_tokens': 2, 'answer_style': AnswerStyle.TEXT}
    _, _, document = server.segment(png, SegmentQuery(COMMANDS[0], options=options))
    assert len(document['tokens']) == 2


def test_events_are_words_then_masks_then_the_answer(server, local, image, png):
    status, headers, body = server.segment(png, COMMANDS[0], Accept='text/event-stream')
    assert (status, headers['content-type'].split(';')[0]) == (200, 'text/event-stream')
    events = server_sent(body)
    assert [name for name, _ in events].count('done') == 1
    name, document = events.pop()
    expected = local.segment(image, COMMANDS[0])
    assert name == 'done'
    assert_same(result_of(document), expected)
    received = [event_of(*event) for event in events]
    words = [event.text for event in received if isinstance(event, Token)]
    masks = [event.mask for event in received if isinstance(event, MaskReady)]
    assert expected.answer_raw.split() == ''.join(words).split()
    assert np.array_equal(masks, expected.masks)


def test_events_of_a_batch_are_those_of_single_answers(server, local, image, png):
    def ask(_):
        return server.segment(png, COMMANDS[0], Accept='text/event-stream')

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(ask, range(6)))
    expected = local.segment(image, COMMANDS[0])
    for status, _, body in answers:
        names = [name for name, _ in server_sent(body)]
        assert (status, names[-1], names.count('mask')) == (200, 'done', len(expected.masks))
        assert_same(result_of(server_sent(body)[-1][1]), expected)


def test_what_a_model_cannot_read_is_a_failed_answer(server, png):
    query = SegmentQuery('segment <image>', options={'typed_specials': True})
    status, _, document = server.segment(png, query)
    assert (status, document['status']) == (200, 'FAILED')
    assert 'leave <image> out' in document['reason']


# ---- other paths


def test_models_health_metrics_and_description(server, png):
    server.segment(png, COMMANDS[0])
    assert server.request('GET', '/healthz')[2] == {'status': 'alive'}
    assert server.request('GET', '/readyz')[2] == {'status': 'ready'}
    models = server.request('GET', '/v1/models')[2]
    assert models['replicas'] == 1
    assert models['models'][0]['capabilities']['dialogue'] is True
    metrics = server.request('GET', '/metrics')[2]
    assert b'lisa_requests_total{result="FOUND"}' in metrics
    assert b'lisa_batch_limit{replica=' in metrics
    document = server.request('GET', '/openapi.json')[2]
    assert document['openapi'] == '3.1.0'
    assert set(document['paths']) >= {'/v1/segment', '/v1/models', '/metrics'}


def test_the_server_says_to_which_side_a_client_may_reduce_images(server):
    jsonschema = pytest.importorskip('jsonschema', reason='it checks the description')
    answer = server.request('GET', '/v1/models')[2]
    assert answer['models'][0]['input_side'] is None  # lisa-tabletop refines masks in the image
    get = server.request('GET', '/openapi.json')[2]['paths']['/v1/models']['get']
    schema = get['responses']['200']['content']['application/json']['schema']
    jsonschema.Draft202012Validator(schema).validate(answer)
    load = LoadOptions(template='llava_v1', vision_tower=REFERENCE / 'clip_256')
    plan = ReplicaPlan(Served('LISA', '1'), str(REFERENCE / 'ckpt_256'), load)
    assert read_models({'models': [described(plan)]}).input_side == 256
    refined = dataclasses.replace(plan, options=InferenceOptions(refine=True))
    assert read_models({'models': [described(refined)]}).input_side is None


def described(plan):
    """Return what a replica says of its model."""
    return {'name': plan.served.model, **ModelServer(plan).describe()}


def test_answers_and_problems_are_as_described(server, png):
    jsonschema = pytest.importorskip('jsonschema', reason='it checks the description')
    document = server.request('GET', '/openapi.json')[2]

    def check(name, value):
        schema = {'$ref': f'#/components/schemas/{name}', 'components': document['components']}
        jsonschema.Draft202012Validator(schema).validate(value)

    for command in COMMANDS:
        check('Answer', server.segment(png, SegmentQuery(command, confidence=True))[2])
    check('Problem', server.segment(b'', COMMANDS[0])[2])
    query = SegmentQuery('x', raw=RawImage(1, 1, 'rgb8'), region=(0, 0, 1, 1), deadline=1.0)
    check('Query', json.loads(query_json(query)))


def test_a_server_without_a_model_is_not_ready(server, png):
    models = LocalModels(server.state.models.server)
    models.is_loaded = False
    with RunningServer(models) as starting:
        status, headers, document = starting.request('GET', '/readyz')
        assert (status, document['type']) == (503, 'not_ready')
        assert int(headers['retry-after']) > 0
        assert starting.request('GET', '/healthz')[0] == 200
        assert starting.request('GET', '/v1/models')[2]['models'] == []


# ---- errors


def multipart(*parts, end=True):
    """Return a body of parts, each (headers, content)."""
    blocks = [f'--x\r\n{headers}\r\n\r\n'.encode() + content for headers, content in parts]
    return b'\r\n'.join(blocks) + (b'\r\n--x--\r\n' if end else b'')


def part(name, kind, content):
    return f'Content-Disposition: form-data; name="{name}"\r\nContent-Type: {kind}', content


QUERY = part('query', 'application/json', b'{"command": "x"}')
FORM = 'multipart/form-data; boundary=x'


def bare(name, content):
    """Return a part without a type, as Python's requests sends it."""
    return f'Content-Disposition: form-data; name="{name}"; filename="{name}"', content


CHARSET = 'Content-Disposition: form-data; name="_charset_"'
PADDED = (b'--x\r\n', b'--x \t\r\n')


@pytest.mark.parametrize(
    ('content_type', 'body', 'status', 'detail'),
    [
        ('application/json', b'{}', 415, 'expected multipart/form-data'),
        ('multipart/form-data', b'', 400, 'boundary has 0 bytes'),
        (f'multipart/form-data; boundary={"x" * 100}', b'', 400, 'boundary has 100 bytes'),
        (FORM, b'', 400, 'last boundary'),
        (FORM, b'\0' * 1000, 400, 'no multipart'),
        (FORM, multipart(QUERY), 400, '"image" is missing'),
        (FORM, multipart(QUERY, QUERY), 400, 'once each'),
        (FORM, multipart(QUERY, part('../../etc/passwd', 'image/png', b'')), 400, 'has the name'),
        (FORM, multipart(QUERY, QUERY, QUERY), 400, 'once each'),
        (FORM, multipart(QUERY, part('image', 'image/png', b''), QUERY), 400, 'more than two'),
        (FORM, multipart(QUERY, part('image', 'image/png', b''), end=False), 400, 'boundary'),
        (FORM, b'a' * 2000 + b'\r\n' + multipart(QUERY), 400, 'no multipart'),
        (FORM, multipart((CHARSET, b'utf-16'), QUERY), 400, 'expected UTF-8'),
        (FORM, multipart((CHARSET, b'utf-8'), (CHARSET, b'utf-8')), 400, 'has the name'),
        (FORM, multipart(QUERY, bare('image', b'GIF89a')), 415, 'image/jpeg or image/png'),
        (FORM, multipart(QUERY, ('A: b\r\n' * 20, b'')), 400, 'header count'),
        (FORM, multipart(QUERY, (f'A: {"b" * 2000}', b'')), 400, 'header size'),
        (FORM, multipart(QUERY, part('image', 'image/tiff', b'')), 415, 'image/jpeg or image/png'),
        (FORM, multipart(QUERY, part('image', RAW, b'')), 415, '"raw" in the query'),
        (FORM, multipart(QUERY, part('image', 'image/png', b'')), 422, 'it is empty'),
        (FORM, multipart(QUERY, part('image', 'image/png', b'\x89PNG')), 422, 'cannot be decoded'),
        (
            FORM,
            multipart(part('query', 'application/xml', b'<x/>'), part('image', 'image/png', b'')),
            415,
            'expected application/json',
        ),
        (
            FORM,
            multipart(part('query', 'application/json', b'['), part('image', 'image/png', b'')),
            422,
            'no JSON',
        ),
    ],
)
def test_a_wrong_body_is_a_clear_error(server, content_type, body, status, detail):
    answer = server.request('POST', '/v1/segment', body, Content_Type=content_type)
    assert (answer[0], answer[1]['content-type']) == (status, PROBLEM_TYPE)
    assert answer[2]['status'] == status
    assert detail in answer[2]['detail']


def test_what_other_clients_may_send_is_read(server, png, image):
    jpeg = encoded(image, 'JPEG')
    for content in (png, jpeg):
        whole = multipart(QUERY, bare('image', content))
        for body in (
            whole,
            multipart(bare('query', b'{"command": "x"}'), bare('image', content)),
            multipart((CHARSET, b'utf-8'), QUERY, bare('image', content)),
            multipart(QUERY, bare('image', content), (CHARSET, b'UTF-8')),
            b'This is a multipart message.\r\n' + whole,
            b'\r\n' + whole,
            whole + b'epilogue',
            whole.replace(*PADDED),
            b'a --x \r\n' + whole.replace(*PADDED),
        ):
            status, _, document = server.request('POST', '/v1/segment', body, Content_Type=FORM)
            assert status == 200, document
    raw = SegmentQuery('x', raw=RawImage(*image.shape[1::-1], 'rgb8'))
    body = multipart(bare('query', query_json(raw).encode()), bare('image', image.tobytes()))
    assert server.request('POST', '/v1/segment', body, Content_Type=FORM)[0] == 200


def test_white_space_behind_a_boundary_leaves_images_as_they_are(server, local, image):
    """Raw pixels may look like a boundary with white space, without the line end before it."""
    pixels = image.copy()
    look_alike = b'--x \t\r\n'
    pixels.reshape(-1)[9 : 9 + len(look_alike)] = list(look_alike)
    query = SegmentQuery(COMMANDS[0], raw=RawImage(*image.shape[1::-1], 'rgb8'))
    parts = bare('query', query_json(query).encode()), bare('image', pixels.tobytes())
    body = multipart(*parts)
    for sent in (body, body.replace(b'\r\n--x\r\n', b'\r\n--x\t\r\n')):
        status, _, document = server.request('POST', '/v1/segment', sent, Content_Type=FORM)
        assert status == 200, document
        assert_same(result_of(document), local.segment(pixels, COMMANDS[0]))


@pytest.mark.parametrize('padding', [b' ', b'\t ', b' ' * 5000], ids=len)
def test_each_boundary_may_have_white_space_behind_it(png, padding):
    parts = bare('query', b'{"command": "x"}'), bare('image', png)
    body = multipart(*parts).replace(b'--x\r\n', b'--x' + padding + b'\r\n')
    epilogue = b'\r\n--x \r\n' * 1000
    for sent in (body, b'preamble\r\n' + body, body + epilogue):
        assert read_upload(FORM, sent, ServerLimits()).image == png


def test_very_many_boundaries_with_white_space_are_refused():
    body = b'--x \r\n' + b'\r\n--x ' * 100_000 + b'\r\n--x \r\n' * 100_000
    with pytest.raises(ProblemError) as caught:
        read_upload(FORM, body, ServerLimits())
    assert caught.value.problem is Problem.MALFORMED


@pytest.mark.parametrize(
    ('query', 'status', 'detail'),
    [
        (SegmentQuery(' '), 422, 'command is empty'),
        (SegmentQuery('x' * 1001), 422, 'at most 1000'),
        (SegmentQuery('x', deadline=1e9), 422, 'deadline is'),
        (SegmentQuery('x', region=(0, 0, 9999, 1)), 422, 'not within the image'),
        (SegmentQuery('x', options={'device': 'cuda'}), 422, 'unknown'),
        (SegmentQuery('x', raw=RawImage(3, 3, 'rgb8')), 415, 'octet-stream'),
    ],
)
def test_a_wrong_query_is_a_clear_error(server, png, query, status, detail):
    answer = server.segment(png, query)
    assert (answer[0], answer[1]['content-type']) == (status, PROBLEM_TYPE)
    assert detail in answer[2]['detail']


def test_an_image_of_wrong_length_or_type_is_a_clear_error(server, png, image):
    raw = SegmentQuery('x', raw=RawImage(30, 10, 'rgb8'))
    assert '899 bytes; expected 900' in server.segment(b'\0' * 899, raw, RAW)[2]['detail']
    large = SegmentQuery('x', raw=RawImage(40_000, 40_000, 'mono8'))
    assert 'at most 1,000,000' in server.segment(b'\0', large, RAW)[2]['detail']
    assert 'Content-Type is image/jpeg' in server.segment(png, 'x', 'image/jpeg')[2]['detail']
    assert server.segment(png[:-500], 'x')[0] == 422
    assert server.segment(encoded(image, 'JPEG')[:-500], 'x', 'image/jpeg')[0] == 422


def test_a_bomb_is_refused_by_its_header(server):
    for side in (1001, 40_000, 2**31 - 1):
        status, _, document = server.segment(huge_png(side), 'x')
        assert (status, document['type']) == (422, 'invalid_image')
        assert f'{side} x {side} pixels' in document['detail']


def test_a_large_body_is_refused_before_it_is_read(server):
    head = f'POST /v1/segment HTTP/1.1\r\nHost: localhost\r\nContent-Type: {FORM}\r\n'
    answer = raw_request(server, f'{head}Content-Length: 2000001\r\n\r\n', end=b'}')
    assert b' 413 ' in answer.split(b'\r\n')[0]
    assert b'expected at most 2000000' in answer
    answer = raw_request(server, f'{head}Transfer-Encoding: chunked\r\n\r\n', end=b'}')
    assert b' 411 ' in answer.split(b'\r\n')[0]


def test_a_client_that_sends_too_much_can_read_why(server):
    body = b'a' * 20_000_000  # more than the buffers of a connection hold
    status, _, document = server.request('POST', '/v1/segment', body, Content_Type=FORM)
    assert (status, document['type']) == (413, 'too_large')


def raw_request(server, text, end=None):
    """Return what the server sends until it closes the connection, or up to a text."""
    with socket.create_connection(('127.0.0.1', server.port), timeout=LONG) as connection:
        connection.sendall(text if isinstance(text, bytes) else text.encode())
        received = b''
        while (end is None or end not in received) and (chunk := connection.recv(65536)):
            received += chunk
        return received


@pytest.mark.parametrize(
    'text',
    [
        b'\0\1\2\3\r\n\r\n',
        b'GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n',
        b'POST /v1/segment HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n',
        b'GET / HTTP/1.1\r\nHost: x\r\nA: ' + b'b' * 20_000,
    ],
)
def test_what_is_no_http_is_a_clear_error(server, text):
    answer = raw_request(server, text)
    assert answer.startswith(b'HTTP/1.1 400 ')
    assert b'application/problem+json' in answer


@pytest.mark.parametrize('head', ['', 'POST /v1/segment HTTP/1.1\r\nHost: localhost\r\n'])
def test_a_head_that_never_ends_is_cut_off(server, head):
    limits = dataclasses.replace(LIMITS, header_seconds=0.5)
    with RunningServer(server.state.models, limits=limits) as impatient:
        assert raw_request(impatient, head) == b''


def test_a_body_that_never_ends_is_cut_off(server):
    limits = dataclasses.replace(LIMITS, upload_seconds=0.5)
    head = f'POST /v1/segment HTTP/1.1\r\nHost: localhost\r\nContent-Type: {FORM}\r\n'
    with RunningServer(server.state.models, limits=limits) as impatient:
        answer = raw_request(impatient, f'{head}Content-Length: 100\r\n\r\nabc')
    assert b' 408 ' in answer.split(b'\r\n')[0]
    assert b'3 of 100 bytes' in answer


def test_a_body_that_goes_on_behind_its_answer_is_cut_off(server):
    limits = dataclasses.replace(LIMITS, header_seconds=1.0)
    head = b'GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n'
    with (
        RunningServer(server.state.models, limits=limits) as impatient,
        socket.create_connection(('127.0.0.1', impatient.port), timeout=LONG) as connection,
    ):
        connection.sendall(head)
        assert connection.recv(65536).startswith(b'HTTP/1.1 200 ')
        wait_until(lambda: not sends(connection))


def test_unknown_paths_and_methods_are_clear_errors(server):
    for path in ('/', '/v1/segment/', '/v1/../etc/passwd', '/%00', '/v1/models/..%2f..%2fx'):
        status, headers, document = server.request('GET', path)
        assert (status, headers['content-type']) == (404, PROBLEM_TYPE)
        assert document['type'] == 'not_found'
    status, headers, document = server.request('DELETE', '/v1/segment')
    assert (status, document['type'], headers['allow']) == (405, 'method_not_allowed', 'POST')


def test_foreign_web_pages_are_refused(server, png):
    answer = server.segment(png, 'x', Origin='http://evil.example')
    assert (answer[0], answer[2]['type']) == (400, 'wrong_host')
    answer = server.request('GET', '/v1/models', Host='evil.example')  # a rebound name
    assert (answer[0], answer[2]['type']) == (400, 'wrong_host')
    assert server.request('GET', '/v1/models', Host='[::1]:80')[0] == 200


def test_connections_are_limited(server):
    idle = [socket.create_connection(('127.0.0.1', server.port)) for _ in range(60)]
    try:
        assert any(b' 429 ' in first_bytes(connection) for connection in idle[40:])
    finally:
        for connection in idle:
            connection.close()
    wait_until(lambda: server.request('GET', '/healthz')[0] == 200)


def test_waiting_bytes_are_limited(server, png):
    limits = dataclasses.replace(LIMITS, waiting_bytes=len(png) + 5000)
    head = f'POST /v1/segment HTTP/1.1\r\nHost: localhost\r\nContent-Type: {FORM}\r\n'
    with RunningServer(server.state.models, limits=limits) as small:
        with socket.create_connection(('127.0.0.1', small.port)) as connection:
            connection.sendall(f'{head}Content-Length: 5000\r\n\r\n'.encode())
            wait_until(lambda: small.state.body_bytes == 5000)
            status, headers, document = small.segment(png, COMMANDS[0])
            assert (status, document['type']) == (429, 'overloaded')
            assert int(headers['retry-after']) == 1
        wait_until(lambda: small.state.body_bytes == 0)
        assert small.segment(png, COMMANDS[0])[0] == 200


def sends(connection):
    try:
        connection.sendall(b'a')
    except OSError:  # the server has closed it
        return False
    return True


def first_bytes(connection):
    connection.settimeout(5)
    try:
        return connection.recv(100)
    except OSError:
        return b''


def test_uploads_that_break_off_leave_nothing_behind(server, png):
    head = f'POST /v1/segment HTTP/1.1\r\nHost: localhost\r\nContent-Type: {FORM}\r\n'
    for _ in range(30):
        with socket.create_connection(('127.0.0.1', server.port)) as connection:
            connection.sendall(f'{head}Content-Length: 100000\r\n\r\n'.encode() + b'a' * 5000)
    wait_until(lambda: server.state.body_bytes == 0)
    assert server.segment(png, COMMANDS[0])[0] == 200


class NotedModels:
    """Models that note requests and answer them at once."""

    state = ModelsState(1, 1, 0, 9, 0, {})

    def __init__(self):
        self.requests, self.figures = [], ReplyFigures()

    async def answer(self, request):
        self.requests.append(request)
        return Answer('{"status": "FOUND"}', self.figures)


def test_requests_are_numbered_as_they_arrive_not_as_their_bodies_end(png):
    models = NotedModels()
    content_type, body = encode_request(png, 'image/png', SegmentQuery('older', stream='cam'))
    head = f'POST /v1/segment HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\n'
    with (
        RunningServer(models, limits=LIMITS) as server,
        socket.create_connection(('127.0.0.1', server.port), timeout=LONG) as connection,
    ):
        connection.sendall(f'{head}Content-Length: {len(body)}\r\n\r\n'.encode() + body[:100])
        wait_until(lambda: server.state.body_bytes == len(body))
        assert server.segment(png, SegmentQuery('newer', stream='cam'))[0] == 200
        connection.sendall(body[100:])
        assert connection.recv(65536).startswith(b'HTTP/1.1 200 ')
    newer, older = models.requests
    assert (newer.upload.query.command, older.upload.query.command) == ('newer', 'older')
    assert older.number < newer.number


@pytest.mark.parametrize(
    ('deadline', 'of_server', 'seconds'),
    [
        (None, 30.0, 30.0),
        (2.0, 30.0, 2.0),
        (2.0, 600.0, 2.0),
        (300.0, 30.0, 300.0),
        (None, 600.0, 600.0),
        (300.0, 600.0, 600.0),  # of a client without a limit
    ],
)
def test_the_deadline_of_a_request_is_its_own_or_that_of_the_server(
    png, deadline, of_server, seconds
):
    models, limits = NotedModels(), dataclasses.replace(LIMITS, default_deadline=of_server)
    with RunningServer(models, limits=limits) as server:
        assert server.segment(png, SegmentQuery('x', deadline=deadline))[0] == 200
    (request,) = models.requests
    assert seconds / 2 < request.seconds <= seconds


class EndlessModels:
    """Models whose streams send one event, and then nothing."""

    state = ModelsState(1, 1, 0, 9, 0, {})

    async def stream(self, request):
        yield b'event: token\ndata: {}\n\n'
        await asyncio.Event().wait()


def test_the_bytes_of_a_stream_count_until_its_client_leaves(png):
    content_type, body = encode_request(png, 'image/png', SegmentQuery('x'))
    headers = {'Content-Type': content_type, 'Accept': 'text/event-stream'}
    with RunningServer(EndlessModels(), limits=LIMITS) as endless:
        client = http.client.HTTPConnection('127.0.0.1', endless.port, timeout=LONG)
        client.request('POST', SEGMENT_PATH, body, headers)
        assert client.getresponse().readline() == b'event: token\n'
        assert endless.state.body_bytes == len(body)
        client.close()
        wait_until(lambda: endless.state.body_bytes == 0)
        assert counted(endless, 'lisa_requests_total', result='client_left') == 1


# ---- tokens

TOKEN = '0123456789abcdef0123'  # noqa: S105  # of this test


@pytest.fixture
def guarded(server, tmp_path):
    file = tmp_path / 'tokens'
    file.write_text(f'# robots\n\narm {TOKEN} 1000\nslow slow-slow-slow-slow 0.01 # one\n')
    with RunningServer(server.state.models, tokens=TokenTable.read(file)) as running:
        yield running


def test_only_clients_with_a_token_are_answered(guarded, png):
    for headers in (
        {},
        {'Authorization': TOKEN},
        {'Authorization': f'Basic {TOKEN}'},
        {'Authorization': f'Bearer {TOKEN[:-1]}'},
        {'Authorization': 'Bearer ' + 'x' * 5000},
        {'Authorization': 'Bearer \xff\xfe'},
    ):
        for answer in (
            guarded.segment(png, COMMANDS[0], **headers),
            guarded.request('GET', '/v1/models', **headers),
        ):
            assert (answer[0], answer[1]['www-authenticate']) == (401, 'Bearer')
            assert TOKEN not in answer[2]['detail']
    headers = {'Authorization': f'Bearer {TOKEN}'}
    assert guarded.segment(png, COMMANDS[0], **headers)[2]['status'] == 'FOUND'
    assert guarded.request('GET', '/v1/models', Host='robots.example', **headers)[0] == 200
    assert guarded.request('GET', '/healthz')[0] == 200  # for probes


def test_a_token_has_a_rate(guarded, png):
    headers = {'Authorization': 'Bearer slow-slow-slow-slow'}
    assert guarded.segment(png, COMMANDS[0], **headers)[0] == 200
    status, answer_headers, document = guarded.segment(png, COMMANDS[0], **headers)
    assert (status, document['type']) == (429, 'rate_limited')
    assert 1 <= int(answer_headers['retry-after']) <= 100


def test_idle_robots_that_ask_for_the_model_leave_the_rate_to_commands(guarded, png):
    headers = {'Authorization': 'Bearer slow-slow-slow-slow'}
    for _ in range(5):
        assert guarded.request('GET', '/v1/models', **headers)[0] == 200
    assert guarded.segment(png, COMMANDS[0], **headers)[0] == 200
    assert guarded.request('GET', '/v1/models', **headers)[0] == 200
    paths = guarded.request('GET', '/openapi.json')[2]['paths']
    assert '429' not in paths['/v1/models']['get']['responses']
    assert '429' in paths['/v1/segment']['post']['responses']


def test_streams_of_two_tokens_are_two_whatever_their_names(tmp_path, png):
    file, models = tmp_path / 'tokens', NotedModels()
    clients = {'site': 'a' * 16, 'site/arm': 'b' * 16, 'site-arm': 'c' * 16}
    file.write_text(''.join(f'{name} {token}\n' for name, token in clients.items()))
    streams = ['cam', 'arm/cam', 'arm cam', ' cam', 'site cam']
    with RunningServer(models, tokens=TokenTable.read(file)) as server:
        for token in clients.values():
            for stream in [*streams, 'cam', '']:
                headers = {'Authorization': f'Bearer {token}'}
                assert server.segment(png, SegmentQuery('x', stream=stream), **headers)[0] == 200
    named = {request.stream for request in models.requests if request.stream}
    assert len(named) == len(clients) * len(streams)  # one each, the same one for 'cam' twice
    assert sum(not request.stream for request in models.requests) == len(clients)


def test_a_rate_lets_as_many_pass_as_it_says():
    now = [0.0]
    rates, client = RateLimiter(lambda: now[0]), Client('arm', 4.0)

    def passes():
        try:
            rates.take(client)
        except ProblemError:
            return False
        return True

    assert sum(passes() for _ in range(10)) == 4
    passed = 0
    for _ in range(1000):
        now[0] += 0.01
        passed += passes()
    assert 39 <= passed <= 41


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', 'no token'),
        ('arm', 'has 1 words'),
        ('arm short', 'at least 16'),
        (f'arm {TOKEN} fast', "rate is 'fast'"),
        (f'arm {TOKEN} 0', 'above 0'),
        (f'arm {TOKEN}\narm {TOKEN}x', 'line 2: this name is given twice'),
    ],
)
def test_a_wrong_token_file_is_a_clear_error(tmp_path, text, message):
    file = tmp_path / 'tokens'
    file.write_text(text)
    with pytest.raises(SettingsError, match=message):
        TokenTable.read(file)


def test_a_missing_token_file_is_a_clear_error(tmp_path):
    with pytest.raises(DataError, match='no such file'):
        TokenTable.read(tmp_path / 'none')


def counted(server, name, **labels):
    """Return a number of GET /metrics; 0: it is not there."""
    text = server.request('GET', '/metrics')[2].decode()
    names = ','.join(f'{key}="{value}"' for key, value in labels.items())
    line = f'\n{name}{{{names}}} ' if names else f'\n{name} '
    return float(text.partition(line)[2].partition('\n')[0] or 0)


def test_metrics_count_each_result(server, png):
    def count(result):
        return counted(server, 'lisa_requests_total', result=result)

    before = count('FOUND'), count('malformed')
    server.segment(png, COMMANDS[0])
    server.request('POST', '/v1/segment', b'', Content_Type=FORM)
    assert (count('FOUND'), count('malformed')) == (before[0] + 1, before[1] + 1)


class BrokenModels:
    """Models whose answers end in a bug: at once, or behind the first event of a stream."""

    state = ModelsState(1, 1, 0, 9, 0, {})

    async def answer(self, request):
        raise ZeroDivisionError

    async def stream(self, request):
        yield b'event: token\ndata: {}\n\n'
        raise ZeroDivisionError


def test_bugs_are_counted(png):
    with RunningServer(BrokenModels(), limits=LIMITS) as broken:
        assert broken.segment(png, 'x')[2]['type'] == 'internal'
        assert counted(broken, 'lisa_requests_total', result='internal') == 1
        with pytest.raises(http.client.IncompleteRead):
            broken.segment(png, 'x', Accept='text/event-stream')
        assert counted(broken, 'lisa_requests_total', result='internal') == 2
        assert counted(broken, 'lisa_requests_total', result='client_left') == 0


def test_only_answers_count_for_the_time_of_answers(png):
    models = NotedModels()
    with RunningServer(models, limits=LIMITS) as server:
        for _ in range(2):
            assert server.segment(png, 'x')[0] == 200
        assert server.segment(b'', 'x')[0] == 422
        assert counted(server, 'lisa_requests_total', result='invalid_image') == 1
        assert counted(server, 'lisa_requests_total', result='FOUND') == 2
        assert counted(server, 'lisa_request_seconds_count') == 2


def test_each_replica_has_metrics_of_its_own_although_process_ids_are_equal(png):
    models = NotedModels()
    with RunningServer(models, limits=LIMITS) as server:
        for name, largest in (('pod-1', 8), ('pod-2', 4)):
            models.figures = ReplyFigures(replica=name, largest_batch=largest)
            server.segment(png, 'x')
        assert counted(server, 'lisa_batch_limit', replica='pod-1') == 8
        assert counted(server, 'lisa_batch_limit', replica='pod-2') == 4
