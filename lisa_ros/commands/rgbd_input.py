# SPDX-License-Identifier: Apache-2.0
"""Read an RGB-D image from files or from a bag."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lisa_ros.errors import DataError, ErrorHandler, ImageError, SettingsError, raise_error
from lisa_ros.files.access import access_problem
from lisa_ros.geometry.camera import Camera, focal_length_range
from lisa_ros.geometry.rgbd import resize_registered_depth
from lisa_ros.images.image_file import (
    decode_values,
    exif_orientation,
    has_white_as_zero,
    read_rgb,
)
from lisa_ros.images.pixel_limit import check_image_size
from lisa_ros.messages.bag import open_bag
from lisa_ros.messages.bag_reader import BagReader
from lisa_ros.messages.compressed_format import CompressedFormat
from lisa_ros.messages.image import (
    DEPTH_ENCODINGS,
    depth_in_metres,
    is_compressed,
    message_to_rgb,
)
from lisa_ros.messages.rgbd import RgbdFrame, rgbd_from_messages
from lisa_ros.messages.stamp import stamp_ns
from lisa_ros.settings import Settings

_IMAGE, _COMPRESSED = 'sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage'
_INFO = 'sensor_msgs/msg/CameraInfo'
# Search for the depth message within this bag time before and after the image [s]; the header
# stamps decide which one matches.
_SEARCH_WINDOW = 2.0
_DEPTH_FILES = 'a 16-bit PNG [mm], or a .npy of floats [m] or of integers of 16 bits or more [mm]'


@dataclass(frozen=True, eq=False)
class RgbdInput:
    """An RGB-D image and its header."""

    rgbd: RgbdFrame
    stamp: int | None = None  # of the header [ns]; None: from a file
    frame_id: str = ''  # of the header


def from_files(image: Path, depth: Path, k: Sequence[float]) -> RgbdInput:
    """Return the RGB-D image of two files.

    All three are those of the stored pixels. An image or depth file that its EXIF orientation
    turns is refused, because nothing says whether the others were turned, too.

    Args:
        image: any image format.
        depth: depth registered to the image: a 16-bit PNG [mm], or a .npy of (h, w) floats [m]
            or integers [mm].
        k: fx, fy, cx, cy of the image [px].

    Raises:
        ImageError: a file cannot be read, is turned by its EXIF orientation, or the depth does
            not match the image.
        SettingsError: a focal length in `k` is not positive or not one of a lens, or a value is
            not finite.
    """
    _check_not_turned(image)
    pixels = read_rgb(image)
    fx, fy, cx, cy = k
    if not (fx > 0 and fy > 0 and np.isfinite(k).all()):
        raise SettingsError(f'--k {fx:g} {fy:g} {cx:g} {cy:g}: expected fx and fy above 0 [px]')
    size = pixels.shape[1], pixels.shape[0]
    shortest, longest = focal_length_range(size)
    if not (shortest <= min(fx, fy) and max(fx, fy) <= longest):
        raise SettingsError(
            f'--k {fx:g} {fy:g} {cx:g} {cy:g}: expected fx and fy of {shortest:g} to {longest:g} '
            'for this image: give pixels, not fractions of the image'
        )
    matrix = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], np.float64)
    camera = Camera(matrix, size)
    return RgbdInput(RgbdFrame(pixels, resize_registered_depth(read_depth(depth), camera), camera))


def read_depth(path: Path) -> np.ndarray:
    """Return the depth of a file, (h, w) float32 [m], NaN where invalid (REP-118).

    Raises:
        ImageError: the file cannot be read, is not a depth image, is turned by its EXIF
            orientation, or is a TIFF that says that its value 0 is white.
    """
    problem = access_problem(path)
    if problem:
        raise ImageError(f'{path} cannot be read as depth: {problem}')
    if path.suffix == '.npy':
        values = _read_npy(path)
    else:
        _check_not_turned(path)
        _check_black_is_zero(path)
        values = decode_values(path, str(path))
    if values.ndim != 2 or values.dtype.kind not in 'fui' or values.dtype.itemsize < 2:
        raise ImageError(
            f'{path} is {values.dtype} {values.shape}, not depth: expected {_DEPTH_FILES}'
        )
    return depth_in_metres(values)


def _read_npy(path: Path) -> np.ndarray:
    """Return the array of a .npy file; the size that it claims is compared with the file first."""
    try:
        values = np.load(path, mmap_mode='r', allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise ImageError(
            f'{path} cannot be read as depth: {error}; expected {_DEPTH_FILES}'
        ) from error
    if not isinstance(values, np.ndarray):
        raise ImageError(f'{path} holds several arrays: expected {_DEPTH_FILES}')
    if values.ndim == 2:
        check_image_size(values.shape[1], values.shape[0], str(path))
    return values


def _check_not_turned(path: Path) -> None:
    """Raise an ImageError if viewers turn an image by its EXIF orientation."""
    orientation = exif_orientation(path)
    if orientation != 1:
        raise ImageError(
            f'{path} has the EXIF orientation {orientation}: viewers show it turned, and image, '
            'depth and --k may not all belong to the stored pixels; expected 1 or none. Turn all '
            'three the same way, then save the file without the tag (exiftool -Orientation= FILE)'
        )


def _check_black_is_zero(path: Path) -> None:
    """Raise an ImageError for depth that is perhaps stored inverted."""
    if has_white_as_zero(path):
        raise ImageError(
            f'{path} has the PhotometricInterpretation 0, white is zero, which has no meaning for '
            f'depth; expected 1: save it as {_DEPTH_FILES}'
        )


def from_bag(
    bag: Path,
    image_topic: str | None = None,
    depth_topic: str | None = None,
    info_topic: str | None = None,
    at: float = 0.0,
    on_error: ErrorHandler = raise_error,
) -> RgbdInput:
    """Return an RGB-D image of a bag.

    Args:
        bag: a path that `messages.bag.open_bag` takes.
        image_topic: topic of Image or CompressedImage; None: the only colour image topic.
        depth_topic: topic of registered depth, Image in 16UC1 or 32FC1, or CompressedImage
            (compressedDepth, or PNG of 16UC1); None: the only Image of depth, else the only
            CompressedImage.
        info_topic: topic of CameraInfo; None: camera_info in the namespace of the image topic, or
            the only one.
        at: take the first image at or after this time [s from the start of the bag].
        on_error: called for each part of the bag and each message on the way to the image that
            cannot be read; if it returns, the part or the message is left out.

    Raises:
        DataError: there is no bag or no such topic, a topic must be chosen, or there is no image
            at that time; or a part cannot be read, and `on_error` raised it.
        ImageError: a message cannot be read, or depth or camera info does not match the image.
    """
    with open_bag(bag, on_error) as reader:
        image_topic, depth_topic, info_topic = _choose_topics(
            bag, reader, image_topic, depth_topic, info_topic
        )
        start = reader.start_time + round(at * 1e9)
        images = _messages(reader, image_topic, on_error, start)
        bag_time, image = next(images, (0, None))
        if image is None:
            duration = (reader.end_time - reader.start_time) / 1e9
            raise DataError(
                f'{bag}: no image on {image_topic} at or after {at:g} s; it lasts {duration:.1f} s'
            )
        stamp, seconds = _stamp_or_bag_time(image, bag_time), (bag_time - reader.start_time) / 1e9
        window = round(_SEARCH_WINDOW * 1e9)
        depth = _nearest(
            _messages(reader, depth_topic, on_error, bag_time - window, bag_time + window), stamp
        )
        info = _nearest(_messages(reader, info_topic, on_error), stamp)  # it may be sent only once
        if info is None:
            infos = [c for c in reader.connections if c.topic == info_topic]
            raise reader.no_messages(infos, 'camera_info')
    difference = float('inf') if depth is None else abs(depth[0] - stamp) / 1e9
    if difference > Settings.depth_tolerance:
        raise DataError(
            f'{bag}: no depth on {depth_topic} within {Settings.depth_tolerance:g} s of the '
            f'image at {seconds:.2f} s; choose another time with --at'
        )
    rectified = 'image_rect' in image_topic  # image_proc names rectified topics so
    rgbd = rgbd_from_messages(message_to_rgb(image), image, depth[1], info[1], rectified=rectified)
    return RgbdInput(rgbd, stamp, image.header.frame_id)


def _choose_topics(
    bag: Path,
    reader: BagReader,
    image_topic: str | None,
    depth_topic: str | None,
    info_topic: str | None,
) -> tuple[str, str, str]:
    """Return the topics of image, depth and camera info; find those that are None."""
    by_kind = _topics_by_kind(reader)
    image_topic = _choose_topic(bag, reader, '--image-topic', by_kind['image'], image_topic)
    depth_topics = by_kind['depth']
    if depth_topic is not None or not depth_topics:
        depth_topics = sorted(depth_topics + by_kind['compressed depth'])
    depth_topic = _choose_topic(bag, reader, '--depth-topic', depth_topics, depth_topic)
    sibling = image_topic.removesuffix('/compressed').rpartition('/')[0] + '/camera_info'
    if info_topic is None and sibling in by_kind['info']:
        info_topic = sibling
    return (
        image_topic,
        depth_topic,
        _choose_topic(bag, reader, '--info-topic', by_kind['info'], info_topic),
    )


def _topics_by_kind(reader: BagReader) -> dict[str, list[str]]:
    """Return the topics with messages: image (colour), depth, compressed depth and info."""
    topics: dict[str, set[str]] = {
        kind: set() for kind in ('image', 'depth', 'compressed depth', 'info')
    }
    for connection in reader.connections:
        if not connection.msgcount or connection.msgtype not in (_IMAGE, _COMPRESSED, _INFO):
            continue
        if connection.msgtype == _INFO:
            kind = 'info'
        else:
            # a damaged message of another topic is no reason to fail
            _, first = next(_messages(reader, connection.topic, _ignore), (0, None))
            if first is None:
                continue
            kind = _kind_of_image(first)
        topics[kind].add(connection.topic)
    return {kind: sorted(names) for kind, names in topics.items()}


def _kind_of_image(message: Any) -> str:
    """Return the kind of an Image or CompressedImage, by its encoding."""
    if is_compressed(message):
        return 'compressed depth' if CompressedFormat.parse(message.format).is_depth else 'image'
    return 'depth' if message.encoding in DEPTH_ENCODINGS else 'image'


def _choose_topic(
    bag: Path, reader: BagReader, flag: str, topics: list[str], name: str | None
) -> str:
    """Return the named topic, or the only one if no name is given."""
    if name is None and len(topics) == 1:
        return topics[0]
    if name in topics:
        return name
    if not topics:
        raise DataError(
            f'{bag}: no topic for {flag} has messages that can be read; expected colour images, '
            f'depth images and camera_info: record all three; it has {reader.describe_topics()}'
        )
    problem = f'no suitable topic {name}' if name else f'{len(topics)} suitable topics'
    raise DataError(f'{bag}: {problem}; expected {flag} to be one of {", ".join(topics)}')


def _messages(
    reader: BagReader,
    topic: str,
    on_error: ErrorHandler,
    start: int | None = None,
    stop: int | None = None,
) -> Iterator[tuple[int, Any]]:
    """Yield bag time [ns] and message of a topic, between two bag times [ns]."""
    connections = [c for c in reader.connections if c.topic == topic]
    for connection, bag_time, data in reader.messages(connections, start, stop):
        try:
            message = reader.deserialize_stamped(data, connection.msgtype)
        except DataError as error:
            seconds = (bag_time - reader.start_time) / 1e9
            on_error(DataError(f'{topic}, {seconds:.2f} s after the start: {error}'))
            continue
        yield bag_time, message


def _ignore(error: DataError) -> None:
    """Go on without the part that cannot be read."""


def _nearest(messages: Iterator[tuple[int, Any]], stamp: int) -> tuple[int, Any] | None:
    """Return stamp and message of the one nearest to a stamp [ns]; None if there is none."""
    stamped = ((_stamp_or_bag_time(message, bag_time), message) for bag_time, message in messages)
    return min(stamped, key=lambda pair: abs(pair[0] - stamp), default=None)


def _stamp_or_bag_time(message: Any, bag_time: int) -> int:
    """Return the stamp of the header [ns], or the bag time if the driver did not set it."""
    return stamp_ns(message.header) or bag_time
