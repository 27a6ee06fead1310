# SPDX-License-Identifier: Apache-2.0
"""The demo's judgement, the replay of a bag, and both end to end with an untrained toy LISA."""

import contextlib
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import yaml
from ros_graph import MODEL, Peer
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from lisa_ros.errors import DataError
from lisa_ros.messages.image import image_fields, mask_fields
from lisa_ros.ros import demo

STORE = get_typestore(Stores.LATEST)
STAMPS = [10_000_000_000 + k * 100_000_000 for k in range(10)]
PICTURE = np.random.default_rng(3).integers(0, 256, (60, 80, 3), dtype=np.uint8)
TRUTH = np.zeros((60, 80), np.uint8)
TRUTH[10:30, 10:30], TRUTH[40:50, 50:70] = 1, 2


def ros_image(pixels, encoding, stamp):
    types = STORE.types
    when = types['builtin_interfaces/msg/Time'](sec=stamp // 10**9, nanosec=stamp % 10**9)
    header = types['std_msgs/msg/Header'](stamp=when, frame_id='camera_optical')
    fields = image_fields(pixels, encoding)
    fields['data'] = np.frombuffer(fields['data'], np.uint8)
    return types['sensor_msgs/msg/Image'](header=header, **fields)


@pytest.fixture(scope='module')
def sample(tmp_path_factory):
    """One second of a camera that looks at noise, with the truth of two things in it."""
    folder = tmp_path_factory.mktemp('sample')
    (folder / 'truth').mkdir()
    with Writer(folder / 'bag', version=9, storage_plugin=StoragePlugin.MCAP) as bag:
        kind = 'sensor_msgs/msg/Image'
        colour = bag.add_connection('/camera/image', kind, typestore=STORE)
        depth = bag.add_connection('/camera/depth', kind, typestore=STORE)
        for stamp in STAMPS:
            for connection, message in (
                (depth, ros_image(np.full((60, 80), 900, np.uint16), '16UC1', stamp)),
                (colour, ros_image(PICTURE, 'rgb8', stamp)),
            ):
                bag.write(connection, stamp, STORE.serialize_cdr(message, kind))
            cv2.imwrite(str(folder / 'truth' / f'{stamp}.png'), TRUTH)
    commands = [
        {'text': 'Where is the cup? Please segment it.', 'kind': 'explicit', 'targets': [1]},
        {'text': 'and the bowl?', 'kind': 'follow_up', 'targets': [2]},
    ]
    (folder / 'commands.yaml').write_text(yaml.safe_dump(commands))
    return folder


def answer(status, *found):
    """What the judgement reads of a Segmentation message with these masks."""
    instances = [
        SimpleNamespace(
            id=k,
            score=0.9,
            mask=SimpleNamespace(**mask_fields(mask)),
            centroid=SimpleNamespace(x=0.1, y=0.2, z=0.5 if k == 1 else math.nan),
        )
        for k, mask in enumerate(found, 1)
    ]
    return SimpleNamespace(status=status, instances=instances, answer='Sure.', reason='broken')


@pytest.mark.parametrize(
    ('kind', 'message', 'iou', 'fault'),
    [
        ('explicit', answer(1, TRUTH == 1), 1.0, ''),
        ('explicit', answer(1, TRUTH == 2), 0.0, 'IoU 0.00 is below 0.6'),
        ('several', answer(1, TRUTH == 1, TRUTH == 2), 400 / 600, ''),
        ('implicit', answer(2), 0.0, 'IoU 0.00 is below 0.6'),
        ('absent', answer(2), None, ''),
        ('absent', answer(1, TRUTH == 1), None, '1 mask(s) of a thing that is not there'),
        ('follow_up', answer(4), None, 'FAILED: broken'),
    ],
)
def test_answers_are_judged_by_the_truth_of_their_frame(sample, kind, message, iou, fault):
    given = {'text': 'x', 'kind': kind, 'targets': [1]}
    got = demo.judged(demo.Sample.open(sample), given, message, STAMPS[0], 0.5, PICTURE)
    assert got.iou == (None if iou is None else pytest.approx(iou))
    assert got.fault == fault
    assert got.places == ((0.1, 0.2, 0.5),) * bool(message.instances)  # no depth on the second
    assert got.picture.shape[1] == 640


def test_the_table_has_a_line_for_each_answer():
    rows = [
        demo.Answer(
            'the mug', 'explicit', 'FOUND', 'Sure.', 0.81, 0.5, '', None, ((0.1, 0.2, 0.5),)
        ),
        demo.Answer('a unicorn', 'absent', 'NOT_FOUND', 'There is none.', None, 1.25, '', None),
    ]
    lines = demo.table(rows).splitlines()
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


def test_what_a_sample_lacks_is_named(tmp_path, sample):
    with pytest.raises(DataError, match=r'incomplete: bag is missing'):
        demo.Sample.open(tmp_path)
    with pytest.raises(DataError, match=r'no truth for the frame at 5 ns'):
        demo.Sample.open(sample).target(5, [1])


@pytest.mark.ros
def test_the_topics_of_a_bag_are_known_by_their_encodings(sample, tmp_path):
    pytest.importorskip('lisa_ros.msg', reason='needs ROS 2: make setup')
    from lisa_ros.ros.bag_player import camera_topics

    assert camera_topics(sample / 'bag') == {'image': '/camera/image', 'depth': '/camera/depth'}
    with pytest.raises(DataError, match=r'there is no bag at'):
        camera_topics(tmp_path / 'nothing')
    (tmp_path / 'text.mcap').write_text('no bag')
    with pytest.raises(DataError, match=r'is no rosbag2 bag that can be read'):
        camera_topics(tmp_path / 'text.mcap')


@pytest.mark.ros
def test_a_replayed_bag_arrives_as_it_was_recorded_and_begins_anew(sample):
    pytest.importorskip('lisa_ros.msg', reason='needs ROS 2: make setup')
    from sensor_msgs.msg import Image

    from lisa_ros.ros.bag_player import BagPlayer

    peer = Peer()
    peer.listen('/camera/image', Image, 'image')
    replay = BagPlayer(peer.node, sample / 'bag', rate=10.0, loop=True, topics=['/camera/image'])
    replay.start()
    try:
        peer.wait(lambda: len(peer.heard['image']) > 15)
        got = peer.heard['image'][-1]
        assert (got.encoding, got.header.frame_id) == ('rgb8', 'camera_optical')
        assert np.array_equal(np.frombuffer(got.data, np.uint8).reshape(60, 80, 3), PICTURE)
        stamps = [m.header.stamp.sec * 10**9 + m.header.stamp.nanosec for m in peer.heard['image']]
        assert set(stamps) <= set(STAMPS)
        assert stamps != sorted(stamps)
        assert peer.node.count_publishers('/camera/depth') == 0
    finally:
        replay.stop()
        peer.close()


def running_with(argument):
    """The command lines of all processes that have this argument (Linux)."""
    lines = []
    for entry in Path('/proc').glob('[0-9]*/cmdline'):
        with contextlib.suppress(OSError):  # it ended while we looked
            lines.append(entry.read_bytes().replace(b'\0', b' ').decode(errors='replace'))
    return [line for line in lines if str(argument) in line]


@pytest.mark.ros
def test_the_demo_runs_to_its_end_and_cleans_up(sample, tmp_path):
    """An untrained model answers, but not as the truth expects: the demo ends with 1."""
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
    assert not running_with(tmp_path / 'parameters.yaml')


@pytest.mark.ros
def test_a_demo_without_a_model_ends_with_its_reason(sample, tmp_path):
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
