# SPDX-License-Identifier: Apache-2.0
"""A node and a command line without PyTorch, whose model is on a server: what a robot sees."""

import json
import subprocess

import numpy as np
import pytest
from PIL import Image as PillowImage
from segment_server import ServerProcess
from thin_environment import make_thin_environment

pytest.importorskip('rclpy', reason='needs ROS 2: make setup')
pytest.importorskip('lisa_ros.msg', reason='needs the built interfaces: make setup')

from lisa_ros.msg import Segmentation
from ros_graph import START, NodeProcess, Peer, image
from sensor_msgs.msg import CameraInfo
from test_planted_faults import ERROR, OK, WARN, status, wait_for

from lisa_ros.client import LisaClient, Status

pytestmark = pytest.mark.ros

NODE = 'from lisa_ros.ros.node import main; main()'
REPLIES = {
    '': {'masks': 'bright', 'answer': 'It is here.'},
    'absent': {'answer': 'There is none.'},
}
PIXELS = np.zeros((48, 64, 3), np.uint8)
PIXELS[10:30, 20:50] = 255
DEPTH = np.full((48, 64), 900, np.uint16)
INFO = {'k': [60.0, 0.0, 32.0, 0.0, 60.0, 24.0, 0.0, 0.0, 1.0], 'width': 64, 'height': 48}


@pytest.fixture(scope='module')
def server(tmp_path_factory):
    server = ServerProcess.scripted(tmp_path_factory.mktemp('server'), REPLIES)
    yield server
    server.kill()


@pytest.fixture(scope='module')
def python(tmp_path_factory):
    """The interpreter of an environment without PyTorch and what belongs to it."""
    return make_thin_environment(tmp_path_factory.mktemp('environment') / 'thin')


@pytest.mark.parametrize('package', ['torch', 'transformers', 'safetensors', 'sentencepiece'])
def test_the_environment_has_no_pytorch(package, python):
    command = [python, '-c', f'import {package}']
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert f"No module named '{package}'" in ran.stderr


@pytest.fixture(scope='module')
def process(server, python, tmp_path_factory):
    parameters = {
        'model': server.url,
        'server_image': 'png',
        'answer_timeout': 15.0,
        'diagnostics_period': 0.1,
    }
    log = tmp_path_factory.mktemp('thin') / 'node.log'
    process = NodeProcess(log, parameters, program=[python, '-c', NODE])
    yield process
    assert process.stop() == 0, process.output()
    assert 'Traceback' not in process.output(), process.output()


@pytest.fixture(scope='module')
def peer(process):
    peer = Peer()
    peer.wait_until_active(process)
    peer.publish_image(image(PIXELS))
    yield peer
    peer.close()


def test_a_command_has_the_mask_of_the_server(peer, process):
    (answer,) = peer.ask('the bright thing')
    assert (answer.status, answer.answer) == (Segmentation.FOUND, 'It is here.')
    stages = [timing.stage for timing in answer.timings]
    assert {'encode', 'model', 'network'} <= set(stages)
    peer.wait(lambda: peer.received['mask'] and peer.received['confidence'])
    mask = np.frombuffer(bytes(peer.received['mask'][-1].data), np.uint8).reshape(48, 64)
    np.testing.assert_array_equal(mask > 0, PIXELS[..., 0] > 0)
    assert 'images and commands are sent to http://' in process.output()
    (answer,) = peer.ask('absent')
    assert answer.status == Segmentation.NOT_FOUND
    wait_for(peer, 'model', OK, 'is loaded')
    assert status(peer, 'model')[2]['isolation'] == 'server'


def test_goals_and_positions(peer):
    infos = peer.create_input(CameraInfo, '/camera_info')
    message = image(PIXELS, stamp=(9, 0))
    infos.publish(CameraInfo(header=message.header, **INFO))
    peer.depths.publish(image(DEPTH, '16UC1', (9, 0)))
    peer.publish_image(message)
    goal = LisaClient(peer.node).segment_async('the bright thing', timeout=START)
    peer.wait(goal.done, START)
    assert goal.result(0).status is Status.FOUND
    (answer,) = peer.ask('the bright thing')
    assert answer.instances[0].centroid.z == pytest.approx(0.9, abs=0.01)


def test_a_server_that_is_gone_and_comes_back(peer, server):
    server.kill()
    wait_for(peer, 'model', ERROR, 'cannot be reached', 'start the server')  # nobody has asked
    (answer,) = peer.ask('the bright thing')
    assert answer.status == Segmentation.UNREACHABLE
    assert 'cannot be reached' in answer.reason
    server.start()
    wait_for(peer, 'model', WARN, 'a moment ago', 'cannot be reached')
    (answer,) = peer.ask('the bright thing')
    assert answer.status == Segmentation.FOUND


def run_cli(python, *arguments):
    command = [python, '-m', 'lisa_ros', *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def file(tmp_path):
    PillowImage.fromarray(PIXELS).save(tmp_path / 'table.png')
    return tmp_path / 'table.png'


def test_the_command_line(server, file, python):
    ran = run_cli(python, 'segment', file, 'the bright thing', '--model', server.url, '--json')
    assert ran.returncode == 0, ran.stderr
    answer = json.loads(ran.stdout)
    assert answer['status'] == 'FOUND'
    assert answer['masks'][0]['area'] == 600


def test_a_local_model_is_refused_with_both_cures(file, python):
    ran = run_cli(python, 'segment', file, 'the bright thing')
    assert ran.returncode == 1
    assert "model 'lisa-tabletop' needs torch, which is not installed for /" in ran.stderr
    assert ': pip install' in ran.stderr
    assert 'model http://SERVER:8000' in ran.stderr
    assert 'Traceback' not in ran.stderr


def test_the_doctor_looks_at_the_server_and_not_for_pytorch(server, python):
    ran = run_cli(python, 'doctor', '--json', '--model', server.url)
    findings = {finding['check']: finding for finding in json.loads(ran.stdout)['findings']}
    assert findings['server']['level'] == 'OK', findings['server']
    assert 'serves test (fp32)' in findings['server']['observed']
    assert 'torch' not in json.dumps(findings)
