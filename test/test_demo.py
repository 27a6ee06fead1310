# SPDX-License-Identifier: Apache-2.0
"""The demo judges answers, plays a bag, and runs end to end with an untrained toy LISA."""

import contextlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from bag_kinds import COMPRESSED, header
from ros_graph import MODEL, Peer
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from lisa_ros.errors import DataError
from lisa_ros.evaluation.acceptance import Verdict, table
from lisa_ros.evaluation.cases import Case
from lisa_ros.evaluation.command_file import Command
from lisa_ros.evaluation.live import LiveAnswer
from lisa_ros.evaluation.metrics import Overlap
from lisa_ros.messages.bag import BagImage
from lisa_ros.messages.image import image_fields
from lisa_ros.results import Segmentation, Status
from lisa_ros.ros import demo

STORE = get_typestore(Stores.LATEST)
STAMPS = [10_000_000_000 + k * 100_000_000 for k in range(10)]
IMAGE = np.random.default_rng(3).integers(0, 256, (60, 80, 3), dtype=np.uint8)
GROUND_TRUTH = np.zeros((60, 80), np.uint8)
GROUND_TRUTH[10:30, 10:30], GROUND_TRUTH[40:50, 50:70] = 1, 2


def ros_image(pixels, encoding, stamp):
    types = STORE.types
    when = types['builtin_interfaces/msg/Time'](sec=stamp // 10**9, nanosec=stamp % 10**9)
    header = types['std_msgs/msg/Header'](stamp=when, frame_id='camera_optical')
    fields = image_fields(pixels, encoding)
    fields['data'] = np.frombuffer(fields['data'], np.uint8)
    return types['sensor_msgs/msg/Image'](header=header, **fields)


@pytest.fixture(scope='module')
def sample(tmp_path_factory):
    """A sample of one second: images of noise, with ground truth of two objects."""
    folder = tmp_path_factory.mktemp('sample')
    (folder / 'truth').mkdir()
    with Writer(folder / 'bag', version=9, storage_plugin=StoragePlugin.MCAP) as bag:
        kind = 'sensor_msgs/msg/Image'
        colour = bag.add_connection('/camera/image', kind, typestore=STORE)
        depth = bag.add_connection('/camera/depth', kind, typestore=STORE)
        for stamp in STAMPS:
            for connection, message in (
                (depth, ros_image(np.full((60, 80), 900, np.uint16), '16UC1', stamp)),
                (colour, ros_image(IMAGE, 'rgb8', stamp)),
            ):
                bag.write(connection, stamp, STORE.serialize_cdr(message, kind))
            cv2.imwrite(str(folder / 'truth' / f'{stamp}.png'), GROUND_TRUTH)
    commands = [
        {'text': 'Where is the cup? Please segment it.', 'category': 'explicit', 'targets': [1]},
        {'text': 'and the bowl?', 'category': 'follow_up', 'targets': [2]},
    ]
    (folder / 'commands.yaml').write_text(yaml.safe_dump(commands))
    return folder


def answer(status, *masks):
    """The answer of a node with these masks to the first command; the first mask is located."""
    stacked = np.array(masks).reshape(-1, *GROUND_TRUTH.shape)
    result = Segmentation(
        query='x',
        answer='Sure.',
        answer_raw='Sure.',
        masks=stacked,
        mask_logits=np.where(stacked, 1, -1).astype(np.float32),
        scores=np.full(len(stacked), 0.9, np.float32),
        status=Status(status),
        reason='broken',
    )
    positions = ((0.1, 0.2, 0.5),) * bool(masks)
    return LiveAnswer(0, STAMPS[0], result, 0.5, positions=positions)


@pytest.mark.parametrize(
    ('category', 'answer', 'iou', 'fault'),
    [
        ('explicit', answer(1, GROUND_TRUTH == 1), 1.0, ''),
        ('explicit', answer(1, GROUND_TRUTH == 2), 0.0, 'IoU 0.00 is below 0.6'),
        ('several', answer(1, GROUND_TRUTH == 1, GROUND_TRUTH == 2), 400 / 600, ''),
        ('implicit', answer(2), 0.0, 'IoU 0.00 is below 0.6'),
        ('absent', answer(2), None, ''),
        ('absent', answer(1, GROUND_TRUTH == 1), None, '1 mask(s) for an absent object'),
        ('follow_up', answer(4), None, 'FAILED: broken'),
    ],
)
def test_answers_are_judged_by_the_ground_truth_of_their_frame(
    sample, category, answer, iou, fault
):
    command = Command(0, 'x', category, targets=() if category == 'absent' else (1,))
    sample = replace(demo.Sample.open(sample), commands=[command])
    judged = demo.judge(sample, BagImage(STAMPS[0], IMAGE), answer)
    assert judged.verdict.iou == (None if iou is None else pytest.approx(iou))
    assert judged.verdict.fault == fault
    assert judged.verdict.positions == answer.positions
    assert judged.image.shape[1] == 640
    assert judged.to_json()['seconds'] == 0.5


def test_an_iou_of_exactly_the_minimum_is_accepted(sample):
    """The constant of gIoU kept it below."""
    sample = replace(
        demo.Sample.open(sample), commands=[Command(0, 'x', 'explicit', targets=(1,))]
    )
    target = GROUND_TRUTH == 1
    rows = np.cumsum(target.ravel()).reshape(target.shape)
    part = target & (rows <= 0.6 * target.sum())
    assert part.sum() == 0.6 * target.sum()
    assert demo.judge(sample, BagImage(STAMPS[0], IMAGE), answer(1, part)).verdict.fault == ''
    part[tuple(np.argwhere(part)[0])] = False
    fault = demo.judge(sample, BagImage(STAMPS[0], IMAGE), answer(1, part)).verdict.fault
    assert fault == 'IoU 0.60 is below 0.6'


def test_an_answer_about_no_frame_is_judged_without_ground_truth(sample):
    sample = demo.Sample.open(sample)
    failure = demo.judge(sample, None, answer(4))
    assert failure.verdict.fault == 'FAILED: broken'
    assert failure.image is None
    assert demo.judge(sample, None, answer(1)).verdict.fault == 'the answer has no ground truth'


def verdict(text, category, status, answer, iou, seconds, positions=()):
    overlap = None if iou is None else Overlap(round(1e6 * iou), 1_000_000)
    present = iou is not None
    case = Case(
        'a.0', 'a', category, text, text, answer, status, present, present, overlap, iou, ()
    )
    return Verdict(case, seconds, '', positions)


def test_the_table_has_a_line_for_each_answer():
    rows = [
        verdict('the mug', 'explicit', 'FOUND', 'Sure.', 0.81, 0.5, ((0.1, 0.2, 0.5),)),
        verdict('a unicorn', 'absent', 'NOT_FOUND', 'There is none.', None, 1.25),
    ]
    lines = table(rows).splitlines()
    assert lines[0].split() == ['command', 'answer', 'status', 'IoU', 's', 'where', '[m]']
    assert lines[2].split() == [
        'the',
        'mug',
        'Sure.',
        'FOUND',
        '0.81',
        '0.50',
        '0.10',
        '0.20',
        '0.50',
    ]
    assert lines[3].endswith('NOT_FOUND  -     1.25  -')


def test_a_missing_part_of_a_sample_is_an_error(tmp_path, sample):
    with pytest.raises(DataError, match=r'incomplete: bag is missing'):
        demo.Sample.open(tmp_path)
    with pytest.raises(DataError, match=rf'{STAMPS[0] + 5}\.png: no ground truth'):
        demo.judge(demo.Sample.open(sample), BagImage(STAMPS[0] + 5, IMAGE), answer(1))


def compressed_bag(path):
    """Write a bag with compressed depth and colour images, in this order."""
    formats = {
        '/camera/depth/compressedDepth': '16UC1; compressedDepth png',
        '/camera/image/compressed': 'jpeg',
    }
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        for topic, text in formats.items():
            connection = writer.add_connection(topic, COMPRESSED, typestore=STORE)
            message = STORE.types[COMPRESSED](header(STORE, STAMPS[0]), text, np.zeros(9, 'u1'))
            writer.write(connection, STAMPS[0], STORE.serialize_cdr(message, COMPRESSED))
    return path


@pytest.mark.ros
def test_the_topics_of_a_bag_are_found_by_their_encodings(sample, tmp_path):
    pytest.importorskip('lisa_ros.msg', reason='needs ROS 2: make setup')
    from lisa_ros.ros.bag_player import camera_topics, node_inputs

    assert camera_topics(sample / 'bag') == {'image': '/camera/image', 'depth': '/camera/depth'}
    with pytest.raises(DataError, match=r'there is no bag at'):
        camera_topics(tmp_path / 'nothing')
    compressed = compressed_bag(tmp_path / 'compressed')
    topics = {'image': '/camera/image/compressed', 'depth': '/camera/depth/compressedDepth'}
    assert camera_topics(compressed) == topics
    inputs, parameters = node_inputs(topics)
    assert inputs == {'image': '/camera/image', 'depth': '/camera/depth'}
    assert parameters == {'image_transport': 'compressed', 'depth_transport': 'compressedDepth'}
    (tmp_path / 'text.mcap').write_text('no bag')
    with pytest.raises(DataError, match=r'cannot be read as a rosbag2 bag'):
        camera_topics(tmp_path / 'text.mcap')


@pytest.mark.ros
def test_a_played_bag_arrives_as_recorded_and_starts_again(sample):
    pytest.importorskip('lisa_ros.msg', reason='needs ROS 2: make setup')
    from sensor_msgs.msg import Image

    from lisa_ros.ros.bag_player import BagPlayer

    peer = Peer()
    peer.subscribe('/camera/image', Image, 'image')
    replay = BagPlayer(peer.node, sample / 'bag', rate=10.0, loop=True, topics=['/camera/image'])
    replay.start()
    try:
        peer.wait(lambda: len(peer.received['image']) > 15)
        message = peer.received['image'][-1]
        assert (message.encoding, message.header.frame_id) == ('rgb8', 'camera_optical')
        assert np.array_equal(np.frombuffer(message.data, np.uint8).reshape(60, 80, 3), IMAGE)
        times = [m.header.stamp for m in peer.received['image']]
        stamps = [time.sec * 10**9 + time.nanosec for time in times]
        assert set(stamps) <= set(STAMPS)
        assert stamps != sorted(stamps)
        assert peer.node.count_publishers('/camera/depth') == 0
    finally:
        replay.stop()
        peer.close()


def processes_with(argument):
    """The command lines of all processes with this argument (Linux)."""
    lines = []
    for entry in Path('/proc').glob('[0-9]*/cmdline'):
        with contextlib.suppress(OSError):  # it ended meanwhile
            lines.append(entry.read_bytes().replace(b'\0', b' ').decode(errors='replace'))
    return [line for line in lines if str(argument) in line]


@pytest.mark.ros
def test_the_demo_runs_to_its_end_and_stops_the_node(sample, tmp_path):
    """An untrained model gives wrong answers: the demo ends with 1."""
    pytest.importorskip('lisa_ros.msg', reason='needs ROS 2: make setup')
    try:
        demo.node_command({}, Path('parameters.yaml'))
    except DataError as error:
        if os.environ.get('LISA_ROS_REQUIRE_ROS'):
            raise
        pytest.skip(str(error))
    settings = [part for name, value in MODEL.items() for part in ('--set', f'{name}={value}')]
    ended = subprocess.run(
        [
            sys.executable,
            '-m',
            'lisa_ros.ros.demo',
            '--out',
            tmp_path,
            '--sample',
            sample,
            *settings,
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert 'is below 0.6' in ended.stdout, ended.stderr
    assert {'1_explicit.png', '2_follow_up.png', 'contact_sheet.png', 'answers.json'} <= {
        path.name for path in tmp_path.iterdir()
    }
    assert 'Traceback' not in (tmp_path / 'node.log').read_text()
    assert not processes_with(tmp_path / 'parameters.yaml')


@pytest.mark.ros
def test_a_demo_without_a_sample_ends_with_the_reason(sample, tmp_path):
    pytest.importorskip('lisa_ros.msg', reason='needs ROS 2: make setup')
    empty = subprocess.run(
        [sys.executable, '-m', 'lisa_ros.ros.demo', '--out', tmp_path, '--sample', tmp_path],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert empty.returncode == 1
    assert 'demo: the sample in' in empty.stderr
    assert 'Traceback' not in empty.stderr
