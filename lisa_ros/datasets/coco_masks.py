# SPDX-License-Identifier: Apache-2.0
"""Regions of COCO annotations: polygons and run lengths, checked before pycocotools sees them.

pycocotools trusts its input: it reads a polygon of two points as a box, fractions as one pixel,
and points outside of the image as nothing. Nothing of that is an error there.

Letters: H and W are height and width of the image [px].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lisa_ros.datasets.annotations import misplaced
from lisa_ros.error_text import one_line, short_repr
from lisa_ros.errors import DataError
from lisa_ros.optional_packages import install_command

_CURE = 'expected polygons of 3 or more points, or RLE, in COCO format; correct or remove it'


class _RegionError(ValueError):
    """A segmentation is not a region."""


@dataclass(frozen=True)
class CocoRegion:
    """The region of one annotation."""

    segmentation: object  # polygons [[x, y, x, y, ...], ...], an RLE, or RLEs
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
        self._check_size(height, width)
        from pycocotools import mask as coco

        for run_lengths in self._run_lengths(height, width):
            canvas[coco.decode(run_lengths) > 0] = value

    def check(self, height: int, width: int) -> None:
        """Check that the region has pixels in an image of this size, without decoding it.

        Raises:
            DataError: as `paint`; or it has no pixel in the image.
        """
        self._check_size(height, width)
        if self.size is None:
            self.check_form(height, width)

    def check_form(self, height: int, width: int) -> None:
        """Check the segmentation for an image of this size, whatever size the file gives.

        Raises:
            DataError: see `check`.
        """
        _import_pycocotools()
        from pycocotools import mask as coco

        if not any(coco.area(each) for each in self._run_lengths(height, width)):
            raise self._error(height, width, 'it has no pixel in the image')

    def _check_size(self, height: int, width: int) -> None:
        _import_pycocotools()
        if self.size not in (None, (height, width)):
            raise DataError(
                f'{self.source}: made for {self.size[1]} x {self.size[0]} pixels, the image has '
                f'{width} x {height}; use the images that the file was made for'
            )

    def _run_lengths(self, height: int, width: int) -> list[dict]:
        """Return valid RLEs as pycocotools reads them, at least one."""
        try:
            return _run_lengths(self.segmentation, height, width)
        except _RegionError as error:
            raise self._error(height, width, str(error)) from error
        except Exception as error:  # pycocotools raises many types
            reason = f'{type(error).__name__}: {one_line(error)}'
            raise self._error(height, width, reason) from error

    def _error(self, height: int, width: int, reason: str) -> DataError:
        return DataError(
            f'{self.source}: not a region of {width} x {height} pixels ({reason}); {_CURE}'
        )


def _import_pycocotools() -> None:
    """Import pycocotools.

    Raises:
        DataError: it is not installed.
    """
    try:
        import pycocotools.mask  # noqa: F401
    except ImportError as error:
        raise DataError(
            f'regions of COCO need the package pycocotools: {install_command("train")}'
        ) from error


def _run_lengths(segmentation: object, height: int, width: int) -> list[dict]:
    from pycocotools import mask as coco

    if isinstance(segmentation, dict):
        return [_checked_rle(segmentation, height, width)]
    if not isinstance(segmentation, list | tuple) or not segmentation:
        shown = 'null' if segmentation is None else short_repr(segmentation)
        raise _RegionError(
            f'its segmentation is {shown}: a box alone is no mask, and an empty one is not taken '
            'for an absent object'
        )
    if isinstance(segmentation[0], dict):
        return [_checked_rle(rle, height, width) for rle in segmentation]
    polygons = [_checked_polygon(polygon) for polygon in segmentation]
    problem = misplaced(np.concatenate(polygons).reshape(-1, 2), height, width)
    if problem:
        raise _RegionError(problem)
    return coco.frPyObjects([polygon.tolist() for polygon in polygons], height, width)


def _checked_polygon(polygon: object) -> np.ndarray:
    """Return the numbers of a polygon x, y, x, y, ... of three different points or more."""
    if isinstance(polygon, int | float):
        raise _RegionError('its polygon is not in a list: write [[x, y, ...]], not [x, y, ...]')
    if not isinstance(polygon, list | tuple):
        raise _RegionError(f'a polygon is {short_repr(polygon)}, not a list of numbers')
    if polygon and isinstance(polygon[0], list | tuple):
        raise _RegionError('a polygon has pairs: write [x, y, x, y, ...], not [[x, y], ...]')
    try:
        numbers = np.array(polygon, np.float64)
    except (TypeError, ValueError) as error:
        raise _RegionError(f'a polygon is {short_repr(polygon)}, not numbers') from error
    if numbers.ndim != 1 or len(numbers) % 2:
        raise _RegionError(f'a polygon has {len(numbers)} numbers: x without y')
    if not np.isfinite(numbers).all():
        raise _RegionError('a coordinate is not a finite number')
    if len(set(zip(numbers[::2].tolist(), numbers[1::2].tolist(), strict=True))) < 3:
        raise _RegionError(
            f'a polygon has {len(numbers) // 2} points, fewer than 3 different ones'
        )
    return numbers


def _checked_rle(rle: object, height: int, width: int) -> dict:
    """Return an RLE whose runs fill an image of this size exactly; others crash pycocotools."""
    from pycocotools import mask as coco

    if not isinstance(rle, dict) or not {'size', 'counts'} <= rle.keys():
        raise _RegionError(f'an RLE is {short_repr(rle)}, without size and counts')
    size, counts = rle['size'], rle['counts']
    if not isinstance(size, list | tuple) or list(size) != [height, width]:
        raise _RegionError(
            f'its RLE has the size {short_repr(size)}; expected [height, width], '
            f'[{height}, {width}]'
        )
    if isinstance(counts, str | bytes):
        text = counts.encode('ascii', 'replace') if isinstance(counts, str) else counts
        runs = _decoded_counts(text)
    elif isinstance(counts, list) and all(type(count) is int for count in counts):
        runs = np.array(counts, np.float64)  # large numbers do not overflow
    else:
        raise _RegionError(f'the counts of its RLE are {short_repr(counts)}')
    if (runs < 0).any() or runs.sum() != height * width:
        raise _RegionError(f'its RLE has {runs.sum():.0f} pixels, the image {height * width}')
    size = [height, width]
    if isinstance(counts, list):
        return coco.frPyObjects({'size': size, 'counts': counts}, height, width)
    return {'size': size, 'counts': text}


def _decoded_counts(text: bytes) -> np.ndarray:
    """Return the run lengths of a compressed RLE, as rleFrString of pycocotools decodes them.

    A number has 5 bits in each character, the lowest first, and bit 5 in all but its last one.
    From the fourth on, a number is the difference from the number two before.
    """
    codes = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    if not len(codes) or (codes < 0).any() or (codes > 63).any() or codes[-1] & 0x20:
        raise _RegionError('the counts of its RLE are not a compressed RLE')
    ends = np.flatnonzero(codes & 0x20 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 10:
        raise _RegionError('the counts of its RLE are too large')
    places = np.arange(len(codes)) - np.repeat(starts, lengths)
    numbers = np.add.reduceat((codes & 0x1F) << (5 * places), starts)
    is_negative = codes[ends] & 0x10 != 0
    numbers[is_negative] -= np.int64(1) << (5 * lengths[is_negative])
    numbers = numbers.astype(np.float64)
    for first in (1, 2):
        numbers[first::2] = np.cumsum(numbers[first::2])
    return numbers
