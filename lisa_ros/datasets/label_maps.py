# SPDX-License-Identifier: Apache-2.0
"""Reads ADE20K, COCO-Stuff and Mapillary Vistas from label maps: images of class ids.

The folders are those that the authors publish:

    ADE20K       images/training/*.jpg, annotations/training/*.png, objectInfo150.txt
    COCO-Stuff   a folder of label maps *.png, COCO's images, labels.txt
    Mapillary    training/images/*.jpg, training/v2.0/labels/*.png, config_v2.0.json

Each class name in a label map becomes a query: its text is the name, its regions are all pixels of
the classes with this name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from lisa_ros.datasets.annotations import (
    AnnotatedQuery,
    image_error,
    phrase,
    unify_spellings,
    with_names,
)
from lisa_ros.datasets.json_io import (
    ErrorHandler,
    check_image,
    raise_error,
    read_json,
    read_or_skip,
    validated_entries,
)
from lisa_ros.errors import DataError, ImageError
from lisa_ros.files.access import list_folder, readable_folder
from lisa_ros.files.text import read_text
from lisa_ros.images.mask_file import read_mask


@dataclass(frozen=True)
class LabelMapRegion:
    """All pixels of a label map with one class id."""

    class_ids: np.ndarray  # (H, W), shared by all regions of a label map
    class_id: int
    source: str  # path of the label map, for error messages
    ignored: bool = False

    def paint(self, canvas: np.ndarray, value: int) -> None:
        """Set the region's pixels in a (H, W) uint8 array.

        Raises:
            DataError: the array has another size.
        """
        self.check(*canvas.shape)
        canvas[self.class_ids == self.class_id] = value

    def check(self, height: int, width: int) -> None:
        """Check that the label map has the size of its image; each class in it has pixels.

        Raises:
            DataError: it has another size.
        """
        map_height, map_width = self.class_ids.shape
        if (map_height, map_width) != (height, width):
            raise DataError(
                f'{self.source}: has {map_width} x {map_height} pixels, '
                f'its image {width} x {height}; scale both to the same size'
            )


@dataclass(frozen=True)
class LabelMapImage:
    """An image with its label map. The label map is read at each access of `queries`."""

    path: Path
    label_map: Path  # (H, W) PNG of class ids
    class_names: dict[int, str]  # by class id; classes that are not in it get no query
    name: str = ''  # unique in the data set

    @property
    def queries(self) -> tuple[AnnotatedQuery, ...]:
        """A query for each class in the label map.

        Raises:
            DataError: the label map cannot be read, or has colours instead of class ids.
        """
        try:
            class_ids = read_mask(self.label_map).ids('class ids')
        except ImageError as error:
            raise image_error(self.label_map, error, 'a label map') from error
        source = str(self.label_map)
        regions: dict[str, list[LabelMapRegion]] = {}  # two classes may have one name
        for class_id in np.unique(class_ids).tolist():
            if class_id in self.class_names:
                region = LabelMapRegion(class_ids, class_id, source)
                regions.setdefault(self.class_names[class_id], []).append(region)
        return tuple(AnnotatedQuery(name, False, tuple(own)) for name, own in regions.items())


def read_ade20k(
    root: str | Path, split: str = 'training', *, on_error: ErrorHandler = raise_error
) -> list[LabelMapImage]:
    """Return the images of ADEChallengeData2016. Class id 0 means unlabelled and gets no query.

    Label maps without their image are passed to `on_error`, and left out if it returns.

    Raises:
        DataError: a file is missing or broken.
    """
    root = readable_folder(root, 'images, annotations and objectInfo150.txt')
    class_file = root / 'objectInfo150.txt'
    rows = [line.split('\t') for line in _lines(class_file) if line.strip()]
    class_names: dict[int, str] = {}
    for number, *_, names in (row for row in rows if len(row) > 1):
        if not re.fullmatch(r'[0-9]{1,9}', number.strip()):
            continue  # the first row
        name = phrase(names.split(',')[0])
        if not name or class_names.setdefault(int(number), name) != name:
            raise DataError(
                f'{class_file}: class {number.strip()} has no name, or two; expected one row for '
                'each class, with its number and its names'
            )
    images, label_maps = root / 'images' / split, root / 'annotations' / split
    return _pair_with_images(label_maps, images, class_names, class_file, on_error)


def read_cocostuff(
    label_folder: str | Path,
    image_folder: str | Path,
    class_file: str | Path,
    *,
    on_error: ErrorHandler = raise_error,
) -> list[LabelMapImage]:
    """Return the images of COCO-Stuff. Material classes, such as "wall-brick", get no query.

    Args:
        label_folder: folder of label maps, named as the images.
        image_folder: folder of COCO's images.
        class_file: labels.txt of COCO-Stuff: "0: unlabeled", "1: person", ... In the label maps
            the ids are one lower: "person" is 0. LISA's code reads them in the same way.
        on_error: called for each label map without its image; if it returns, it is left out.

    Raises:
        DataError: a file is missing or broken.
    """
    class_file = Path(class_file)
    labels = [phrase(line.split(': ')[-1]) for line in _lines(class_file)[1:] if line.strip()]
    class_names = {
        class_id: name for class_id, name in enumerate(labels) if name and '-' not in name
    }
    image_folder, label_folder = Path(image_folder), Path(label_folder)
    return _pair_with_images(label_folder, image_folder, class_names, class_file, on_error)


def read_mapillary(
    root: str | Path, split: str = 'training', *, on_error: ErrorHandler = raise_error
) -> list[LabelMapImage]:
    """Return the images of Mapillary Vistas 2.0.

    Label maps without their image are passed to `on_error`, and left out if it returns.

    Raises:
        DataError: a file is missing or broken.
    """
    root = readable_folder(root, 'config_v2.0.json and training')
    class_file = root / 'config_v2.0.json'
    labels = validated_entries(class_file, read_json(class_file), 'labels', readable=str)
    class_names = {
        class_id: phrase(label['readable']).lower() for class_id, label in enumerate(labels)
    }
    images, label_maps = root / split / 'images', root / split / 'v2.0' / 'labels'
    return _pair_with_images(label_maps, images, class_names, class_file, on_error)


def _lines(file: Path) -> list[str]:
    """Return the lines of a text file."""
    return read_text(file).splitlines()


def _pair_with_images(
    label_folder: Path,
    image_folder: Path,
    class_names: dict[int, str],
    class_file: Path,
    on_error: ErrorHandler,
) -> list[LabelMapImage]:
    """Return the images of the label maps in a folder: STEM.jpg in the image folder.

    `on_error` is called for a label map without its image.
    """
    if not class_names:
        raise DataError(f'{class_file}: contains no class names')
    label_folder = readable_folder(label_folder, 'label maps, *.png of class ids')
    image_folder = readable_folder(image_folder, 'images')
    class_names = unify_spellings(class_names)
    images = []
    for label_map in list_folder(label_folder, '.png'):
        path = image_folder / f'{label_map.stem}.jpg'
        if read_or_skip(partial(check_image, path, str(label_map)), on_error):
            images.append(LabelMapImage(path, label_map, class_names))
    if not images:
        raise DataError(f'{label_folder}: no label maps; expected *.png of class ids')
    return with_names(images, image_folder)
