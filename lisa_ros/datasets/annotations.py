# SPDX-License-Identifier: Apache-2.0
"""A picture, what can be asked about it, and the regions that answer: what every data set becomes.

Pixels are read when they are wanted, so that a hundred thousand pictures fit into memory.
Letters: H x W the picture's pixels, as a person sees it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from PIL import Image

from lisa_ros.errors import DataError, ImageError
from lisa_ros.model.image_processing import UNREADABLE, read_rgb

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp', '.bmp')
UNSURE = 255  # a truth of this value leaves its pixel out of losses and figures


class Region(Protocol):
    """A part of a picture."""

    ignored: bool  # its pixels count neither as target nor against it

    def paint(self, onto: np.ndarray, value: int) -> None:
        """Set the region's pixels in a (H, W) uint8 picture."""


@dataclass(frozen=True)
class Polygon:
    """A region that a person drew: a filled outline, or a mask in a box."""

    label: str
    points: np.ndarray  # (n, 2) float, x and y in pixels; of a mask: the top left corner first
    mask: np.ndarray | None = None  # (h, w) bool, put with its corner at the first point
    ignored: bool = False

    def paint(self, onto: np.ndarray, value: int) -> None:
        """Set the region's pixels, its outline included, in a (H, W) uint8 picture."""
        if self.mask is None:
            outline = [self.points.astype(np.int32)]  # cut, not rounded: as the original
            cv2.polylines(onto, outline, isClosed=True, color=value, thickness=1)
            cv2.fillPoly(onto, outline, color=value)
            return
        x, y = self.points[0].astype(int)
        part = onto[max(y, 0) : y + self.mask.shape[0], max(x, 0) : x + self.mask.shape[1]]
        inside = self.mask[max(-y, 0) :, max(-x, 0) :][: part.shape[0], : part.shape[1]]
        part[inside] = value


@dataclass(frozen=True)
class Query:
    """What can be asked about a picture, and which regions answer it."""

    text: str
    is_sentence: bool  # else the name of a thing
    regions: tuple[Region, ...]  # all that are painted, ignored ones among them; none: not there

    def truth(self, height: int, width: int) -> np.ndarray:
        """Return (height, width) uint8: 1 target, UNSURE where ignored, 0 elsewhere.

        Regions are painted from large to small, as the original does
        (utils/data_processing.py), so that a small one cuts a hole.
        """
        areas = []
        for region in self.regions:
            alone = np.zeros((height, width), np.uint8)
            region.paint(alone, 1)
            areas.append(int(alone.sum()))
        truth = np.zeros((height, width), np.uint8)
        for index in np.argsort(areas)[::-1]:
            region = self.regions[index]
            region.paint(truth, UNSURE if region.ignored else 1)
        return truth


class Picture(Protocol):
    """A picture of a data set; `queries` may read a file, and raise DataError."""

    path: Path
    explanation: str  # why the target is what is asked for; '' where nobody said
    queries: tuple[Query, ...]


@dataclass(frozen=True)
class AnnotatedImage:
    """A picture whose queries are known."""

    path: Path
    queries: tuple[Query, ...]
    explanation: str = ''


def size_of(path: Path) -> tuple[int, int]:
    """Return (width, height) of a picture as a person sees it, without reading its pixels.

    Raises:
        DataError: it cannot be opened.
    """
    try:
        with Image.open(path) as opened:
            turned = opened.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # EXIF: lies on its side
            return opened.size[::-1] if turned else opened.size
    except UNREADABLE as error:
        raise DataError(f'{path} cannot be read as a picture: {error}; copy it again') from error


def read_image(path: Path) -> np.ndarray:
    """Return a picture as a person sees it, (H, W, 3) uint8 RGB, turned as its EXIF says.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return read_rgb(path)
    except ImageError as error:
        raise DataError(f'{error}; copy it again') from error
