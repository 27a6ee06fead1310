# SPDX-License-Identifier: Apache-2.0
"""Annotated images: what all data sets are read into. An image has queries, a query has regions.

Pixels are read only when they are used: a hundred thousand images then fit into memory.
Letters: H and W are height and width of an image after its EXIF orientation is applied [px].
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

import cv2
import numpy as np

from lisa_ros.error_text import short_repr
from lisa_ros.errors import DataError, ImageError
from lisa_ros.files.access import access_problem
from lisa_ros.files.text import encodable
from lisa_ros.images import image_file
from lisa_ros.perception.masks import IGNORED_PIXEL

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp', '.bmp')

_FRACTION_EXCESS = 0.99  # coordinates 0 to 1 of an object at the border reach over by less
_FAR = 10  # a coordinate is an error if it is farther outside than this many image sizes


def phrase(name: str) -> str:
    """Return the name of an object as a query: with single spaces, and none around it."""
    return ' '.join(name.split())


def name_key(name: str) -> str:
    """Return a name to compare: in lower case, with single spaces and composed letters."""
    return unicodedata.normalize('NFC', phrase(name)).lower()


def unify_spellings(names: Mapping[int, str]) -> dict[int, str]:
    """Return names by id; those that differ only in case get the spelling of the first.

    Questions have names in lower case: "Mug" and "mug" would be one question with two masks.
    """
    spellings: dict[str, str] = {}
    return {number: spellings.setdefault(name_key(name), name) for number, name in names.items()}


class AnnotatedRegion(Protocol):
    """A part of an image."""

    ignored: bool  # True: its pixels become IGNORED_PIXEL in the ground truth
    source: str  # file and annotation, for error messages

    def paint(self, canvas: np.ndarray, value: int) -> None:
        """Set the region's pixels in a (H, W) uint8 array."""

    def check(self, height: int, width: int) -> None:
        """Check that the region has pixels in an image of this size.

        An empty region would mean "not there", which only an empty list of regions may say.

        Raises:
            DataError: it has none; the message names the file and the annotation.
        """


def misplaced(points: np.ndarray, height: int, width: int) -> str:
    """Return why points (n, 2), x and y, cannot be in an image of this size; '' if they can."""
    if not np.isfinite(points).all():
        return 'a coordinate is not a finite number'
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    if right < 0 or bottom < 0 or left >= width or top >= height:
        return f'it lies outside of the image, which has {width} x {height} pixels'
    if np.abs(points).max() > (_FAR + 1) * max(height, width):
        return f'it reaches far outside of the image, which has {width} x {height} pixels'
    low, high = min(left, top), max(right, bottom)
    if low > -_FRACTION_EXCESS and high < 1 + _FRACTION_EXCESS and max(height, width) > 2:
        return (
            f'its coordinates are {low:g} to {high:g}, as fractions of the image; expected pixels'
        )
    return ''


@dataclass(frozen=True)
class Polygon:
    """A region drawn by a person: a filled outline, or a mask at a position."""

    label: str
    points: np.ndarray  # (n, 2) float, x and y [px]; with a mask, the first is its top left corner
    mask: np.ndarray | None = None  # (h, w) bool
    ignored: bool = False
    source: str = 'a shape'  # file and shape, for error messages

    def check(self, height: int, width: int) -> None:
        """Check that the region has pixels in an image of this size.

        Raises:
            DataError: it has none, or its coordinates are not pixels of the image.
        """
        corners = self.points
        if self.mask is not None:
            height_of_mask, width_of_mask = self.mask.shape
            # one more, so that a mask of one pixel at (0, 0) is no fraction
            corners = self.points[0] + [[0, 0], [width_of_mask + 1, height_of_mask + 1]]
        problem = misplaced(corners, height, width)
        if not problem and not self._is_inside(height, width):
            canvas = np.zeros((height, width), np.uint8)
            self.paint(canvas, 1)
            problem = '' if canvas.any() else 'it has no pixel in the image'
        if problem:
            raise DataError(f'{self.source}: {problem}; draw it again, or remove it')

    def _is_inside(self, height: int, width: int) -> bool:
        """Return whether a whole outline, which always has pixels, is in the image."""
        if self.mask is not None:
            return False
        return bool((self.points >= 0).all() and (self.points < (width, height)).all())

    def paint(self, canvas: np.ndarray, value: int) -> None:
        """Set the region's pixels, its outline included, in a (H, W) uint8 array."""
        if self.mask is None:
            outline = [self.points.astype(np.int32)]  # truncated, as in LISA's code
            cv2.polylines(canvas, outline, isClosed=True, color=value, thickness=1)
            cv2.fillPoly(canvas, outline, color=value)
            return
        x, y = self.points[0].astype(int)
        bottom, right = y + self.mask.shape[0], x + self.mask.shape[1]
        part = canvas[max(y, 0) : max(bottom, 0), max(x, 0) : max(right, 0)]
        inside = self.mask[max(-y, 0) :, max(-x, 0) :][: part.shape[0], : part.shape[1]]
        part[inside] = value


@dataclass(frozen=True)
class AnnotatedQuery:
    """A query about an image and the regions that answer it."""

    text: str
    is_sentence: bool  # False: the name of an object
    # targets and ignored regions; empty: the object is absent
    regions: tuple[AnnotatedRegion, ...]
    explanation: str = ''  # why the target answers the query; '': unknown

    def ground_truth(self, height: int, width: int) -> np.ndarray:
        """Return (height, width) uint8: 1 target, IGNORED_PIXEL ignored, 0 elsewhere.

        Regions are painted from large to small, so that a small region replaces a part of a large
        one, as in LISA's code (utils/data_processing.py).
        """
        areas = []
        for region in self.regions:
            canvas = np.zeros((height, width), np.uint8)
            region.paint(canvas, 1)
            areas.append(int(canvas.sum()))
        ground_truth = np.zeros((height, width), np.uint8)
        for index in np.argsort(areas)[::-1]:
            region = self.regions[index]
            region.paint(ground_truth, IGNORED_PIXEL if region.ignored else 1)
        return ground_truth

    def check(self, height: int, width: int) -> None:
        """Check that the regions have pixels in an image of this size.

        Raises:
            DataError: one has none, or ignored regions cover the whole target.
        """
        for region in self.regions:
            region.check(height, width)
        has_ignored = any(region.ignored for region in self.regions)
        if has_ignored and not (self.ground_truth(height, width) == 1).any():
            raise DataError(
                f'{self.regions[0].source}: the ignored regions cover all of '
                f'{short_repr(self.text)}; draw them smaller'
            )


class ImageWithQueries(Protocol):
    """An image of a data set; `queries` may read a file and raise DataError."""

    path: Path
    name: str  # unique in the data set; see `with_names`
    queries: tuple[AnnotatedQuery, ...]


@dataclass(frozen=True)
class AnnotatedImage:
    """An image with its queries in memory."""

    path: Path
    queries: tuple[AnnotatedQuery, ...]
    name: str = ''  # unique in the data set; see `with_names`


_Image = TypeVar('_Image', bound=ImageWithQueries)


def with_names(images: Sequence[_Image], folder: Path) -> list[_Image]:
    """Return the images with unique names, which reports and comparisons know them by.

    The name is the stem of the file. Images of the same stem in different folders are different
    images: their names are the paths below the image folder, without suffix if that is enough.

    Args:
        images: all images of a data set, so that a part of them has the same names.
        folder: of the images.
    """
    names = unique_names([image.path for image in images], folder)
    return [replace(image, name=name) for image, name in zip(images, names, strict=True)]


def unique_names(paths: Sequence[Path], folder: Path) -> list[str]:
    """Return a unique name for each image file, which can be written; see `with_names`."""
    below = [path.relative_to(folder) if path.is_relative_to(folder) else path for path in paths]
    levels = (
        [path.stem for path in paths],
        [(path.parent / path.stem).as_posix().lstrip('/') for path in below],
        [path.as_posix().lstrip('/') for path in below],
    )
    levels = tuple([encodable(name) for name in level] for level in levels)
    counts = [Counter(level) for level in levels]
    names: dict[str, None] = {}  # in order
    for candidates in zip(*levels, strict=True):
        unique = (name for name, count in zip(candidates, counts, strict=True) if count[name] == 1)
        name = next(unique, candidates[-1])
        number = 1
        while name in names:  # the same file is listed several times
            number += 1
            name = f'{candidates[-1]}#{number}'
        names[name] = None
    return list(names)


def image_size(path: Path) -> tuple[int, int]:
    """Return (width, height) of an upright image [px], without reading its pixels.

    Raises:
        DataError: the image cannot be opened, or has too many pixels.
    """
    try:
        return image_file.image_size(path)
    except ImageError as error:
        raise image_error(path, error) from error


def read_image(path: Path) -> np.ndarray:
    """Return an image, (H, W, 3) uint8 RGB, turned upright by its EXIF orientation.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return image_file.read_rgb(path)
    except ImageError as error:
        raise image_error(path, error) from error


def image_error(path: Path, error: ImageError, kind: str = 'an image') -> DataError:
    """Return the error of an image that cannot be read: missing, not allowed or damaged."""
    problem = access_problem(path)
    return DataError(f'{path} cannot be read as {kind}: {problem}' if problem else str(error))
