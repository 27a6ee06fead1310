# SPDX-License-Identifier: Apache-2.0
"""Commands are asked about a bag's frames, the same way whatever the bag is made of."""

import numpy as np
import pytest
import yaml
from bag_kinds import IMAGE, KINDS, STORE, TOPIC, image, without_metadata, write
from PIL import Image
from rosbags import rosbag2
from rosbags.rosbag2 import CompressionMode, StoragePlugin

from lisa_ros import cli
from lisa_ros.errors import DataError
from lisa_ros.evaluation import report
from lisa_ros.evaluation.command_file import Command, read_commands
from lisa_ros.evaluation.ground_truth import (
    AnnotationTruth,
    InstanceFolder,
    InstanceTopic,
    open_ground_truth,
)
from lisa_ros.messages import bag as bags
from lisa_ros.messages.image import compressed_to_rgb, image_to_rgb
from lisa_ros.resources import SAMPLE

COMMANDS = [
    {'text': 'segment the red bowl', 'label': 'red bowl', 'kind': 'explicit'},
    {'text': 'find the red bowl', 'frame': 1, 'targets': [6], 'dialogue': 'a'},
    {'text': 'what is it for?', 'frame': 1, 'dialogue': 'a', 'kind': 'words'},
    {'text': 'find the scissors', 'at': 0.1, 'absent': True, 'kind': 'absent'},
]


@pytest.fixture(scope='module')
def frames():
    """The first frames of the sample bag."""
    found = bags.read_images(SAMPLE / 'bag', TOPIC)
    return [frame for frame, _ in zip(found, range(4), strict=False)]


@pytest.fixture(scope='module')
def commands(tmp_path_factory):
    path = tmp_path_factory.mktemp('commands') / 'commands.yaml'
    path.write_text(yaml.safe_dump(COMMANDS))
    return path


def evaluate(bag, commands, out, *more):
    given = ['evaluate', 'bag', str(bag), '--commands', str(commands), '--out', str(out)]
    return cli.main([*given, '--every', '2', *more])


@pytest.fixture(scope='module')
def first(frames, commands, tmp_path_factory):
    """The report on a plain bag."""
    out = tmp_path_factory.mktemp('first')
    bag = write(out / 'asked', frames)
    assert evaluate(bag, commands, out, '--truth', str(SAMPLE / 'truth')) == 0
    return out


# ---- the same, whatever the bag is made of


@pytest.mark.parametrize('kind', KINDS)
def test_frames_come_out_of_every_kind_of_bag_alike(kind, frames, tmp_path):
    found = list(bags.read_images(KINDS[kind](tmp_path / kind, frames)))
    assert [frame.stamp for frame in found] == [frame.stamp for frame in frames]
    for one, other in zip(found, frames, strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)


@pytest.mark.parametrize('kind', ['mcap', 'compressed', 'ros1.bag'])
def test_answers_and_figures_are_the_same_to_the_last_bit(kind, first, frames, commands, tmp_path):
    bag = KINDS[kind](tmp_path / kind, frames)
    assert evaluate(bag, commands, tmp_path / 'out', '--truth', str(SAMPLE / 'truth')) == 0
    one, other = report.read(first), report.read(tmp_path / 'out')
    assert one['cases'] == other['cases']
    assert one['figures'] == other['figures']


def test_every_command_is_asked_about_its_frames(first, frames):
    plain = report.read(first)
    stamps = [frame.stamp for frame in frames]
    asked = [tuple(map(int, case['name'].split('.'))) for case in plain['cases']]
    assert asked == [
        (stamps[0], 0),
        (stamps[1], 1),
        (stamps[1], 2),
        (stamps[1], 3),
        (stamps[2], 0),
    ]
    explicit, found, words, absent, _ = plain['cases']
    assert explicit['iou'] > 0.7  # lisa-tabletop sees the red bowl
    assert found['iou'] > 0.7
    assert words['iou'] is None  # nobody said what it means
    assert 'bowl' in words['answer']  # it is what was found before
    assert absent['present'] is False
    assert plain['figures']['all']['count'] == 4
    assert plain['figures']['all']['asked'] == 5
    assert plain['figures']['words'] == {'count': 0, 'asked': 1}
    assert 'NaN' not in (first / 'timings.json').read_text()
    assert 'mode <b>offline</b>' in (first / 'report.html').read_text()


# ---- the answers as a bag


def test_answers_are_a_bag_with_definitions_and_the_frames_stamps(first, frames):
    with bags.open_bag(first / 'answers_bag') as reader:
        found = [
            (connection.topic, when, reader.deserialize(data, connection.msgtype))
            for connection, when, data in reader.messages()
        ]
    told = [one for topic, _, one in found if topic == '/lisa/segmentation']
    plain = report.read(first)
    assert [one.query for one in told] == [case['query'] for case in plain['cases']]
    assert [one.answer for one in told] == [case['answer'] for case in plain['cases']]
    stamps = {frame.stamp for frame in frames}
    for _, when, one in found:
        stamp = one.header.stamp.sec * 10**9 + one.header.stamp.nanosec
        assert when == stamp
        assert stamp in stamps
        assert one.header.frame_id == 'camera'
    (instance,) = told[0].instances
    mask = image_to_rgb(instance.mask)[..., 0] > 0
    assert instance.area == mask.sum() > 0
    assert instance.score == pytest.approx(plain['cases'][0]['scores'][0])
    assert np.isnan(instance.centroid.x)
    label = next(one for topic, _, one in found if topic == '/lisa/mask')
    np.testing.assert_array_equal(image_to_rgb(label)[..., 0] == 1, mask)
    overlay = next(one for topic, _, one in found if topic == '/lisa/overlay/compressed')
    assert compressed_to_rgb(overlay).shape[1] == 640


def test_what_is_not_of_an_earlier_run_is_never_removed(first, frames, commands, tmp_path, capsys):
    (tmp_path / 'answers_bag').mkdir()
    (tmp_path / 'answers_bag' / 'mine').write_text('precious')
    bag = write(tmp_path / 'bag', frames)
    assert evaluate(bag, commands, tmp_path) == 1
    assert 'answers_bag: no bag can be written there' in capsys.readouterr().err
    assert (tmp_path / 'answers_bag' / 'mine').is_file()
    assert (bag / 'metadata.yaml').is_file()
    # a report of its own may be written again
    again = tmp_path / 'again'
    for _ in range(2):
        assert evaluate(bag, commands, again) == 0
    assert len(list(bags.read_images(bag))) == len(frames)


def test_every_definition_is_in_the_bag_itself(first):
    with bags.open_bag(first / 'answers_bag') as reader:
        texts = {c.topic: c.msgdef.data for c in reader.connections}
    for part in ('lisa_ros/Instance', 'sensor_msgs/RegionOfInterest', 'std_msgs/Header'):
        assert f'MSG: {part}' in texts['/lisa/segmentation'].replace('/msg/', '/')


# ---- the truth


def test_ids_come_from_a_topic_of_the_bag_as_well(first, frames, commands, tmp_path):
    names = {'name': 'red bowl', 'text': 'segment the red bowl', 'targets': [6]}
    plain = [{k: v for k, v in c.items() if k != 'label'} for c in COMMANDS]
    plain[0]['targets'] = names['targets']
    other = tmp_path / 'commands.yaml'
    other.write_text(yaml.safe_dump(plain))
    with rosbag2.Writer(tmp_path / 'bag', version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        colour = writer.add_connection(TOPIC, IMAGE, typestore=STORE)
        ids = writer.add_connection('/truth', IMAGE, typestore=STORE)
        for frame in frames:
            numbers = np.asarray(Image.open(SAMPLE / 'truth' / f'{frame.stamp}.png'))
            wide = np.zeros((len(numbers), numbers.shape[1] + 3), '>u2')  # padded, big-endian
            wide[:, : numbers.shape[1]] = numbers
            message = image(STORE, frame, pixels=wide, encoding='16UC1')
            message.width, message.is_bigendian = numbers.shape[1], 1
            for connection, one in ((colour, image(STORE, frame)), (ids, message)):
                writer.write(connection, frame.stamp, STORE.serialize_cdr(one, IMAGE))
    out = tmp_path / 'out'
    assert evaluate(tmp_path / 'bag', other, out, '--truth', '/truth', '--topic', TOPIC) == 0
    assert report.read(out)['cases'] == report.read(first)['cases']


def test_labelled_frames_are_a_truth(first, frames, commands, tmp_path):
    for frame in frames:
        Image.fromarray(frame.pixels).save(tmp_path / f'{frame.stamp}.png')
        ids = np.asarray(Image.open(SAMPLE / 'truth' / f'{frame.stamp}.png'))
        (tmp_path / str(frame.stamp)).mkdir()
        mask = Image.fromarray((ids == 6).astype(np.uint8) * 255)
        mask.save(tmp_path / str(frame.stamp) / 'Red bowl.png')
    truth = open_ground_truth(str(tmp_path), tmp_path)
    assert isinstance(truth, AnnotationTruth)
    shape, stamp = frames[0].pixels.shape[:2], frames[0].stamp
    bowl = truth.mask(stamp, shape, Command(0, 'x', label='red bowl'))
    wanted = InstanceFolder(SAMPLE / 'truth').mask(stamp, shape, Command(0, 'x', targets=(6,)))
    np.testing.assert_array_equal(bowl, wanted)
    assert not truth.mask(stamp, shape, Command(0, 'x', targets=())).any()
    with pytest.raises(DataError, match="nothing is called 'pan'; it has Red bowl"):
        truth.mask(stamp, shape, Command(0, 'x', label='pan'))
    with pytest.raises(DataError, match='give command 1 a label'):
        truth.mask(stamp, shape, Command(0, 'x', targets=(3,)))
    with pytest.raises(DataError, match='no labelled picture 5'):
        truth.mask(5, shape, Command(0, 'x', label='pan'))


def test_a_truth_that_does_not_fit_is_named(frames, tmp_path):
    truth = InstanceFolder(SAMPLE / 'truth')
    with pytest.raises(DataError, match="nothing is called 'pan'; names are milk, white plate"):
        truth.mask(frames[0].stamp, (240, 320), Command(0, 'x', label='pan'))
    with pytest.raises(DataError, match=r'is 320 x 240, its frame 80 x 60 pixels'):
        truth.mask(frames[0].stamp, (60, 80), Command(0, 'x', targets=(1,)))
    with pytest.raises(DataError, match=r'5\.png: no truth'):
        truth.mask(5, (60, 80), Command(0, 'x', targets=(1,)))
    bag = write(tmp_path / 'bag', frames[:1])
    with pytest.raises(DataError, match='no Image on /truth'):
        open_ground_truth('/truth', bag)
    with pytest.raises(DataError, match='encoding rgb8 has no ids'):
        InstanceTopic(bag, TOPIC)


def test_labels_of_another_size_than_the_frame_are_named(tmp_path):
    Image.new('RGB', (9, 9)).save(tmp_path / '7.png')
    (tmp_path / '7').mkdir()
    Image.new('L', (9, 9)).save(tmp_path / '7' / 'mug.png')
    with pytest.raises(DataError, match='labels of another size than its frame, 80 x 60'):
        open_ground_truth(str(tmp_path), tmp_path).mask(7, (60, 80), Command(0, 'x', label='mug'))


# ---- commands.yaml


@pytest.mark.parametrize(
    ('entry', 'says'),
    [
        ({'text': 'x', 'colour': 'red'}, 'has colour; known are text, kind'),
        ({'kind': 'explicit'}, 'has no text'),
        ({'text': ' '}, 'has no text'),
        ({'text': 3}, 'text is 3; expected str'),
        ({'text': 'x', 'at': 'soon'}, "at is 'soon'; expected int or float"),
        ({'text': 'x', 'frame': True}, 'frame is True; expected int'),
        ({'text': 'x', 'at': 1, 'frame': 2}, 'both at and frame'),
        ({'text': 'x', 'at': -1}, 'from 0 on'),
        ({'text': 'x', 'targets': [0]}, r'targets are \[0\]; expected ids of 1 to 254'),
        ({'text': 'x', 'targets': [1], 'label': 'a'}, 'has targets and label; give one'),
        ({'text': 'x', 'label': 'a', 'absent': True}, 'has label and absent; give one'),
        (7, r'is 7; expected \{text'),
    ],
)
def test_a_wrong_command_is_named_with_what_was_expected(entry, says, tmp_path):
    path = tmp_path / 'commands.yaml'
    path.write_text(yaml.safe_dump(['find the mug', entry]))
    with pytest.raises(DataError, match=f'commands.yaml, command 2: .*{says}'):
        read_commands(path)


def test_a_file_that_is_no_list_is_named(tmp_path):
    path = tmp_path / 'commands.yaml'
    for content, says in (('', 'holds nothing'), ('a: b', 'holds dict'), ('a: [', 'can be read')):
        path.write_text(content)
        with pytest.raises(DataError, match=says):
            read_commands(path)
    with pytest.raises(DataError, match='can be read'):
        read_commands(tmp_path / 'none.yaml')


def test_our_own_commands_can_be_read():
    commands = read_commands(SAMPLE / 'commands.yaml')
    assert all(command.has_truth for command in commands)
    assert commands[-1].targets == ()


def test_commands_after_the_bags_end_are_named(frames, tmp_path, capsys):
    path = tmp_path / 'commands.yaml'
    path.write_text(
        yaml.safe_dump(['find the mug', {'text': 'x', 'at': 99}, {'text': 'x', 'frame': 9}])
    )
    bag = write(tmp_path / 'bag', frames[:1])
    assert evaluate(bag, path, tmp_path / 'out') == 1
    assert 'ends after 1 frames, 0.0 s, before commands 2, 3 are due' in capsys.readouterr().err


@pytest.mark.parametrize('mode', [CompressionMode.MESSAGE, CompressionMode.FILE])
def test_a_bag_that_cannot_be_read_without_its_metadata_says_how(mode, frames, tmp_path):
    bag = without_metadata(write(tmp_path / 'bag', frames[:1], StoragePlugin.SQLITE3, mode))
    with pytest.raises(DataError, match='ros2 bag reindex'):
        next(bags.read_images(bag))
