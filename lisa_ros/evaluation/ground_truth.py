# SPDX-License-Identifier: Apache-2.0
"""What a bag's frames truly show: masks by stamp, from wherever people keep them.

FOLDER of <stamp in ns>.png     (H, W) of instance ids, 0 none; objects.json names them:
                                {"6": {"name": "red bowl"}}
TOPIC                           an Image topic of the bag, ids likewise (mono8, 16UC1)
FOLDER or KIND:PATH[:MORE]      a labelled data set (`datasets.named`) whose pictures are called
                                by their stamps, as `lisa-ros frames` writes them
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from lisa_ros.datasets import registry
from lisa_ros.datasets.annotations import Picture, size_of
from lisa_ros.datasets.llava import TextDialogue
from lisa_ros.errors import DataError
from lisa_ros.evaluation.command_file import Command
from lisa_ros.messages.bag import open_bag
from lisa_ros.model.image_processing import UNREADABLE


class GroundTruth(Protocol):
    """Masks by stamp."""

    def mask(self, stamp: int, shape: tuple[int, int], command: Command) -> np.ndarray:
        """Return what a command means, (H, W) uint8: 1 target, 255 unsure, 0 elsewhere.

        Raises:
            DataError: there is no truth for this stamp, of this shape, or for this label.
        """


class InstanceMasks(ABC):
    """Pictures of instance ids."""

    def __init__(self, where: str, names: Mapping[str, Sequence[int]]):
        self._where, self._names = where, names

    @abstractmethod
    def ids(self, stamp: int) -> np.ndarray:
        """Return the ids at a stamp, (H, W)."""

    def mask(self, stamp: int, shape: tuple[int, int], command: Command) -> np.ndarray:
        """See Truth."""
        targets = command.targets
        if targets is None:
            targets = self._names.get(command.label)
            if targets is None:
                raise DataError(
                    f'{self._where}: nothing is called {command.label!r}; names are '
                    f'{", ".join(self._names) or "none (objects.json has them)"}'
                )
        ids = self.ids(stamp)
        if ids.shape != shape:
            raise DataError(
                f'{self._where}: the truth at {stamp} ns is {ids.shape[1]} x {ids.shape[0]}, its '
                f'frame {shape[1]} x {shape[0]} pixels'
            )
        return np.isin(ids, targets).astype(np.uint8)


class InstanceFolder(InstanceMasks):
    """A folder of <stamp>.png."""

    def __init__(self, folder: Path):
        super().__init__(str(folder), _names(folder / 'objects.json'))
        self._folder = folder

    def ids(self, stamp: int) -> np.ndarray:
        """Return the ids at a stamp, (H, W)."""
        path = self._folder / f'{stamp}.png'
        try:
            with Image.open(path) as picture:
                return np.asarray(picture)
        except UNREADABLE as error:
            raise DataError(f'{path}: no truth that can be read ({error})') from error


class InstanceTopic(InstanceMasks):
    """An Image topic of ids."""

    def __init__(self, bag: Path, topic: str):
        super().__init__(f'{bag}, {topic}', {})
        self._ids: dict[int, np.ndarray] = {}
        with open_bag(bag) as reader:
            chosen = [c for c in reader.connections if c.topic == topic]
            if not chosen or any(c.msgtype != 'sensor_msgs/msg/Image' for c in chosen):
                raise DataError(f'{bag}: no Image on {topic} to take the truth from')
            for connection, _, data in reader.messages(chosen):
                message = reader.deserialize(data, connection.msgtype)
                stamp = message.header.stamp
                self._ids[stamp.sec * 1_000_000_000 + stamp.nanosec] = _numbers(message, topic)

    def ids(self, stamp: int) -> np.ndarray:
        """Return the ids at a stamp, (H, W)."""
        if stamp not in self._ids:
            raise DataError(f'{self._where}: no ids at {stamp} ns, which a frame has')
        return self._ids[stamp]


class AnnotationTruth:
    """A labelled data set: a command's label is a query of the picture."""

    def __init__(self, where: str, pictures: Sequence[Picture]):
        self._where = where
        self._pictures = {one.path.stem: one for one in pictures}

    def mask(self, stamp: int, shape: tuple[int, int], command: Command) -> np.ndarray:
        """See Truth."""
        one = self._pictures.get(str(stamp))
        if one is None:
            raise DataError(f'{self._where}: no labelled picture {stamp}, which a frame is')
        if size_of(one.path) != shape[::-1]:
            raise DataError(
                f'{one.path}: labels of another size than its frame, {shape[1]} x {shape[0]}'
            )
        if command.targets == ():
            return np.zeros(shape, np.uint8)
        if command.label is None:
            raise DataError(
                f'{self._where} has names and no ids: give command {command.number + 1} a label'
            )
        asked = [q for q in one.queries if q.text.lower() == command.label.lower()]
        if not asked:
            known = ', '.join(query.text for query in one.queries)
            raise DataError(f'{one.path}: nothing is called {command.label!r}; it has {known}')
        return asked[0].truth(*shape)


def open_ground_truth(text: str, bag: Path) -> GroundTruth:
    """Return the truth by one text: a folder, a topic of the bag, or a data set.

    Raises:
        DataError: there is none.
    """
    folder = Path(text)
    if folder.is_dir() and any(path.stem.isdigit() for path in folder.glob('*.png')):
        labelled = any(path.stem.isdigit() for path in folder.glob('*.json'))
        if not labelled and not any(path.is_dir() for path in folder.iterdir()):
            return InstanceFolder(folder)
    if text.startswith('/') and not folder.exists():
        return InstanceTopic(bag, text)
    pictures = registry.read(text)
    if isinstance(pictures[0], TextDialogue):
        raise DataError(f'{text}: talks have no masks to be a truth')
    return AnnotationTruth(text, pictures)


def _names(path: Path) -> dict[str, list[int]]:
    """Return the ids of each name of an objects.json; none if there is no such file."""
    if not path.is_file():
        return {}
    names: dict[str, list[int]] = {}
    try:
        for number, one in json.loads(path.read_text(encoding='utf-8')).items():
            names.setdefault(str(one['name']), []).append(int(number))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f'{path}: no names of instances ({error!r}); expected {{"6": {{"name": "red bowl"}}}}'
        ) from error
    return names


def _numbers(message: object, topic: str) -> np.ndarray:
    """Return the ids that an Image has, (H, W)."""
    kinds = {'mono8': 'u1', '8UC1': 'u1', 'mono16': 'u2', '16UC1': 'u2', '32SC1': 'i4'}
    if message.encoding not in kinds:
        raise DataError(
            f'{topic}: encoding {message.encoding} has no ids; expected {", ".join(kinds)}'
        )
    order = '>' if message.is_bigendian else '<'
    kind = np.dtype(order + kinds[message.encoding])
    data = np.frombuffer(message.data, np.uint8)
    least = message.width * kind.itemsize
    if data.size < message.height * message.step or message.step < least:
        raise DataError(
            f'{topic}: {data.size} bytes in rows of {message.step} are no {message.encoding} of '
            f'{message.width} x {message.height}'
        )
    rows = data[: message.height * message.step].reshape(message.height, message.step)
    return rows[:, : message.width * kind.itemsize].copy().view(kind)
