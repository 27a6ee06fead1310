# SPDX-License-Identifier: Apache-2.0
"""`lisa-ros serve` with two replicas on a real Ray Serve: lost replicas, updates, overload."""

import contextlib
import http.client
import io
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

pytest.importorskip('python_multipart', reason='the extra `serve` is not installed')
if os.environ.get('LISA_ROS_TEST_RAY_SERVE') != '1':
    pytest.skip(
        'a cluster of Ray Serve takes a minute and all cores: `make test` runs it by itself, with '
        'LISA_ROS_TEST_RAY_SERVE=1',
        allow_module_level=True,
    )
from served_model import http_request, post, server_sent, wait_until
from toy_served_backend import hold_of, write_entry_point, write_model

from lisa_ros.commands.serve import _check_packages
from lisa_ros.serving.query_format import SegmentQuery
from lisa_ros.serving.wire_format import SEGMENT_PATH, encode_request, result_of

IMAGE = np.random.default_rng(1).integers(0, 256, (24, 32, 3), np.uint8)
KILLS = int(os.environ.get('LISA_ROS_SERVE_KILLS', '1'))
START = 400  # seconds; Ray starts slowly on a loaded machine
LONGEST = 300.0  # deadline that the server accepts [s]


def png():
    buffer = io.BytesIO()
    Image.fromarray(IMAGE).save(buffer, 'PNG')
    return buffer.getvalue()


PNG = png()


class ServeProcess:
    """`lisa-ros serve` in a process of its own."""

    def __init__(self, folder, *arguments):
        self.port, self.log = 0, folder / 'log'
        paths = [folder, Path(__file__).parent, *os.environ.get('PYTHONPATH', '').split(':')]
        write_entry_point(folder)
        command = [sys.executable, '-m', 'lisa_ros', 'serve', '--port', '0']
        with self.log.open('w') as log:
            self.process = subprocess.Popen(
                [*command, *arguments],
                env=os.environ | {'PYTHONPATH': ':'.join(map(str, filter(None, paths)))},
                stdout=log,
                stderr=log,
            )

    def wait_until_ready(self):
        self.wait(lambda: 'answers at' in self.log.read_text())
        self.port = int(re.search(r'answers at http://[\d.]+:(\d+)', self.log.read_text())[1])

    def get(self, path):
        return http_request(self.port, 'GET', path)

    def wait(self, condition, seconds=START):
        end = time.monotonic() + seconds
        while not self._holds(condition):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.1)

    def _holds(self, condition):
        try:
            return condition()
        except OSError:
            return False

    def replicas(self):
        return children_named(self, 'ray::ServeReplica')

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120)


def name(process):
    with contextlib.suppress(psutil.Error):
        return ' '.join(process.cmdline())
    return ''


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp('models')
    (folder / 'toy-1').mkdir()
    write_model(folder / 'toy-1')
    (folder / 'current').symlink_to('toy-1')
    return folder / 'current'


@pytest.fixture(scope='module')
def server(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp('serve')
    arguments = ('--replicas', '2', '--queue', '8', '--max-batch', '4')
    running = ServeProcess(folder, '--model', f'toy:{model}', *arguments)
    try:
        running.wait_until_ready()
        running.wait(lambda: running.get('/v1/models')[2]['replicas'] == 2)
        yield running
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.stop()  # it takes its processes and its folder along
        running.process.kill()
        running.process.wait()


class Load:
    """Clients that ask one request after the other until the end of the block."""

    def __init__(self, port, clients, streams=False):
        self.answers = []
        self._port, self._streams, self._has_ended = port, streams, threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(number,)) for number in range(clients)
        ]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._has_ended.set()
        for thread in self._threads:
            thread.join(120)
            assert not thread.is_alive()

    def _ask(self, number):
        while not self._has_ended.is_set():
            stream = f'client {number}' if number % 2 else ''
            query = SegmentQuery(f'request {len(self.answers)}', stream=stream, deadline=60.0)
            headers = {'Accept': 'text/event-stream'} if number % 3 == 0 else {}
            status, _, body = post(self._port, PNG, query, **headers)
            if isinstance(body, bytes):
                events = server_sent(body)
                ends = [event for event in events if event[0] in ('done', 'error')]
                assert [events[-1]] == ends  # one end, and nothing behind it
                (kind, body), status = events[-1], 200
                assert kind == 'done', body
            self.answers.append((status, body, query.command))


def expected_mask(sign=1):
    return sign * (IMAGE[:, :, 0].astype(float) - 127.5) > 0


def check_answers(load, signs=(1,)):
    """Check that each request has its own answer, and none an error."""
    masks = [expected_mask(sign) for sign in signs]
    for status, document, command in load.answers:
        assert status == 200, document
        assert document['command'] == command
        mask = result_of(document).masks[0]
        assert any(np.array_equal(mask, expected) for expected in masks)


def test_answers_are_those_of_a_local_model(server, model):
    status, _, document = post(server.port, PNG, SegmentQuery('x', confidence=True))
    assert status == 200
    assert np.array_equal(result_of(document).masks[0], expected_mask())
    description = server.get('/v1/models')[2]['models'][0]
    assert description['name'] == 'toy:toy-1'
    assert len(description['version']) == 64


def test_nobody_else_reaches_the_cluster(server):
    """The processes of Ray listen on the loopback device; a replica's own port wants the token."""
    grpc = pytest.importorskip('grpc', reason='the port of a replica is asked by gRPC')
    for process in psutil.Process(server.process.pid).children(recursive=True):
        for connection in connections(process):
            is_open = not connection.laddr.ip.removeprefix('::ffff:').startswith('127.')
            if is_open and connection.status == psutil.CONN_LISTEN:
                assert name(process).startswith('ray::ServeReplica'), name(process)
                with grpc.insecure_channel(f'127.0.0.1:{connection.laddr.port}') as channel:
                    call = channel.unary_unary('/ray.serve.ASGIService/HandleRequest')
                    with pytest.raises(grpc.RpcError) as raised:
                        call(b'', timeout=30)
                assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED


def connections(process):
    with contextlib.suppress(psutil.Error):  # it has ended
        return process.net_connections('inet')
    return []


def test_requests_of_a_stream_go_to_one_replica(server):
    def replica(stream):
        return post(server.port, PNG, SegmentQuery('x', stream=stream))[2]['answer'].split()[0]

    assert len({replica('front') for _ in range(8)}) == 1
    assert len({replica(f'camera {number}') for number in range(40)}) == 2


def test_requests_without_a_stream_are_shared_evenly(server, model):
    replicas = []

    def ask():
        query = SegmentQuery('held', deadline=LONGEST)
        replicas.append(post(server.port, PNG, query, timeout=START)[2]['answer'].split()[0])

    threads = [threading.Thread(target=ask) for _ in range(8)]
    with held(model):
        for number, thread in enumerate(threads, 1):
            thread.start()
            server.wait(lambda number=number: in_flight(server) == number)
    for thread in threads:
        thread.join(START)
    assert sorted(Counter(replicas).values()) == [4, 4]


def test_a_lost_replica_costs_time_but_no_answer(server):
    with Load(server.port, 6) as load:
        for _ in range(KILLS):
            server.wait(lambda: len(server.replicas()) == 2)
            count = len(load.answers)
            server.replicas()[0].kill()
            server.wait(lambda count=count: len(load.answers) > count + 30)
            server.wait(lambda: server.get('/v1/models')[2]['replicas'] == 2)
    check_answers(load)


def test_a_request_that_ends_replicas_is_a_clear_error(server):
    query = SegmentQuery('crash', deadline=LONGEST)
    status, headers, document = post(server.port, PNG, query, timeout=START)
    assert (status, document['type']) == (503, 'replica_lost')
    assert int(headers['retry-after']) >= 1
    server.wait(lambda: server.get('/v1/models')[2]['replicas'] == 2)
    assert post(server.port, PNG, 'x')[0] == 200


@contextlib.contextmanager
def held(model):
    """Let requests with the command "held" wait until the end of the block."""
    hold_of(model).touch()
    try:
        yield
    finally:
        hold_of(model).unlink()


def in_flight(server):
    line = b'\nlisa_requests_in_flight '
    return float(server.get('/metrics')[2].partition(line)[2].split()[0])


def test_too_many_requests_are_refused_at_once(server, model):
    answers, count = [], 30  # two replicas have places for 24

    def ask():
        query = SegmentQuery('held', deadline=LONGEST)
        answers.append(post(server.port, PNG, query, timeout=START))

    threads = [threading.Thread(target=ask) for _ in range(count)]
    with held(model):
        for thread in threads:
            thread.start()
        server.wait(lambda: len(answers) >= count - 24)
        assert len(answers) + in_flight(server) <= count
    for thread in threads:
        thread.join(START)
    refused = [answer for answer in answers if answer[0] != 200]
    for status, headers, document in refused:
        assert (status, document['type']) == (429, 'overloaded')
        assert int(headers['retry-after']) >= 1
    assert len(answers) == count
    assert 16 <= count - len(refused) <= 24  # at least the places of two queues


def test_clients_that_leave_free_their_places(server, model):
    query = SegmentQuery('held, and nobody waits', deadline=LONGEST)
    content_type, body = encode_request(PNG, 'image/png', query)
    clients = []
    with held(model):
        for accept in ('*/*', 'text/event-stream') * 4:  # one replica has places for all
            client = http.client.HTTPConnection('127.0.0.1', server.port, timeout=START)
            headers = {'Content-Type': content_type, 'Accept': accept}
            client.request('POST', SEGMENT_PATH, body, headers)
            clients.append(client)
        server.wait(lambda: in_flight(server) == len(clients))
        for client in clients:
            client.close()
        server.wait(lambda: in_flight(server) == 0)
    assert post(server.port, PNG, 'x')[0] == 200


def test_weights_are_updated_while_requests_are_answered(server, model):
    def description():
        return server.get('/v1/models')[2]['models'][0]

    def version():
        return description()['version']

    before = version()
    with Load(server.port, 4) as load:
        server.wait(lambda: len(load.answers) > 10)
        new = model.with_name('toy-2')
        new.mkdir()
        write_model(new, sign=-1)
        model.unlink()
        model.symlink_to(new.name)
        server.process.send_signal(signal.SIGHUP)
        server.wait(lambda: version() != before)
        count = len(load.answers)
        server.wait(lambda: len(load.answers) > count + 10)
    check_answers(load, signs=(1, -1))
    _, _, last = post(server.port, PNG, 'x')
    assert np.array_equal(result_of(last).masks[0], expected_mask(-1))
    assert last['version'] == version()
    assert description()['name'] == last['model'] == 'toy:toy-2'


def test_a_broken_update_changes_nothing(server, model):
    good = (model / 'config.json').read_text()
    (model / 'config.json').write_text('{}')
    server.process.send_signal(signal.SIGHUP)
    with Load(server.port, 2) as load:
        server.wait(lambda: 'nothing was updated' in server.log.read_text())
    (model / 'config.json').write_text(good)
    check_answers(load, signs=(-1,))


def test_a_stop_signal_ends_all_processes(server):
    children = psutil.Process(server.process.pid).children(recursive=True)
    assert server.stop() == 0, server.log.read_text()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive
    assert 'Traceback' not in server.log.read_text()


def test_all_packages_of_the_extra_are_there():
    _check_packages()


def children_named(running, text):
    children = psutil.Process(running.process.pid).children(recursive=True)
    return [child for child in children if text in name(child)]


def test_a_stop_signal_during_the_start_ends_all_processes_at_once(model, tmp_path):
    starting = ServeProcess(tmp_path, '--model', f'toy:{model}')
    try:
        starting.wait(lambda: children_named(starting, 'raylet'))
        children = psutil.Process(starting.process.pid).children(recursive=True)
        assert starting.stop() == 0, starting.log.read_text()
        _, alive = psutil.wait_procs(children, timeout=60)
        assert not alive
        assert 'answers at' not in starting.log.read_text()
    finally:
        starting.process.kill()
        starting.process.wait()


def test_a_stop_signal_during_an_update_ends_all_processes_at_once(model, tmp_path):
    updating = ServeProcess(tmp_path, '--model', f'toy:{model}')
    try:
        updating.wait_until_ready()
        write_model(model, delay=0.02)
        updating.process.send_signal(signal.SIGHUP)
        updating.wait(lambda: 'updating the weights' in updating.log.read_text())
        children = psutil.Process(updating.process.pid).children(recursive=True)
        assert updating.stop() == 0, updating.log.read_text()
        _, alive = psutil.wait_procs(children, timeout=60)
        assert not alive
        assert 'all replicas have' not in updating.log.read_text()
        assert 'local Ray instance' not in updating.log.read_text()
    finally:
        updating.process.kill()
        updating.process.wait()


@pytest.fixture
def head(request, tmp_path, monkeypatch):
    """A Ray cluster that runs already; yields its address and the process of its head."""
    resources = getattr(request, 'param', '--num-cpus=4')
    monkeypatch.setenv('RAY_AUTH_MODE', 'token')
    monkeypatch.setenv('RAY_AUTH_TOKEN', secrets.token_hex(32))
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    folder = tempfile.mkdtemp(prefix='head-')  # short: it has sockets
    environment = os.environ | {
        'RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER': '1',  # else the port stays closed
        'RAY_USAGE_STATS_ENABLED': '0',
        'PYTHONPATH': ':'.join([str(tmp_path), str(Path(__file__).parent)]),
    }
    write_entry_point(tmp_path)
    command = [sys.executable, '-m', 'ray.scripts.scripts', 'start', '--head', '--block']
    arguments = ['--include-dashboard=false', *resources.split(), f'--temp-dir={folder}']
    running = subprocess.Popen(
        [*command, f'--port={port}', '--node-ip-address=127.0.0.1', *arguments],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    process = psutil.Process(running.pid)
    try:
        yield f'127.0.0.1:{port}', process
    finally:
        for child in [*process.children(recursive=True), process]:
            with contextlib.suppress(psutil.Error):
                child.kill()
        running.wait()
        shutil.rmtree(folder, ignore_errors=True)


def test_a_server_whose_cluster_has_lost_its_head_is_not_ready(model, head, tmp_path):
    address, process = head
    wait_until(lambda: is_reachable(address), START)
    folder = tmp_path / 'serve'
    folder.mkdir()
    running = ServeProcess(folder, '--model', f'toy:{model}', '--ray', address)
    try:
        running.wait_until_ready()
        assert running.get('/readyz')[0] == 200
        gcs = next(child for child in process.children(recursive=True) if 'gcs' in name(child))
        gcs.suspend()  # as if the network to it were cut
        running.wait(lambda: running.get('/readyz')[0] == 503, 40)
        assert running.get('/healthz')[0] == 200
    finally:
        running.process.kill()
        running.process.wait()


@pytest.mark.parametrize('head', ['--num-cpus=4 --num-gpus=2'], indirect=True)
def test_an_update_without_a_place_for_one_more_replica(head, tmp_path):
    """Each of two GPUs has 0.4 left: no place for 0.6. Weights that fail change nothing."""
    address, _ = head
    wait_until(lambda: is_reachable(address), START)
    for version, sign in (('v1', 1), ('v2', -1)):
        (tmp_path / version).mkdir()
        write_model(tmp_path / version, sign=sign)
    (tmp_path / 'broken').mkdir()
    (tmp_path / 'broken/config.json').write_text('{}')
    link = tmp_path / 'current'
    link.symlink_to('v1')
    query = SegmentQuery('x', deadline=LONGEST)
    (tmp_path / 'serve').mkdir()
    arguments = ['--replicas', '2', '--gpus-per-replica', '0.6', '--ray', address]
    running = ServeProcess(tmp_path / 'serve', '--model', f'toy:{link}', *arguments)

    def move(version):
        link.unlink()
        link.symlink_to(version)

    def update(text):
        """Send SIGHUP, and ask until the log says a text once more; return what came back."""
        count, answers = running.log.read_text().count(text), []
        running.process.send_signal(signal.SIGHUP)

        def is_over():
            status, _, document = post(running.port, PNG, query, timeout=START)
            answers.append((status, document.get('type', document.get('version'))))
            return running.log.read_text().count(text) > count

        running.wait(is_over)
        return answers

    def assert_answered_by(answers, *models):
        assert {end for end in answers if end[0] != 200} <= {(503, 'not_ready')}
        versions = {version for status, version in answers if status == 200}
        assert versions <= {model['version'] for model in models}

    def is_answered(sign):
        status, _, document = post(running.port, PNG, query, timeout=START)
        assert status == 200, document
        return np.array_equal(result_of(document).masks[0], expected_mask(sign))

    try:
        running.wait_until_ready()
        running.wait(lambda: running.get('/v1/models')[2]['replicas'] == 2)
        first = running.get('/v1/models')[2]['models'][0]
        move('broken')
        answers = update('nothing was updated')
        assert_answered_by(answers, first)
        assert is_answered(1)
        assert running.get('/v1/models')[2]['models'][0] == first
        move('v1')
        assert_answered_by(update('the weights have not changed'), first)
        move('v2')
        answers = update('all replicas have the weights')
        assert is_answered(-1)
        last = running.get('/v1/models')[2]['models'][0]
        assert last['name'] == 'toy:v2'
        assert_answered_by(answers, first, last)
        running.wait(lambda: running.get('/v1/models')[2]['replicas'] == 2)
    finally:
        running.process.kill()
        running.process.wait()


def is_reachable(address):
    host, port = address.split(':')
    with contextlib.suppress(OSError):
        socket.create_connection((host, int(port)), 1).close()
        return True
    return False
