# SPDX-License-Identifier: Apache-2.0
"""A bag is evaluated live: its clock, the real node over DDS, what was heard and when."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from test_bag_evaluation import SAMPLE, TOPIC, write

from lisa_ros import cli
from lisa_ros.errors import DataError
from lisa_ros.evaluation.bag import evaluate_live_answers
from lisa_ros.evaluation.command_file import Command
from lisa_ros.messages import bag as bags
from lisa_ros.messages.image import image_to_rgb, mask_fields
from lisa_ros.messages.segmentation import result_from_message
from lisa_ros.perception.segmenter import Segmenter
from lisa_ros.results import Status

LISA_ROS = [sys.executable, '-c', 'import sys; from lisa_ros.cli import main; sys.exit(main())']
COMMANDS = [
    {'text': 'segment the red bowl', 'label': 'red bowl', 'kind': 'explicit'},
    {'text': 'find the scissors', 'frame': 4, 'absent': True, 'kind': 'absent'},
    {'text': 'find the milk', 'at': 0.7, 'dialogue': 'a'},
    {'text': 'what is it for?', 'at': 0.8, 'dialogue': 'a'},
]


@pytest.fixture(scope='module')
def frames():
    found = bags.read_images(SAMPLE / 'bag', TOPIC)
    return [frame for frame, _ in zip(found, range(12), strict=False)]


@pytest.fixture(scope='module')
def played(frames, tmp_path_factory):
    """The report's folder of a bag that was played twice, on its own clock."""
    pytest.importorskip('lisa_ros.msg', reason='needs ROS 2: make setup')
    folder = tmp_path_factory.mktemp('live')
    bag = write(folder / 'bag', frames)
    (folder / 'commands.yaml').write_text(yaml.safe_dump(COMMANDS))
    ended = subprocess.run(
        [*LISA_ROS, 'evaluate', 'bag', bag, '--commands', folder / 'commands.yaml',
         '--truth', SAMPLE / 'truth', '--out', folder / 'out', '--every', '5',
         '--live', '--laps', '2', '--rate', '0.5', '--sim-time'],
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    if 'is not installed' in ended.stderr and not os.environ.get('LISA_ROS_REQUIRE_ROS'):
        pytest.skip(ended.stderr)
    log = folder / 'out' / 'node.log'
    assert ended.returncode == 0, ended.stderr + (log.read_text() if log.exists() else '')
    return folder / 'out'


@pytest.mark.ros
def test_live_masks_are_those_of_the_same_frames_offline(played, frames):
    lisa = Segmenter.load('lisa-tabletop', device='cpu')
    by_stamp = {frame.stamp: frame for frame in frames}
    compared = set()
    with bags.open_bag(played / 'answers_bag') as reader:
        for connection, stamp, data in reader.messages():
            if not connection.topic.endswith('segmentation'):
                continue
            message = reader.deserialize(data, connection.msgtype)
            if message.query == 'what is it for?':
                continue  # about a turn before, on a frame before
            result = lisa.segment(by_stamp[stamp].pixels, message.query)
            assert message.answer == result.answer
            assert len(message.instances) == len(result.masks)
            for instance, mask in zip(message.instances, result.masks, strict=True):
                there = image_to_rgb(instance.mask)[..., 0] > 0
                assert (there & mask).sum() / (there | mask).sum() > 0.999
            compared.add(message.query)
    assert compared == {command['text'] for command in COMMANDS[:3]}


@pytest.mark.ros
def test_a_live_report_tells_drops_and_delays(played):
    plain = json.loads((played / 'report.json').read_text())
    assert plain['mode'] == 'live'
    assert plain['figures']['explicit']['count'] >= 2
    names = [case['name'] for case in plain['cases']]
    assert len(set(names)) == len(names)
    told = json.loads((played / 'timings.json').read_text())['conditions']
    assert told['frames played'] >= 24
    assert 0 < told['frames that the node heard'] <= told['frames played']
    asked = told['commands'] + told['not asked, for they were due again']
    assert asked == 2 * (3 + 3)  # in each lap: at frames 0, 5, 10, and three with a time
    assert 0 < told['from command to answer [s]']['p50'] < 20
    assert told["node's peak memory [MiB]"] > 100
    assert 'frames that the node heard' in (played / 'report.html').read_text()
    assert 'Traceback' not in (played / 'node.log').read_text()


@pytest.mark.ros
def test_a_dialogue_goes_on_from_command_to_command(played):
    plain = json.loads((played / 'report.json').read_text())
    (said, *_) = [c['answer'] for c in plain['cases'] if c['query'] == 'what is it for?']
    assert said.startswith('The milk ')


@pytest.mark.ros
def test_commands_are_due_at_their_frames():
    pytest.importorskip('lisa_ros.msg', reason='needs ROS 2: make setup')
    from lisa_ros.ros.live_evaluation import schedule

    commands = [Command(0, 'a'), Command(1, 'b', at=0.25), Command(2, 'c', frame=3)]
    times = [1.0, 1.1, 1.2, 1.3, 1.4]
    due = [(when, turn, command.text) for when, turn, command in schedule(commands, times, 2)]
    assert due == [(1.0, 0, 'a'), (1.2, 1, 'a'), (1.3, 0, 'b'), (1.3, 0, 'c'), (1.4, 2, 'a')]
    with pytest.raises(DataError, match='before commands 2, 3 are due'):
        schedule([Command(1, 'b', at=0.5), Command(2, 'c', frame=5)], times, 2)


def test_pictures_that_share_a_stamp_cannot_be_told_apart_live(frames, tmp_path):
    same = [frames[0], frames[0]]
    bag = write(tmp_path / 'bag', same)
    with pytest.raises(DataError, match='evaluate it offline'):
        bags.image_times(bag, TOPIC)
    times = bags.image_times(write(tmp_path / 'other', frames), TOPIC)
    assert list(times.values()) == pytest.approx([0.1 * n for n in range(12)])


def test_without_ros_live_says_what_it_needs(frames, tmp_path, monkeypatch, capsys):
    bag = write(tmp_path / 'bag', frames[:2])
    (tmp_path / 'commands.yaml').write_text('- find the mug\n')
    monkeypatch.setitem(sys.modules, 'rclpy', None)
    monkeypatch.delitem(sys.modules, 'lisa_ros.ros.live_evaluation', raising=False)
    monkeypatch.delitem(sys.modules, 'lisa_ros.ros.bag_player', raising=False)
    words = ['evaluate', 'bag', str(bag), '--commands', str(tmp_path / 'commands.yaml')]
    assert cli.main([*words, '--live', '--out', str(tmp_path / 'out')]) == 1
    assert '--live needs ROS 2' in capsys.readouterr().err


def answered(command, stamp, status=1):
    mask = np.zeros((240, 320), bool)
    mask[10:20, 10:20] = True
    instances = [SimpleNamespace(mask=SimpleNamespace(**mask_fields(mask)), score=0.5)]
    message = SimpleNamespace(
        query='find it', answer='Sure.', answer_raw='Sure, [SEG].', status=status, reason='',
        instances=instances if status == 1 else [], stages=['clip'], seconds=[0.5],
    )  # fmt: skip
    return SimpleNamespace(command=command, stamp=stamp, result=result_from_message(message))


def test_a_result_comes_back_from_its_message():
    result = answered(0, 1).result
    assert result.status is Status.FOUND
    assert result.masks.shape == (1, 240, 320)
    assert np.array_equal(result.masks, result.mask_logits > 0)
    assert (result.timings, result.scores.tolist()) == ({'clip': 0.5}, [0.5])


def test_answers_of_a_second_lap_and_of_no_frame_have_names_of_their_own(frames, tmp_path):
    bag = write(tmp_path / 'bag', frames[:3])
    commands = [Command(0, 'find it', targets=(6,))]
    heard = [answered(0, frames[1].stamp), answered(0, frames[1].stamp), answered(0, 0, status=4)]
    cases = list(evaluate_live_answers(heard, bag, commands, topic=TOPIC))
    stamp = frames[1].stamp
    assert [case.name for case in cases] == [f'{stamp}.0', f'{stamp}.0.2', 'no frame.0.0']
    assert [case.status for case in cases] == ['FOUND', 'FOUND', 'FAILED']
    assert cases[2].overlap is None
