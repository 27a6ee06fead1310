# SPDX-License-Identifier: Apache-2.0
"""Bags without ROS: opened, and their pictures taken out."""

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
from lisa_ros.messages.image import compressed_to_rgb, image_to_rgb

_READERS = {
    'sensor_msgs/msg/Image': image_to_rgb,
    'sensor_msgs/msg/CompressedImage': compressed_to_rgb,
}
_ZSTD = b'\x28\xb5\x2f\xfd'  # how its frames begin (RFC 8878); a CDR message begins with 0


@dataclass(frozen=True)
class BagImage:
    """A picture of a bag."""

    stamp: int  # of its header, or, where that says nothing, of the bag [ns]; no other has it
    pixels: np.ndarray  # (H, W, 3) uint8 RGB
    frame_id: str = ''  # of its header


@contextlib.contextmanager
def open_bag(bag: Path) -> Iterator[AnyReader]:
    """Give a rosbags reader of the bag.

    Args:
        bag: a rosbag2 folder (mcap or sqlite3, whole or split, compressed or not), one that has
            lost its metadata.yaml (unless messages or files are compressed one by one), a bare
            .mcap or .db3, or a .bag of ROS 1.

    Raises:
        DataError: it is not there, or no bag; the message says what is wrong with it.
    """
    if not bag.exists():
        raise DataError(f'there is no bag at {bag}')
    paths = [bag]
    if bag.is_dir() and not (bag / 'metadata.yaml').exists():
        paths = sorted(bag.glob('*.mcap')) or sorted(bag.glob('*.db3'))
        if not paths:
            raise DataError(
                f'{bag} has no metadata.yaml, and no .mcap or .db3, which could be read without: '
                f'`ros2 bag reindex {bag}` makes it anew'
            )
    try:
        reader = AnyReader(paths, default_typestore=get_typestore(Stores.LATEST))
        reader.open()
    except (AnyReaderError, ValueError, OSError) as error:
        raise DataError(f'{bag} is no rosbag2 bag that can be read: {error}') from error
    try:
        yield reader
    finally:
        reader.close()


def read_images(bag: Path, topic: str | None = None, every: float = 0.0) -> Generator[BagImage]:
    """Yield the pictures of a topic, in the bag's order.

    Args:
        bag: as `opened` takes it.
        topic: of Image or CompressedImage; by default the bag's only one.
        every: least time between two pictures, by their stamps [s]; 0: all of them.

    Raises:
        DataError: no bag, no such topic in it, or several and none was asked for; or a message
            that is no picture.
    """
    last, seen = None, set()
    with open_bag(bag) as reader:
        for connection, when, data in reader.messages(_connections(reader, bag, topic)):
            if data[:4] == _ZSTD:
                raise DataError(
                    f'{bag}: its messages are compressed one by one, and the metadata.yaml that '
                    f'says so is lost: `ros2 bag reindex {bag}` makes it anew'
                )
            message = reader.deserialize(data, connection.msgtype)
            stamp = message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec
            if stamp == 0 or stamp in seen:
                stamp = when  # a driver without a clock: the bag's own time
            # a stamp before the last one: the clock began anew
            if last is not None and 0 <= stamp - last < every * 1e9:
                continue
            last = stamp
            seen.add(stamp)
            try:
                pixels = _READERS[connection.msgtype](message)
            except ImageError as error:
                raise DataError(f'{bag}, {connection.topic}, stamp {stamp}: {error}') from error
            yield BagImage(stamp, pixels, message.header.frame_id)


def prefetch(frames: Generator[BagImage], depth: int = 4) -> Iterator[BagImage]:
    """Yield the same frames in the same order, the next few being read and decoded meanwhile.

    Args:
        frames: used by one thread of its own, which ends with this iterator.
        depth: frames that wait at most.

    Raises:
        Whatever `frames` raises, at its place.
    """
    with ThreadPoolExecutor(1, thread_name_prefix='decoding') as decoder:
        waiting = deque(decoder.submit(next, frames, None) for _ in range(depth))
        try:
            while (frame := waiting.popleft().result()) is not None:
                waiting.append(decoder.submit(next, frames, None))
                yield frame
        finally:
            for one in waiting:
                one.cancel()
            decoder.submit(frames.close)  # a bag is closed where it was read


def image_times(bag: Path, topic: str) -> dict[int, float]:
    """Return when each picture of a topic comes, [s from the bag's start] by its stamp [ns].

    Raises:
        DataError: as `pictures`; or a picture's stamp is not its own.
    """
    times: dict[int, float] = {}
    with open_bag(bag) as reader:
        for connection, when, data in reader.messages(_connections(reader, bag, topic)):
            stamp = reader.deserialize(data, connection.msgtype).header.stamp
            key = stamp.sec * 1_000_000_000 + stamp.nanosec
            if key == 0 or key in times:
                raise DataError(
                    f'{bag}, {topic}: stamp {key} is not of one picture alone, so an answer could '
                    'not be told from another: evaluate it offline'
                )
            times[key] = (when - reader.start_time) / 1e9
    return times


def _connections(reader: AnyReader, bag: Path, topic: str | None) -> list[Connection]:
    """Return where the pictures of a topic come from."""
    found = [c for c in reader.connections if c.msgtype in _READERS]
    topics = sorted({c.topic for c in found})
    if topic is None and len(topics) == 1:
        return found
    chosen = [c for c in found if c.topic == topic]
    if not chosen:
        asked = f'no pictures on {topic}' if topic else 'more than one topic of pictures, or none'
        raise DataError(
            f'{bag}: {asked}; expected --topic to be one of {", ".join(topics) or "none"}'
        )
    return chosen
