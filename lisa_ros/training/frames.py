# SPDX-License-Identifier: Apache-2.0
"""Takes pictures out of a bag, for people to label and `lisa-ros finetune` to learn from.

    lisa-ros frames BAG --topic /camera/color/image_raw --out frames --every 2
    labelme frames             # draw what the robot should find, and call it by its name
    lisa-ros finetune --data frames ...

A frame is `<stamp>.png`, its header's stamp in nanoseconds, so that it is found again in the bag.
Frames that are there already are written anew; the labels beside them stay.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from rosbags.highlevel import AnyReader
from rosbags.interfaces import Connection

from lisa_ros.bags import opened
from lisa_ros.conversions import compressed_to_rgb, image_to_rgb
from lisa_ros.errors import DataError, ImageError

_READERS = {
    'sensor_msgs/msg/Image': image_to_rgb,
    'sensor_msgs/msg/CompressedImage': compressed_to_rgb,
}


def take(bag: Path, out: Path, topic: str | None = None, every: float = 0.0) -> list[Path]:
    """Write frames of a bag as PNG into a folder; return the files, in the bag's order.

    Args:
        bag: rosbag2 folder (mcap or sqlite3), a bare .mcap, or a bag of ROS 1.
        out: made if it is not there.
        topic: of Image or CompressedImage; by default the bag's only one.
        every: least time between two frames, by their stamps [s]; 0: all of them.

    Raises:
        DataError: no bag, no such topic in it, or several and none was asked for; a message that
            is no picture, or a folder that cannot be written to.
    """
    written: list[Path] = []
    last = None
    with opened(bag) as reader:
        chosen = _connections(reader, bag, topic)
        for connection, when, data in reader.messages(chosen):
            message = reader.deserialize(data, connection.msgtype)
            stamp = message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec
            if stamp == 0 or out / f'{stamp}.png' in written:
                stamp = when  # a driver without a clock: the bag's own time
            # a stamp before the last one: the clock began anew
            if last is not None and 0 <= stamp - last < every * 1e9:
                continue
            last = stamp
            path = out / f'{stamp}.png'
            try:
                picture = Image.fromarray(_READERS[connection.msgtype](message))
                out.mkdir(parents=True, exist_ok=True)
                picture.save(path)
            except ImageError as error:
                raise DataError(f'{bag}, {connection.topic}, stamp {stamp}: {error}') from error
            except OSError as error:
                raise DataError(f'{out}: cannot be written to ({error})') from error
            written.append(path)
    return written


def _connections(reader: AnyReader, bag: Path, topic: str | None) -> list[Connection]:
    """Return where the pictures of a topic come from."""
    pictures = [c for c in reader.connections if c.msgtype in _READERS]
    topics = sorted({c.topic for c in pictures})
    if topic is None and len(topics) == 1:
        return pictures
    chosen = [c for c in pictures if c.topic == topic]
    if not chosen:
        asked = f'no pictures on {topic}' if topic else 'more than one topic of pictures, or none'
        raise DataError(
            f'{bag}: {asked}; expected --topic to be one of {", ".join(topics) or "none"}'
        )
    return chosen
