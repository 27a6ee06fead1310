# SPDX-License-Identifier: Apache-2.0
"""Convert an image to the two inputs of LISA: pixels for CLIP and pixels for SAM.

CLIP gets a small image; a centre crop, if configured, removes the ends of the longer side. SAM
gets the whole image: the longer side is scaled to S, and the image is padded right and bottom to a
square. Pillow resizes both, as in the original, so that the pixels are identical to the bit.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from lisa_ros.errors import ImageError
from lisa_ros.images.pixel_limit import check_sides
from lisa_ros.model.json_file import JsonFields, read_json

_MAX_CLIP_RATIO = 32  # of the sides of an image that is resized for CLIP's centre crop
SAM_MEAN = (123.675, 116.28, 103.53)  # of RGB in 0..255, in every SAM
SAM_STD = (58.395, 57.12, 57.375)


def check_rgb(image: np.ndarray) -> np.ndarray:
    """Return the image if it is (H, W, 3) uint8 RGB.

    Raises:
        ImageError: it has another type, shape or dtype, no pixels, or too long a side.
    """
    if not isinstance(image, np.ndarray):
        raise ImageError(
            f'the image is a {type(image).__name__}; expected a numpy array (H, W, 3) uint8 RGB: '
            'numpy.asarray(PIL.Image.open(path).convert("RGB")) makes one'
        )
    if image.ndim != 3 or image.shape[2] != 3:
        raise ImageError(
            f'the image has the shape {image.shape}; expected (H, W, 3), RGB: convert grey, alpha '
            'or channels-first images first'
        )
    if image.dtype != np.uint8:
        raise ImageError(
            f'the image is {image.dtype}; expected uint8 in 0..255: scale and cast it first'
        )
    if 0 in image.shape:
        raise ImageError(f'the image is empty: its shape is {image.shape}')
    check_sides(image.shape[1], image.shape[0], 'the image')
    return image


def image_key(image: np.ndarray) -> tuple:
    """Return the cache key of an image: its shape and a hash of its pixels."""
    return image.shape, hashlib.blake2b(np.ascontiguousarray(image)).digest()


# ---- normalization


@functools.lru_cache(maxsize=16)
def normalized_levels(scale: float, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """Return the normalized value of each grey level of each colour, (3, 256) float32, read-only.

    In the order and the types of transformers' CLIPImageProcessor, for identical bits.
    """
    levels = (np.arange(256, dtype=np.float64) * scale).astype(np.float32)
    means, deviations = (np.float32(numbers)[:, None] for numbers in (mean, std))
    values = (levels - means) / deviations
    values.flags.writeable = False
    return values


def _normalized(
    image: np.ndarray, scale: float, mean: tuple[float, ...], std: tuple[float, ...]
) -> np.ndarray:
    """Return an image (h, w, 3) uint8 as (3, h, w) float32, by the values of its grey levels."""
    pixels = np.empty((3, *image.shape[:2]), np.float32)
    for colour, values in enumerate(normalized_levels(scale, tuple(mean), tuple(std))):
        np.take(values, image[..., colour], out=pixels[colour], mode='clip')
    return pixels


# ---- CLIP


@dataclass(frozen=True)
class ClipPreprocessing:
    """How images are resized, cropped and normalized for a CLIP (preprocessor_config.json)."""

    size: int | tuple[int, int]  # of the shorter side, or (height, width) for any shape [px]
    crop: tuple[int, int] | None  # (height, width) of the centre crop [px]; None: no crop
    resample: int = Image.Resampling.BICUBIC
    scale: float = 1 / 255  # factor from uint8 to the range of mean and std
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    @classmethod
    def of_size(cls, size: int) -> ClipPreprocessing:
        """Return CLIP's usual preprocessing for a square input of `size` [px]."""
        return cls(size=size, crop=(size, size))

    @classmethod
    def read(cls, path: Path) -> ClipPreprocessing:
        """Return the preprocessing in a preprocessor_config.json.

        Raises:
            CheckpointError: it cannot be read, or a value is not valid for CLIP's preprocessing.
        """
        return cls.from_dict(read_json(path), path)

    @classmethod
    def from_dict(
        cls, config: Mapping, source: str | Path = 'preprocessor_config.json'
    ) -> ClipPreprocessing:
        """Return the preprocessing of a preprocessor_config.json, read as a dict.

        Args:
            config: content of the file.
            source: path of the file, for messages.

        Raises:
            CheckpointError: a value is not valid for CLIP's preprocessing.
        """
        fields, default = JsonFields(config, source), cls.of_size(224)
        has_crop = fields.flag('do_center_crop', True)
        return cls(
            size=_size(fields, 'size', default.size),
            crop=_crop(fields, default.crop) if has_crop else None,
            resample=fields.integer('resample', default.resample, *_RESAMPLES),
            scale=fields.number('rescale_factor', default.scale, minimum=1e-6),
            mean=_of_rgb(fields, 'image_mean', default.mean),
            std=_of_rgb(fields, 'image_std', default.std, minimum=1e-6),
        )

    def to_dict(self) -> dict:
        """Return the content of preprocessor_config.json; `from_dict` reads it."""
        if isinstance(self.size, int):
            size = {'shortest_edge': self.size}
        else:
            size = {'height': self.size[0], 'width': self.size[1]}
        height, width = self.crop or (0, 0)
        return {
            'image_processor_type': 'CLIPImageProcessor',
            'do_resize': True,
            'size': size,
            'resample': int(self.resample),
            'do_center_crop': self.crop is not None,
            **({'crop_size': {'height': height, 'width': width}} if self.crop else {}),
            'do_rescale': True,
            'rescale_factor': self.scale,
            'do_normalize': True,
            'image_mean': list(self.mean),
            'image_std': list(self.std),
        }

    def used_part(self, height: int, width: int) -> tuple[slice, slice]:
        """Return the rows and columns of an image that CLIP sees some part of.

        Of a very long image this is the middle, of _MAX_CLIP_RATIO: scaling a side of one pixel to
        CLIP's size scales the other one to millions. Without a crop, nothing is cut off.
        """
        if self.crop is None or not isinstance(self.size, int):
            return slice(0, height), slice(0, width)
        limit = _MAX_CLIP_RATIO * min(height, width)
        rows, columns = (max(0, side - limit) // 2 for side in (height, width))
        return slice(rows, rows + limit), slice(columns, columns + limit)

    @property
    def output(self) -> tuple[int, int] | None:
        """(height, width) of the result [px]; None if it depends on the image."""
        return self.crop or (None if isinstance(self.size, int) else self.size)


def clip_pixels(image: np.ndarray, preprocessing: ClipPreprocessing) -> np.ndarray:
    """Return CLIP's input for an image (H, W, 3) uint8 RGB: (3, h, w) float32, normalized.

    Raises:
        ImageError: the image is not (H, W, 3) uint8.
    """
    resized = resize_for_clip(image, preprocessing)
    return _normalized(resized, preprocessing.scale, preprocessing.mean, preprocessing.std)


def resize_for_clip(image: np.ndarray, preprocessing: ClipPreprocessing) -> np.ndarray:
    """Return the image resized and cropped for CLIP, (h, w, 3) uint8 RGB.

    Raises:
        ImageError: the image is not (H, W, 3) uint8.
    """
    rows, columns = preprocessing.used_part(*check_rgb(image).shape[:2])
    image = image[rows, columns]
    target = clip_resized_shape(*image.shape[:2], preprocessing)
    resample = Image.Resampling(preprocessing.resample)
    resized = np.asarray(Image.fromarray(image).resize(target[::-1], resample))
    if preprocessing.crop is None:
        return resized
    return _center_crop(resized, *preprocessing.crop)


def clip_resized_shape(
    height: int, width: int, preprocessing: ClipPreprocessing
) -> tuple[int, int]:
    """Return (height, width) of an image that is resized for CLIP, before the crop [px]."""
    if not isinstance(preprocessing.size, int):
        return preprocessing.size
    short, long = sorted((height, width))
    longer = int(preprocessing.size * long / short)
    return (preprocessing.size, longer) if height <= width else (longer, preprocessing.size)


def _center_crop(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the middle of an image; a smaller image is padded with zeros first."""
    missing_y, missing_x = max(0, height - image.shape[0]), max(0, width - image.shape[1])
    if missing_y or missing_x:
        top, left = -(-missing_y // 2), -(-missing_x // 2)
        image = np.pad(image, ((top, missing_y - top), (left, missing_x - left), (0, 0)))
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]


_RESAMPLES = (min(Image.Resampling), max(Image.Resampling))


def _size(fields: JsonFields, key: str, default: int) -> int | tuple[int, int]:
    """Return a size: a number or shortest edge, or (height, width) [px]."""
    size = fields.values.get(key)
    if isinstance(size, dict) and 'shortest_edge' in size:
        return fields.object(key).integer('shortest_edge', minimum=1)
    if isinstance(size, dict) and {'height', 'width'} <= size.keys():
        sides = fields.object(key)
        return sides.integer('height', minimum=1), sides.integer('width', minimum=1)
    if isinstance(size, list) and len(size) == 2 and all(type(s) is int and s > 0 for s in size):
        return size[0], size[1]
    if size is None or type(size) is int:
        return fields.integer(key, default, minimum=1)
    raise fields.error(key, 'a number, {"shortest_edge": n} or {"height": h, "width": w}')


def _crop(fields: JsonFields, default: tuple[int, int]) -> tuple[int, int]:
    """Return the size of the centre crop, (height, width) [px]."""
    size = _size(fields, 'crop_size', default[0])
    return (size, size) if isinstance(size, int) else size


def _of_rgb(
    fields: JsonFields, key: str, default: tuple[float, ...], minimum: float = -1e6
) -> tuple[float, ...]:
    """Return three numbers, for red, green and blue."""
    values = fields.numbers(key, list(default))
    if len(values) != 3 or min(values) < minimum:
        raise fields.error(key, f'three numbers of {minimum:g} or more')
    return values


# ---- SAM


@dataclass(frozen=True)
class SamInput:
    """An image in SAM's square input, and the sizes that map mask logits back to the image."""

    pixels: np.ndarray  # (3, S, S) float32, normalized; zeros right of and below the image
    resized: tuple[int, int]  # (height, width) of the image inside the square [px]
    original: tuple[int, int]  # (H, W) of the image itself [px]


def sam_resized_shape(original: tuple[int, int], size: int) -> tuple[int, int]:
    """Return (height, width) of an image (H, W) with its longer side scaled to `size` [px]."""
    scale = size / max(original)
    height, width = (max(1, int(side * scale + 0.5)) for side in original)
    return height, width


def sam_input(image: np.ndarray, size: int) -> SamInput:
    """Return SAM's input for an image (H, W, 3) uint8 RGB: a square of `size` pixels.

    Raises:
        ImageError: the image is not (H, W, 3) uint8.
    """
    original = check_rgb(image).shape[:2]
    height, width = sam_resized_shape(original, size)
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.zeros((3, size, size), np.float32)  # zeros after normalization: the mean colour
    pixels[:, :height, :width] = _normalized(np.asarray(resized), 1.0, SAM_MEAN, SAM_STD)
    return SamInput(pixels, (height, width), (original[0], original[1]))
