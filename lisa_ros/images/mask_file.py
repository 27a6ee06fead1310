# SPDX-License-Identifier: Apache-2.0
"""Decode a mask, label map or image of ids: the only decoder of mask files in the package.

    mask = read_mask(Path('red mug.png')).mask()  # (H, W) bool
    ids = read_mask(Path('000123.png')).ids()     # (H, W) integers

How a pixel's value is found:

- grey of 1 to 16 bits: as stored;
- palette (as in PASCAL VOC): the index; the colours do not matter;
- transparent pixels (a cut-out, a brush layer): 1 where a pixel is at least half as opaque as the
  most opaque one, else 0;
- colours: shades of one colour on black, or grey saved as RGB, are the brightness.

Anything else, such as several colours, is an error that names the cure. `mask` is true where the
value is not 0, and in graded images (soft edges, JPEG) where it is at least half of the largest.
Formats that may change values (JPEG, WebP, AVIF) have no ids: one object, and no instances.
The EXIF orientation is applied, as to images. Any thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from lisa_ros.errors import ImageError
from lisa_ros.images.image_file import (
    GREY_MODES,
    black_as_zero,
    check_complete,
    deep_colour,
    has_deep_colour,
    native,
    open_image,
)
from lisa_ros.images.orientation import turn_of, turned_upright
from lisa_ros.images.pixel_limit import DEFAULT_MAX_IMAGE_PIXELS
from lisa_ros.images.stored_values import sample_scale, stored_values

_ALPHA_MODES = ('LA', 'La', 'PA', 'RGBA', 'RGBa')
_MAX_VALUES = 200  # distinct values of a mask; more: a photo, or depth
_MIN_GRADES = 16  # a graded image has more distinct values
_MIN_GRADED_LEVEL = 200  # the largest value of a graded image is at least this
_MAX_LAYER_COLOURS = 8  # more opaque colours: a photo
_LOSSY_FORMATS = ('JPEG', 'MPO', 'WEBP', 'AVIF')  # of Pillow
_LOSSY_COMPRESSIONS = ('jpeg', 'tiff_jpeg', 'webp')  # of TIFF
_SHADE_TOLERANCE = 24  # difference from a shade of one colour (JPEG) [of 255]
_CURE = 'save it as grey: 0 for the background and one other value for each object'


@dataclass(frozen=True, eq=False)
class MaskImage:
    """The decoded values of a mask file."""

    values: np.ndarray  # (H, W) integers, 0 and above; grey as `decode_samples`
    name: str  # of the file, for errors
    channels: int = 1  # of the file; more than one: only the value 0 has a meaning
    is_lossy: bool = False  # the file's format may change values
    scale: Fraction | None = Fraction(1)  # `sample_scale` of the file: values by stored values

    @property
    def has_ids(self) -> bool:
        """Whether each value has a meaning: no colours, no transparency and no lossy format."""
        return self.channels == 1 and not self.is_lossy

    def ids(self, meaning: str = 'ids') -> np.ndarray:
        """Return the value of each pixel as stored in the file, (H, W) integers.

        Args:
            meaning: of the values, for the error.

        Raises:
            ImageError: the file has colours or transparency, or its format may change values, or
                its stored values are not known.
        """
        if self.channels == 1 and self.is_lossy:
            raise ImageError(
                f'{self.name} has a format that may change values; expected {meaning} without '
                'loss: save it as PNG, from the original and not from this file'
            )
        if not self.has_ids:
            raise ImageError(
                f'{self.name} has {self.channels} channels; expected one of {meaning}: save it '
                'as grey of 8 or 16 bits, or with a palette'
            )
        return stored_values(self.values, self.scale, self.name)

    def mask(self) -> np.ndarray:
        """Return where the object is, (H, W) bool; see the module's docstring.

        Raises:
            ImageError: there is no background, or there are too many values for a mask.
        """
        if self.is_graded:
            return self.values >= (int(self.values.max()) + 1) // 2
        distinct = np.unique(self.values)
        if len(distinct) > _MAX_VALUES or not (self.has_ids or len(distinct) <= 2):
            raise ImageError(
                f'{self.name} has {len(distinct)} different values, so it is no mask: {_CURE}'
            )
        if distinct[0] != 0 and len(distinct) > 1:
            raise ImageError(
                f'{self.name} has no pixel of value 0 but values from {distinct[0]} to '
                f'{distinct[-1]}, so all of it would be the object: {_CURE}'
            )
        return self.values != 0

    @property
    def is_graded(self) -> bool:
        """Whether the values are grey levels of one object: soft edges, or noise of JPEG.

        There are many values, most of them near 0 or near the largest, and those near the largest
        outnumber those in the middle. In a lossy format any values are graded, except many values
        of which many are in the middle: those of a photo.
        """
        largest = int(self.values.max())
        if largest < (1 if self.is_lossy else _MIN_GRADED_LEVEL):
            return False
        low = int(np.count_nonzero(self.values < largest / 16))
        high = int(np.count_nonzero(self.values > largest - largest / 16))
        middle = self.values.size - low - high
        distinct = len(np.unique(self.values))
        if self.is_lossy:
            return middle < max(high, self.values.size / 10) or distinct <= _MAX_VALUES
        return 0 < middle < min(high, self.values.size / 10) and distinct > _MIN_GRADES


def read_mask(
    source: Path | bytes, name: str = '', max_pixels: int = DEFAULT_MAX_IMAGE_PIXELS
) -> MaskImage:
    """Return the values of a mask file.

    Args:
        source: a file, or its bytes.
        name: for errors; '' for a file: its path.
        max_pixels: limit of width times height.

    Raises:
        ImageError: it cannot be decoded, is too large, or its colours have no clear meaning.
    """
    name = name or str(source)
    with open_image(source, name, max_pixels, 'a mask') as image:
        scale = sample_scale(image, source)
        channels = deep_colour(image, source) if has_deep_colour(image) else _channels(image)
        check_complete(image, source)
        channels = black_as_zero(image, channels)
        channels = turned_upright(channels, turn_of(image))
        is_lossy = _is_lossy(image)
    if channels.ndim == 2:
        return MaskImage(_integers(channels, name), name, is_lossy=is_lossy, scale=scale)
    colours, alpha = channels[:, :, :3], channels[:, :, 3:]
    opaque = _opaque(alpha[:, :, 0]) if alpha.size else np.ones(channels.shape[:2], bool)
    if opaque.all():
        return MaskImage(_shades(colours, name), name, channels.shape[2], is_lossy)
    return MaskImage(_visible_part(colours, opaque, name), name, channels.shape[2])


def _is_lossy(image: Image.Image) -> bool:
    """Return whether the format or compression of a file may change values."""
    return image.format in _LOSSY_FORMATS or image.info.get('compression') in _LOSSY_COMPRESSIONS


def _channels(image: Image.Image) -> np.ndarray:
    """Return grey values or palette indices (H, W), or RGB or RGBA (H, W, 3 or 4)."""
    if image.mode in GREY_MODES and image.info.get('transparency') == 0:
        return native(np.asarray(image))  # 0 is the background anyway
    if image.mode.startswith('I') and image.info.get('transparency'):
        raise ValueError('one of its grey values above 0 is transparent')
    if image.mode in _ALPHA_MODES or 'transparency' in image.info:
        rgba = np.asarray(image.convert('RGBA'))
        if image.mode != 'P' or not _agrees(np.asarray(image), _opaque(rgba[:, :, 3])):
            return rgba
    if image.mode in ('1', 'P', *GREY_MODES):
        return native(np.asarray(image))
    return np.asarray(image.convert('RGB'))


def _integers(values: np.ndarray, name: str) -> np.ndarray:
    """Return (H, W) values as integers; check that they are."""
    if values.dtype == bool:
        return values.astype(np.uint8)
    integers = values.astype(np.int64) if values.dtype.kind == 'f' else values
    if (integers < 0).any() or (integers is not values and (integers != values).any()):
        raise ImageError(
            f'{name} has negative values or fractions; expected whole numbers: {_CURE}'
        )
    return integers


def _opaque(alpha: np.ndarray) -> np.ndarray:
    """Return which pixels are at least half as opaque as the most opaque one, (H, W) bool."""
    return alpha >= max(1, (int(alpha.max()) + 1) // 2)


def _agrees(indices: np.ndarray, opaque: np.ndarray) -> bool:
    """Return whether at most the background of a palette image, index 0, is transparent."""
    return bool(opaque.all() or (opaque == (indices != 0)).all())


def _visible_part(colours: np.ndarray, opaque: np.ndarray, name: str) -> np.ndarray:
    """Return the opaque pixels as (H, W) uint8, 0 and 1; check that the colours do not disagree.

    One opaque colour is a brush layer, many are a photo that was cut out. A few may be a mask of
    their own, or several objects. A fully transparent image of one colour is an empty layer.
    """
    count = len(np.unique(_packed(colours[opaque] if opaque.any() else colours.reshape(-1, 3))))
    if count > 1 and (count <= _MAX_LAYER_COLOURS or not opaque.any()):
        raise ImageError(
            f'{name} has transparent pixels and {count} colours, and it is not clear which of '
            f'them mark the object: remove the transparency, and {_CURE}'
        )
    return opaque.astype(np.uint8)


def _shades(colours: np.ndarray, name: str) -> np.ndarray:
    """Return the brightness of shades of one colour on black, (H, W) of the same type."""
    flat = colours.reshape(-1, 3).astype(np.float32)
    brightest = flat[flat.sum(axis=1).argmax()]
    levels = colours.max(axis=2)
    shades = levels.reshape(-1, 1) * (brightest / max(1, brightest.max()))
    tolerance = _SHADE_TOLERANCE * (257 if colours.dtype == np.uint16 else 1)
    if (np.abs(flat - shades) > tolerance).any():
        raise ImageError(
            f'{name} has 3 channels of several colours, which have no meaning in a mask: {_CURE}'
        )
    return levels


def _packed(colours: np.ndarray) -> np.ndarray:
    """Return (n, 3) colours of up to 16 bits as one number each, (n,) int64."""
    return colours.astype(np.int64) @ np.array([1 << 32, 1 << 16, 1])
