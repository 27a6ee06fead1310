# SPDX-License-Identifier: Apache-2.0
"""`lisa-ros mcp`, driven by the official client, against nodes in processes of their own."""

import base64
import contextlib
import http.client
import io
import json
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2: make setup')
pytest.importorskip('lisa_ros.srv', reason='needs the built interfaces: make setup')
pytest.importorskip('mcp', reason='needs config/requirements/mcp.txt: make setup')

import anyio
from anyio.from_thread import start_blocking_portal
from goal_server import GoalServer, replaced
from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters
from PIL import Image as PillowImage
from rclpy.time import Time
from ros_graph import START, NodeProcess, Peer, environment, image
from sensor_msgs.msg import CameraInfo, CompressedImage

import lisa_ros
from lisa_ros import cli
from lisa_ros.agents import tools
from lisa_ros.agents.http_address import HttpAddress
from lisa_ros.errors import SettingsError
from lisa_ros.messages import bag
from lisa_ros.ros import agent_access
from lisa_ros.ros.agent_access import RosNodeAccess

pytestmark = pytest.mark.ros
TABLE = Path(lisa_ros.__file__).parent / 'samples' / 'tabletop' / 'bag'
FRAME = 'camera_optical'
SLOW_NODE = [sys.executable, str(Path(__file__).with_name('slow_node.py'))]
REPLIES = {
    '': {'answer': 'There is none here.'},
    'the box': {'answer': 'It is [SEG].', 'masks': 'bright'},
    'hang': {'hang': 1, 'answer': 'Too late.'},
    'break': {'failure': 'the weights melted'},
    'talk': {'answer': 'word ' * 2000},
    'many': {'masks': 'bright ' * 30},
}
SQUARE = np.full((48, 64, 3), 40, np.uint8)
SQUARE[10:20, 30:50] = 255


def command(*arguments):
    return [sys.executable, '-m', 'lisa_ros', 'mcp', *arguments]


class Agent:
    """An MCP client whose calls block."""

    def __init__(self, portal, client):
        self.portal, self.client = portal, client
        self.progress = []

    def call(self, name, **arguments):
        async def call():
            return await self.client.call_tool(name, arguments, progress_callback=self._note)

        return self.portal.call(call)

    def result(self, name, **arguments):
        """Return the structured content of a call that succeeds."""
        result = self.call(name, **arguments)
        assert not result.is_error, result.content
        assert json.loads(result.content[0].text) == result.structured_content
        return result.structured_content

    def error(self, name, **arguments):
        """Return the text of a call that fails."""
        result = self.call(name, **arguments)
        assert result.is_error, result.content
        assert result.structured_content is None
        (content,) = result.content
        return content.text

    async def _note(self, progress, total, message):
        self.progress.append((progress, message))


@contextlib.contextmanager
def agent_of(server, mode='auto'):
    """Connect to a command line or a URL."""
    if not isinstance(server, str):
        server = StdioServerParameters(command=server[0], args=list(server[1:]), env=environment())
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(Client(server, mode=mode)) as client,
    ):
        yield Agent(portal, client)


# ---- a node with lisa-tabletop, a depth camera and a memory


@pytest.fixture(scope='module')
def table(tmp_path_factory):
    """Return the peer of a node that has got an image with depth."""
    pixels = next(bag.read_images(TABLE, '/camera/color/image_raw')).pixels
    log = tmp_path_factory.mktemp('table') / 'node.log'
    node = NodeProcess(log, {'model': 'lisa-tabletop', 'threads': 1, 'map_frame': FRAME})
    peer = Peer()
    try:
        peer.wait_until_active(node)
        size = pixels.shape[:2]
        depth = image(np.full(size, 1000, np.uint16), '16UC1')
        k = [300.0, 0.0, size[1] / 2, 0.0, 300.0, size[0] / 2, 0.0, 0.0, 1.0]
        peer.infos.publish(CameraInfo(header=depth.header, width=size[1], height=size[0], k=k))
        peer.depths.publish(depth)
        peer.publish_image(image(pixels))
        yield peer
    finally:
        peer.close()
        assert node.stop() == 0, node.output()


@pytest.fixture(scope='module')
def agent(table):
    with agent_of(command()) as agent:
        yield agent


def test_the_tools_say_what_they_take_and_return(agent):
    listed = {tool.name: tool for tool in agent.portal.call(agent.client.list_tools).tools}
    assert listed.keys() == {'segment', 'where_is', 'ask', 'recall', 'cameras'}
    for tool in listed.values():
        assert 40 < len(tool.description) < 200
        assert tool.output_schema['properties']
    assert listed['segment'].input_schema['required'] == ['command']
    assert listed['ask'].input_schema['properties']['timeout']['maximum'] == 600
    assert listed['recall'].annotations.read_only_hint
    assert not listed['segment'].annotations.read_only_hint  # a robot may act on the answer


def test_segment_returns_boxes_and_the_overlay(agent):
    deadline = time.monotonic() + START
    call = None
    while call is None or call.structured_content['note']:  # the node may discover us late
        assert time.monotonic() < deadline, call
        agent.progress.clear()
        call = agent.call('segment', command='segment the yellow mug', overlay=True)
    result = call.structured_content
    (mug,) = result['objects']
    box = mug['box']
    assert (result['status'], result['frame'], result['stamp']) == ('FOUND', FRAME, 7.000000005)
    assert mug['name'] == 'yellow mug'
    assert box['x'] < mug['centre']['x'] < box['x'] + box['width']
    assert box['y'] < mug['centre']['y'] < box['y'] + box['height']
    assert 0 < mug['area'] <= box['width'] * box['height']
    assert mug['position']['z'] == pytest.approx(1.0)
    text, picture = call.content
    assert json.loads(text.text) == result
    assert picture.mime_type == 'image/jpeg'
    drawn = PillowImage.open(io.BytesIO(base64.b64decode(picture.data)))
    assert drawn.width == 2 * result['image_width']  # the node enlarges a small image
    stages = [message.split(':')[0] for _, message in agent.progress]
    assert stages[-1] == 'answering'
    assert 'looking' in stages


def test_the_only_camera_has_the_overlay_whatever_a_goal_calls_it(agent):
    deadline, content = time.monotonic() + START, []
    while len(content) < 2:
        assert time.monotonic() < deadline, content
        arguments = {'command': 'segment the yellow mug', 'camera': 'eye', 'overlay': True}
        content = agent.call('segment', **arguments).content
    assert content[1].mime_type == 'image/jpeg'


def test_the_overlay_is_not_that_of_an_earlier_query_about_the_image():
    overlays, stamp = agent_access._CameraOverlays(), 7_000_000_005
    earlier, own = (CompressedImage(format=name) for name in ('earlier', 'own'))
    for overlay in (earlier, own):
        overlay.header.stamp = Time(nanoseconds=stamp).to_msg()
    overlays.add(earlier)
    assert overlays.newest(stamp, 0.0).format == 'earlier'
    since = time.monotonic()
    assert overlays.newest(stamp, since) is None
    overlays.add(own)
    assert overlays.newest(stamp, since).format == 'own'
    assert overlays.newest(stamp + 1, since) is None


def test_cameras_that_do_not_exist_leave_no_subscription(table):
    overlays = agent_access._Overlays(table.node, '/lisa')
    before = len(list(table.node.subscriptions))
    for number in range(3):
        watch = overlays.watch(f'nobody_{number}', 0.1)
        assert overlays.wait_for(watch, 0, START) is None
    overlays.watch('no name', 0.1)
    assert len(list(table.node.subscriptions)) == before
    for _ in range(2):
        overlays.watch('', START)
    assert len(list(table.node.subscriptions)) == before + 1


def test_where_is_returns_centroid_box_frame_and_time(agent):
    result = agent.result('where_is', query='the yellow mug')
    (mug,) = result['objects']
    assert (result['frame'], result['stamp'], result['note']) == (FRAME, 7.000000005, '')
    assert mug['centroid']['z'] == pytest.approx(1.0, abs=0.01)
    assert mug['box']['size']['x'] > 0
    assert np.linalg.norm(mug['box']['orientation']) == pytest.approx(1, abs=1e-3)
    assert agent.result('where_is', query='the banana')['status'] == 'NOT_FOUND'


def test_ask_answers_in_words_or_with_a_probability(agent):
    result = agent.result('ask', question='what is on the table?')
    assert 'mug' in result['answer']
    assert result['yes_probability'] is None
    there = agent.result('ask', question='is there a mug?', yes_no=True)
    absent = agent.result('ask', question='is there a banana?', yes_no=True)
    assert (there['answer'], absent['answer']) == ('Yes.', 'No.')
    assert there['yes_probability'] > 0.9
    assert absent['yes_probability'] < 0.1
    error = agent.error('ask', question='what is on the table?', yes_no=True)
    assert 'FAILED: the model answers this neither with yes nor with no' in error


def test_recall_says_where_an_object_was_seen(agent):
    agent.result('segment', command='segment the yellow mug')
    result = agent.result('recall', query='where did you last see the yellow mug?')
    assert (result['frame'], len(result['places'])) == (FRAME, 1)
    assert result['places'][0]['name'] == 'yellow mug'
    assert result['answer'].startswith('I last saw the yellow mug ')
    assert agent.result('recall', query='the banana')['places'] == []


def test_cameras_says_what_the_node_does(agent):
    result = agent.result('cameras')
    assert (result['lifecycle'], result['model']) == ('active', 'lisa-tabletop')
    assert [camera['name'] for camera in result['cameras']] == ['']


def test_turns_of_a_dialogue_follow_one_another(agent):
    agent.result('ask', question='segment the yellow mug', dialogue='a')
    assert 'drink' in agent.result('ask', question='what is it for?', dialogue='a')['answer']


def test_arguments_are_checked(agent):
    assert 'at least 1 character' in agent.error('segment', command='')
    assert 'at most 1000 characters' in agent.error('ask', question='x' * 1001)
    assert 'timeout' in agent.error('ask', question='x', timeout=0)


# ---- HTTP


@contextlib.contextmanager
def http_server():
    """Start a server on a free port; return it and its URL."""
    with subprocess.Popen(
        command('--node', '/arm/lisa', '--http', '0'), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env=environment(),
    ) as server:  # fmt: skip
        try:
            line = server.stderr.readline()
            yield server, re.search(r'http://127\.0\.0\.1:\d+/mcp', line)[0]
        finally:
            server.kill()


def post(url, **headers):
    """Return the status of a request with these headers."""
    port = int(re.search(r':(\d+)/', url)[1])
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=START)
    body = {'jsonrpc': '2.0', 'id': 1, 'method': 'tools/list'}
    headers = {
        'Content-Type': 'application/json',
        'Accept': 'application/json, text/event-stream',
        **headers,
    }
    connection.request('POST', '/mcp', json.dumps(body), headers)
    return connection.getresponse().status


@pytest.mark.parametrize(
    'address', ['0.0.0.0:80', '192.168.0.2:80', '[::]:80', 'robot:80', ':::80']
)
def test_other_interfaces_are_refused(capsys, address):
    assert cli.main(['mcp', '--http', address]) == 1
    assert 'only this machine may connect' in capsys.readouterr().err


@pytest.mark.parametrize('port', ['', 'x', '65536', '-1', '\u0663'])
def test_a_wrong_port_is_an_error(port):
    with pytest.raises(SettingsError, match='expected a port'):
        HttpAddress.parse(port)
    assert HttpAddress.parse('localhost:8000') == HttpAddress('127.0.0.1', 8000)
    assert HttpAddress.parse('[::1]:0') == HttpAddress('::1', 0)


# ---- a node whose model is scripted: errors, cancel, end


@pytest.fixture(scope='module')
def scripted(tmp_path_factory):
    """Return a node that has no depth camera and no memory, and its peer."""
    folder = tmp_path_factory.mktemp('scripted')
    (folder / 'replies.json').write_text(json.dumps(REPLIES))
    parameters = {'model': f'scripted:{folder}/replies.json', 'answer_timeout': 0.0}
    node = NodeProcess(folder / 'node.log', parameters, '-r', '__ns:=/arm', program=SLOW_NODE)
    peer = Peer('/arm')
    try:
        peer.wait_until_active(node)
        peer.publish_image(image(SQUARE))
        yield node, peer
    finally:
        peer.close()
        assert node.stop() == 0, node.output()


@pytest.fixture(scope='module')
def arm(scripted):
    with agent_of(command('--node', '/arm/lisa'), 'legacy') as agent:
        yield agent


def count_cancelled(peer):
    """Return how many goals of "hang" have ended by a cancel."""
    peer.settle()
    answers = peer.received['segmentation']
    return sum(a.query == 'hang' and a.status == a.CANCELLED for a in answers)


def cancel_when_it_runs(agent):
    """Ask what the model never answers, and cancel the request when the model begins."""

    async def call_and_cancel():
        async with anyio.create_task_group() as group:

            async def call():
                await agent.client.call_tool(
                    'segment', {'command': 'hang'}, progress_callback=cancel
                )

            async def cancel(progress, total, message):
                if message == 'looking':
                    group.cancel_scope.cancel()

            group.start_soon(call)

    agent.portal.call(call_and_cancel)


def test_an_absent_object_is_no_error(arm):
    result = arm.result('segment', command='the unicorn')
    assert (result['status'], result['objects']) == ('NOT_FOUND', [])
    assert result['answer'] == 'There is none here.'
    assert arm.result('where_is', query='the unicorn')['status'] == 'NOT_FOUND'


def test_an_object_without_a_place_is_an_error_of_where_is_alone(arm):
    (box,) = arm.result('segment', command='the box')['objects']
    assert box['box'] == {'x': 30, 'y': 10, 'width': 20, 'height': 10}
    assert box['centre'] == {'x': 39.5, 'y': 14.5}
    assert (box['area'], box['position']) == (200, None)
    error = arm.error('where_is', query='the box')
    assert 'NO_PLACE: 1 object(s) found in the image' in error
    assert 'remap depth' in error


def test_a_broken_model_is_an_error_with_its_cause(arm):
    for tool, argument in (('segment', 'command'), ('where_is', 'query'), ('ask', 'question')):
        error = arm.error(tool, **{argument: 'break'})
        assert f'Error executing tool {tool}: FAILED: ' in error
        assert 'the weights melted' in error


def test_a_model_without_yes_and_no_says_so(arm):
    error = arm.error('ask', question='is there a box?', yes_no=True)
    assert 'FAILED: this model gives no probability of yes and no' in error


def test_a_memory_that_is_off_is_an_error(arm):
    assert 'NO_MEMORY: the memory of places is off' in arm.error('recall', query='the box')


def test_texts_and_lists_have_a_limit(arm):
    assert len(arm.result('ask', question='talk')['answer']) == 2000
    result = arm.result('segment', command='many')
    assert len(result['objects']) == 20
    assert result['objects_left_out'] == 10


def test_an_old_image_is_an_error(arm, scripted):
    _, peer = scripted
    assert peer.set_parameters(max_image_age=0.5)[0].successful
    try:
        assert 'STALE_INPUT: ' in arm.error('segment', command='the box')
    finally:
        peer.set_parameters(max_image_age=0.0)


def test_a_cancelled_request_and_a_deadline_cancel_the_goal(arm, scripted):
    _, peer = scripted
    cancelled = count_cancelled(peer)

    cancel_when_it_runs(arm)
    peer.wait(lambda: count_cancelled(peer) == cancelled + 1, what='the end of the goal')
    error = arm.error('ask', question='hang', timeout=1)
    assert 'DEADLINE: no answer within 1 s, the request was cancelled' in error
    peer.wait(lambda: count_cancelled(peer) == cancelled + 2, what='the end of the goal')
    arm.result('segment', command='the box')  # the next one is answered


def test_http_serves_the_same_tools_to_this_machine_only(scripted):
    _, peer = scripted
    with http_server() as (server, url):
        for mode in ('auto', 'legacy'):
            with agent_of(url, mode) as agent:
                assert agent.result('segment', command='the box')['status'] == 'FOUND'
                assert agent.progress
                assert agent.result('cameras')['lifecycle'] == 'active'
                cancelled = count_cancelled(peer)
                cancel_when_it_runs(agent)
                peer.wait(lambda n=cancelled: count_cancelled(peer) == n + 1, what='the cancel')
        assert post(url, Host='evil.example:80') == 421
        assert post(url, Origin='http://evil.example') == 403
        addresses = Path(f'/proc/{server.pid}/net/tcp').read_text()
        port = int(re.search(r':(\d+)/', url)[1])
        listeners = re.findall(rf': (\w+):{port:04X} \w+:0000 0A', addresses)
        assert listeners == ['0100007F']  # 127.0.0.1
        server.send_signal(signal.SIGTERM)
        assert server.wait(START) == 128 + signal.SIGTERM
        assert server.stdout.read() == ''
        assert 'Traceback' not in server.stderr.read()


@pytest.mark.parametrize('end', ['stdin', signal.SIGINT])
def test_stdin_ends_or_a_signal_comes_while_a_goal_runs(scripted, end):
    """stdout has the protocol alone, and the goal is cancelled."""
    _, peer = scripted
    cancelled = count_cancelled(peer)
    requests = [
        {'id': 1, 'method': 'initialize', 'params': {
            'protocolVersion': '2025-06-18', 'capabilities': {},
            'clientInfo': {'name': 'test', 'version': '1'},
        }},
        {'method': 'notifications/initialized'},
        {'id': 2, 'method': 'tools/call', 'params': {
            'name': 'segment', 'arguments': {'command': 'hang'}, '_meta': {'progressToken': 'p'},
        }},
    ]  # fmt: skip
    with subprocess.Popen(
        command('--node', '/arm/lisa'), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
        env={**environment(), 'RCUTILS_LOGGING_USE_STDOUT': '1'},
    ) as server:  # fmt: skip
        limit = threading.Timer(2 * START, server.kill)  # else a missing line is waited for
        limit.start()
        try:
            for request in requests:
                server.stdin.write(json.dumps({'jsonrpc': '2.0', **request}) + '\n')
            server.stdin.flush()
            while 'looking' not in (line := server.stdout.readline()):
                assert json.loads(line)['jsonrpc'] == '2.0'
            if end == 'stdin':
                server.stdin.close()
            else:
                server.send_signal(end)
            status = server.wait(START)
            rest, log = server.stdout.read(), server.stderr.read()
        finally:
            limit.cancel()
            server.kill()
    assert status == (0 if end == 'stdin' else 130), log
    assert all(json.loads(line)['jsonrpc'] == '2.0' for line in rest.splitlines())
    assert 'Traceback' not in log
    peer.wait(lambda: count_cancelled(peer) == cancelled + 1, what='the end of the goal')


def test_a_node_that_is_not_there_or_not_active_is_an_error(arm, scripted):
    _, peer = scripted
    assert peer.change_state('deactivate')
    peer.wait(lambda: arm.result('cameras')['lifecycle'] == 'inactive', START)
    error = arm.error('segment', command='the box')
    assert 'INACTIVE: /arm/lisa is inactive and takes no queries' in error
    with agent_of(command('--node', 'nobody')) as agent:
        error = agent.error('segment', command='the box', timeout=1)
        assert 'NODE_NOT_FOUND: no action nobody/segment within 1 s' in error


@pytest.mark.parametrize('name', ['no name', '/arm//lisa', ''])
def test_a_wrong_name_is_an_error(name):
    with pytest.raises(SettingsError, match='is not the name of a node'):
        RosNodeAccess(name)


def test_a_node_that_leaves_ends_the_request_even_if_another_is_started_in_its_place():
    first, successors = GoalServer(namespace='/lost'), []
    replacement = threading.Thread(
        target=lambda: successors.append(replaced(first, namespace='/lost')), daemon=True
    )
    replacement.start()
    try:
        with agent_of(command('--node', '/lost/lisa')) as agent:
            error = agent.error('segment', command='the box', timeout=2 * START)
        assert 'NODE_LOST: /lost/lisa has left the ROS graph while it answered' in error
    finally:
        replacement.join(3 * START)
        for server in (first, *successors):
            server.close()


def test_without_the_package_the_error_says_how_to_install_it(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith('lisa_ros.agents.')]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, 'mcp.server.mcpserver', None)
    assert cli.main(['mcp']) == 1
    assert 'needs the package mcp' in (error := capsys.readouterr().err)
    assert 'pip install' in error


def test_a_large_overlay_is_made_smaller():
    sent = tools._as_jpeg(np.zeros((1536, 2048, 3), np.uint8)).to_image_content()
    assert PillowImage.open(io.BytesIO(base64.b64decode(sent.data))).size == (1024, 768)
