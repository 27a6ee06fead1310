# SPDX-License-Identifier: Apache-2.0
"""The node with a vision-language model and SAM 2 at toy size: what a robot sees of it."""

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2: make setup')
pytest.importorskip('lisa_ros.msg', reason='needs the built interfaces: make setup')

from lisa_ros.msg import Segmentation
from ros_graph import START, image, peer_of, running_node
from test_vlm_backend import IMAGE, SCRIPTS
from toy_qwen import save_scripted
from toy_sam2 import toy_model

from lisa_ros.client import LisaClient, Status

pytestmark = pytest.mark.ros
ANSWER = 'The mug is red, the bowl is blue.'
HEIGHT, WIDTH = IMAGE.shape[:2]


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp('models')
    toy_model().save_pretrained(root / 'sam2')
    for name in ('found', 'absent', 'open'):
        (root / name / 'VisionReasoner-toy').mkdir(parents=True)
        save_scripted(root / name / 'VisionReasoner-toy', *SCRIPTS[name])
    return root


def name_of(folders, script):
    return f'vlm+sam:{folders / script / "VisionReasoner-toy"}'


@pytest.fixture(scope='module')
def node_process(folders, tmp_path_factory):
    parameters = {
        'model': name_of(folders, 'found'),
        'segmenter_model': folders / 'sam2',
        'device': 'cpu',
        'threads': 1,
        'diagnostics_period': 0.2,
    }
    with running_node(tmp_path_factory.mktemp('node') / 'node.log', parameters) as process:
        yield process


@pytest.fixture(scope='module')
def peer(node_process):
    with peer_of(node_process) as peer:
        yield peer


def publish(peer, seconds):
    """Publish an image with depth, 2 m everywhere, and the camera's calibration."""
    stamp, depth = (seconds, 0), np.full((HEIGHT, WIDTH), 2, np.float32)
    peer.publish_rgbd(image(IMAGE, stamp=stamp), image(depth, '32FC1', stamp), 200.0)


def test_a_command_is_answered_with_masks_and_positions(peer):
    publish(peer, 7)
    (answer,) = peer.ask('the mug and the bowl')
    assert (answer.status, answer.reason) == (Segmentation.FOUND, '')
    assert answer.answer == ANSWER
    assert answer.answer_raw == ''.join(SCRIPTS['found'][:-1])
    # the second has a label, the first has none
    names = [instance.name for instance in answer.instances]
    assert names == ['mug and the bowl', 'bowl']
    for instance in answer.instances:
        assert instance.area > 0
        assert 0 < instance.score < 1
        assert instance.centroid.z == pytest.approx(2.0)
    stages = [time.stage for time in answer.timings]
    assert {'prompt', 'tokens', 'sam', 'masks'} <= set(stages)
    peer.wait(lambda: peer.received['explanation'])
    assert peer.received['explanation'][-1].data == ANSWER


def test_the_next_question_about_an_image_does_not_encode_it_again(peer):
    publish(peer, 8)
    first, second = (peer.ask(text)[0] for text in ('the mug', 'and the bowl?'))
    assert (first.status, second.status) == (Segmentation.FOUND, Segmentation.FOUND)
    assert 'sam' not in {time.stage for time in second.timings}


def test_a_goal_has_feedback_with_words_and_masks(peer):
    publish(peer, 9)
    feedback = []
    future = LisaClient(peer.node).segment_async(
        'the mug', timeout=START, on_feedback=feedback.append
    )
    peer.wait(future.done, START)
    answer = future.result(0)
    assert answer.status is Status.FOUND
    assert answer.masks.shape == (2, HEIGHT, WIDTH)
    texts = [message.text for message in feedback if message.text]
    assert texts[0].startswith('<think> The mug is red')
    assert len(texts[0]) < len(texts[-1])
    new = [len(message.instances) for message in feedback]
    assert [count for count in new if count] == [1, 1]  # one mask after the other


def test_other_answers_have_their_own_status(node_process, peer, folders):
    peer.load(node_process, model=name_of(folders, 'absent'))
    publish(peer, 50)
    (answer,) = peer.ask('the mug')
    assert (answer.status, answer.answer) == (Segmentation.NOT_FOUND, ANSWER)
    peer.load(node_process, model=name_of(folders, 'open'))
    publish(peer, 51)
    (answer,) = peer.ask('the mug')
    assert answer.status == Segmentation.FAILED
    assert 'the answer is not whole JSON: it breaks off' in answer.reason
    assert answer.answer.startswith('<think>')


def test_a_profile_that_does_not_exist_is_one_log_line(node_process, peer, folders):
    assert peer.change_state('deactivate')
    assert peer.change_state('cleanup')
    peer.set_parameters(model=name_of(folders, 'found'), template='llava_v1')
    assert not peer.change_state('configure')
    assert "template 'llava_v1': a vision-language model has one of" in node_process.output()
