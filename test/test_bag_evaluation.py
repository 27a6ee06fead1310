# SPDX-License-Identifier: Apache-2.0
"""Commands run on the frames of a bag, with the same answers for every kind of bag."""

import shutil

import numpy as np
import pytest
import yaml
from bag_kinds import IMAGE, KINDS, STORE, TOPIC, header, image, without_metadata, write
from PIL import Image
from rosbags import rosbag2
from rosbags.rosbag2 import CompressionMode, StoragePlugin

from lisa_ros import cli
from lisa_ros.errors import DataError
from lisa_ros.evaluation.command_file import Command, read_commands
from lisa_ros.evaluation.ground_truth import (
    AnnotationTruth,
    InstanceFolder,
    InstanceTopic,
    open_ground_truth,
)
from lisa_ros.evaluation.report_files import read_report
from lisa_ros.messages import bag as bags
from lisa_ros.messages.image import compressed_to_rgb, image_to_rgb
from lisa_ros.messages.segmentation import mask_from_message
from lisa_ros.resources import SAMPLE

COMMANDS = [
    {'text': 'segment the red bowl', 'label': 'red bowl', 'category': 'explicit'},
    {'text': 'find the red bowl', 'frame': 1, 'targets': [6], 'dialogue': 'a'},
    {'text': 'what is it for?', 'frame': 1, 'dialogue': 'a', 'category': 'words'},
    {'text': 'find the scissors', 'at': 0.1, 'absent': True, 'category': 'absent'},
]


@pytest.fixture(scope='module')
def frames():
    """The first frames of the sample bag."""
    images = bags.read_images(SAMPLE / 'bag', TOPIC)
    return [frame for frame, _ in zip(images, range(4), strict=False)]


@pytest.fixture(scope='module')
def commands(tmp_path_factory):
    path = tmp_path_factory.mktemp('commands') / 'commands.yaml'
    path.write_text(yaml.safe_dump(COMMANDS))
    return path


def evaluate(bag, commands, out, *options):
    arguments = ['evaluate', 'bag', str(bag), '--commands', str(commands), '--out', str(out)]
    return cli.main([*arguments, '--every', '2', *options])


@pytest.fixture(scope='module')
def first(frames, commands, tmp_path_factory):
    """The folder of the report on an mcap bag."""
    out = tmp_path_factory.mktemp('first')
    bag = write(out / 'bag', frames)
    assert evaluate(bag, commands, out, '--ground-truth', str(SAMPLE / 'truth')) == 0
    return out


# ---- kinds of bags


@pytest.mark.parametrize('kind', KINDS)
def test_every_kind_of_bag_gives_the_same_frames(kind, frames, tmp_path):
    images = list(bags.read_images(KINDS[kind](tmp_path / kind, frames)))
    assert [frame.stamp for frame in images] == [frame.stamp for frame in frames]
    for bag_image, frame in zip(images, frames, strict=True):
        np.testing.assert_array_equal(bag_image.pixels, frame.pixels)


@pytest.mark.parametrize('kind', ['mcap', 'compressed_images', 'ros1.bag'])
def test_answers_and_figures_of_every_kind_of_bag_are_identical(
    kind, first, frames, commands, tmp_path
):
    bag = KINDS[kind](tmp_path / kind, frames)
    assert evaluate(bag, commands, tmp_path / 'out', '--ground-truth', str(SAMPLE / 'truth')) == 0
    first_report, second_report = read_report(first), read_report(tmp_path / 'out')
    assert first_report['cases'] == second_report['cases']
    assert first_report['figures'] == second_report['figures']


def test_every_command_runs_on_its_own_frames(first, frames):
    content = read_report(first)
    stamps = [frame.stamp for frame in frames]
    frames_and_commands = [tuple(map(int, case['name'].split('.'))) for case in content['cases']]
    assert frames_and_commands == [
        (stamps[0], 0),
        (stamps[1], 1),
        (stamps[1], 2),
        (stamps[1], 3),
        (stamps[2], 0),
    ]
    explicit, targeted, words, absent, _ = content['cases']
    assert explicit['iou'] > 0.7  # lisa-tabletop sees the red bowl
    assert targeted['iou'] > 0.7
    assert words['iou'] is None  # it has no ground truth
    assert 'bowl' in words['answer']  # the object of the previous turn
    assert absent['present'] is False
    assert content['figures']['all']['count'] == 4
    assert content['figures']['all']['queries'] == 5
    assert content['figures']['words'] == {'count': 0, 'queries': 1}
    assert 'NaN' not in (first / 'timings.json').read_text()
    assert 'mode <b>offline</b>' in (first / 'report.html').read_text()


@pytest.mark.parametrize('mode', [[], pytest.param(['--live'], marks=pytest.mark.ros)])
def test_a_wrong_topic_leaves_an_earlier_report(mode, first, commands, tmp_path):
    out = shutil.copytree(first, tmp_path / 'out')
    assert evaluate(out / 'bag', commands, out, '--topic', '/typo', *mode) == 1
    assert read_report(out) == read_report(first)


# ---- the answers as a bag


def test_the_answers_bag_has_messages_with_the_frames_stamps(first, frames):
    with bags.open_bag(first / 'answers_bag') as reader:
        messages = [
            (connection.topic, when, reader.deserialize(data, connection.msgtype))
            for connection, when, data in reader.messages()
        ]
    segmentations = [message for topic, _, message in messages if topic == '/lisa/segmentation']
    content = read_report(first)
    cases = content['cases']
    assert [m.query for m in segmentations] == [case['query'] for case in cases]
    assert [m.answer for m in segmentations] == [case['answer'] for case in cases]
    stamps = {frame.stamp for frame in frames}
    for _, when, message in messages:
        stamp = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
        assert when == stamp
        assert stamp in stamps
        assert message.header.frame_id == 'camera'
    (instance,) = segmentations[0].instances
    mask = mask_from_message(instance)
    assert instance.area == mask.sum() > 0
    assert instance.score == pytest.approx(content['cases'][0]['scores'][0])
    assert np.isnan(instance.centroid.x)
    label = next(m for topic, _, m in messages if topic == '/lisa/mask')
    np.testing.assert_array_equal(image_to_rgb(label)[..., 0] == 1, mask)
    overlay = next(m for topic, _, m in messages if topic == '/lisa/overlay/compressed')
    assert compressed_to_rgb(overlay).shape[1] == 640


def test_an_answers_bag_that_is_not_of_a_report_is_never_removed(
    first, frames, commands, tmp_path, capsys
):
    (tmp_path / 'answers_bag').mkdir()
    (tmp_path / 'answers_bag' / 'mine').write_text('precious')
    bag = write(tmp_path / 'bag', frames)
    assert evaluate(bag, commands, tmp_path) == 1
    assert 'answers_bag: no bag can be written there' in capsys.readouterr().err
    assert (tmp_path / 'answers_bag' / 'mine').is_file()
    assert (bag / 'metadata.yaml').is_file()
    # a report may be overwritten by its own command
    again = tmp_path / 'again'
    for _ in range(2):
        assert evaluate(bag, commands, again) == 0
    assert len(list(bags.read_images(bag))) == len(frames)


def test_a_failed_run_does_not_block_the_next_one(frames, commands, tmp_path, capsys):
    bag, out = write(tmp_path / 'bag', frames), tmp_path / 'out'
    out.mkdir()
    (out / 'images').write_text('a file where the folder of the overlays belongs')
    assert evaluate(bag, commands, out) == 1
    assert 'images' in capsys.readouterr().err
    (out / 'images').unlink()
    assert (out / 'answers_bag').is_dir()
    assert evaluate(bag, commands, out) == 0
    with bags.open_bag(out / 'answers_bag') as reader:
        assert len(list(reader.messages())) == 4 * len(read_report(out)['cases'])


def test_answers_of_an_earlier_version_are_replaced_but_not_those_of_other_reports(
    frames, commands, tmp_path, capsys
):
    bag, out = write(tmp_path / 'bag', frames), tmp_path / 'out'
    (out / 'answers_bag').mkdir(parents=True)
    (out / 'answers_bag' / 'mine').touch()  # without the marker of this version
    (out / 'report.json').write_text('{"settings": {"data": "images of my own"}}')
    assert evaluate(bag, commands, out) == 1
    assert 'remove it, or give another --out' in capsys.readouterr().err
    assert (out / 'answers_bag' / 'mine').exists()
    (out / 'report.json').write_text('{"settings": {"bag": "an/earlier/bag"}}')
    assert evaluate(bag, commands, out) == 0
    assert not (out / 'answers_bag' / 'mine').exists()


def test_the_answers_bag_contains_every_message_definition(first):
    with bags.open_bag(first / 'answers_bag') as reader:
        texts = {c.topic: c.msgdef.data for c in reader.connections}
    for part in (
        'lisa_ros/Instance',
        'lisa_ros/StageTime',
        'sensor_msgs/RegionOfInterest',
        'std_msgs/Header',
    ):
        assert f'MSG: {part}' in texts['/lisa/segmentation'].replace('/msg/', '/')


# ---- ground truth


def test_a_topic_of_ids_gives_the_same_cases_as_a_folder(first, frames, commands, tmp_path):
    names = {'name': 'red bowl', 'text': 'segment the red bowl', 'targets': [6]}
    content = [{k: v for k, v in c.items() if k != 'label'} for c in COMMANDS]
    content[0]['targets'] = names['targets']
    other = tmp_path / 'commands.yaml'
    other.write_text(yaml.safe_dump(content))
    with rosbag2.Writer(tmp_path / 'bag', version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        colour = writer.add_connection(TOPIC, IMAGE, typestore=STORE)
        ids = writer.add_connection('/truth', IMAGE, typestore=STORE)
        for frame in frames:
            numbers = np.asarray(Image.open(SAMPLE / 'truth' / f'{frame.stamp}.png'))
            wide = np.zeros((len(numbers), numbers.shape[1] + 3), '>u2')  # padded, big-endian
            wide[:, : numbers.shape[1]] = numbers
            message = image(STORE, frame, pixels=wide, encoding='16UC1')
            message.width, message.is_bigendian = numbers.shape[1], 1
            for connection, image_message in ((colour, image(STORE, frame)), (ids, message)):
                writer.write(connection, frame.stamp, STORE.serialize_cdr(image_message, IMAGE))
    out = tmp_path / 'out'
    assert (
        evaluate(tmp_path / 'bag', other, out, '--ground-truth', '/truth', '--topic', TOPIC) == 0
    )
    assert read_report(out)['cases'] == read_report(first)['cases']


def test_labelled_frames_are_ground_truth(first, frames, commands, tmp_path):
    for frame in frames:
        Image.fromarray(frame.pixels).save(tmp_path / f'{frame.stamp}.png')
        ids = np.asarray(Image.open(SAMPLE / 'truth' / f'{frame.stamp}.png'))
        (tmp_path / str(frame.stamp)).mkdir()
        mask = Image.fromarray((ids == 6).astype(np.uint8) * 255)
        mask.save(tmp_path / str(frame.stamp) / 'Red bowl.png')
    ground_truth = open_ground_truth(str(tmp_path), tmp_path)
    assert isinstance(ground_truth, AnnotationTruth)
    shape, stamp = frames[0].pixels.shape[:2], frames[0].stamp
    bowl = ground_truth.mask(stamp, shape, Command(0, 'x', label='red bowl'))
    expected = InstanceFolder(SAMPLE / 'truth').mask(stamp, shape, Command(0, 'x', targets=(6,)))
    np.testing.assert_array_equal(bowl, expected)
    assert not ground_truth.mask(stamp, shape, Command(0, 'x', targets=())).any()
    with pytest.raises(DataError, match="no object has the name 'pan'; expected one of Red bowl"):
        ground_truth.mask(stamp, shape, Command(0, 'x', label='pan'))
    with pytest.raises(DataError, match='give command 1 a label'):
        ground_truth.mask(stamp, shape, Command(0, 'x', targets=(3,)))
    with pytest.raises(DataError, match='no annotated image for the frame at 5 ns'):
        ground_truth.mask(5, shape, Command(0, 'x', label='pan'))


def test_invalid_ground_truth_is_an_error(frames, tmp_path):
    ground_truth = InstanceFolder(SAMPLE / 'truth')
    with pytest.raises(
        DataError, match="no object has the name 'pan'; expected one of milk, white plate"
    ):
        ground_truth.mask(frames[0].stamp, (240, 320), Command(0, 'x', label='pan'))
    with pytest.raises(DataError, match=r'have 320 x 240 pixels, the frame has 80 x 60'):
        ground_truth.mask(frames[0].stamp, (60, 80), Command(0, 'x', targets=(1,)))
    with pytest.raises(DataError, match=r'5\.png: no ground truth for this frame'):
        ground_truth.mask(5, (60, 80), Command(0, 'x', targets=(1,)))
    bag = write(tmp_path / 'bag', frames[:1])
    with pytest.raises(DataError, match='has no Image topic /truth'):
        open_ground_truth('/truth', bag)
    with pytest.raises(DataError, match='encoding rgb8 cannot hold ids'):
        InstanceTopic(bag, TOPIC)


def write_ids(path, stamp, step, left_out, **fields):
    """Write a bag with an image of ids of 16 bits, (2, 3), without the last bytes of its data."""
    rows = np.zeros((2, step), np.uint8)
    rows[:, :6] = np.array([[1, 2, 300], [0, 300, 5]], fields.pop('stored')).view(np.uint8)
    data = rows.ravel()[: rows.size - left_out]
    message = STORE.types[IMAGE](
        header=header(STORE, stamp), height=2, width=3, encoding='16UC1',
        step=step, data=data, **fields,
    )  # fmt: skip
    with rosbag2.Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connection = writer.add_connection('/ids', IMAGE, typestore=STORE)
        serialized = STORE.serialize_cdr(message, IMAGE)
        writer.write(connection, stamp, serialized)
    return path


@pytest.mark.parametrize(
    ('step', 'left_out', 'stored', 'is_bigendian'),
    [(6, 0, '<u2', 0), (8, 0, '>u2', 1), (8, 2, '<u2', 0), (16, 10, '>u2', 1)],
)
def test_ids_of_a_topic_may_lack_the_padding_of_the_last_row(
    step, left_out, stored, is_bigendian, tmp_path
):
    """Some drivers omit it, and images of the camera are read so, too."""
    bag = write_ids(tmp_path / 'bag', 5, step, left_out, stored=stored, is_bigendian=is_bigendian)
    mask = open_ground_truth('/ids', bag).mask(5, (2, 3), Command(0, 'x', targets=(300,)))
    np.testing.assert_array_equal(mask > 0, [[False, False, True], [False, True, False]])
    short = write_ids(
        tmp_path / 'short', 5, step, step - 5, stored=stored, is_bigendian=is_bigendian
    )
    with pytest.raises(DataError, match='/ids: image data is short'):
        open_ground_truth('/ids', short)


def test_ids_of_16_bits_are_targets(tmp_path):
    ids = np.zeros((6, 8), np.uint16)
    ids[:3], ids[3:] = 300, 255
    Image.fromarray(ids).save(tmp_path / '7.png')
    path = tmp_path / 'commands.yaml'
    path.write_text(yaml.safe_dump([{'text': 'x', 'targets': [n]} for n in (300, 255, 301)]))
    truth = open_ground_truth(str(tmp_path), tmp_path)
    first, second, unknown = read_commands(path)
    np.testing.assert_array_equal(truth.mask(7, ids.shape, first), ids == 300)
    np.testing.assert_array_equal(truth.mask(7, ids.shape, second), ids == 255)
    with pytest.raises(DataError, match='no image of ids contains 301'):
        truth.mask(7, ids.shape, unknown)


@pytest.mark.parametrize(
    ('folder', 'kind'),
    [('.thumbnails', InstanceFolder), ('8', InstanceFolder), ('7', None), ('9', None)],
)
def test_a_folder_of_masks_has_the_name_of_an_image(folder, kind, tmp_path):
    Image.new('L', (8, 6), 5).save(tmp_path / '7.png')
    Image.new('L', (8, 6), 5).save(tmp_path / '9.jpg')
    (tmp_path / folder).mkdir()
    Image.new('L', (8, 6), 255).save(tmp_path / folder / 'mug.png')
    assert isinstance(open_ground_truth(str(tmp_path), tmp_path), kind or AnnotationTruth)


def test_labels_of_another_size_than_the_frame_are_errors(tmp_path):
    Image.new('RGB', (9, 9)).save(tmp_path / '7.png')
    (tmp_path / '7').mkdir()
    Image.new('L', (9, 9), 255).save(tmp_path / '7' / 'mug.png')
    with pytest.raises(DataError, match='has another size than its frame, 80 x 60'):
        open_ground_truth(str(tmp_path), tmp_path).mask(7, (60, 80), Command(0, 'x', label='mug'))


# ---- commands.yaml


@pytest.mark.parametrize(
    ('entry', 'error'),
    [
        ({'text': 'x', 'colour': 'red'}, 'has colour; known keys are text, category'),
        ({'category': 'explicit'}, 'has no text'),
        ({'text': ' '}, 'has no text'),
        ({'text': 3}, 'text is 3; expected str'),
        ({'text': 'x', 'at': 'soon'}, "at is 'soon'; expected int or float"),
        ({'text': 'x', 'frame': True}, 'frame is True; expected int'),
        ({'text': 'x', 'at': 1, 'frame': 2}, 'both at and frame'),
        ({'text': 'x', 'at': -1}, 'is negative'),
        ({'text': 'x', 'targets': [0]}, r'targets are \[0\]; expected ids of 1 to 2147483647'),
        ({'text': 'x', 'targets': [1], 'label': 'a'}, 'has targets and label; give one'),
        ({'text': 'x', 'label': 'a', 'absent': True}, 'has label and absent; give one'),
        ({'text': 'x', 'targets': [2**31]}, 'expected ids of 1 to 2147483647'),
        ({'text': 'x', 'targets': [True]}, 'expected ids of 1 to 2147483647'),
        (7, r'is 7; expected \{text'),
    ],
)
def test_the_error_of_an_invalid_command_says_what_was_expected(entry, error, tmp_path):
    path = tmp_path / 'commands.yaml'
    path.write_text(yaml.safe_dump(['find the mug', entry]))
    with pytest.raises(DataError, match=f'commands.yaml, command 2: .*{error}'):
        read_commands(path)


def test_a_command_file_that_is_not_a_list_is_an_error(tmp_path):
    path = tmp_path / 'commands.yaml'
    for content, error in (
        ('', 'holds nothing'),
        ('a: b', 'holds dict'),
        ('a: [', 'cannot be read as YAML'),
    ):
        path.write_text(content)
        with pytest.raises(DataError, match=error):
            read_commands(path)
    with pytest.raises(DataError, match=r'none\.yaml: no such file'):
        read_commands(tmp_path / 'none.yaml')


def test_the_sample_s_commands_can_be_read():
    commands = read_commands(SAMPLE / 'commands.yaml')
    assert all(command.has_ground_truth for command in commands)
    assert commands[-1].targets == ()


def test_commands_due_after_the_end_of_the_bag_are_reported(frames, tmp_path, capsys):
    path = tmp_path / 'commands.yaml'
    path.write_text(
        yaml.safe_dump(['find the mug', {'text': 'x', 'at': 99}, {'text': 'x', 'frame': 9}])
    )
    bag = write(tmp_path / 'bag', frames[:1])
    assert evaluate(bag, path, tmp_path / 'out') == 1
    assert 'ends after 1 frames, 0.0 s, before commands 2, 3 are due' in capsys.readouterr().err


@pytest.mark.parametrize('mode', [CompressionMode.MESSAGE, CompressionMode.FILE])
def test_a_compressed_bag_without_its_metadata_is_read(mode, frames, tmp_path):
    bag = without_metadata(write(tmp_path / 'bag', frames[:1], StoragePlugin.SQLITE3, mode))
    assert [image.stamp for image in bags.read_images(bag)] == [frames[0].stamp]


def test_a_folder_without_files_of_a_bag_says_how_to_restore_them(tmp_path):
    (tmp_path / 'bag').mkdir()
    with pytest.raises(DataError, match='ros2 bag reindex'):
        next(bags.read_images(tmp_path / 'bag'))
