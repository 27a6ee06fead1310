# SPDX-License-Identifier: Apache-2.0
"""Writes answers to a bag: mcap, with the stamps of the frames and the message definitions.

    /lisa/segmentation             lisa_ros/msg/Segmentation
    /lisa/mask, /lisa/confidence   sensor_msgs/msg/Image, as the node publishes them
    /lisa/overlay/compressed       sensor_msgs/msg/CompressedImage, JPEG, with query and answer

`ros2 bag play` and Foxglove open it, alone or together with the evaluated bag.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.rosbag2.errors import WriterError
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from lisa_ros.errors import DataError, OutputError
from lisa_ros.files.text import read_json
from lisa_ros.messages.bag import BagImage
from lisa_ros.messages.segmentation import MessageFactory
from lisa_ros.perception import overlay as overlay_module
from lisa_ros.resources import SOURCE_ROOT
from lisa_ros.results import Segmentation

_MESSAGES = ('Instance', 'StageTime', 'Segmentation')
_TOPICS = {
    '/lisa/segmentation': 'lisa_ros/msg/Segmentation',
    '/lisa/mask': 'sensor_msgs/msg/Image',
    '/lisa/confidence': 'sensor_msgs/msg/Image',
    '/lisa/overlay/compressed': 'sensor_msgs/msg/CompressedImage',
}

_FOLDER = 'answers_bag'  # in the folder of a report
_MARKER = '.lisa_ros_answers'  # in it: an unfinished run leaves no report that would prove it ours
_JPEG_LIMIT = 65500  # longest side of a JPEG [px]


class ResultBag:
    """Writer of a result bag; a context manager that opens and closes the bag."""

    def __init__(self, path: Path):
        """Prepare a writer.

        Args:
            path: of the bag folder, which must not exist.

        Raises:
            DataError: the definitions of lisa_ros/msg are not installed.
            OutputError: on entering the context, if the folder exists or cannot be written; on
                leaving it, if the bag cannot be completed.
        """
        self._path = path
        self._store = get_typestore(Stores.ROS2_JAZZY)
        folder = message_definitions()
        for name in _MESSAGES:
            text = (folder / f'{name}.msg').read_text(encoding='utf-8')
            self._store.register(get_types_from_msg(text, f'lisa_ros/msg/{name}'))
        self._types = self._store.types
        self._make = MessageFactory({**self._types, 'sensor_msgs/msg/Image': self._image})

    def __enter__(self) -> ResultBag:
        try:
            self._writer = Writer(self._path, version=9, storage_plugin=StoragePlugin.MCAP)
            self._writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
            self._writer.open()
            (self._path / _MARKER).touch()
        except (WriterError, OSError) as error:
            raise OutputError(
                f'{self._path}: no bag can be written there ({error}); remove it, or give another '
                '--out'
            ) from error
        self._connections = {
            topic: self._writer.add_connection(topic, kind, typestore=self._store)
            for topic, kind in _TOPICS.items()
        }
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._writer.close()
        except OSError as problem:
            if error is None:  # else that error is the first one
                raise self._output_error(problem) from problem

    def put(self, frame: BagImage, result: Segmentation) -> None:
        """Write the answer about a frame, at the frame's stamp.

        Raises:
            OutputError: it cannot be written.
        """
        stamp = self._types['builtin_interfaces/msg/Time'](*divmod(frame.stamp, 10**9))
        header = self._types['std_msgs/msg/Header'](stamp, frame.frame_id)
        drawn = overlay_module.overlay(
            frame.pixels, result.masks, caption=[result.query, result.answer]
        )
        drawn = drawn[:_JPEG_LIMIT, :_JPEG_LIMIT]  # a line camera's image may be longer
        jpeg = cv2.imencode('.jpg', np.ascontiguousarray(drawn[..., ::-1]))[1].ravel()
        overlay = self._types['sensor_msgs/msg/CompressedImage'](header, 'jpeg', jpeg)
        for topic, message in (
            ('/lisa/segmentation', self._make.segmentation(header, result)),
            ('/lisa/mask', self._make.label_image(header, result)),
            ('/lisa/confidence', self._make.confidence_image(header, result)),
            ('/lisa/overlay/compressed', overlay),
        ):
            data = self._store.serialize_cdr(message, _TOPICS[topic])
            try:
                self._writer.write(self._connections[topic], frame.stamp, data)
            except OSError as error:
                raise self._output_error(error) from error

    def _output_error(self, error: OSError) -> OutputError:
        return OutputError(f'{self._path}: cannot be written ({error}); give another --out')

    def _image(self, data: Any, **fields: Any) -> Any:
        pixels = np.frombuffer(data, np.uint8)  # rosbags needs an array; rclpy takes array('B')
        return self._types['sensor_msgs/msg/Image'](data=pixels, **fields)


def answers_path(out: Path) -> Path:
    """Return the path of the result bag in the folder of a report."""
    return out / _FOLDER


def remove_answers(out: Path) -> None:
    """Remove the result bag of an earlier run, finished or not; keep a folder of other people.

    Args:
        out: folder of the report. Earlier versions left no marker in the result bag: then the
            report.json of a bag shows whose it is.

    Raises:
        OutputError: it cannot be removed.
    """
    folder = answers_path(out)
    if (folder / _MARKER).is_file() or _has_bag_report(out):
        try:
            shutil.rmtree(folder)
        except FileNotFoundError:
            return
        except OSError as error:
            raise OutputError(
                f'{folder}: cannot be removed ({error}); give another --out'
            ) from error


def _has_bag_report(out: Path) -> bool:
    """Return whether a folder has the report of one bag."""
    try:
        content = read_json(out / 'report.json')
    except DataError:
        return False
    settings = content.get('settings') if isinstance(content, dict) else None
    return isinstance(settings, dict) and 'bag' in settings


def message_definitions() -> Path:
    """Return the folder of our .msg files, in a checkout, a pip or a ROS installation.

    Raises:
        DataError: there is none.
    """
    prefixes = [sys.prefix, *os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep)]
    folders = [SOURCE_ROOT / 'msg']
    folders += [Path(prefix) / 'share' / 'lisa_ros' / 'msg' for prefix in prefixes if prefix]
    for folder in folders:
        if all((folder / f'{name}.msg').is_file() for name in _MESSAGES):
            return folder
    raise DataError(
        f'the definitions of lisa_ros/msg are in none of {", ".join(map(str, folders))}: install '
        'lisa_ros again, with pip or colcon'
    )
