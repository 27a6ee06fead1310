# SPDX-License-Identifier: Apache-2.0
"""A node with two RGB-D cameras that runs every backend, one after the other."""

import itertools
import re
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2: make setup')
pytest.importorskip('lisa_ros.msg', reason='needs the built interfaces: make setup')

from every_backend import NAMES, make_models
from lisa_ros.msg import Segmentation
from ros_graph import START, Peer, image, running_node
from std_msgs.msg import String

from lisa_ros.client import LisaClient, Status
from lisa_ros.results import ANSWERED

pytestmark = pytest.mark.ros
DEPTHS = {'front': 2.0, 'wrist': 0.5}  # of each camera, everywhere [m]
PROGRAM = [sys.executable, str(Path(__file__).with_name('every_backend_node.py'))]


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    return make_models(tmp_path_factory.mktemp('models'))


@pytest.fixture(scope='module')
def node(tmp_path_factory):
    """A node without a model yet."""
    parameters = {
        'cameras': f'[{",".join(DEPTHS)}]',
        'autostart': False,
        'device': 'cpu',
        'threads': 1,
        'diagnostics_period': 0.2,
    }
    log = tmp_path_factory.mktemp('node') / 'node.log'
    with running_node(log, parameters, program=PROGRAM) as process:
        yield process


@pytest.fixture(scope='module')
def peer(node):
    peer = Peer(cameras=tuple(DEPTHS))
    peer.subscribe(f'{peer.name}/front/segmentation', Segmentation, 'answers')
    peer.subscribe(f'{peer.name}/front/tracked/segmentation', Segmentation, 'tracked')
    yield peer
    peer.close()


@pytest.fixture(scope='module')
def client(peer):
    return LisaClient(peer.node)


@pytest.fixture(scope='module', params=NAMES)
def model(request, node, peer, models):
    """A model that the node has loaded in its own process."""
    peer.load(node, isolation='thread', **models[request.param].parameters)
    return models[request.param]


def pixels_of(model, camera):
    """The wrist camera is turned by a quarter."""
    return model.image if camera == 'front' else np.ascontiguousarray(np.rot90(model.image))


def publish(peer, model, camera='front', second=1):
    pixels, stamp, frame = pixels_of(model, camera), (second, 0), f'{camera}_optical'
    depth = np.full(pixels.shape[:2], DEPTHS[camera], np.float32)
    peer.publish_rgbd(
        image(pixels, stamp=stamp, frame=frame), image(depth, '32FC1', stamp, frame), 200.0, camera
    )


def ask(peer, client, query, **goal):
    """Send a goal; return its answer and feedback."""
    feedback = []
    future = client.segment_async(query, timeout=START, on_feedback=feedback.append, **goal)
    peer.wait(future.done, START, f'the answer to {query}')
    return future.result(0), feedback


def check_masks(answer, model, camera):
    assert answer.header.frame_id == f'{camera}_optical'
    assert answer.masks.dtype == bool
    assert len(answer.masks) == len(answer.scores) == len(answer.message.instances)
    if len(answer.masks):
        assert answer.masks.shape[1:] == pixels_of(model, camera).shape[:2]
    assert ((answer.scores >= 0) & (answer.scores <= 1)).all()
    for instance in answer.message.instances:
        if instance.area:
            assert instance.centroid.z == pytest.approx(DEPTHS[camera])


def test_a_goal_has_masks_with_positions_and_feedback(peer, client, model):
    publish(peer, model)
    answer, feedback = ask(peer, client, model.query, camera='front')
    assert (answer.status, answer.reason) == (Status.FOUND, '')
    assert answer.masks.any()
    assert answer.answer
    assert answer.message.place_reason == ''
    check_masks(answer, model, 'front')
    assert any(message.text for message in feedback)
    assert sum(len(message.instances) for message in feedback) == len(answer.masks)


def test_each_camera_has_its_own_image(peer, client, model):
    for second, camera in enumerate(('front', 'wrist', 'front'), start=2):
        publish(peer, model, camera, second)
        answer, _ = ask(peer, client, model.query, camera=camera)
        assert answer.status in ANSWERED, answer.reason
        check_masks(answer, model, camera)


def test_the_turns_of_a_dialogue_are_answered(peer, client, model):
    publish(peer, model)
    for text in (model.query, 'and the flag?', 'and the other one?'):
        answer, _ = ask(peer, client, text, camera='front', dialogue='a')
        assert answer.status in ANSWERED, answer.reason


def test_masks_are_tracked(peer, model):
    publish(peer, model)
    answers, tracked = peer.received['answers'], []
    answers.clear()
    peer.received['tracked'].clear()
    peer.commands.publish(String(data=f'front: {model.query}'))
    peer.wait(lambda: answers, START, 'an answer')
    assert (answers[0].status, answers[0].reason) == (Segmentation.FOUND, '')
    seconds = itertools.count(2)

    def is_tracked():
        publish(peer, model, second=next(seconds))
        tracked[:] = [m for m in peer.received['tracked'] if m.query == model.query]
        return tracked

    peer.wait(is_tracked, START, 'a tracked mask')
    assert any(instance.tracked for instance in tracked[-1].instances)


def test_a_wrong_image_fails_and_the_next_one_is_answered(peer, client, model):
    peer.cameras['wrist'].images.publish(image(pixels_of(model, 'wrist'), 'rgb9', stamp=(50, 0)))
    peer.settle()
    answer, _ = ask(peer, client, model.query, camera='wrist')
    assert answer.status is Status.FAILED
    assert "'rgb9' is not supported" in answer.reason
    publish(peer, model, 'wrist', 51)
    answer, _ = ask(peer, client, model.query, camera='wrist')
    assert answer.status in ANSWERED, answer.reason


def test_a_continuous_goal_ends_with_its_cancel(peer, client, model):
    publish(peer, model)
    feedback = []
    future = client.segment_async(
        model.query, on_feedback=feedback.append, camera='front', continuous=True
    )
    peer.wait(lambda: any(m.stage == 'answered' for m in feedback), START, 'an answer')
    future.cancel()
    peer.wait(future.done, START, 'the end of the goal')
    assert future.result(0).status is Status.CANCELLED


def test_a_model_of_the_node_s_process_is_freed(node, peer, models):
    peer.load(node, isolation='thread', **models['scripted'].parameters)
    lines = re.findall(r'^still in memory: (.*)$', node.output(), re.MULTILINE)
    assert lines
    assert set(lines) == {'[]'}


def model_processes(node):
    own = psutil.Process(node.process.pid)
    return {child.pid for child in own.children(recursive=True) if child.is_running()}


def test_the_process_of_a_model_ends_with_it(node, peer, client, models):
    before = set()
    for name in ('READ', 'scripted'):
        model = models[name]
        peer.load(node, isolation='process', **model.parameters | {'model': model.name})
        present = model_processes(node)
        assert present
        assert not present & before
        publish(peer, model)
        answer, _ = ask(peer, client, model.query, camera='front')
        assert answer.status is Status.FOUND, answer.reason
        before = present
