# SPDX-License-Identifier: Apache-2.0
"""What can be read of a damaged bag is read, and the rest is named; a report is always written."""

import os
import re
import shutil
import sqlite3
import threading

import mcap_writer
import numpy as np
import pytest
import scripted_backend  # noqa: F401  # registers "scripted:"
import yaml
from bag_kinds import COMPRESSED, IMAGE, STORE, STORE_1, TOPIC, image, write
from PIL import Image
from rosbags import rosbag1, rosbag2
from rosbags.rosbag2 import CompressionMode, StoragePlugin

from lisa_ros import cli
from lisa_ros.commands.rgbd_input import from_bag
from lisa_ros.datasets.bag_frames import extract_frames
from lisa_ros.errors import DataError
from lisa_ros.evaluation.ground_truth import InstanceTopic
from lisa_ros.evaluation.report_files import read_report
from lisa_ros.messages.bag import BagImage, image_times, open_bag, read_images
from lisa_ros.messages.bag_files import ZSTD_MAGIC
from lisa_ros.messages.sqlite_scan import SqliteScan

SECOND = 10**9
COUNT = 6
DEFINITION = STORE.generate_msgdef(IMAGE, ros_version=2)[0]
SQLITE3 = StoragePlugin.SQLITE3


def make_frames(count=COUNT, shape=(60, 80, 3)):
    rng = np.random.default_rng(0)  # of four values, which compressors do compress
    return [
        BagImage((number + 1) * SECOND, rng.integers(0, 4, shape, np.uint8), 'camera')
        for number in range(count)
    ]


FRAMES = make_frames()


def raw(frame):
    return bytes(STORE.serialize_cdr(image(STORE, frame), IMAGE))


def read(bag, **options):
    """Return the numbers of the frames that can be read, and the errors."""
    errors = []
    frames = list(read_images(bag, on_error=lambda error: errors.append(str(error)), **options))
    for frame in frames:
        np.testing.assert_array_equal(frame.pixels, FRAMES[frame.stamp // SECOND - 1].pixels)
    return [frame.stamp // SECOND - 1 for frame in frames], errors


def one_line(error):
    return '\n' not in error and len(error) < 600


def only_file(bag, suffix):
    (file,) = bag.glob(f'*{suffix}')
    return file


def overwrite(path, at, data):
    """Overwrite bytes at a share of a file."""
    content = bytearray(path.read_bytes())
    start = int(len(content) * at)
    content[start : start + len(data)] = data
    path.write_bytes(content)


def cut(path, share):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


# ---- metadata.yaml


def change_metadata(bag, old, new):
    path = bag / 'metadata.yaml'
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new))


@pytest.mark.parametrize('mode', [CompressionMode.MESSAGE, CompressionMode.FILE])
@pytest.mark.parametrize('plugin', StoragePlugin)
def test_a_compressed_bag_is_read_although_its_metadata_is_cut(plugin, mode, tmp_path):
    bag = write(tmp_path / 'bag', FRAMES, plugin, mode)
    cut(bag / 'metadata.yaml', 0.3)
    assert read(bag) == (list(range(COUNT)), [])


METADATA = {
    'empty': lambda bag: (bag / 'metadata.yaml').write_text(''),
    'half': lambda bag: cut(bag / 'metadata.yaml', 0.5),
    'a third': lambda bag: cut(bag / 'metadata.yaml', 0.3),
    'no storage id': lambda bag: change_metadata(bag, ': mcap', ': ""'),
    'newer': lambda bag: change_metadata(bag, 'version: 9', 'version: 10'),
    'not UTF-8': lambda bag: (bag / 'metadata.yaml').write_bytes(b'\xff\xfe\x00'),
    'a list': lambda bag: (bag / 'metadata.yaml').write_text('- 1'),
    'without files': lambda bag: change_metadata(bag, 'relative_file_paths', 'files_2'),
    'other channel': lambda bag: change_metadata(bag, 'format: cdr', 'format: json'),
}


@pytest.mark.parametrize('kind', METADATA)
def test_a_bag_is_read_although_its_metadata_is_unusable(kind, tmp_path):
    bag = write(tmp_path / 'bag', FRAMES)
    METADATA[kind](bag)
    assert read(bag) == (list(range(COUNT)), [])


def test_a_file_that_metadata_lists_is_missed(tmp_path):
    bag = write(tmp_path / 'bag', FRAMES)
    change_metadata(bag, '- bag.mcap\n', '- bag.mcap\n  - bag_1.mcap\n')
    with pytest.raises(DataError, match=r'bag_1\.mcap, which metadata\.yaml lists, is missing'):
        next(read_images(bag))
    numbers, (error,) = read(bag)
    assert numbers == list(range(COUNT))
    assert 'bag_1.mcap' in error


# ---- MCAP files


def test_a_cut_mcap_is_read_up_to_the_cut(tmp_path):
    bag = write(tmp_path / 'bag', FRAMES)
    cut(only_file(bag, '.mcap'), 0.6)
    with pytest.raises(DataError, match=r'bag\.mcap is cut, .*`mcap recover '):
        next(read_images(bag))
    numbers, (error,) = read(bag)
    assert numbers == [0, 1, 2]
    assert 'mcap recover' in error
    assert one_line(error)


@pytest.mark.parametrize('compression', ['', 'zstd'])
def test_the_chunk_that_a_file_ends_in_is_read_as_far_as_it_goes(compression, tmp_path):
    definition = mcap_writer.channel(1, TOPIC, 'cdr', (IMAGE, 'ros2msg', DEFINITION))
    frames = make_frames(COUNT, (240, 320, 3))  # compressors have blocks of 64 and 128 kB
    messages = [mcap_writer.message(1, frame.stamp, raw(frame)) for frame in frames]
    content = definition + b''.join(messages)
    chunks = [mcap_writer.chunk(content, SECOND, COUNT * SECOND, compression)]
    path = mcap_writer.write(tmp_path / 'bag.mcap', chunks)
    assert len(list(read_images(path))) == COUNT
    cut(path, 0.6)
    errors = []
    found = list(read_images(path, on_error=errors.append))
    assert 2 <= len(found) < COUNT
    for frame, expected in zip(found, frames, strict=False):
        np.testing.assert_array_equal(frame.pixels, expected.pixels)
    assert 'mcap recover' in str(errors[0])


def write_chunks(folder, compression):
    """Write each frame as a chunk; return the bag, and start and length of the third chunk."""
    records = [mcap_writer.channel(1, TOPIC, 'cdr', (IMAGE, 'ros2msg', DEFINITION))]
    for frame in FRAMES:
        content = mcap_writer.message(1, frame.stamp, raw(frame))
        records.append(mcap_writer.chunk(content, frame.stamp, frame.stamp, compression))
    path = mcap_writer.write(folder / 'bag.mcap', records)
    start = len(mcap_writer.MAGIC + mcap_writer.record(1, bytes(16))) + sum(map(len, records[:3]))
    return path, start, len(records[3])


@pytest.mark.parametrize('compression', ['', 'lz4', 'zstd'])
def test_a_damaged_chunk_is_left_out_and_the_next_ones_are_read(compression, tmp_path):
    path, start, _ = write_chunks(tmp_path, compression)
    overwrite(path, (start + 200) / path.stat().st_size, b'\x55' * 300)
    numbers, errors = read(path)
    assert numbers == [0, 1, 3, 4, 5]
    assert 'is damaged' in errors[0]
    assert 'mcap recover' in errors[0]
    assert all(map(one_line, errors))


@pytest.mark.parametrize('compression', ['', 'lz4', 'zstd'])
@pytest.mark.parametrize('damage', [b'\0', b'\x55', b'\x06'])
def test_the_chunks_behind_damaged_bytes_are_read(damage, compression, tmp_path):
    path, start, length = write_chunks(tmp_path, compression)
    # the head of the next chunk is lost, too
    overwrite(path, (start + 200) / path.stat().st_size, damage * (length - 100))
    numbers, errors = read(path)
    assert numbers == [0, 1, 4, 5]
    assert re.search(r'the bytes \d+ to \d+ of \d+ are damaged; `mcap recover', errors[-1])
    assert all(map(one_line, errors))


@pytest.mark.parametrize(
    'change',
    [
        lambda content: content + bytes(4096),
        lambda content: content[:-8],  # the magic bytes
        lambda content: content[:-40] + b'\x11' * 40,  # the footer
    ],
)
def test_an_mcap_that_has_lost_only_what_follows_the_messages_is_whole(change, tmp_path):
    bag = write(tmp_path / 'bag', FRAMES)
    file = only_file(bag, '.mcap')
    file.write_bytes(change(file.read_bytes()))
    assert read(bag) == (list(range(COUNT)), [])
    assert read(file) == (list(range(COUNT)), [])


FOREIGN = {
    'json': ('json', ('Odom', 'jsonschema', '{"type": "object"}')),
    'protobuf': ('protobuf', ('foxglove.FrameTransform', 'protobuf', b'\x0a\xff\xfe\x80')),
    'flatbuffer': ('flatbuffer', ('Pose', 'flatbuffer', b'\x80\x81')),
    'no schema': ('json', None),
    'no name': ('cdr', ('', '', b'')),
    'bad definition': ('cdr', ('my_msgs/msg/Thing', 'ros2msg', b'other_msgs/Unknown thing\n')),
    'bad idl': ('cdr', ('my_msgs/msg/Thing', 'ros2idl', b'====\nIDL: module {')),
    'an image in json': ('json', (IMAGE, 'ros2msg', DEFINITION)),
    'code as a name': ('cdr', ('a/msg/B:\n    raise SystemExit', 'ros2msg', b'int32 x\n')),
}


@pytest.mark.parametrize('kind', FOREIGN)
def test_a_channel_of_another_kind_beside_the_images_does_no_harm(kind, tmp_path):
    encoding, schema = FOREIGN[kind]
    records = [
        mcap_writer.channel(1, TOPIC, 'cdr', (IMAGE, 'ros2msg', DEFINITION)),
        mcap_writer.channel(2, '/other', encoding, schema),
    ]
    for frame in FRAMES:
        records.append(mcap_writer.message(2, frame.stamp - 1, b'{"x": 1}'))
        records.append(mcap_writer.message(1, frame.stamp, raw(frame)))
    for profile in ('ros2', ''):
        path = mcap_writer.write(tmp_path / f'bag{profile}.mcap', records, profile)
        assert read(path, topic=TOPIC) == (list(range(COUNT)), [])


@pytest.mark.parametrize('definition', [b'', b'not a definition !', b'int32 height\nint32 x\n'])
def test_images_with_a_wrong_definition(definition, tmp_path):
    """Without one, that of ROS is used; one that is wrong is named."""
    records = [mcap_writer.channel(1, TOPIC, 'cdr', (IMAGE, 'ros2msg', definition))]
    records += [mcap_writer.message(1, frame.stamp, raw(frame)) for frame in FRAMES]
    numbers, errors = read(mcap_writer.write(tmp_path / 'bag.mcap', records))
    if definition.startswith(b'int32'):
        assert numbers == []
        assert len(errors) == COUNT
        assert all('cannot be read' in error and one_line(error) for error in errors)
    else:
        assert (numbers, errors) == (list(range(COUNT)), [])


def test_messages_that_are_not_in_the_order_of_time_are_read(tmp_path):
    records = [mcap_writer.channel(1, TOPIC, 'cdr', (IMAGE, 'ros2msg', DEFINITION))]
    order = (2, 0, 1, 5, 4, 3)
    records += [mcap_writer.message(1, FRAMES[i].stamp, raw(FRAMES[i])) for i in order]
    path = mcap_writer.write(tmp_path / 'bag.mcap', records)
    assert read(path) == (list(range(COUNT)), [])


def test_frames_have_stamps_of_their_own_also_where_the_bag_has_none(tmp_path):
    times = (0, 0, 7, 7, 2**62)
    records = [mcap_writer.channel(1, TOPIC, 'cdr', (IMAGE, 'ros2msg', DEFINITION))]
    records += [mcap_writer.message(1, time, raw(BagImage(0, FRAMES[0].pixels))) for time in times]
    path, errors = mcap_writer.write(tmp_path / 'bag.mcap', records), []
    stamps = [frame.stamp for frame in read_images(path, on_error=errors.append)]
    assert stamps == [1, 2, 7, 8]
    assert 'is no time of ROS' in str(errors[0])


# ---- SQLite


def test_a_cut_database_is_read_as_far_as_it_goes(tmp_path):
    frames = make_frames(60)
    bag = write(tmp_path / 'bag', frames, SQLITE3)
    cut(only_file(bag, '.db3'), 0.7)
    with pytest.raises(DataError, match=r'bag\.db3.*damaged.*\.recover'):
        next(read_images(bag))
    errors, stamps = [], []
    for frame in read_images(bag, on_error=errors.append):
        number = frame.stamp // SECOND - 1
        np.testing.assert_array_equal(frame.pixels, frames[number].pixels)
        stamps.append(number)
    assert errors
    assert 10 < len(stamps) < 60
    assert stamps == sorted(stamps)
    assert all(one_line(str(error)) for error in errors)


def test_a_damaged_page_of_a_database_costs_its_messages(tmp_path):
    bag = write(tmp_path / 'bag', make_frames(COUNT, (60, 80, 3)), SQLITE3)
    file = only_file(bag, '.db3')
    overwrite(file, 0.5, b'\xee' * 4096 * 4)
    errors = []
    frames = list(read_images(bag, on_error=errors.append))
    assert errors
    assert 2 <= len(frames) < COUNT


@pytest.mark.parametrize('data', [b'', b'\0', None, b'\0\1\0\0' + b'\xff' * 40])
def test_a_damaged_message_costs_itself(data, tmp_path):
    bag = write(tmp_path / 'bag', FRAMES, SQLITE3)
    with sqlite3.connect(only_file(bag, '.db3')) as database:
        if data is None:
            data = database.execute('SELECT data FROM messages WHERE id = 3').fetchone()[0][:300]
        database.execute('UPDATE messages SET data = ? WHERE id = 3', (data,))
    database.close()
    with pytest.raises(DataError, match=f'bag, {TOPIC}, 2.00 s after the start: a message'):
        list(read_images(bag))
    numbers, (error,) = read(bag)
    assert numbers == [0, 1, 3, 4, 5]
    assert one_line(error)


UNTYPED_DEFINITIONS = """
    CREATE TABLE untyped AS SELECT * FROM message_definitions;
    DROP TABLE message_definitions;
    CREATE TABLE message_definitions
        (id, topic_type, encoding, encoded_message_definition, type_description_hash);
    INSERT INTO message_definitions SELECT * FROM untyped;
"""
OTHER_DATA = 'UPDATE messages SET data = ? WHERE id = 3'
OTHER_TIME = 'UPDATE messages SET timestamp = ? WHERE id = 3'


@pytest.mark.parametrize(
    ('statement', 'value', 'got'),
    [
        (OTHER_DATA, 7, '3000000000 and int'),
        (OTHER_DATA, 1.5, '3000000000 and float'),
        (OTHER_DATA, 'text', '3000000000 and str'),
        (OTHER_TIME, 'noon', "'noon' and bytes"),
        (OTHER_TIME, 3.5, '3.5 and bytes'),
        (OTHER_TIME, b'\0\xff', r"b'\\x00\\xff' and bytes"),
    ],
)
@pytest.mark.parametrize('has_metadata', [True, False])
def test_a_row_of_another_type_costs_itself(statement, value, got, has_metadata, tmp_path):
    bag = write(tmp_path / 'bag', FRAMES, SQLITE3)
    with sqlite3.connect(only_file(bag, '.db3')) as database:
        database.execute(statement, (value,))
    database.close()
    if not has_metadata:
        (bag / 'metadata.yaml').unlink()
    with pytest.raises(DataError, match=f'{got}; `sqlite3 .* .recover'):
        list(read_images(bag))
    numbers, (error,) = read(bag)
    assert numbers == [0, 1, 3, 4, 5]
    assert one_line(error)


@pytest.mark.parametrize('value', [10**12, -1, 1.5, 'text'])
def test_a_row_of_another_type_in_a_cut_database_takes_no_memory(value, tmp_path):
    bag = write(tmp_path / 'bag', FRAMES, SQLITE3)
    with sqlite3.connect(only_file(bag, '.db3')) as database:
        database.execute(OTHER_DATA, (value,))
    database.close()
    scan = SqliteScan(only_file(bag, '.db3'))
    messages = [data for _, _, data in scan.messages(scan.connections)]
    scan.close()
    assert [len(data) > 0 for data in messages] == [True, True, False, True, True, True]


@pytest.mark.parametrize('definition', [7, 1.5, b'\xff'])
def test_a_definition_that_is_not_text_is_not_used(definition, tmp_path):
    bag = write(tmp_path / 'bag', FRAMES, SQLITE3)
    with sqlite3.connect(only_file(bag, '.db3')) as database:
        database.executescript(UNTYPED_DEFINITIONS)
        database.execute(
            'UPDATE message_definitions SET encoded_message_definition = ?', (definition,)
        )
    database.close()
    assert read(bag) == ([0, 1, 2, 3, 4, 5], [])


@pytest.mark.parametrize(
    ('statement', 'expected'),
    [
        ("UPDATE topics SET name = x'ff00'", 'expected a topic and its type as text, got'),
        ("UPDATE topics SET type = x'ff00'", 'expected a topic and its type as text, got'),
        ("UPDATE topics SET serialization_format = x'00'", 'no topic with images among'),
    ],
)
def test_a_topic_whose_name_or_type_is_not_text_is_named(statement, expected, tmp_path, model):
    bag = write(tmp_path / 'bag', FRAMES, SQLITE3)
    with sqlite3.connect(only_file(bag, '.db3')) as database:
        database.execute(statement)
    database.close()
    (bag / 'metadata.yaml').unlink()
    with pytest.raises(DataError, match=expected):
        list(read_images(bag))
    assert evaluate([bag], tmp_path / 'out', model, '--skip-broken') == 0
    assert any(expected in broken for broken in read_report(tmp_path / 'out')['broken'])


def test_messages_that_are_only_in_the_write_ahead_log_are_missed(tmp_path):
    bag = write(tmp_path / 'bag', FRAMES, SQLITE3)
    file = only_file(bag, '.db3')
    file.with_name(file.name + '-wal').write_bytes(b'x' * 100)
    with pytest.raises(DataError, match='wal_checkpoint'):
        next(read_images(bag))


# ---- compressed messages and files, ROS 1


def test_a_damaged_compressed_message_costs_itself(tmp_path):
    bag = write(tmp_path / 'bag', FRAMES, SQLITE3, CompressionMode.MESSAGE)
    with sqlite3.connect(only_file(bag, '.db3')) as database:
        database.execute("UPDATE messages SET data = x'28b52ffd00' WHERE id = 2")
    database.close()
    numbers, errors = read(bag)
    assert numbers == [0, 2, 3, 4, 5]
    assert len(errors) == 1
    assert '1.00 s after the start, cannot be decompressed' in errors[0]


def test_a_damaged_compressed_file_is_named(tmp_path):
    bag = write(tmp_path / 'bag', FRAMES, SQLITE3, CompressionMode.FILE)
    overwrite(only_file(bag, '.zstd'), 0.1, b'\x55' * 500)
    with pytest.raises(DataError, match=r'bag\.db3\.zstd cannot be decompressed'):
        next(read_images(bag))


@pytest.mark.parametrize('compression', ['BZ2', 'LZ4'])
def test_a_damaged_chunk_of_ros_1_costs_its_messages(compression, tmp_path):
    path, frames = tmp_path / 'bag.bag', make_frames(6, (300, 300, 3))
    writer = rosbag1.Writer(path)
    writer.set_compression(rosbag1.Writer.CompressionFormat[compression])
    with writer:
        connection = writer.add_connection(TOPIC, IMAGE, typestore=STORE_1)
        for number, frame in enumerate(frames):
            data = STORE_1.serialize_ros1(image(STORE_1, frame, (number,)), IMAGE)
            writer.write(connection, frame.stamp, data)
    overwrite(path, 0.4, b'\x55' * 400)
    stamps, errors = [], []
    for frame in read_images(path, on_error=errors.append):
        number = frame.stamp // SECOND - 1
        np.testing.assert_array_equal(frame.pixels, frames[number].pixels)
        stamps.append(number)
    (error,) = map(str, errors)
    assert 'rosbag reindex' in error
    assert 0 < len(stamps) < 6
    assert stamps[-1] == 5


SAME_TIME = [  # topic and time of each message; three of them have the time of the damaged one
    (topic, n * SECOND) for n in (1, 2, 3) for topic in ('/left', '/middle', '/right', '/top')
]
DAMAGED = ('/middle', 2 * SECOND)


def ros_1_of_same_times(path):
    """Write a chunk for each message, and damage one."""
    writer = rosbag1.Writer(path)
    writer.set_compression(rosbag1.Writer.CompressionFormat.BZ2)
    writer.chunk_threshold = 0
    with writer:
        topics = dict.fromkeys(topic for topic, _ in SAME_TIME)
        connections = {t: writer.add_connection(t, IMAGE, typestore=STORE_1) for t in topics}
        for topic, time in SAME_TIME:
            message = image(STORE_1, BagImage(time, FRAMES[0].pixels, 'camera'), (0,))
            writer.write(connections[topic], time, STORE_1.serialize_ros1(message, IMAGE))
    chunks = [found.start() for found in re.finditer(b'BZh', path.read_bytes())]
    content = bytearray(path.read_bytes())
    start = chunks[SAME_TIME.index(DAMAGED) - len(SAME_TIME)]  # earlier ones are of the topics
    content[start + 20 : start + 60] = bytes(40)
    path.write_bytes(content)
    return path


def database_of_same_times(path):
    """Write messages that span pages, and damage the list of the pages of one."""
    with rosbag2.Writer(path, version=9, storage_plugin=SQLITE3) as writer:
        topics = dict.fromkeys(topic for topic, _ in SAME_TIME)
        connections = {t: writer.add_connection(t, IMAGE, typestore=STORE) for t in topics}
        for topic, time in SAME_TIME:
            fill = 255 if (topic, time) == DAMAGED else 1
            pixels = np.full((60, 200, 3), fill, np.uint8)
            data = STORE.serialize_cdr(image(STORE, BagImage(time, pixels, 'camera')), IMAGE)
            writer.write(connections[topic], time, data)
    file = only_file(path, '.db3')
    content = bytearray(file.read_bytes())
    page = content.index(b'\xff' * 4092) // 4096 * 4096  # of 4096 bytes, four name the next
    content[page : page + 4] = b'\x7f' * 4
    file.write_bytes(content)
    return path


def mcap_of_same_times(path):
    """Write a chunk for each message, with an index, and damage one."""
    topics = dict.fromkeys(topic for topic, _ in SAME_TIME)
    numbers = {topic: number for number, topic in enumerate(topics, 1)}
    channels = {
        number: mcap_writer.channel(number, topic, 'cdr', (IMAGE, 'ros2msg', DEFINITION))
        for topic, number in numbers.items()
    }
    frames = {n * SECOND: raw(FRAMES[n - 1]) for n in (1, 2, 3)}
    chunks = [[(numbers[topic], time, frames[time])] for topic, time in SAME_TIME]
    path = mcap_writer.write_as(path.with_suffix('.mcap'), channels, chunks, mcap_writer.Options())
    starts = [found.start() for found in re.finditer(re.escape(ZSTD_MAGIC), path.read_bytes())]
    content = bytearray(path.read_bytes())
    start = starts[SAME_TIME.index(DAMAGED)]
    content[start + 20 : start + 60] = bytes(40)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize('make', [ros_1_of_same_times, database_of_same_times, mcap_of_same_times])
def test_messages_of_the_time_of_a_damaged_one_are_read(make, tmp_path):
    errors = []
    with open_bag(make(tmp_path / 'bag.bag'), on_error=errors.append) as bag:
        found = [(connection.topic, time) for connection, time, _ in bag.messages()]
    assert sorted(found) == sorted(set(SAME_TIME) - {DAMAGED})
    assert [time for _, time in found] == sorted(time for _, time in found)
    assert len(errors) == 1


@pytest.mark.parametrize(
    ('name', 'content', 'cure'),
    [
        ('empty.mcap', b'', 'the file is empty'),
        ('other.mcap', b'not an mcap file', 'does not start as an MCAP file'),
        ('other.db3', b'not a database file' * 50, 'recover'),
        ('other.bag', b'#ROSBAG V2.0\n' + b'\xff' * 60, 'rosbag reindex'),
        ('run.bag.active', b'#ROSBAG V2.0\n', 'rosbag reindex'),
        ('notes.txt', b'hello', 'expected a rosbag2 folder, .mcap, .db3 or .bag file'),
    ],
)
def test_a_file_that_is_no_bag_has_a_cure(name, content, cure, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        next(read_images(tmp_path / name))
    assert name in str(caught.value)
    assert cure in str(caught.value)
    assert one_line(str(caught.value))


# ---- missing or not allowed


@pytest.mark.parametrize('kind', ['folder', 'parent', 'file'])
def test_a_bag_that_may_not_be_read_is_not_called_missing(kind, tmp_path):
    (tmp_path / 'parent').mkdir()
    bag = write(tmp_path / 'parent' / 'bag', FRAMES)
    bag = only_file(bag, '.mcap') if kind == 'file' else bag
    hidden = bag.parent if kind == 'parent' else bag
    for folder in (tmp_path, *tmp_path.parents):  # for another user than root, who reads all
        if folder.stat().st_mode & 0o777 == 0o700:
            folder.chmod(0o755)
    hidden.chmod(0)
    if os.getuid() == 0:
        os.seteuid(65534)
    try:
        with pytest.raises(DataError, match=rf'permission denied for user .*chmod.*{hidden}'):
            next(read_images(bag))
        with pytest.raises(DataError, match='there is no bag at'):
            next(read_images(tmp_path / 'nowhere'))
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
        hidden.chmod(0o755)


def test_a_pipe_is_no_bag(tmp_path):
    os.mkfifo(tmp_path / 'bag.mcap')
    with pytest.raises(DataError, match='neither a file nor a folder'):
        next(read_images(tmp_path / 'bag.mcap'))


# ---- commands


@pytest.fixture
def model(tmp_path):
    (tmp_path / 'script.json').write_text('{"": {"masks": "all"}}')
    return f'scripted:{tmp_path / "script.json"}'


def evaluate(bags, out, model, *options, commands=({'text': 'find the mug'},)):
    path = out.with_name('commands.yaml')
    path.write_text(yaml.safe_dump(list(commands)))
    arguments = [*map(str, bags), '--commands', str(path), '--out', str(out)]
    command = ['evaluate', 'bag', *arguments, '--model', model, '--every', '1']
    return cli.main([*command, *options])


def damaged_bags(folder):
    """Return bags with damage, by name, with the number of frames that can be read."""
    bags = {}
    bag = write(folder / 'cut_mcap', FRAMES)
    cut(only_file(bag, '.mcap'), 0.6)
    bags[bag] = 3
    bag = write(folder / 'cut_message', FRAMES, SQLITE3)
    with sqlite3.connect(only_file(bag, '.db3')) as database:
        database.execute("UPDATE messages SET data = x'00' WHERE id = 3")
    database.close()
    bags[bag] = 5
    bag = write(folder / 'bad_image', FRAMES, kind=COMPRESSED)
    content = only_file(bag, '.mcap').read_bytes().replace(b'\x89PNG', b'\x88PNG', 1)
    only_file(bag, '.mcap').write_bytes(content)
    bags[bag] = 5
    empty = folder / 'empty.mcap'
    empty.write_bytes(b'')
    bags[empty] = 0
    return bags


def test_a_damaged_bag_has_a_report_with_what_was_left_out(tmp_path, model, capsys):
    for bag, count in damaged_bags(tmp_path).items():
        out = tmp_path / 'out' / bag.name
        out.parent.mkdir(exist_ok=True)
        assert evaluate([bag], out, model, '--skip-broken') == 0
        report = read_report(out)
        assert len(report['cases']) == count, bag
        assert report['broken']
        assert all(str(bag) in text and one_line(text) for text in report['broken'])
        assert 'could not be used' in (out / 'report.html').read_text()
        printed = capsys.readouterr()
        assert f'not used: {report["broken"][0]}' in printed.out
        assert 'Traceback' not in printed.err
        if count not in (0, 3):
            continue
        shutil.rmtree(out)
        assert evaluate([bag], out, model) == 1
        assert '--skip-broken' in capsys.readouterr().err or count == 0
        assert (out / 'report.json').is_file() == (count > 0)


def test_several_damaged_bags_have_a_report_together(tmp_path, model):
    bags = damaged_bags(tmp_path)
    assert evaluate(bags, tmp_path / 'out', model, '--skip-broken') == 0
    report = read_report(tmp_path / 'out')
    assert len(report['cases']) == sum(bags.values())
    for bag in bags:
        assert any(text.startswith(f'{bag.stem}: ') for text in report['broken'])


def test_a_frame_without_ground_truth_and_a_late_command_do_not_end_a_run(tmp_path, model, capsys):
    bag, truth = write(tmp_path / 'bag', FRAMES), tmp_path / 'truth'
    truth.mkdir()
    for number, frame in enumerate(FRAMES):
        if number == 1:
            (truth / f'{frame.stamp}.png').write_bytes(b'broken')
        elif number != 4:
            Image.new('L', (80, 60), 5).save(truth / f'{frame.stamp}.png')
    commands = [
        {'text': 'find the mug', 'targets': [5]},
        {'text': 'find the rug', 'targets': [55], 'frame': 0},
        {'text': 'find the pan', 'at': 99},
    ]
    options = ('--ground-truth', str(truth), '--skip-broken')
    assert evaluate([bag], tmp_path / 'out', model, *options, commands=commands) == 0
    report = read_report(tmp_path / 'out')
    ious = [case['iou'] for case in report['cases'] if case['expression'] == 'find the mug']
    assert ious == [pytest.approx(1), None, *[pytest.approx(1)] * 2, None, pytest.approx(1)]
    broken = '\n'.join(report['broken'])
    assert f'{FRAMES[1].stamp}.png cannot be read' in broken
    assert f'{FRAMES[4].stamp}.png: no ground truth' in broken
    assert 'no image of ids contains 55' in broken  # and is not taken for absent
    assert 'before commands 3 are due' in broken
    assert 'Traceback' not in capsys.readouterr().err


def damage_image(bag):
    """Damage the pixels of frame 2, whose message can be read."""
    content = only_file(bag, '.mcap').read_bytes().split(b'\x89PNG')
    content[2] += b'\x88PNG' + content.pop(3)
    only_file(bag, '.mcap').write_bytes(b'\x89PNG'.join(content))


def damage_message(bag):
    """Damage the whole message of frame 2."""
    with sqlite3.connect(only_file(bag, '.db3')) as database:
        database.execute("UPDATE messages SET data = x'00' WHERE id = 3")
    database.close()


@pytest.mark.parametrize(
    ('options', 'damage'),
    [({'kind': COMPRESSED}, damage_image), ({'plugin': SQLITE3}, damage_message)],
)
def test_a_frame_that_cannot_be_read_moves_no_command_to_another_frame(
    options, damage, tmp_path, model
):
    commands = [
        {'text': 'find the mug'},
        {'text': 'find the rug', 'frame': 4},
        {'text': 'find the pan', 'frame': 2},
    ]
    names, bag = [], write(tmp_path / 'bag', FRAMES, **options)
    for out in (tmp_path / 'whole', tmp_path / 'damaged'):
        every = ('--every', '2', '--skip-broken')
        assert evaluate([bag], out, model, *every, commands=commands) == 0
        names.append(set(read_report(out)['names']))
        if out.name == 'whole':
            damage(bag)
    assert len(names[0]) == 5
    lost = {f'{FRAMES[2].stamp}.{command}' for command in (0, 2)}
    assert names[1] == names[0] - lost
    broken = '\n'.join(read_report(tmp_path / 'damaged')['broken'])
    assert 'command 3 is not asked: frame 2 cannot be read' in broken
    assert 'command 1' not in broken
    # live
    times = image_times(bag, TOPIC, lambda error: None)
    assert times[FRAMES[4].stamp].index == 4


def test_a_command_none_of_whose_frames_can_be_read_is_named(tmp_path, model):
    bag = write(tmp_path / 'bag', FRAMES[:2] + FRAMES[3:], SQLITE3)
    with sqlite3.connect(only_file(bag, '.db3')) as database:
        database.execute("UPDATE messages SET data = x'00' WHERE id = 1")
    database.close()
    assert evaluate([bag], tmp_path / 'out', model, '--every', '9', '--skip-broken') == 0
    report = read_report(tmp_path / 'out')
    assert not report['cases']
    assert 'command 1 is not asked: no 9-th frame can be read' in report['broken'][-1]


def test_frames_are_extracted_up_to_the_damage(tmp_path, capsys):
    bag = write(tmp_path / 'bag', FRAMES)
    cut(only_file(bag, '.mcap'), 0.6)
    command = ['frames', str(bag), '--out', str(tmp_path / 'frames')]
    assert cli.main(command) == 1
    assert 'mcap recover' in capsys.readouterr().err
    assert len(list((tmp_path / 'frames').glob('*.png'))) == 3
    assert cli.main([*command, '--skip-broken']) == 0
    with pytest.raises(DataError, match='mcap recover'):
        extract_frames(bag, tmp_path / 'other')


# ---- bags without messages


def without_topics(path):
    """Write a database that has lost its table of topics."""
    bag = write(path, FRAMES, SQLITE3)
    with sqlite3.connect(only_file(bag, '.db3')) as database:
        database.execute('DELETE FROM topics')
    database.close()
    return bag


BAGS_WITHOUT_MESSAGES = {
    'mcap': (lambda path: write(path, []), f'no messages on {TOPIC}; .*: record the bag again'),
    'sqlite3': (lambda path: write(path, [], SQLITE3), f'no messages on {TOPIC}; .*: record'),
    'no topics': (without_topics, rf'none of the {COUNT} messages on {TOPIC} .*: `sqlite3 .*db3'),
}


@pytest.mark.parametrize('kind', BAGS_WITHOUT_MESSAGES)
def test_a_bag_without_messages_is_an_error(kind, tmp_path, model, capsys):
    make, expected = BAGS_WITHOUT_MESSAGES[kind]
    bag = make(tmp_path / 'empty')
    for use in (
        lambda: list(read_images(bag)),
        lambda: image_times(bag, TOPIC),
        lambda: InstanceTopic(bag, TOPIC),
    ):
        with pytest.raises(DataError, match=expected) as caught:
            use()
        assert str(caught.value).startswith(f'{bag}: ')
        assert one_line(str(caught.value))
    assert cli.main(['frames', str(bag), '--out', str(tmp_path / 'frames')]) == 1
    printed = capsys.readouterr()
    assert re.search(expected, printed.err)
    assert 'images in' not in printed.out
    assert evaluate([bag], tmp_path / 'out', model) == 1
    assert re.search(expected, capsys.readouterr().err)
    assert not (tmp_path / 'out' / 'report.json').exists()


@pytest.mark.parametrize('kind', BAGS_WITHOUT_MESSAGES)
def test_of_several_bags_the_one_without_messages_is_left_out(kind, tmp_path, model):
    make, expected = BAGS_WITHOUT_MESSAGES[kind]
    bags = [make(tmp_path / 'empty'), write(tmp_path / 'full', FRAMES)]
    assert evaluate(bags, tmp_path / 'out', model) == 1
    assert evaluate(bags, tmp_path / 'skipped', model, '--skip-broken') == 0
    for out in ('out', 'skipped'):
        report = read_report(tmp_path / out)
        assert len(report['cases']) == COUNT
        assert re.search(rf'empty: .*{expected}', report['broken'][0])
        assert all(broken.startswith('empty: ') for broken in report['broken'])


def test_an_rgbd_image_of_a_bag_without_messages_is_an_error(tmp_path):
    for kind, (make, lost) in BAGS_WITHOUT_MESSAGES.items():
        expected = (
            lost if kind == 'no topics' else 'has messages that can be read; expected colour'
        )
        with pytest.raises(DataError, match=expected):
            from_bag(make(tmp_path / kind))


def test_bags_of_the_same_name_have_folders_of_their_own(tmp_path, model):
    bags = []
    for folder in ('a', 'b', 'c'):
        (tmp_path / folder).mkdir()
        bags.append(write(tmp_path / folder / 'run.1', FRAMES[:1]))
    bags.append(write(tmp_path / 'c' / 'run.1_2', FRAMES[:1]))  # the name that the second gets
    assert evaluate(bags, tmp_path / 'out', model) == 0
    report = read_report(tmp_path / 'out')
    assert len(report['cases']) == 4
    folders = {case['name'].partition('/')[0] for case in report['cases']}
    assert len(folders) == 4
    for folder in folders:
        settings = read_report(tmp_path / 'out' / folder)['settings']
        assert settings['bag'] in map(str, bags)


def test_an_open_reader_may_be_used_from_another_thread(tmp_path):
    bag = write(tmp_path / 'bag', make_frames(60), SQLITE3)
    cut(only_file(bag, '.db3'), 0.7)
    found = []
    with open_bag(bag, lambda _: None) as reader:
        thread = threading.Thread(target=lambda: found.append(len(list(reader.messages()))))
        thread.start()
        thread.join()
    assert found[0] > 10
