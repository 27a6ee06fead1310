# SPDX-License-Identifier: Apache-2.0
"""The node with a vision-language model at a server: what a robot sees, also of its faults."""

import pytest

pytest.importorskip('rclpy', reason='needs ROS 2: make setup')
pytest.importorskip('lisa_ros.msg', reason='needs the built interfaces: make setup')

from chat_server import running
from lisa_ros.msg import Segmentation
from ros_graph import START, NodeProcess, Peer, image
from test_remote_vlm import KEY, NAME, RIGHT, busy, killed, scripted
from test_vlm_backend import IMAGE
from toy_sam2 import toy_model

from lisa_ros.client import LisaClient, Status

pytestmark = pytest.mark.ros


@pytest.fixture(scope='module')
def server():
    with running(scripted(RIGHT)) as server:
        yield server


@pytest.fixture(scope='module')
def node_process(server, tmp_path_factory):
    folder = tmp_path_factory.mktemp('node')
    toy_model().save_pretrained(folder / 'sam2')
    parameters = {
        'model': f'vlm+sam:{NAME}',
        'segmenter_model': folder / 'sam2',
        'vlm_url': server.url,
        'api_key_env': 'TOY_KEY',
        'device': 'cpu',
        'threads': 1,
        'diagnostics_period': 0.2,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TOY_KEY', KEY)
        process = NodeProcess(folder / 'node.log', parameters)
    yield process
    assert process.stop() == 0, process.output()
    assert 'Traceback' not in process.output(), process.output()


@pytest.fixture(scope='module')
def peer(node_process):
    peer = Peer()
    peer.wait_until_active(node_process)
    yield peer
    peer.close()


@pytest.fixture(autouse=True)
def working(server):
    server.answer = scripted(RIGHT)


def ask(peer, seconds):
    peer.publish_image(image(IMAGE, stamp=(seconds, 0)))
    (answer,) = peer.ask('the mug')
    return answer


def test_the_log_says_once_where_images_go(peer, node_process, server):
    assert ask(peer, 1).status == Segmentation.FOUND
    assert server.requests[-1][1]['Authorization'] == f'Bearer {KEY}'
    assert node_process.output().count(f'images are sent to {server.url}') == 1


@pytest.mark.parametrize(
    ('fault', 'cause'),
    [(killed, 'broke off the connection'), (busy(503, Retry_After='9999'), 'has no capacity')],
)
def test_a_server_with_a_fault_is_unreachable(peer, node_process, server, fault, cause):
    server.answer = fault
    answer = ask(peer, 2)
    assert (answer.status, len(answer.instances)) == (Segmentation.UNREACHABLE, 0)
    assert cause in answer.reason
    node_process.wait_for_output(f"'the mug' had no answer: {server.url} {cause}")
    peer.received['diagnostics'].clear()
    peer.wait(lambda: f'{server.url} {cause}' in str(peer.received['diagnostics']))
    server.answer = scripted(RIGHT)
    assert ask(peer, 3).status == Segmentation.FOUND


def test_a_goal_is_aborted_with_the_status(peer, server):
    server.answer = killed
    peer.publish_image(image(IMAGE, stamp=(4, 0)))
    future = LisaClient(peer.node).segment_async('the mug', timeout=START)
    peer.wait(future.done, START)
    answer = future.result(0)
    assert (answer.status, answer.masks.shape[0]) == (Status.UNREACHABLE, 0)
    assert 'broke off the connection' in answer.reason


def test_diagnostics_count_it_and_nothing_shows_the_key(peer, node_process, server):
    server.answer = busy(401)
    assert ask(peer, 5).status == Segmentation.FAILED
    server.answer = lambda handler, body: handler.error(401, f'wrong: {KEY}')
    answer = ask(peer, 6)
    assert answer.status == Segmentation.FAILED
    assert 'wrong: ***' in answer.reason
    peer.received['diagnostics'].clear()
    peer.wait(lambda: 'wrong: ***' in str(peer.received['diagnostics']))
    (newest,) = peer.received['diagnostics'][-1:]
    values = {v.key: v.value for status in newest.status for v in status.values}
    assert int(values['server unreachable']) >= 3
    assert values['device'] == f'cpu, {server.url}'
    everything = f'{answer} {peer.received} {node_process.output()}'
    assert 'do-not-print' not in everything
