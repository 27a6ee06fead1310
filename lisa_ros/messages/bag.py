# SPDX-License-Identifier: Apache-2.0
"""Bags read without ROS: open a bag, read its images, look up when they arrived."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Collection, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rosbags.interfaces import Connection
from rosbags.rosbag1 import Reader as Reader1

from lisa_ros.errors import DataError, ErrorHandler, ImageError, raise_error
from lisa_ros.messages.bag_files import ZSTD_MAGIC, open_storages
from lisa_ros.messages.bag_reader import BagReader
from lisa_ros.messages.image import message_to_rgb
from lisa_ros.messages.stamp import stamp_ns

_IMAGE_TYPES = ('sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage')
_STAMP_LIMIT = 2**31 * 10**9  # of builtin_interfaces/Time [ns]


@dataclass(frozen=True)
class BagImage:
    """An image of a bag."""

    stamp: int  # of its header; if that is 0 or repeated, the recording time; unique [ns]
    pixels: np.ndarray  # (H, W, 3) uint8 RGB
    frame_id: str = ''  # of its header
    index: int = 0  # among the images of its topic, also those that cannot be read


@dataclass(frozen=True)
class ImageTime:
    """When an image of a bag arrived."""

    seconds: float  # recording time, from the bag's start [s]
    index: int  # among the images of its topic, also those that cannot be read


@contextlib.contextmanager
def open_bag(bag: Path, on_error: ErrorHandler = raise_error) -> Iterator[BagReader]:
    """Open a bag and yield a reader.

    Args:
        bag: one of:
            - a rosbag2 folder, mcap or sqlite3; it may be split and compressed. metadata.yaml may
              be missing, empty or damaged if neither messages nor files are compressed one by one;
            - a single .mcap or .db3 file;
            - a .bag of ROS 1.
        on_error: called for each part of the bag that cannot be read; if it returns, the part is
            left out.

    Raises:
        DataError: the bag does not exist or may not be read; or a part cannot be read, and
            `on_error` raised it.
    """
    with contextlib.ExitStack() as stack:
        storages = open_storages(bag, on_error, stack)
        is_ros_1 = any(isinstance(each.storage, Reader1) for each in storages)
        reader = BagReader(bag, storages, on_error, is2=not is_ros_1)
        stack.callback(reader.close)
        yield reader


def read_images(
    bag: Path,
    topic: str | None = None,
    every: float = 0.0,
    on_error: ErrorHandler = raise_error,
) -> Generator[BagImage]:
    """Yield the images of a topic, in the order of the bag.

    Args:
        bag: see `open_bag`.
        topic: of Image or CompressedImage messages; None: the only one in the bag.
        every: minimum time between two images, by their stamps [s]; 0: all images.
        on_error: called for each part of the bag and each message that cannot be read; if it
            returns, the part or the message is left out.

    Raises:
        DataError: the bag is missing; it has no such topic, or no message on it; `topic` is None
            and several topics have images; or a part or an image cannot be read, and `on_error`
            raised it.
    """
    last_stamp, used_stamps = None, set()
    with open_bag(bag, on_error) as reader:
        messages = _image_messages(reader, bag, topic)
        for index, (connection, bag_time, raw_message) in enumerate(messages):
            seconds = (bag_time - reader.start_time) / 1e9
            place = f'{bag}, {connection.topic}, {seconds:.2f} s after the start'
            try:
                message = _deserialize(reader, bag, connection, raw_message)
                stamp = _unique_stamp(message, bag_time, used_stamps)
                # a stamp before the last one: the clock was reset
                if last_stamp is not None and 0 <= stamp - last_stamp < every * 1e9:
                    continue
                image = BagImage(stamp, _decode(message), message.header.frame_id, index)
            except (DataError, ImageError) as error:
                on_error(DataError(f'{place}: {str(error).removeprefix(f"{bag}: ")}'))
                continue
            last_stamp = stamp
            used_stamps.add(stamp)
            yield image


def _deserialize(reader: BagReader, bag: Path, connection: Connection, raw_message: bytes) -> Any:
    """Return an image message.

    Raises:
        DataError: it cannot be read, or messages are compressed and it is not known how.
    """
    if raw_message[:4] == ZSTD_MAGIC:
        raise DataError(
            'messages are compressed one by one, and the metadata.yaml that says so is missing; '
            f'recreate it with `ros2 bag reindex {bag}`'
        )
    return reader.deserialize_stamped(raw_message, connection.msgtype)


def _decode(message: Any) -> np.ndarray:
    """Return the pixels of an image message, (H, W, 3) uint8 RGB.

    Raises:
        ImageError: it cannot be decoded.
    """
    try:
        return message_to_rgb(message)
    except ImageError:
        raise
    except Exception as error:  # a definition in a foreign bag may have any fields
        raise ImageError(f'it cannot be decoded ({type(error).__name__}: {error})') from error


def _unique_stamp(message: Any, bag_time: int, used: Collection[int]) -> int:
    """Return a stamp that names an image [ns]: that of its header, or its recording time.

    Raises:
        DataError: both are out of the range of builtin_interfaces/Time.
    """
    stamp = stamp_ns(message.header)
    if not 0 < stamp < _STAMP_LIMIT or stamp in used:
        stamp = bag_time  # the driver does not set stamps
    while stamp in used or stamp == 0:
        stamp += 1
    if not 0 < stamp < _STAMP_LIMIT:
        raise DataError(f'its recording time, {stamp} ns, is no time of ROS')
    return stamp


def prefetch(images: Generator[BagImage], depth: int = 4) -> Iterator[BagImage]:
    """Yield the same images in the same order; the next ones are decoded in the background.

    Args:
        images: iterated on a decoding thread, which ends with this iterator.
        depth: maximum number of images decoded ahead.

    Raises:
        Exception: what `images` raises, at the same position.
    """
    with ThreadPoolExecutor(1, thread_name_prefix='decoding') as decoder:
        pending = deque(decoder.submit(next, images, None) for _ in range(depth))
        try:
            while (image := pending.popleft().result()) is not None:
                pending.append(decoder.submit(next, images, None))
                yield image
        finally:
            for future in pending:
                future.cancel()
            decoder.submit(images.close)  # the thread that reads the bag also closes it


def image_times(
    bag: Path, topic: str, on_error: ErrorHandler = raise_error
) -> dict[int, ImageTime]:
    """Return the recording time of each image by its stamp [ns].

    Raises:
        DataError: as `read_images`; or a stamp is 0 or repeated.
    """
    times: dict[int, ImageTime] = {}
    with open_bag(bag, on_error) as reader:
        messages = _image_messages(reader, bag, topic)
        for index, (connection, bag_time, raw_message) in enumerate(messages):
            try:
                stamp = stamp_ns(_deserialize(reader, bag, connection, raw_message).header)
            except DataError as error:
                on_error(error)
                continue
            if stamp == 0 or stamp in times:
                raise DataError(
                    f'{bag}, {topic}: stamp {stamp} is 0 or repeated, so answers cannot be '
                    'matched to images: evaluate the bag offline (without --live)'
                )
            times[stamp] = ImageTime((bag_time - reader.start_time) / 1e9, index)
    return times


def _image_messages(
    reader: BagReader, bag: Path, topic: str | None
) -> Iterator[tuple[Connection, int, bytes]]:
    """Yield connection, time [ns] and data of the messages of an image topic.

    Raises:
        DataError: there is no such topic, or it has no message.
    """
    connections = _image_connections(reader, bag, topic)
    is_empty = True
    for message in reader.messages(connections):
        is_empty = False
        yield message
    if is_empty:
        raise reader.no_messages(connections, 'images')


def _image_connections(reader: BagReader, bag: Path, topic: str | None) -> list[Connection]:
    """Return the connections of an image topic; topic None: the only one with images."""
    if not reader.connections and not reader.foreign_topics:
        raise DataError(
            f'{bag}: nothing in it can be read; expected a topic with images: record it again'
        )
    connections = [c for c in reader.connections if c.msgtype in _IMAGE_TYPES]
    topics = sorted({c.topic for c in connections})
    if topic is None and len(topics) == 1:
        return connections
    chosen = [c for c in connections if c.topic == topic]
    if not chosen:
        raise _no_image_topic(reader, bag, topic, topics)
    return chosen


def _no_image_topic(
    reader: BagReader, bag: Path, topic: str | None, topics: list[str]
) -> DataError:
    """Return the error of a bag where no topic can be chosen; `topics` have images."""
    if topics:
        problem = f'no images on {topic}' if topic else 'more than one topic with images'
        return DataError(f'{bag}: {problem}; expected --topic to be one of {", ".join(topics)}')
    return DataError(
        f'{bag}: no topic with images among {reader.describe_topics()}; expected '
        f'{" or ".join(_IMAGE_TYPES)} in cdr, as `ros2 bag record` writes them'
    )
