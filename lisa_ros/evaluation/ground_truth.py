# SPDX-License-Identifier: Apache-2.0
"""Reads ground-truth masks of the frames of a bag. The stamp of a frame selects its mask.

The masks come from one of these sources:

FOLDER                      <stamp in ns>.png with (H, W) instance ids, 0 for none. objects.json
                            may name the ids: {"6": {"name": "red bowl"}}
TOPIC                       an Image topic of the bag with instance ids (mono8, 16UC1, ...)
FOLDER or KIND:PATH[:MORE]  an annotated data set (`datasets.registry`). The name of each image is
                            its stamp, as `lisa-ros frames` writes them
"""

from __future__ import annotations

import contextlib
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from rosbags.interfaces import Connection

from lisa_ros.datasets import registry
from lisa_ros.datasets.annotations import (
    IMAGE_SUFFIXES,
    ImageWithQueries,
    image_error,
    image_size,
    name_key,
)
from lisa_ros.datasets.json_io import read_or_skip
from lisa_ros.datasets.llava import TextDialogue
from lisa_ros.error_text import short_repr
from lisa_ros.errors import DataError, ErrorHandler, ImageError, raise_error
from lisa_ros.evaluation.command_file import Command
from lisa_ros.files.access import access_problem, list_folder
from lisa_ros.files.json_schema import TEXT, MapOf, Record, check_json
from lisa_ros.files.text import read_json
from lisa_ros.images.mask_file import read_mask
from lisa_ros.messages.bag import open_bag
from lisa_ros.messages.bag_reader import BagReader
from lisa_ros.messages.image import stored_pixels
from lisa_ros.messages.stamp import stamp_ns


class GroundTruth(Protocol):
    """Ground-truth masks, selected by stamp and command."""

    def mask(self, stamp: int, shape: tuple[int, int], command: Command) -> np.ndarray:
        """Return the mask of a command's targets, (H, W) uint8: 1, IGNORED_PIXEL or else 0.

        Args:
            stamp: of the frame [ns].
            shape: (H, W) of the frame.
            command: its targets or its label select the objects.

        Raises:
            DataError: there is no ground truth for this stamp or label, or its size differs from
                the frame's.
        """


class InstanceMasks(ABC):
    """Ground truth from images of instance ids."""

    def __init__(self, source: str, names: Mapping[str, Sequence[int]]):
        """Set the source and the names.

        Args:
            source: folder, or bag and topic, for error messages.
            names: ids by object name.
        """
        self._source, self._names = source, names
        self._known = {number for numbers in names.values() for number in numbers}
        self._has_all_ids = False  # whether `_known` has the ids of all images

    @abstractmethod
    def ids(self, stamp: int) -> np.ndarray:
        """Return the instance ids (H, W) at a stamp [ns].

        Raises:
            DataError: there is no image of ids at this stamp.
        """

    @abstractmethod
    def stamps(self) -> list[int]:
        """Return the stamps of all images of ids [ns]."""

    def mask(self, stamp: int, shape: tuple[int, int], command: Command) -> np.ndarray:
        """See GroundTruth."""
        targets = command.targets
        if targets is None:
            targets = self._names.get(command.label)
            if targets is None:
                raise DataError(
                    f'{self._source}: no object has the name {command.label!r}; expected one of '
                    f'{", ".join(self._names) or "no names, because objects.json has none"}'
                )
        ids = self.ids(stamp)
        if ids.shape != shape:
            raise DataError(
                f'{self._source}: the ids at {stamp} ns have {ids.shape[1]} x '
                f'{ids.shape[0]} pixels, the frame has {shape[1]} x {shape[0]}'
            )
        self._check_known(targets, ids)
        return np.isin(ids, targets).astype(np.uint8)

    def _check_known(self, targets: Sequence[int], ids: np.ndarray) -> None:
        """Check that a target is in some image: a wrong number is no absent object.

        Raises:
            DataError: all of them are in none.
        """
        self._known.update(np.unique(ids).tolist())
        if targets and self._known.isdisjoint(targets) and not self._has_all_ids:
            for stamp in self.stamps():
                with contextlib.suppress(DataError):  # it is reported where it is used
                    self._known.update(np.unique(self.ids(stamp)).tolist())
            self._has_all_ids = True
        if targets and self._known.isdisjoint(targets):
            raise DataError(
                f'{self._source}: no image of ids contains {targets[0]}; correct the targets, or '
                'write `absent: true`'
            )


class InstanceFolder(InstanceMasks):
    """Ground truth from a folder of id images, <stamp>.png."""

    def __init__(self, folder: Path):
        """Read the names of the objects, not the images.

        Raises:
            DataError: objects.json is not valid.
        """
        super().__init__(str(folder), _read_names(folder / 'objects.json'))
        self._folder = folder

    def ids(self, stamp: int) -> np.ndarray:
        """See InstanceMasks."""
        path = self._images.get(stamp)
        if path is None:
            raise DataError(
                f'{self._folder}/{stamp}.png: no ground truth for this frame: an image of '
                'instance ids is needed'
            )
        try:
            return read_mask(path).ids('instance ids')
        except ImageError as error:
            raise image_error(path, error, 'an image of instance ids') from error

    def stamps(self) -> list[int]:
        """See InstanceMasks."""
        return list(self._images)

    @cached_property
    def _images(self) -> dict[int, Path]:
        """The images of ids by stamp [ns]."""
        files = list_folder(self._folder, '.png')
        return {int(path.stem): path for path in files if path.stem.isdecimal()}


class InstanceTopic(InstanceMasks):
    """Ground truth from an Image topic of instance ids. All its images are kept in memory."""

    def __init__(self, bag: Path, topic: str, on_error: ErrorHandler = raise_error):
        """Read all images of the topic.

        Args:
            bag: with the topic.
            topic: of Image messages.
            on_error: called for each part and each message that cannot be read; if it returns, the
                message is left out.

        Raises:
            DataError: the bag has no such topic, or no message on it; or an image cannot be read,
                and `on_error` raised it.
        """
        super().__init__(f'{bag}, {topic}', {})
        self._ids: dict[int, np.ndarray] = {}
        with open_bag(bag, on_error) as reader:
            connections = [c for c in reader.connections if c.topic == topic]
            if not connections or any(c.msgtype != 'sensor_msgs/msg/Image' for c in connections):
                raise DataError(f'{bag}: has no Image topic {topic} for the ground truth')
            is_empty = True
            for connection, _, data in reader.messages(connections):
                is_empty = False
                read_or_skip(partial(self._add, reader, connection, data), on_error)
            if is_empty:
                raise reader.no_messages(connections, 'images of instance ids')

    def _add(self, reader: BagReader, connection: Connection, data: bytes) -> None:
        """Add the image of ids of a message.

        Raises:
            DataError: it cannot be read.
        """
        message = reader.deserialize_stamped(data, connection.msgtype)
        self._ids[stamp_ns(message.header)] = _read_ids(message, connection.topic)

    def stamps(self) -> list[int]:
        """See InstanceMasks."""
        return list(self._ids)

    def ids(self, stamp: int) -> np.ndarray:
        """See InstanceMasks."""
        if stamp not in self._ids:
            raise DataError(f'{self._source}: has no image of ids for the frame at {stamp} ns')
        return self._ids[stamp]


class AnnotationTruth:
    """Ground truth from an annotated data set: a command's label is the text of a query."""

    def __init__(self, source: str, images: Sequence[ImageWithQueries]):
        """Index the images by their stamps, which are their file names.

        Args:
            source: where the images come from, for error messages.
            images: of the data set.

        Raises:
            DataError: two images have the same stamp.
        """
        self._source = source
        self._images: dict[str, ImageWithQueries] = {}
        for image in images:
            first = self._images.setdefault(image.path.stem, image)
            if first is not image:
                raise DataError(
                    f'{source}: {first.path} and {image.path} have the same stamp; give one data '
                    'set of one bag'
                )

    def mask(self, stamp: int, shape: tuple[int, int], command: Command) -> np.ndarray:
        """See GroundTruth."""
        image = self._images.get(str(stamp))
        if image is None:
            raise DataError(f'{self._source}: has no annotated image for the frame at {stamp} ns')
        if image_size(image.path) != shape[::-1]:
            raise DataError(
                f'{image.path}: has another size than its frame, {shape[1]} x {shape[0]} pixels'
            )
        if command.targets == ():
            return np.zeros(shape, np.uint8)
        if command.label is None:
            raise DataError(
                f'{self._source} has names, but no ids: give command {command.number + 1} a label '
                'instead of targets'
            )
        label = name_key(command.label)
        queries = [query for query in image.queries if name_key(query.text) == label]
        if not queries:
            known = ', '.join(query.text for query in image.queries)
            raise DataError(
                f'{image.path}: no object has the name {command.label!r}; expected one of {known}'
            )
        masks = []
        for query in queries:
            query.check(*shape)
            masks.append(query.ground_truth(*shape))
        if any(not np.array_equal(mask, masks[0]) for mask in masks):
            raise DataError(
                f'{image.path}: has {len(queries)} different regions named {command.label!r} '
                '(upper and lower case count as the same); give each region its own name'
            )
        return masks[0]


def open_ground_truth(text: str, bag: Path, on_error: ErrorHandler = raise_error) -> GroundTruth:
    """Open the ground truth with this name.

    Args:
        text: folder, topic of the bag, or data set, as in the module's docstring.
        bag: the bag whose frames are evaluated.
        on_error: called for each file, entry or message of it that cannot be used; if it returns,
            the item is left out.

    Raises:
        DataError: there is no ground truth of this name, or `on_error` raised it.
    """
    folder = Path(text)
    problem = access_problem(folder)
    if problem and not problem.startswith('no such'):
        raise DataError(f'{folder}: {problem}')
    if folder.is_dir() and _is_folder_of_ids(folder):
        return InstanceFolder(folder)
    if text.startswith('/') and not folder.exists():
        return InstanceTopic(bag, text, on_error)
    images = registry.read_dataset(text, on_error, explained=False)
    if not images:
        raise DataError(f'{text}: nothing in it can be used')
    if isinstance(images[0], TextDialogue):
        raise DataError(f'{text}: text dialogues have no masks; give a data set with masks')
    return AnnotationTruth(text, images)


def _is_folder_of_ids(folder: Path) -> bool:
    """Return whether a folder has images named by their stamps, and no labels of an image.

    Labels of 5.png are 5.json or masks in the folder 5; other folders have no meaning.
    """
    if not any(path.stem.isdigit() for path in folder.glob('*.png')):
        return False
    if any(path.stem.isdigit() for path in folder.glob('*.json')):
        return False
    images = (path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    return not any(path.with_suffix('').is_dir() for path in images)


def _read_names(path: Path) -> dict[str, list[int]]:
    """Return the ids of each name in an objects.json; none if there is no such file."""
    if not path.is_file():
        return {}
    content = read_json(path)
    check_json(path, content, MapOf(Record({'name': TEXT})))
    names: dict[str, list[int]] = {}
    for number, entry in content.items():
        if not re.fullmatch('[0-9]{1,9}', number):
            raise DataError(
                f'{path}: the key {short_repr(number)} is no instance id; expected '
                '{"6": {"name": "red bowl"}}'
            )
        names.setdefault(entry['name'], []).append(int(number))
    return names


_ID_TYPES = {'mono8': 'u1', '8UC1': 'u1', 'mono16': 'u2', '16UC1': 'u2', '32SC1': 'i4'}


def _read_ids(message: Any, topic: str) -> np.ndarray:
    """Return the ids (H, W) of an Image message.

    Raises:
        DataError: its encoding cannot hold ids, or its data is too short.
    """
    if message.encoding not in _ID_TYPES:
        raise DataError(
            f'{topic}: encoding {message.encoding} cannot hold ids; expected one of '
            f'{", ".join(_ID_TYPES)}'
        )
    try:
        return stored_pixels(message, _ID_TYPES[message.encoding], 1)[:, :, 0].copy()
    except ImageError as error:
        raise DataError(f'{topic}: {error}') from error
