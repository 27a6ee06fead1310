# SPDX-License-Identifier: Apache-2.0
"""Instances in COCO's JSON (cocodataset.org/#format-data): a name for each category, its regions.

    {"images": [{"id", "file_name", "height", "width"}], "categories": [{"id", "name"}],
     "annotations": [{"id", "image_id", "category_id", "segmentation": polygons or RLE}]}

Regions are drawn by pycocotools, as everybody's figures on COCO are. PACO and PASCAL-Part are in
this format, too, with parts as "mug:handle" and homonyms as "mouse_(computer_equipment)".
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lisa_ros.datasets.annotations import AnnotatedImage, Query
from lisa_ros.datasets.json_io import read_json, validated_entries
from lisa_ros.errors import DataError


@dataclass(frozen=True)
class Instance:
    """The region of one annotation."""

    segmentation: tuple | dict | list  # polygons [[x, y, x, y, ...], ...], an RLE, or RLEs
    where: str  # for messages
    size: tuple[int, int] | None = None  # (height, width) of its picture, where the file tells
    ignored: bool = False

    def paint(self, onto: np.ndarray, value: int) -> None:
        """Set the region's pixels in a (H, W) uint8 picture.

        Raises:
            DataError: the segmentation is none, or for a picture of another size.
        """
        if self.size not in (None, onto.shape):
            raise DataError(
                f'{self.where}: is for {self.size[1]} x {self.size[0]} pixels, its picture has '
                f'{onto.shape[1]} x {onto.shape[0]}; take the pictures that the file is about'
            )
        try:
            from pycocotools import mask as coco
        except ImportError as error:
            raise DataError(
                "regions of COCO need the package pycocotools: pip install 'lisa_ros[train]'"
            ) from error

        try:
            given = self.segmentation
            runs = [given] if isinstance(given, dict) else list(given)
            if runs and not isinstance(runs[0], dict):
                runs = coco.frPyObjects(runs, *onto.shape)
            for run in runs:
                if isinstance(run['counts'], list):
                    run = coco.frPyObjects(run, *onto.shape)  # noqa: PLW2901
                onto[coco.decode(run) > 0] = value
        except Exception as error:  # pycocotools raises nearly anything
            raise DataError(
                f'{self.where}: no region for {onto.shape[1]} x {onto.shape[0]} pixels '
                f'({type(error).__name__}: {error}); expected polygons or RLE as COCO has them'
            ) from error


@dataclass(frozen=True)
class Instances:
    """What a file says: pictures, regions by annotation id, names by category id."""

    pictures: dict[int, Path]
    regions: dict[int, Instance]
    owners: dict[int, tuple[int, int]]  # annotation id -> picture's id, category's id
    names: dict[int, str]


def read_instances(file: str | Path, pictures: str | Path) -> Instances:
    """Return the instances of a JSON file.

    Args:
        file: of instances.
        pictures: the folder that file names are relative to.

    Raises:
        DataError: it is no such file; the message says what of it.
    """
    file, pictures = Path(file), Path(pictures)
    plain = read_json(file)
    found: Instances = Instances({}, {}, {}, {})
    sizes: dict[int, tuple[int, int] | None] = {}
    for one in validated_entries(file, plain, 'images', id=int):
        found.pictures[one['id']] = pictures / _file_name(file, one)
        told = one.get('height'), one.get('width')
        sizes[one['id']] = told if all(isinstance(side, int) for side in told) else None
    for one in validated_entries(file, plain, 'categories', id=int, name=str):
        found.names[one['id']] = category_phrase(one['name'])
    for one in validated_entries(
        file, plain, 'annotations', id=int, image_id=int, category_id=int
    ):
        if one['image_id'] not in found.pictures:
            raise DataError(
                f'{file}: annotation {one["id"]} is about picture {one["image_id"]}, which is '
                'not among its "images"'
            )
        where, size = f'{file}: annotation {one["id"]}', sizes[one['image_id']]
        found.regions[one['id']] = Instance(one.get('segmentation') or (), where, size)
        found.owners[one['id']] = one['image_id'], one['category_id']
    return found


def read_coco(file: str | Path, pictures: str | Path) -> list[AnnotatedImage]:
    """Return pictures with a query for each category in them, all its instances together.

    Raises:
        DataError: as `read_instances`; or nothing is annotated.
    """
    found = read_instances(file, pictures)
    grouped: dict[int, dict[str, list[Instance]]] = {}
    for number, (picture, category) in found.owners.items():
        if category not in found.names:
            raise DataError(f'{file}: annotation {number} has category {category}, not named')
        groups = grouped.setdefault(picture, {})
        groups.setdefault(found.names[category], []).append(found.regions[number])
    if not grouped:
        raise DataError(f'{file}: no annotations; expected instances as COCO has them')
    return [
        AnnotatedImage(
            found.pictures[picture],
            tuple(Query(name, False, tuple(regions)) for name, regions in groups.items()),
        )
        for picture, groups in sorted(grouped.items())
    ]


def _file_name(file: Path, image: dict) -> str:
    """Return where a picture lies; LVIS tells it by the end of its address alone."""
    if isinstance(image.get('file_name'), str):
        return image['file_name']
    if isinstance(image.get('coco_url'), str):
        return '/'.join(image['coco_url'].split('/')[-2:])
    raise DataError(f'{file}: picture {image["id"]} has no file_name')


def category_phrase(name: str) -> str:
    """Return a category's name as one says it: "mug:handle" is "mug handle"."""
    parts = [part.split('_(')[0] for part in name.split(':')]
    return ' '.join(parts).replace('_', ' ')
