# SPDX-License-Identifier: Apache-2.0
"""Bags with an edited metadata.yaml, and MCAP files of other loggers: read, or a clear reason."""

import dataclasses
import os
import struct
from types import SimpleNamespace

import mcap_writer
import numpy as np
import pytest
import yaml
from bag_kinds import IMAGE, STORE, STORE_1, TOPIC, image, split, write
from rosbags import rosbag1
from rosbags.rosbag2 import CompressionMode, StoragePlugin
from rosbags.rosbag2.reader import zstd

from lisa_ros.commands.rgbd_input import from_bag
from lisa_ros.errors import DataError
from lisa_ros.evaluation.ground_truth import InstanceTopic
from lisa_ros.messages import bag_files, decompression, mcap_scan
from lisa_ros.messages.bag import BagImage, read_images

SECOND = 10**9
SQLITE3, MCAP = StoragePlugin.SQLITE3, StoragePlugin.MCAP
DEFINITION = STORE.generate_msgdef(IMAGE, ros_version=2)[0]
FRAMES = [
    BagImage((n + 1) * SECOND, np.full((6, 8, 3), n + 1, np.uint8), 'camera') for n in range(4)
]
STAMPS = [frame.stamp for frame in FRAMES]
FOREVER = {'sec': 9223372036, 'nsec': 854775807}
QUALITY_OF_JAZZY = {
    'history': 'keep_last',
    'depth': 5,
    'reliability': 'reliable',
    'durability': 'volatile',
    'deadline': FOREVER,
    'lifespan': FOREVER,
    'liveliness': 'automatic',
    'liveliness_lease_duration': FOREVER,
    'avoid_ros_namespace_conventions': False,
}


def stamps_and_errors(bag):
    errors = []
    frames = read_images(bag, on_error=lambda error: errors.append(str(error)))
    return [frame.stamp for frame in frames], errors


def edit(bag, change):
    """Edit metadata.yaml by hand: `change` gets its content and that of its first topic."""
    path = bag / 'metadata.yaml'
    content = yaml.safe_load(path.read_text())
    information = content['rosbag2_bagfile_information']
    change(information, information['topics_with_message_count'][0]['topic_metadata'])
    path.write_text(yaml.safe_dump(content))
    return bag


EDITS = {
    'a quality of service': lambda _, topic: topic.update(offered_qos_profiles=[QUALITY_OF_JAZZY]),
    'an old one': lambda _, topic: topic.update(offered_qos_profiles='- history: 1\n  depth: 5\n'),
    'another hash': lambda _, topic: topic.update(type_description_hash='RIHS01_' + '0' * 64),
    'no topics': lambda information, _: information.update(topics_with_message_count=[]),
    'files twice': lambda information, _: information.update(
        relative_file_paths=information['relative_file_paths'] * 2
    ),
    'compressed, which they are not': lambda information, _: information.update(
        compression_format='zstd', compression_mode='MESSAGE'
    ),
}


@pytest.mark.parametrize('plugin', StoragePlugin)
@pytest.mark.parametrize('name', EDITS)
def test_what_metadata_says_of_topics_costs_no_message(name, plugin, tmp_path):
    """A common cure for `ros2 bag play` is to edit the quality of service in it."""
    bag = edit(write(tmp_path / 'bag', FRAMES, plugin), EDITS[name])
    assert stamps_and_errors(bag) == (STAMPS, [])


def test_a_topic_that_only_metadata_has_is_missed_by_those_who_want_it(tmp_path):
    bag = edit(write(tmp_path / 'bag', FRAMES), lambda _, topic: topic.update(name='/other'))
    assert stamps_and_errors(bag) == (STAMPS, [])
    with pytest.raises(DataError, match='no images on /other'):
        next(read_images(bag, '/other'))


def test_an_edited_bag_in_two_files_keeps_the_messages_of_both(tmp_path):
    bag = edit(split(tmp_path / 'bag', FRAMES), EDITS['a quality of service'])
    assert stamps_and_errors(bag) == (STAMPS, [])


def test_a_part_that_a_killed_recording_did_not_list_is_read(tmp_path):
    bag = edit(
        split(tmp_path / 'bag', FRAMES),
        lambda information, _: information['relative_file_paths'].pop(),
    )
    (bag / 'recovered.db3').write_bytes(b'of somebody else')
    assert stamps_and_errors(bag) == (STAMPS, [])


@pytest.mark.parametrize('metadata', [None, '', 'as it was'])
@pytest.mark.parametrize('compressed', [(), (0,), (1,), (0, 1)])
def test_a_recording_that_was_killed_while_it_compressed_its_files_is_read(
    compressed, metadata, tmp_path
):
    bag = split(tmp_path / 'bag', FRAMES)
    for number in compressed:
        plain = bag / f'bag_{number}.db3'
        plain.with_name(f'{plain.name}.zstd').write_bytes(zstd.compress(plain.read_bytes()))
        plain.unlink()
    if metadata is None:
        (bag / 'metadata.yaml').unlink()
    elif not metadata:
        (bag / 'metadata.yaml').write_text(metadata)
    assert stamps_and_errors(bag) == (STAMPS, [])


@pytest.mark.parametrize('has_metadata', [True, False])
def test_a_compressed_copy_that_is_cut_gives_way_to_its_original(has_metadata, tmp_path):
    bag = split(tmp_path / 'bag', FRAMES)
    original = bag / 'bag_1.db3'
    copy = zstd.compress(original.read_bytes())
    original.with_name('bag_1.db3.zstd').write_bytes(copy[: len(copy) // 2])
    if not has_metadata:
        (bag / 'metadata.yaml').unlink()
    assert stamps_and_errors(bag) == (STAMPS, [])


@pytest.mark.parametrize('mode', [CompressionMode.MESSAGE, CompressionMode.FILE])
def test_a_compressed_bag_with_an_edited_quality_of_service_is_read(mode, tmp_path):
    bag = edit(write(tmp_path / 'bag', FRAMES, MCAP, mode), EDITS['a quality of service'])
    assert stamps_and_errors(bag) == (STAMPS, [])


def test_a_message_that_decompresses_to_too_much_costs_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(decompression, 'MAX_BYTES', 10**6)
    records = [mcap_writer.channel(1, TOPIC, 'cdr', (IMAGE, 'ros2msg', DEFINITION))]
    for frame in FRAMES:
        data = STORE.serialize_cdr(image(STORE, frame), IMAGE)
        data = bytes(10**7) if frame is FRAMES[1] else bytes(data)
        records.append(mcap_writer.message(1, frame.stamp, zstd.compress(data)))
    bag = write(tmp_path / 'bag', FRAMES, MCAP, CompressionMode.MESSAGE)
    mcap_writer.write(bag / 'bag.mcap', records)
    stamps, (error,) = stamps_and_errors(bag)
    assert stamps == [STAMPS[0], *STAMPS[2:]]
    assert 'decompresses to more than 1000000 bytes' in error


def bombs_of_ros_2(folder, compression):
    """Write a bag with a chunk of images, and one of zeros that claims to have 100 bytes."""
    data = mcap_writer.COMPRESS[compression](bytes(10**7))
    claims = struct.pack('<QQQI', STAMPS[-1] + 1, STAMPS[-1] + 1, 100, 0)
    size = struct.pack('<Q', len(data))
    bomb = mcap_writer.record(6, claims + mcap_writer.text(compression) + size + data)
    records = [mcap_writer.channel(1, TOPIC, 'cdr', (IMAGE, 'ros2msg', DEFINITION))]
    for frame in FRAMES:
        content = bytes(STORE.serialize_cdr(image(STORE, frame), IMAGE))
        records.append(mcap_writer.message(1, frame.stamp, content))
    chunk = mcap_writer.chunk(b''.join(records), STAMPS[0], STAMPS[-1], compression)
    return mcap_writer.write(folder / 'bomb.mcap', [chunk, bomb])


@pytest.mark.parametrize('compression', ['zstd', 'lz4'])
def test_a_chunk_that_decompresses_to_too_much_costs_itself(compression, tmp_path, monkeypatch):
    monkeypatch.setattr(decompression, 'MAX_BYTES', 10**6)
    stamps, (error,) = stamps_and_errors(bombs_of_ros_2(tmp_path, compression))
    assert stamps == STAMPS
    assert 'decompresses to more than 1000000 bytes' in error


@pytest.mark.parametrize('compression', rosbag1.Writer.CompressionFormat)
def test_a_bag_of_ros_1_with_a_bomb_takes_no_memory(compression, tmp_path, monkeypatch):
    bag = rosbag1.Writer(tmp_path / 'bag.bag')
    bag.set_compression(compression)
    with bag as writer:
        connection = writer.add_connection(TOPIC, IMAGE, typestore=STORE_1)
        for number, frame in enumerate(FRAMES):
            message = image(STORE_1, frame, (number,))
            writer.write(connection, frame.stamp, STORE_1.serialize_ros1(message, IMAGE))
    assert stamps_and_errors(tmp_path / 'bag.bag') == (STAMPS, [])
    monkeypatch.setattr(decompression, 'MAX_BYTES', 100)
    errors = []
    with pytest.raises(DataError, match='none of the 4 messages'):
        list(read_images(tmp_path / 'bag.bag', on_error=lambda error: errors.append(str(error))))
    assert 'decompresses to more than 100 bytes' in errors[0]


def test_a_bag_of_ros_1_that_takes_any_hash_is_read(tmp_path):
    definition = STORE_1.generate_msgdef(IMAGE)[0]
    with rosbag1.Writer(tmp_path / 'bag.bag') as writer:
        connection = writer.add_connection(TOPIC, IMAGE, msgdef=definition, md5sum='*')
        for number, frame in enumerate(FRAMES):
            message = image(STORE_1, frame, (number,))
            writer.write(connection, frame.stamp, STORE_1.serialize_ros1(message, IMAGE))
    assert stamps_and_errors(tmp_path / 'bag.bag') == (STAMPS, [])


def test_an_mcap_with_an_index_and_a_bomb_takes_no_memory(tmp_path, monkeypatch):
    """It is read by rosbags, which has no limit of its own."""
    bag = write(tmp_path / 'bag', FRAMES, MCAP, CompressionMode.STORAGE)
    assert stamps_and_errors(bag) == (STAMPS, [])
    monkeypatch.setattr(decompression, 'MAX_BYTES', 100)
    errors = []
    with pytest.raises(DataError):
        list(read_images(bag, on_error=lambda error: errors.append(str(error))))
    assert errors


def test_a_compressed_file_leaves_space_on_the_disk(tmp_path, monkeypatch):
    bag = write(tmp_path / 'bag', FRAMES, MCAP, CompressionMode.FILE)
    assert stamps_and_errors(bag) == (STAMPS, [])
    full = SimpleNamespace(total=2**40, free=2**20)
    monkeypatch.setattr(bag_files.shutil, 'disk_usage', lambda folder: full)
    with pytest.raises(DataError, match=r'No space left.*set TMPDIR to a larger folder than'):
        list(read_images(bag))


@pytest.mark.parametrize('record', [bytes(9), b'\x80' + bytes(8)])
def test_a_chunk_of_very_many_records_does_not_hang(record, tmp_path, monkeypatch):
    monkeypatch.setattr(mcap_scan, '_MOST_RECORDS', 1000)
    chunk = mcap_writer.chunk(record * 2000, STAMPS[0], STAMPS[-1], 'zstd')
    path = mcap_writer.write(tmp_path / 'bomb.mcap', [chunk])
    with pytest.raises(DataError, match=r'opcode 0|more than 1000 records'):
        next(read_images(path))


def test_frames_that_follow_one_another_are_decompressed_together():
    raw = zstd.compress(b'first') + zstd.compress(b'second')
    assert decompression.decompress_zstd(raw) == b'firstsecond'
    with pytest.raises(ValueError, match='it is cut'):
        decompression.decompress_zstd(raw[:-3])


def test_ids_of_a_topic_may_come_without_a_step(tmp_path):
    """The decoder of images reads 0 as "not set", too."""
    ids = np.arange(6, dtype=np.uint8).reshape(2, 3)
    message = image(STORE, FRAMES[0], pixels=ids, encoding='mono8')
    message = dataclasses.replace(message, step=0)
    records = [
        mcap_writer.channel(1, TOPIC, 'cdr', (IMAGE, 'ros2msg', DEFINITION)),
        mcap_writer.message(1, STAMPS[0], bytes(STORE.serialize_cdr(message, IMAGE))),
    ]
    truth = InstanceTopic(mcap_writer.write(tmp_path / 'ids.mcap', records), TOPIC)
    np.testing.assert_array_equal(truth.ids(STAMPS[0]), ids)


# ---- MCAP files of other loggers


KINDS = {
    'ROS 1': ('ros1', ('sensor_msgs/Image', 'ros1msg', DEFINITION), 'sensor_msgs/Image in ros1'),
    'protobuf': (
        'protobuf',
        ('foxglove.CompressedImage', 'protobuf', b'\x0a\xff'),
        'foxglove.CompressedImage in protobuf',
    ),
    'json': ('json', ('Image', 'jsonschema', '{}'), 'Image in json'),
    'no schema': ('cdr', None, 'no schema in cdr'),
    'no encoding': ('', ('Image', '', ''), 'Image in an unknown encoding'),
    'a name of ROS 1': ('cdr', ('sensor_msgs/Image', 'ros2msg', DEFINITION), 'sensor_msgs/Image'),
    'an escape': ('cdr', ('a\x1b[2J', 'ros2msg', DEFINITION), r'a\x1b[2J'),
}


@pytest.mark.parametrize('kind', KINDS)
def test_a_file_without_images_of_ros_2_says_what_it_has(kind, tmp_path):
    encoding, schema, named = KINDS[kind]
    records = [mcap_writer.channel(1, '/camera', encoding, schema)]
    records += [mcap_writer.message(1, frame.stamp, b'\x00') for frame in FRAMES]
    path = mcap_writer.write(tmp_path / 'log.mcap', records)
    with pytest.raises(DataError) as caught:
        next(read_images(path))
    assert f'no topic with images among /camera ({named}' in str(caught.value)
    assert 'expected sensor_msgs/msg/Image or sensor_msgs/msg/CompressedImage' in str(caught.value)
    assert str(caught.value).isprintable()
    with pytest.raises(DataError, match='record all three; it has /camera') as caught:
        from_bag(path)
    assert named in str(caught.value)


@pytest.mark.parametrize('in_chunks', [False, True])
def test_messages_of_a_channel_without_description_are_missed(in_chunks, tmp_path):
    records = [mcap_writer.channel(1, TOPIC, 'cdr', (IMAGE, 'ros2msg', DEFINITION))]
    for frame in FRAMES:
        data = bytes(STORE.serialize_cdr(image(STORE, frame), IMAGE))
        records.append(mcap_writer.message(1, frame.stamp, data))
        records.append(mcap_writer.message(7, frame.stamp, data))
    if in_chunks:
        records = [mcap_writer.chunk(b''.join(records), STAMPS[0], STAMPS[-1])]
    stamps, (error,) = stamps_and_errors(mcap_writer.write(tmp_path / 'log.mcap', records))
    assert stamps == STAMPS
    assert 'the channel 7 of 4 messages is not described' in error


@pytest.mark.parametrize('suffix', ['mcap', 'db3', 'mcap.zstd'])
def test_a_pipe_in_the_folder_of_a_bag_is_not_waited_for(suffix, tmp_path):
    bag = write(tmp_path / 'bag', FRAMES, SQLITE3 if suffix == 'db3' else MCAP)
    (bag / 'metadata.yaml').write_text('')
    if suffix == 'mcap.zstd':
        (bag / 'bag.mcap').unlink()
    os.mkfifo(bag / f'pipe.{suffix}')
    errors = []
    if suffix == 'mcap.zstd':
        with pytest.raises(DataError, match='nothing in it can be read'):
            list(read_images(bag, on_error=lambda error: errors.append(str(error))))
    else:
        stamps, errors = stamps_and_errors(bag)
        assert stamps == STAMPS
    (error,) = errors
    assert f'pipe.{suffix}: neither a file nor a folder, but a device, pipe or socket' in error
