# SPDX-License-Identifier: Apache-2.0
"""Writers of the same frames in each supported kind of bag."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import yaml
from rosbags import rosbag1, rosbag2
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin
from rosbags.typesys import Stores, get_typestore

TOPIC = '/camera/color/image_raw'
STORE, STORE_1 = get_typestore(Stores.ROS2_JAZZY), get_typestore(Stores.ROS1_NOETIC)
IMAGE, COMPRESSED = 'sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage'


def header(store, stamp, ros_1_fields=()):
    time = store.types['builtin_interfaces/msg/Time'](stamp // 10**9, stamp % 10**9)
    return store.types['std_msgs/msg/Header'](*ros_1_fields, time, 'camera')


def image(store, frame, ros_1_fields=(), kind=IMAGE, pixels=None, encoding='rgb8'):
    """Return the message of a frame; a CompressedImage contains a PNG."""
    pixels = frame.pixels if pixels is None else pixels
    if kind == COMPRESSED:
        encoded = cv2.imencode('.png', np.ascontiguousarray(pixels[..., ::-1]))[1].ravel()
        return store.types[COMPRESSED](header(store, frame.stamp, ros_1_fields), 'png', encoded)
    height, width = pixels.shape[:2]
    step = pixels.strides[0]
    return store.types[IMAGE](
        header(store, frame.stamp, ros_1_fields),
        height,
        width,
        encoding,
        0,
        step,
        pixels.ravel().view('u1'),
    )


def write(path, frames, plugin=StoragePlugin.MCAP, mode=None, kind=IMAGE):
    bag = rosbag2.Writer(path, version=9, storage_plugin=plugin)
    if mode:
        bag.set_compression(mode, CompressionFormat.ZSTD)
    with bag as writer:
        connection = writer.add_connection(TOPIC, kind, typestore=STORE)
        for frame in frames:
            message = STORE.serialize_cdr(image(STORE, frame, kind=kind), kind)
            writer.write(connection, frame.stamp, message)
    return path


def split(path, frames):
    """Write a bag of two sqlite3 files, as `ros2 bag record --max-bag-size` does."""
    parts = [
        write(path.with_name(f'{path.name}_{n}'), half, StoragePlugin.SQLITE3)
        for n, half in enumerate((frames[:2], frames[2:]))
    ]
    path.mkdir()
    metadata = yaml.safe_load((parts[0] / 'metadata.yaml').read_text())
    information = metadata['rosbag2_bagfile_information']
    files = []
    for number, part in enumerate(parts):
        (file,) = part.glob('*.db3')
        files.append(f'{path.name}_{number}.db3')
        shutil.copy(file, path / files[-1])
    information['relative_file_paths'] = files
    information['message_count'] = len(frames)
    information['topics_with_message_count'][0]['message_count'] = len(frames)
    information['duration']['nanoseconds'] = frames[-1].stamp - frames[0].stamp + 1
    information.pop('files', None)
    (path / 'metadata.yaml').write_text(yaml.safe_dump(metadata))
    return path


def ros_1(path, frames):
    with rosbag1.Writer(path) as writer:
        connection = writer.add_connection(TOPIC, IMAGE, typestore=STORE_1)
        for number, frame in enumerate(frames):
            message = image(STORE_1, frame, (number,))
            writer.write(connection, frame.stamp, STORE_1.serialize_ros1(message, IMAGE))
    return path


def single_file(path, frames):
    (file,) = write(path.with_suffix(''), frames).glob('*.mcap')
    return Path(shutil.copy(file, path))


def single_sqlite3_file(path, frames):
    (file,) = write(path.with_suffix(''), frames, StoragePlugin.SQLITE3).glob('*.db3')
    return Path(shutil.copy(file, path))


def without_metadata(bag):
    (bag / 'metadata.yaml').unlink()
    return bag


KINDS = {
    'mcap': lambda path, frames: write(path, frames),
    'compressed_chunks': lambda path, frames: write(path, frames, mode=CompressionMode.STORAGE),
    'compressed_messages': lambda path, frames: write(path, frames, mode=CompressionMode.MESSAGE),
    'compressed_file': lambda path, frames: write(path, frames, mode=CompressionMode.FILE),
    'sqlite3': lambda path, frames: write(path, frames, StoragePlugin.SQLITE3),
    'split': split,
    'compressed_images': lambda path, frames: write(path, frames, kind=COMPRESSED),
    'ros1.bag': ros_1,
    'single_file.mcap': single_file,
    'single_file.db3': single_sqlite3_file,
    'no_metadata': lambda path, frames: without_metadata(write(path, frames)),
    'split_no_metadata': lambda path, frames: without_metadata(split(path, frames)),
}
