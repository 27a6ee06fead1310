# SPDX-License-Identifier: Apache-2.0
"""Pictures of class numbers: ADE20K, COCO-Stuff and Mapillary Vistas, as they are published.

    ADE20K       images/training/*.jpg, annotations/training/*.png, objectInfo150.txt
    COCO-Stuff   a folder of *.png of class numbers, COCO's pictures, labels.txt
    Mapillary    training/images/*.jpg, training/v2.0/labels/*.png, config_v2.0.json

Every class that shows in a map is a query by its name, all its pixels together.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from lisa_ros.datasets.annotations import Query
from lisa_ros.datasets.json_io import folder, read_json, validated_entries
from lisa_ros.errors import DataError
from lisa_ros.model.image_processing import UNREADABLE


@dataclass(frozen=True)
class LabelMapRegion:
    """All pixels of a map that have one number."""

    numbers: np.ndarray  # (H, W), shared by all classes of a map
    number: int
    where: str  # for messages
    ignored: bool = False

    def paint(self, onto: np.ndarray, value: int) -> None:
        """Set the region's pixels in a (H, W) uint8 picture.

        Raises:
            DataError: the picture is of another size.
        """
        if self.numbers.shape != onto.shape:
            raise DataError(
                f'{self.where}: a map of {self.numbers.shape[1]} x {self.numbers.shape[0]} pixels '
                f'for a picture of {onto.shape[1]} x {onto.shape[0]}; bring both to one size'
            )
        onto[self.numbers == self.number] = value


@dataclass(frozen=True)
class LabelMapImage:
    """A picture beside its map; the map is read when its queries are asked for."""

    path: Path
    labels: Path  # (H, W) PNG of class numbers
    names: dict[int, str]  # of the classes that may be asked for
    explanation: str = ''

    @property
    def queries(self) -> tuple[Query, ...]:
        """Return a query for each class that the map shows.

        Raises:
            DataError: the map cannot be read, or has colours instead of numbers.
        """
        try:
            with Image.open(self.labels) as opened:
                numbers = np.asarray(opened)
        except UNREADABLE as error:
            raise DataError(f'{self.labels}: no map that can be read ({error})') from error
        if numbers.ndim != 2:
            raise DataError(
                f'{self.labels}: has {numbers.shape[2]} channels; expected one of class numbers'
            )
        where = str(self.labels)
        return tuple(
            Query(self.names[n], False, (LabelMapRegion(numbers, n, where),))
            for n in np.unique(numbers).tolist()
            if n in self.names
        )


def read_ade20k(root: str | Path, split: str = 'training') -> list[LabelMapImage]:
    """Return the pictures of ADEChallengeData2016; its maps say 0 where nothing is named.

    Raises:
        DataError: a file is missing or broken.
    """
    root = folder(root, 'images, annotations and objectInfo150.txt')
    file = root / 'objectInfo150.txt'
    rows = [line.split('\t') for line in _lines(file) if line.strip()]
    names = {
        int(row[0]): row[-1].split(',')[0].strip() for row in rows if row[0].strip().isdigit()
    }
    return _beside(root / 'images' / split, root / 'annotations' / split, names, file)


def read_cocostuff(
    labels: str | Path, pictures: str | Path, names: str | Path
) -> list[LabelMapImage]:
    """Return COCO's pictures; things that are seen as material ("wall-brick") are not asked for.

    Args:
        labels: folder of maps, named as the pictures.
        pictures: folder of COCO's pictures.
        names: labels.txt of cocostuff, "0: unlabeled", "1: person", ...; the maps count from
            "person" as 0, as the original takes them.

    Raises:
        DataError: a file is missing or broken.
    """
    file = Path(names)
    said = [line.split(': ')[-1].strip() for line in _lines(file)[1:] if line.strip()]
    known = {number: name for number, name in enumerate(said) if '-' not in name}
    return _beside(folder(pictures, 'pictures'), folder(labels, 'maps'), known, file)


def read_mapillary(root: str | Path, split: str = 'training') -> list[LabelMapImage]:
    """Return the pictures of Mapillary Vistas 2.0.

    Raises:
        DataError: a file is missing or broken.
    """
    root = folder(root, 'config_v2.0.json and training')
    file = root / 'config_v2.0.json'
    said = [
        one['readable'].lower()
        for one in validated_entries(file, read_json(file), 'labels', readable=str)
    ]
    maps = root / split / 'v2.0' / 'labels'
    return _beside(root / split / 'images', maps, dict(enumerate(said)), file)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding='utf-8').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f'{file}: no names of classes that can be read ({error})') from error


def _beside(
    pictures: Path, maps: Path, names: dict[int, str], source: Path
) -> list[LabelMapImage]:
    """Return every map with its picture."""
    if not names:
        raise DataError(f'{source}: names no classes')
    found = []
    for labels in sorted(folder(maps, 'maps of class numbers, *.png').glob('*.png')):
        picture = pictures / f'{labels.stem}.jpg'
        if not picture.is_file():
            raise DataError(f'{labels}: its picture {picture} is not there; copy it, too')
        found.append(LabelMapImage(picture, labels, names))
    if not found:
        raise DataError(f'{maps}: no maps; expected *.png of class numbers')
    return found
