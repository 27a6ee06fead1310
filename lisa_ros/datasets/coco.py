# SPDX-License-Identifier: Apache-2.0
"""Reads instances in COCO's JSON format (cocodataset.org/#format-data).

Each category in an image becomes a query for all its instances.

    {"images": [{"id", "file_name", "height", "width"}], "categories": [{"id", "name"}],
     "annotations": [{"id", "image_id", "category_id", "segmentation": polygons or RLE}]}

pycocotools decodes the regions, as for all published results on COCO. PACO and PASCAL-Part use the
same format. They name parts "mug:handle" and homonyms "mouse_(computer_equipment)".
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lisa_ros.datasets.annotations import AnnotatedImage, AnnotatedQuery
from lisa_ros.datasets.json_io import read_json, validated_entries
from lisa_ros.errors import DataError


@dataclass(frozen=True)
class CocoRegion:
    """The region of one annotation."""

    segmentation: tuple | dict | list  # polygons [[x, y, x, y, ...], ...], an RLE, or RLEs
    source: str  # file and annotation, for error messages
    size: tuple[int, int] | None = None  # (height, width) of the image in the file [px], if given
    ignored: bool = False

    def paint(self, canvas: np.ndarray, value: int) -> None:
        """Set the region's pixels in a (H, W) uint8 array.

        Raises:
            DataError: the segmentation is invalid, the file gives another image size, or
                pycocotools is not installed.
        """
        height, width = canvas.shape
        if self.size not in (None, (height, width)):
            raise DataError(
                f'{self.source}: made for {self.size[1]} x {self.size[0]} pixels, the image has '
                f'{width} x {height}; use the images that the file was made for'
            )
        try:
            from pycocotools import mask as coco
        except ImportError as error:
            raise DataError(
                "regions of COCO need the package pycocotools: pip install 'lisa_ros[train]'"
            ) from error

        try:
            is_rle = isinstance(self.segmentation, dict)
            parts = [self.segmentation] if is_rle else list(self.segmentation)
            if parts and not isinstance(parts[0], dict):
                parts = coco.frPyObjects(parts, height, width)
            for rle in parts:
                if isinstance(rle['counts'], list):
                    rle = coco.frPyObjects(rle, height, width)  # noqa: PLW2901
                canvas[coco.decode(rle) > 0] = value
        except Exception as error:  # pycocotools raises many types
            raise DataError(
                f'{self.source}: not a region of {width} x {height} pixels '
                f'({type(error).__name__}: {error}); expected polygons or RLE in COCO format'
            ) from error


@dataclass(frozen=True)
class CocoInstances:
    """The content of an instances file, by id."""

    image_paths: dict[int, Path]  # by image id
    regions: dict[int, CocoRegion]  # by annotation id
    image_and_category: dict[int, tuple[int, int]]  # (image id, category id) by annotation id
    category_names: dict[int, str]  # by category id


def read_instances(file: str | Path, image_folder: str | Path) -> CocoInstances:
    """Return the instances of a JSON file.

    Args:
        file: instances in COCO's format.
        image_folder: folder of the images; file names in `file` are relative to it.

    Raises:
        DataError: the file cannot be read or is not in this format; the message says where.
    """
    file, image_folder = Path(file), Path(image_folder)
    content = read_json(file)
    instances = CocoInstances({}, {}, {}, {})
    sizes: dict[int, tuple[int, int] | None] = {}
    for image in validated_entries(file, content, 'images', id=int):
        instances.image_paths[image['id']] = image_folder / _file_name(file, image)
        size = image.get('height'), image.get('width')
        sizes[image['id']] = size if all(isinstance(side, int) for side in size) else None
    for category in validated_entries(file, content, 'categories', id=int, name=str):
        instances.category_names[category['id']] = category_phrase(category['name'])
    for annotation in validated_entries(
        file, content, 'annotations', id=int, image_id=int, category_id=int
    ):
        source, image_id = f'{file}: annotation {annotation["id"]}', annotation['image_id']
        if image_id not in instances.image_paths:
            raise DataError(f'{source} is about image {image_id}, which "images" does not contain')
        segmentation = annotation.get('segmentation') or ()
        region = CocoRegion(segmentation, source, sizes[image_id])
        instances.regions[annotation['id']] = region
        instances.image_and_category[annotation['id']] = image_id, annotation['category_id']
    return instances


def read_coco(file: str | Path, image_folder: str | Path) -> list[AnnotatedImage]:
    """Return the images, with a query for each category: its mask covers all its instances.

    Raises:
        DataError: as `read_instances`; or there are no annotations.
    """
    instances = read_instances(file, image_folder)
    regions_by_image: dict[int, dict[str, list[CocoRegion]]] = {}
    for annotation, (image, category) in instances.image_and_category.items():
        if category not in instances.category_names:
            raise DataError(
                f'{file}: annotation {annotation} has category {category}, which "categories" '
                'does not contain'
            )
        regions_by_name = regions_by_image.setdefault(image, {})
        regions = regions_by_name.setdefault(instances.category_names[category], [])
        regions.append(instances.regions[annotation])
    if not regions_by_image:
        raise DataError(f'{file}: no annotations; expected instances in COCO format')
    return [
        AnnotatedImage(
            instances.image_paths[image],
            tuple(
                AnnotatedQuery(name, False, tuple(regions))
                for name, regions in regions_by_name.items()
            ),
        )
        for image, regions_by_name in sorted(regions_by_image.items())
    ]


def _file_name(file: Path, image: dict) -> str:
    """Return the path of an image relative to the image folder; LVIS gives only its URL."""
    if isinstance(image.get('file_name'), str):
        return image['file_name']
    if isinstance(image.get('coco_url'), str):
        return '/'.join(image['coco_url'].split('/')[-2:])
    raise DataError(f'{file}: image {image["id"]} has no file_name')


def category_phrase(name: str) -> str:
    """Return a category's name as a phrase: "mug:handle" becomes "mug handle"."""
    parts = [part.split('_(')[0] for part in name.split(':')]
    return ' '.join(parts).replace('_', ' ')
