# SPDX-License-Identifier: Apache-2.0
"""A picture with its depth and its camera, from files or out of a bag."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rosbags.highlevel import AnyReader

from lisa_ros.errors import DataError, ImageError, SettingsError
from lisa_ros.geometry.camera import Camera
from lisa_ros.geometry.rgbd import resize_registered_depth
from lisa_ros.messages.bag import open_bag
from lisa_ros.messages.image import DEPTH_ENCODINGS, compressed_to_rgb, image_to_rgb
from lisa_ros.messages.rgbd import RgbdFrame, rgbd_from_messages
from lisa_ros.model.image_processing import read_rgb
from lisa_ros.settings import Settings

_IMAGE, _COMPRESSED = 'sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage'
_INFO = 'sensor_msgs/msg/CameraInfo'
_LATE = (
    2.0  # how far a depth image may lie from its picture in the bag [s], however they are stamped
)


@dataclass(frozen=True, eq=False)
class RgbdInput:
    """A picture with its depth, and where it is from."""

    space: RgbdFrame
    stamp: int | None = None  # of its header [ns]; None: of a file
    frame_id: str = ''  # of its header


def from_files(image: Path, depth: Path, k: Sequence[float]) -> RgbdInput:
    """Return a picture with depth of two files.

    Args:
        image: any picture.
        depth: registered to the picture: a PNG of 16 bits [mm], or a .npy of (h, w) floats [m]
            or integers [mm].
        k: fx, fy, cx, cy of the picture [px].

    Raises:
        ImageError: one of them cannot be read, or they do not fit together.
        SettingsError: `k` is no camera.
    """
    pixels = read_rgb(image)
    fx, fy, cx, cy = k
    if not (fx > 0 and fy > 0 and np.isfinite(k).all()):
        raise SettingsError(f'--k {fx:g} {fy:g} {cx:g} {cy:g}: expected fx and fy above 0 [px]')
    matrix = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], np.float64)
    camera = Camera(matrix, (pixels.shape[1], pixels.shape[0]))
    return RgbdInput(RgbdFrame(pixels, resize_registered_depth(read_depth(depth), camera), camera))


def read_depth(path: Path) -> np.ndarray:
    """Return the depth of a file, (h, w) float32 metres, NaN where invalid (REP-118).

    Raises:
        ImageError: it cannot be read, or is no depth.
    """
    try:
        if path.suffix == '.npy':
            found = np.load(path, allow_pickle=False)
        else:
            found = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    except (OSError, ValueError, cv2.error) as error:
        raise ImageError(f'{path} cannot be read as depth: {error}') from error
    wanted = 'a PNG of 16 bits [mm], or .npy of floats [m] or 16 bits and more [mm]'
    if found is None:
        raise ImageError(f'{path} cannot be read as depth: expected {wanted}')
    if found.ndim != 2 or found.dtype.kind not in 'fui' or found.dtype.itemsize < 2:
        raise ImageError(f'{path} is {found.dtype} {found.shape}, no depth: expected {wanted}')
    depth = found.astype(np.float32)
    if found.dtype.kind != 'f':
        depth *= np.float32(0.001)
    depth[~((depth > 0) & (depth < np.inf))] = np.nan
    return depth


def from_bag(
    bag: Path,
    image_topic: str | None = None,
    depth_topic: str | None = None,
    info_topic: str | None = None,
    at: float = 0.0,
) -> RgbdInput:
    """Return a picture of a bag with its depth.

    Args:
        bag: as `bags.opened` takes it.
        image_topic: of Image or CompressedImage; by default the bag's only one in colour.
        depth_topic: of Image in 16UC1 or 32FC1, registered; by default the bag's only one.
        info_topic: of CameraInfo; by default the one beside the picture, or the bag's only one.
        at: the first picture at this time or later is taken [s from the bag's start].

    Raises:
        DataError: no bag, no such topic in it, several and none was asked for, nothing at that
            time.
        ImageError: a message that cannot be read, or picture, depth and camera do not fit.
    """
    with open_bag(bag) as reader:
        kinds = _kinds(reader)
        image_topic = _chosen(bag, '--image-topic', kinds['picture'], image_topic)
        depth_topic = _chosen(bag, '--depth-topic', kinds['depth'], depth_topic)
        sibling = image_topic.removesuffix('/compressed').rpartition('/')[0] + '/camera_info'
        if info_topic is None and sibling in kinds['info']:
            info_topic = sibling
        info_topic = _chosen(bag, '--info-topic', kinds['info'], info_topic)

        start = reader.start_time + round(at * 1e9)
        when, message = next(_messages(reader, image_topic, start), (0, None))
        if message is None:
            lasts = (reader.end_time - reader.start_time) / 1e9
            raise DataError(
                f'{bag}: no picture on {image_topic} at or after {at:g} s; it lasts {lasts:.1f} s'
            )
        stamp, seconds = _stamp(message, when), (when - reader.start_time) / 1e9
        near = round(_LATE * 1e9)
        depth = _nearest(_messages(reader, depth_topic, when - near, when + near), stamp)
        info = _nearest(_messages(reader, info_topic), stamp)  # said once by some drivers
    apart = float('inf') if depth is None else abs(depth[0] - stamp) / 1e9
    if apart > Settings.depth_tolerance:
        raise DataError(
            f'{bag}: no depth on {depth_topic} within {Settings.depth_tolerance:g} s of the '
            f'picture at {seconds:.2f} s; give another --at'
        )
    read = compressed_to_rgb if hasattr(message, 'format') else image_to_rgb
    rectified = 'image_rect' in image_topic  # as image_proc names it
    place = rgbd_from_messages(read(message), message, depth[1], info[1], rectified=rectified)
    return RgbdInput(place, stamp, message.header.frame_id)


def _kinds(reader: AnyReader) -> dict[str, list[str]]:
    """Return the topics that have messages: colour pictures, depth, camera infos."""
    found: dict[str, set[str]] = {'picture': set(), 'depth': set(), 'info': set()}
    for connection in reader.connections:
        if not connection.msgcount or connection.msgtype not in (_IMAGE, _COMPRESSED, _INFO):
            continue
        if connection.msgtype == _INFO:
            kind = 'info'
        else:
            _, first = next(_messages(reader, connection.topic))
            if 'compressedDepth' in getattr(first, 'format', ''):
                continue  # a codec of its own
            is_depth = getattr(first, 'encoding', '') in DEPTH_ENCODINGS
            kind = 'depth' if is_depth else 'picture'
        found[kind].add(connection.topic)
    return {kind: sorted(topics) for kind, topics in found.items()}


def _chosen(bag: Path, option: str, topics: list[str], asked: str | None) -> str:
    """Return the topic that is asked for, or the only one."""
    if asked is None and len(topics) == 1:
        return topics[0]
    if asked in topics:
        return asked
    what = f'nothing that fits on {asked}' if asked else f'{len(topics)} topics that may be meant'
    raise DataError(f'{bag}: {what}; expected {option} to be one of {", ".join(topics) or "none"}')


def _messages(
    reader: AnyReader, topic: str, start: int | None = None, stop: int | None = None
) -> Iterator[tuple[int, Any]]:
    """Yield the bag's time [ns] and the message of all on a topic, between two such times."""
    connections = [c for c in reader.connections if c.topic == topic]
    for connection, when, data in reader.messages(connections, start, stop):
        yield when, reader.deserialize(data, connection.msgtype)


def _nearest(messages: Iterator[tuple[int, Any]], stamp: int) -> tuple[int, Any] | None:
    """Return stamp and message of the one that is nearest to a stamp [ns]; None of none."""
    stamped = ((_stamp(message, when), message) for when, message in messages)
    return min(stamped, key=lambda one: abs(one[0] - stamp), default=None)


def _stamp(message: Any, when: int) -> int:
    """Return the stamp of a header [ns], or the bag's time, where a driver has no clock."""
    stamp = message.header.stamp
    return stamp.sec * 1_000_000_000 + stamp.nanosec or when
