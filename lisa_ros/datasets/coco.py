# SPDX-License-Identifier: Apache-2.0
"""Reads instances in COCO's JSON format (cocodataset.org/#format-data).

Each category in an image becomes a query for all its instances.

    {"images": [{"id", "file_name", "height", "width"}], "categories": [{"id", "name"}],
     "annotations": [{"id", "image_id", "category_id", "segmentation": polygons or RLE}]}

pycocotools decodes the regions, as for all published results on COCO. PACO and PASCAL-Part use the
same format. They name parts "mug:handle" and homonyms "mouse_(computer_equipment)".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from lisa_ros.datasets.annotations import (
    AnnotatedImage,
    AnnotatedQuery,
    phrase,
    unify_spellings,
    with_names,
)
from lisa_ros.datasets.coco_masks import CocoRegion
from lisa_ros.datasets.json_io import (
    ErrorHandler,
    image_path,
    raise_error,
    read_json,
    read_or_skip,
    split_entries,
    validated_entries,
)
from lisa_ros.error_text import short_repr
from lisa_ros.errors import DataError, ImageError
from lisa_ros.files.access import readable_folder
from lisa_ros.images.pixel_limit import check_image_size

__all__ = ['CocoInstances', 'CocoRegion', 'category_phrase', 'read_coco', 'read_instances']


@dataclass(frozen=True)
class CocoInstance:
    """An annotation: an instance of a category in an image."""

    id: int  # of the annotation
    image: int  # id
    category: int  # id
    region: CocoRegion

    def check(self) -> None:
        """Check the region, if the file gives the size of the image.

        Raises:
            DataError: it has no pixel in the image, or is no region.
        """
        if self.region.size is not None:
            self.region.check_form(*self.region.size)


@dataclass(frozen=True)
class CocoInstances:
    """The content of an instances file, by id."""

    image_paths: dict[int, Path] = field(default_factory=dict)  # by image id
    category_names: dict[int, str] = field(default_factory=dict)  # by category id
    instances: list[CocoInstance] = field(default_factory=list)  # as in the file
    # (image id, category id) of annotations that were left out; None: of an unknown category
    incomplete: set[tuple[int, int | None]] = field(default_factory=set)

    def by_id(self, file: Path) -> dict[int, CocoInstance]:
        """Return the instances by annotation id.

        Args:
            file: for the message.

        Raises:
            DataError: an id occurs twice.
        """
        _require_unique(file, 'annotation', [instance.id for instance in self.instances])
        return {instance.id: instance for instance in self.instances}


def read_instances(
    file: str | Path, image_folder: str | Path, on_error: ErrorHandler = raise_error
) -> CocoInstances:
    """Return the instances of a JSON file. Their regions are not checked yet.

    Args:
        file: instances in COCO's format.
        image_folder: folder of the images; file names in `file` are relative to it and may not
            lead out of it.
        on_error: called for each image or annotation that cannot be used; if it returns, it is
            left out.

    Raises:
        DataError: the file cannot be read or is not in this format, or an id of an image or
            category occurs twice; the message says where.
    """
    file = Path(file)
    content = read_json(file)
    image_folder = readable_folder(image_folder, 'images')
    result = CocoInstances()
    images = validated_entries(file, content, 'images', on_error, id=int)
    _require_unique(file, 'image', [image['id'] for image in images])
    sizes: dict[int, tuple[int, int] | None] = {}
    for image in images:
        path_and_size = read_or_skip(partial(_read_image, file, image, image_folder), on_error)
        if path_and_size:
            result.image_paths[image['id']], sizes[image['id']] = path_and_size
    unusable = {image['id'] for image in images} - sizes.keys()
    _read_categories(file, content, result.category_names)
    annotations, left_out = split_entries(
        file, content, 'annotations', on_error, {'id': int, 'image_id': int, 'category_id': int}
    )
    result.incomplete.update(_incomplete_masks(left_out))
    for annotation in annotations:
        image_id, category = annotation['image_id'], annotation['category_id']
        source = f'{file}: annotation {annotation["id"]}'
        if image_id in unusable:
            continue
        if image_id not in result.image_paths:
            on_error(
                DataError(f'{source} is about image {image_id}, which "images" does not contain')
            )
            continue
        region = CocoRegion(annotation.get('segmentation'), source, sizes[image_id])
        result.instances.append(CocoInstance(annotation['id'], image_id, category, region))
    return result


def _incomplete_masks(left_out: Iterable[object]) -> Iterator[tuple[int, int | None]]:
    """Yield (image id, category id or None) of annotations without all their ids.

    One without an image belongs to no image that is known.
    """
    for entry in left_out:
        if isinstance(entry, dict) and type(entry.get('image_id')) is int:
            category = entry.get('category_id')
            yield entry['image_id'], category if type(category) is int else None


def _read_image(
    file: Path, image: dict, image_folder: Path
) -> tuple[Path, tuple[int, int] | None]:
    """Return the path of an image, and its (height, width) [px] if the file gives it.

    Raises:
        DataError: the path leads out of the image folder, or the size is none.
    """
    path = image_path(file, f'image {image["id"]}', image_folder, _file_name(file, image))
    return path, _size(file, image)


def _read_categories(file: Path, content: object, names: dict[int, str]) -> None:
    """Add the names of the categories by id.

    Raises:
        DataError: one has no name, or two of an id differ.
    """
    for category in validated_entries(file, content, 'categories', id=int, name=str):
        name = category_phrase(category['name'])
        if not name:
            raise DataError(f'{file}: category {category["id"]} has an empty name; name it')
        if names.setdefault(category['id'], name) != name:
            raise DataError(
                f'{file}: category {category["id"]} is both '
                f'{short_repr(names[category["id"]])} and {short_repr(name)}; give each its own id'
            )


def _require_unique(file: Path, noun: str, ids: list[int]) -> None:
    """Raise a DataError if an id occurs twice, as in two files that were put into one."""
    twice = [str(id_) for id_, count in Counter(ids).items() if count > 1]
    if twice:
        raise DataError(
            f'{file}: {len(twice)} {noun} ids occur twice, for example {noun} {twice[0]}; number '
            'them again'
        )


def _size(file: Path, image: dict) -> tuple[int, int] | None:
    """Return (height, width) of an image [px]; None if the file does not give it.

    Raises:
        DataError: it gives something that is no size, or more pixels than an image may have.
    """
    size = tuple(image.get(side) for side in ('height', 'width'))
    if None in size:
        return None
    are_numbers = all(isinstance(side, int | float) and side == side // 1 > 0 for side in size)
    if not are_numbers or bool in map(type, size):
        raise DataError(
            f'{file}: image {image["id"]} has the height and width {short_repr(size)}; '
            'expected integers above 0'
        )
    height, width = int(size[0]), int(size[1])
    try:
        check_image_size(width, height, f'image {image["id"]}')  # pycocotools would fill memory
    except ImageError as error:
        raise DataError(f'{file}: {error}') from error
    return height, width


def read_coco(
    file: str | Path, image_folder: str | Path, *, on_error: ErrorHandler = raise_error
) -> list[AnnotatedImage]:
    """Return the images, with a query for each category: its mask covers all its instances.

    Every region is checked for which the file gives the size of the image. Regions of groups
    (`iscrowd`) are parts of the mask, too.

    Args:
        file: instances in COCO's format.
        image_folder: folder of the images.
        on_error: called for each annotation that cannot be used; if it returns, the query of its
            category in its image is left out, since its mask would be incomplete; all queries of
            the image, if the annotation does not say its category.

    Raises:
        DataError: as `read_instances`; or there are no annotations; or `on_error` raised it.
    """
    content = read_instances(file, image_folder, on_error)
    names = unify_spellings(content.category_names)
    regions_by_image: dict[int, dict[str, list[CocoRegion]]] = {}
    incomplete_images = {image for image, category in content.incomplete if category is None}
    incomplete = {(image, names.get(category)) for image, category in content.incomplete}
    for instance in content.instances:
        name = names.get(instance.category)
        if not read_or_skip(partial(_is_usable, file, instance, name), on_error):
            incomplete.add((instance.image, name))
        regions_by_name = regions_by_image.setdefault(instance.image, {})
        regions_by_name.setdefault(name, []).append(instance.region)
    if not regions_by_image:
        raise DataError(f'{file}: no annotations; expected instances in COCO format')
    images = [
        AnnotatedImage(
            content.image_paths[image],
            tuple(
                AnnotatedQuery(name, False, tuple(regions))
                for name, regions in regions_by_name.items()
                if (image, name) not in incomplete
            ),
        )
        for image, regions_by_name in sorted(regions_by_image.items())
        if image not in incomplete_images
    ]
    named = with_names(images, Path(image_folder))
    return [image for image in named if image.queries]


def _is_usable(file: str | Path, instance: CocoInstance, name: str | None) -> bool:
    """Return True for an instance with a category and a mask.

    Raises:
        DataError: it lacks one of them.
    """
    if name is None:
        raise DataError(
            f'{file}: annotation {instance.id} has category {instance.category}, which '
            '"categories" does not contain'
        )
    instance.check()
    return True


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
    return phrase(' '.join(parts).replace('_', ' '))
