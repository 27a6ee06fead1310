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

from lisa_ros.datasets.labelled import Labelled, Query
from lisa_ros.datasets.reading import entries, read_json
from lisa_ros.errors import DataError


@dataclass(frozen=True)
class Instance:
    """The region of one annotation."""

    segmentation: tuple | dict | list  # polygons [[x, y, x, y, ...], ...], an RLE, or RLEs
    where: str  # for messages
    ignored: bool = False

    def paint(self, onto: np.ndarray, value: int) -> None:
        """Set the region's pixels in a (H, W) uint8 picture.

        Raises:
            DataError: the segmentation is none, or for a picture of another size.
        """
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
    for one in entries(file, plain, 'images', 'id', 'file_name'):
        found.pictures[one['id']] = pictures / one['file_name']
    for one in entries(file, plain, 'categories', 'id', 'name'):
        found.names[one['id']] = spoken(one['name'])
    for one in entries(file, plain, 'annotations', 'id', 'image_id', 'category_id'):
        if one['image_id'] not in found.pictures:
            raise DataError(
                f'{file}: annotation {one["id"]} is about picture {one["image_id"]}, which is '
                'not among its "images"'
            )
        where = f'{file}: annotation {one["id"]}'
        found.regions[one['id']] = Instance(one.get('segmentation') or (), where)
        found.owners[one['id']] = one['image_id'], one['category_id']
    return found


def read_coco(file: str | Path, pictures: str | Path) -> list[Labelled]:
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
        Labelled(
            found.pictures[picture],
            tuple(Query(name, False, tuple(regions)) for name, regions in groups.items()),
        )
        for picture, groups in sorted(grouped.items())
    ]


def spoken(name: str) -> str:
    """Return a category's name as one says it: "mug:handle" is "mug handle"."""
    parts = [part.split('_(')[0] for part in name.split(':')]
    return ' '.join(parts).replace('_', ' ')
