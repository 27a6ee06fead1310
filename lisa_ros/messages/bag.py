# SPDX-License-Identifier: Apache-2.0
"""Bags read without ROS: open a bag, read its images, look up when they arrived."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rosbags.highlevel import AnyReader, AnyReaderError
from rosbags.interfaces import Connection
from rosbags.typesys import Stores, get_typestore

from lisa_ros.errors import DataError, ImageError
from lisa_ros.messages.image import message_to_rgb
from lisa_ros.messages.stamp import stamp_ns

_IMAGE_TYPES = ('sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage')
_ZSTD_MAGIC = b'\x28\xb5\x2f\xfd'  # start of a Zstandard frame (RFC 8878); CDR starts with 0


@dataclass(frozen=True)
class BagImage:
    """An image of a bag."""

    stamp: int  # of its header; if that is 0 or repeated, the recording time; unique [ns]
    pixels: np.ndarray  # (H, W, 3) uint8 RGB
    frame_id: str = ''  # of its header


@contextlib.contextmanager
def open_bag(bag: Path) -> Iterator[AnyReader]:
    """Open a bag and yield a rosbags reader.

    Args:
        bag: one of:
            - a rosbag2 folder, mcap or sqlite3; it may be split and compressed. metadata.yaml may
              be missing if neither messages nor files are compressed one by one;
            - a single .mcap or .db3 file;
            - a .bag of ROS 1.

    Raises:
        DataError: the bag does not exist or cannot be read; the message says why.
    """
    if not bag.exists():
        raise DataError(f'there is no bag at {bag}')
    paths = [bag]
    if bag.is_dir() and not (bag / 'metadata.yaml').exists():
        paths = sorted(bag.glob('*.mcap')) or sorted(bag.glob('*.db3'))
        if not paths:
            raise DataError(
                f'{bag} has neither a metadata.yaml nor .mcap or .db3 files that can be read '
                f'without it; recreate the metadata with `ros2 bag reindex {bag}`'
            )
    try:
        reader = AnyReader(paths, default_typestore=get_typestore(Stores.LATEST))
        reader.open()
    except (AnyReaderError, ValueError, OSError) as error:
        raise DataError(f'{bag} cannot be read as a rosbag2 bag: {error}') from error
    try:
        yield reader
    finally:
        reader.close()


def read_images(bag: Path, topic: str | None = None, every: float = 0.0) -> Generator[BagImage]:
    """Yield the images of a topic, in the order of the bag.

    Args:
        bag: see `open_bag`.
        topic: of Image or CompressedImage messages; None: the only one in the bag.
        every: minimum time between two images, by their stamps [s]; 0: all images.

    Raises:
        DataError: the bag cannot be read; it has no such topic; `topic` is None and several topics
            have images; or an image cannot be decoded.
    """
    last_stamp, used_stamps = None, set()
    with open_bag(bag) as reader:
        for connection, bag_time, raw_message in reader.messages(
            _image_connections(reader, bag, topic)
        ):
            if raw_message[:4] == _ZSTD_MAGIC:
                raise DataError(
                    f'{bag}: messages are compressed one by one, and the metadata.yaml that says '
                    f'so is missing; recreate it with `ros2 bag reindex {bag}`'
                )
            message = reader.deserialize(raw_message, connection.msgtype)
            stamp = stamp_ns(message.header)
            if stamp == 0 or stamp in used_stamps:
                stamp = bag_time  # the driver does not set stamps
            # a stamp before the last one: the clock was reset
            if last_stamp is not None and 0 <= stamp - last_stamp < every * 1e9:
                continue
            last_stamp = stamp
            used_stamps.add(stamp)
            try:
                pixels = message_to_rgb(message)
            except ImageError as error:
                raise DataError(f'{bag}, {connection.topic}, stamp {stamp}: {error}') from error
            yield BagImage(stamp, pixels, message.header.frame_id)


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


def image_times(bag: Path, topic: str) -> dict[int, float]:
    """Return the recording time of each image, from the bag's start [s], by its stamp [ns].

    Raises:
        DataError: as `read_images`; or a stamp is 0 or repeated.
    """
    times: dict[int, float] = {}
    with open_bag(bag) as reader:
        for connection, bag_time, raw_message in reader.messages(
            _image_connections(reader, bag, topic)
        ):
            stamp = stamp_ns(reader.deserialize(raw_message, connection.msgtype).header)
            if stamp == 0 or stamp in times:
                raise DataError(
                    f'{bag}, {topic}: stamp {stamp} is 0 or repeated, so answers cannot be '
                    'matched to images: evaluate the bag offline (without --live)'
                )
            times[stamp] = (bag_time - reader.start_time) / 1e9
    return times


def _image_connections(reader: AnyReader, bag: Path, topic: str | None) -> list[Connection]:
    """Return the connections of an image topic; topic None: the only one with images."""
    connections = [c for c in reader.connections if c.msgtype in _IMAGE_TYPES]
    topics = sorted({c.topic for c in connections})
    if topic is None and len(topics) == 1:
        return connections
    chosen = [c for c in connections if c.topic == topic]
    if not chosen:
        problem = f'no images on {topic}' if topic else 'more than one topic with images, or none'
        raise DataError(
            f'{bag}: {problem}; expected --topic to be one of {", ".join(topics) or "none"}'
        )
    return chosen
