# SPDX-License-Identifier: Apache-2.0
"""Live evaluation of a bag: bag time, the real node over DDS, drops and delays."""

import json
import os
import subprocess
import sys
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from test_bag_evaluation import SAMPLE, TOPIC, write

from lisa_ros import cli
from lisa_ros.errors import DataError
from lisa_ros.evaluation.command_file import Command
from lisa_ros.evaluation.frame_judge import FrameJudge
from lisa_ros.evaluation.live import LiveAnswer, evaluate_live_answers
from lisa_ros.messages import bag as bags
from lisa_ros.messages.segmentation import (
    MessageFactory,
    mask_from_message,
    result_from_message,
)
from lisa_ros.perception.segmenter import Segmenter
from lisa_ros.results import Segmentation, Status

LISA_ROS = [sys.executable, '-c', 'import sys; from lisa_ros.cli import main; sys.exit(main())']
COMMANDS = [
    {'text': 'segment the red bowl', 'label': 'red bowl', 'category': 'explicit'},
    {'text': 'find the scissors', 'frame': 4, 'absent': True, 'category': 'absent'},
    {'text': 'find the milk', 'at': 0.7, 'dialogue': 'a'},
    {'text': 'what is it for?', 'at': 0.8, 'dialogue': 'a'},
]


@pytest.fixture(scope='module')
def frames():
    images = bags.read_images(SAMPLE / 'bag', TOPIC)
    return [frame for frame, _ in zip(images, range(12), strict=False)]


@pytest.fixture(scope='module')
def played(frames, tmp_path_factory):
    """The folder of the report on a bag that was played twice, in bag time."""
    pytest.importorskip('lisa_ros.msg', reason='needs ROS 2: make setup')
    folder = tmp_path_factory.mktemp('live')
    bag = write(folder / 'bag', frames)
    (folder / 'commands.yaml').write_text(yaml.safe_dump(COMMANDS))
    ended = subprocess.run(
        [*LISA_ROS, 'evaluate', 'bag', bag, '--commands', folder / 'commands.yaml',
         '--ground-truth', SAMPLE / 'truth', '--out', folder / 'out', '--every', '5',
         '--live', '--laps', '2', '--rate', '0.5', '--sim-time'],
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    if 'is not installed' in ended.stderr and not os.environ.get('LISA_ROS_REQUIRE_ROS'):
        pytest.skip(ended.stderr)
    log = folder / 'out' / 'node.log'
    assert ended.returncode == 0, ended.stderr + (log.read_text() if log.exists() else '')
    return folder / 'out'


@pytest.mark.ros
def test_live_masks_equal_those_of_the_same_frames_offline(played, frames):
    lisa = Segmenter.load('lisa-tabletop', device='cpu')
    by_stamp = {frame.stamp: frame for frame in frames}
    compared = set()
    with bags.open_bag(played / 'answers_bag') as reader:
        for connection, stamp, data in reader.messages():
            if not connection.topic.endswith('segmentation'):
                continue
            message = reader.deserialize(data, connection.msgtype)
            if message.query == 'what is it for?':
                continue  # refers to an earlier turn, about an earlier frame
            result = lisa.segment(by_stamp[stamp].pixels, message.query)
            assert message.answer == result.answer
            assert len(message.instances) == len(result.masks)
            for instance, mask in zip(message.instances, result.masks, strict=True):
                there = mask_from_message(instance)
                assert (there & mask).sum() / (there | mask).sum() > 0.999
            compared.add(message.query)
    assert compared == {command['text'] for command in COMMANDS[:3]}


@pytest.mark.ros
def test_a_live_report_has_drops_and_delays(played):
    content = json.loads((played / 'report.json').read_text())
    assert content['mode'] == 'live'
    assert content['figures']['explicit']['count'] >= 2
    names = [case['name'] for case in content['cases']]
    assert len(set(names)) == len(names)
    conditions = json.loads((played / 'timings.json').read_text())['conditions']
    assert conditions['frames played'] >= 24
    assert 0 < conditions['frames that the node received'] <= conditions['frames played']
    count = conditions['commands'] + conditions['skipped, because they were due again']
    assert count == 2 * (3 + 3)  # in each lap: at frames 0, 5, 10, and three with a time
    assert 0 < conditions['from command to answer [s]']['p50'] < 20
    assert conditions["node's peak memory [MiB]"] > 100
    assert conditions["model process's peak memory [MiB]"] > 200
    assert 'frames that the node received' in (played / 'report.html').read_text()
    assert 'Traceback' not in (played / 'node.log').read_text()


@pytest.mark.ros
def test_the_node_has_the_checksum_and_the_limits_of_the_command(played, tmp_path):
    """It refuses the model, and the command ends at once."""
    out, checksum = tmp_path / 'out', '0' * 64
    ended = subprocess.run(
        [*LISA_ROS, 'evaluate', 'bag', played.parent / 'bag', '--out', out, '--live',
         '--commands', played.parent / 'commands.yaml', '--sha256', checksum,
         '--lock', tmp_path / 'lock.json', '--max-input-side', '448', '--max-model-size', '3',
         '--allow-download'],
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert ended.returncode == 1
    assert 'the node is not ready: configure failed: ' in ended.stderr
    assert f'{tmp_path}/lock.json' in ended.stderr
    parameters = yaml.safe_load((out / 'node.yaml').read_text())['/**']['ros__parameters']
    expected = {
        'model_sha256': checksum,
        'max_input_side': 448,
        'max_model_size': 3.0,
        'allow_download': True,
    }
    assert parameters.items() >= expected.items()


@pytest.mark.ros
def test_a_dialogue_continues_from_command_to_command(played):
    content = json.loads((played / 'report.json').read_text())
    (text, *_) = [c['answer'] for c in content['cases'] if c['query'] == 'what is it for?']
    assert text.startswith('The milk ')


@pytest.mark.ros
def test_commands_are_due_at_their_frames():
    pytest.importorskip('lisa_ros.msg', reason='needs ROS 2: make setup')
    from lisa_ros.ros.live_evaluation import schedule

    commands = [Command(0, 'a'), Command(1, 'b', at=0.25), Command(2, 'c', frame=3)]
    times = [1.0, 1.1, 1.2, 1.3, 1.4]
    due = [(d.time, d.repetition, d.command.text) for d in schedule(commands, times, 2)]
    assert due == [(1.0, 0, 'a'), (1.2, 1, 'a'), (1.3, 0, 'b'), (1.3, 0, 'c'), (1.4, 2, 'a')]
    with pytest.raises(DataError, match='before commands 2, 3 are due'):
        schedule([Command(1, 'b', at=0.5), Command(2, 'c', frame=5)], times, 2)
    times[2] = None  # cannot be read
    commands[2] = Command(2, 'c', frame=2)
    errors = []
    due = [(d.time, d.command.text) for d in schedule(commands, times, 2, errors.append)]
    assert due == [(1.0, 'a'), (1.3, 'b'), (1.4, 'a')]
    assert 'command 3 is not asked: frame 2 cannot be read' in str(errors[0])


def test_images_with_the_same_stamp_are_refused_live(frames, tmp_path):
    same = [frames[0], frames[0]]
    bag = write(tmp_path / 'bag', same)
    with pytest.raises(DataError, match='evaluate the bag offline'):
        bags.image_times(bag, TOPIC)
    times = bags.image_times(write(tmp_path / 'other', frames), TOPIC)
    seconds = [image.seconds for image in times.values()]
    assert seconds == pytest.approx([0.1 * n for n in range(12)])
    assert [image.index for image in times.values()] == list(range(12))


def test_live_without_ros_says_what_it_needs(frames, tmp_path, monkeypatch, capsys):
    bag = write(tmp_path / 'bag', frames[:2])
    (tmp_path / 'commands.yaml').write_text('- find the mug\n')
    monkeypatch.setitem(sys.modules, 'rclpy', None)
    monkeypatch.delitem(sys.modules, 'lisa_ros.ros.live_evaluation', raising=False)
    monkeypatch.delitem(sys.modules, 'lisa_ros.ros.bag_player', raising=False)
    words = ['evaluate', 'bag', str(bag), '--commands', str(tmp_path / 'commands.yaml')]
    assert cli.main([*words, '--live', '--out', str(tmp_path / 'out')]) == 1
    assert '--live needs ROS 2' in capsys.readouterr().err


def result(status=Status.FOUND):
    """An answer with a mask of 10 x 10 pixels, if it is FOUND."""
    masks = np.zeros((int(status is Status.FOUND), 240, 320), bool)
    masks[:, 10:20, 10:20] = True
    return Segmentation(
        query='find it', answer='Sure.', answer_raw='Sure, [SEG].', masks=masks,
        mask_logits=np.where(masks, 1, -1).astype(np.float32),
        scores=np.full(len(masks), 0.5, np.float32), status=status, timings={'clip': 0.5},
    )  # fmt: skip


def message(stamp):
    """Return the result as a Segmentation message of a type that accepts any fields."""
    header = SimpleNamespace(stamp=SimpleNamespace(sec=stamp // 10**9, nanosec=stamp % 10**9))
    return MessageFactory(defaultdict(lambda: SimpleNamespace)).segmentation(header, result())


@pytest.mark.ros
def test_an_answer_has_the_positions_of_the_located_masks():
    pytest.importorskip('lisa_ros.msg', reason='needs ROS 2: make setup')
    from lisa_ros.ros.live_evaluation import live_answer

    answer = live_answer(0, message(3), 0.5)
    assert (answer.stamp, answer.positions) == (3, ())
    located = message(3)
    located.instances[0].centroid = SimpleNamespace(x=0.1, y=0.2, z=0.5)
    assert live_answer(0, located, 0.5).positions == ((0.1, 0.2, 0.5),)


def test_a_message_is_converted_back_to_a_result():
    back = result_from_message(message(1))
    assert back.status is Status.FOUND
    assert back.masks.shape == (1, 240, 320)
    assert np.array_equal(back.masks, back.mask_logits > 0)
    assert np.array_equal(back.masks, result().masks)
    assert (back.timings, back.scores.tolist()) == ({'clip': 0.5}, [0.5])


def answer(stamp, status=Status.FOUND):
    return LiveAnswer(0, stamp, result(status), 0.5)


def test_cases_of_a_second_lap_and_of_no_frame_have_unique_names(frames, tmp_path):
    bag = write(tmp_path / 'bag', frames[:3])
    commands = [Command(0, 'find it', targets=(6,))]
    answers = [answer(frames[1].stamp), answer(frames[1].stamp), answer(0, Status.FAILED)]
    cases = list(evaluate_live_answers(answers, bag, commands, FrameJudge(), topic=TOPIC))
    stamp = frames[1].stamp
    assert [case.name for case in cases] == [f'{stamp}.0', f'{stamp}.0.2', 'no frame.0.0']
    assert [case.status for case in cases] == ['FOUND', 'FOUND', 'FAILED']
    assert cases[2].overlap is None
