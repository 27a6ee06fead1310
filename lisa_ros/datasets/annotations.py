# SPDX-License-Identifier: Apache-2.0
"""Annotated images: what all data sets are read into. An image has queries, a query has regions.

Pixels are read only when they are used: a hundred thousand images then fit into memory.
Letters: H and W are height and width of an image after its EXIF orientation is applied [px].
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from lisa_ros.errors import DataError, ImageError
from lisa_ros.images import image_file
from lisa_ros.perception.masks import IGNORED_PIXEL

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp', '.bmp')


class AnnotatedRegion(Protocol):
    """A part of an image."""

    ignored: bool  # True: its pixels become IGNORED_PIXEL in the ground truth

    def paint(self, canvas: np.ndarray, value: int) -> None:
        """Set the region's pixels in a (H, W) uint8 array."""


@dataclass(frozen=True)
class Polygon:
    """A region drawn by a person: a filled outline, or a mask at a position."""

    label: str
    points: np.ndarray  # (n, 2) float, x and y [px]; with a mask, the first is its top left corner
    mask: np.ndarray | None = None  # (h, w) bool
    ignored: bool = False

    def paint(self, canvas: np.ndarray, value: int) -> None:
        """Set the region's pixels, its outline included, in a (H, W) uint8 array."""
        if self.mask is None:
            outline = [self.points.astype(np.int32)]  # truncated, as in LISA's code
            cv2.polylines(canvas, outline, isClosed=True, color=value, thickness=1)
            cv2.fillPoly(canvas, outline, color=value)
            return
        x, y = self.points[0].astype(int)
        part = canvas[max(y, 0) : y + self.mask.shape[0], max(x, 0) : x + self.mask.shape[1]]
        inside = self.mask[max(-y, 0) :, max(-x, 0) :][: part.shape[0], : part.shape[1]]
        part[inside] = value


@dataclass(frozen=True)
class AnnotatedQuery:
    """A query about an image and the regions that answer it."""

    text: str
    is_sentence: bool  # False: the name of an object
    # targets and ignored regions; empty: the object is absent
    regions: tuple[AnnotatedRegion, ...]

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


class ImageWithQueries(Protocol):
    """An image of a data set; `queries` may read a file and raise DataError."""

    path: Path
    explanation: str  # why the target answers the query; '': unknown
    queries: tuple[AnnotatedQuery, ...]


@dataclass(frozen=True)
class AnnotatedImage:
    """An image with its queries in memory."""

    path: Path
    queries: tuple[AnnotatedQuery, ...]
    explanation: str = ''


def image_size(path: Path) -> tuple[int, int]:
    """Return (width, height) of an upright image [px], without reading its pixels.

    Raises:
        DataError: the image cannot be opened, or has too many pixels.
    """
    try:
        return image_file.image_size(path)
    except ImageError as error:
        raise DataError(str(error)) from error


def read_image(path: Path) -> np.ndarray:
    """Return an image, (H, W, 3) uint8 RGB, turned upright by its EXIF orientation.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return image_file.read_rgb(path)
    except ImageError as error:
        raise DataError(str(error)) from error
