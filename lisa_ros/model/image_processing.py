# SPDX-License-Identifier: Apache-2.0
"""A picture becomes the two inputs of LISA: pixels for CLIP and pixels for SAM.

CLIP sees the picture small (and, with a centre crop, without the ends of its longer side); SAM
sees all of it, its longer side scaled to S, padded to a square right and bottom. Both are resized
by Pillow, as in the original, so that the same picture gives the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from lisa_ros.errors import CheckpointError, ImageError

UNREADABLE = (OSError, UnidentifiedImageError, Image.DecompressionBombError)  # of a picture
SAM_MEAN = (123.675, 116.28, 103.53)  # of RGB in 0..255; the same in every SAM
SAM_STD = (58.395, 57.12, 57.375)


def check_rgb(image: np.ndarray) -> np.ndarray:
    """Return the picture if it is one, (H, W, 3) uint8 RGB.

    Raises:
        ImageError: it has another type, shape or dtype, or no pixels.
    """
    if not isinstance(image, np.ndarray):
        raise ImageError(
            f'a picture must be a numpy array (H, W, 3) uint8 RGB, not {type(image).__name__}: '
            'numpy.asarray(PIL.Image.open(path).convert("RGB")) makes one'
        )
    if image.ndim != 3 or image.shape[2] != 3:
        raise ImageError(
            f'a picture must have the shape (H, W, 3), RGB, not {image.shape}: convert grey, '
            'alpha or channels-first pictures beforehand'
        )
    if image.dtype != np.uint8:
        raise ImageError(
            f'a picture must be uint8 in 0..255, not {image.dtype}: scale and cast it beforehand'
        )
    if 0 in image.shape:
        raise ImageError(f'the picture is empty: its shape is {image.shape}')
    return image


def read_rgb(path: Path) -> np.ndarray:
    """Return a picture of a file as a person sees it, (H, W, 3) uint8 RGB, turned by its EXIF.

    Raises:
        ImageError: there is no such file, or it is not a picture.
    """
    try:
        with Image.open(path) as picture:
            return np.asarray(ImageOps.exif_transpose(picture).convert('RGB'))
    except UNREADABLE as error:
        raise ImageError(f'{path} cannot be read as a picture: {error}') from error


# ---- CLIP


@dataclass(frozen=True)
class ClipPreprocessing:
    """How a CLIP wants its pictures, as its preprocessor_config.json says."""

    size: int | tuple[int, int]  # the shorter side, or (height, width) regardless of shape [px]
    crop: tuple[int, int] | None  # (height, width) cut from the middle [px]; None: no crop
    resample: int = Image.Resampling.BICUBIC
    scale: float = 1 / 255  # from uint8 to what mean and std are of
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    @classmethod
    def of_size(cls, size: int) -> ClipPreprocessing:
        """Return CLIP's usual recipe for a square input of `size` [px]."""
        return cls(size=size, crop=(size, size))

    @classmethod
    def from_dict(cls, config: Mapping) -> ClipPreprocessing:
        """Return the recipe of a preprocessor_config.json, read as a dict.

        Raises:
            CheckpointError: it asks for something that CLIP's own preprocessing does not know.
        """
        usual = cls.of_size(224)
        try:
            crops = config.get('do_center_crop', True)
            return cls(
                size=_size(config.get('size', usual.size)),
                crop=_height_width(config.get('crop_size', usual.crop)) if crops else None,
                resample=int(config.get('resample', usual.resample)),
                scale=config.get('rescale_factor', usual.scale),
                mean=tuple(config.get('image_mean', usual.mean)),
                std=tuple(config.get('image_std', usual.std)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f'preprocessor_config.json: not readable as that of a CLIP ({error!r}); its size '
                'must be a number, {"shortest_edge": n} or {"height": h, "width": w}'
            ) from error

    def to_dict(self) -> dict:
        """Return plain data in the form of preprocessor_config.json, `from_dict`'s inverse."""
        by_side = isinstance(self.size, int)
        height, width = self.crop or (0, 0)
        return {
            'image_processor_type': 'CLIPImageProcessor',
            'do_resize': True,
            'size': {'shortest_edge': self.size}
            if by_side
            else {'height': self.size[0], 'width': self.size[1]},
            'resample': int(self.resample),
            'do_center_crop': self.crop is not None,
            **({'crop_size': {'height': height, 'width': width}} if self.crop else {}),
            'do_rescale': True,
            'rescale_factor': self.scale,
            'do_normalize': True,
            'image_mean': list(self.mean),
            'image_std': list(self.std),
        }

    @property
    def output(self) -> tuple[int, int] | None:
        """(height, width) of what comes out [px]; None if it depends on the picture."""
        return self.crop or (None if isinstance(self.size, int) else self.size)


def clip_pixels(image: np.ndarray, recipe: ClipPreprocessing) -> np.ndarray:
    """Return CLIP's view of a picture (H, W, 3) uint8 RGB: (3, h, w) float32, normalised.

    Raises:
        ImageError: the picture is not (H, W, 3) uint8.
    """
    small = clip_view(image, recipe)
    # the order and the types of transformers' CLIPImageProcessor, for the last bit
    values = (small.astype(np.float64) * recipe.scale).astype(np.float32)
    values = (values - np.float32(recipe.mean)) / np.float32(recipe.std)
    return np.ascontiguousarray(values.transpose(2, 0, 1))


def clip_view(image: np.ndarray, recipe: ClipPreprocessing) -> np.ndarray:
    """Return what CLIP gets to see, resized and cropped: (h, w, 3) uint8 RGB."""
    height, width = check_rgb(image).shape[:2]
    if isinstance(recipe.size, int):
        short, long = sorted((height, width))
        longer = int(recipe.size * long / short)
        target = (recipe.size, longer) if height <= width else (longer, recipe.size)
    else:
        target = recipe.size
    resample = Image.Resampling(recipe.resample)
    small = np.asarray(Image.fromarray(image).resize(target[::-1], resample))
    if recipe.crop is None:
        return small
    return _center_crop(small, *recipe.crop)


def _center_crop(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the middle of a picture; where the picture is smaller, zeros surround it."""
    missing_y, missing_x = max(0, height - image.shape[0]), max(0, width - image.shape[1])
    if missing_y or missing_x:
        top, left = -(-missing_y // 2), -(-missing_x // 2)
        image = np.pad(image, ((top, missing_y - top), (left, missing_x - left), (0, 0)))
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]


def _size(size: int | Mapping) -> int | tuple[int, int]:
    if isinstance(size, Mapping) and 'shortest_edge' in size:
        return int(size['shortest_edge'])
    return size if isinstance(size, int) else _height_width(size)


def _height_width(size: int | tuple[int, int] | Mapping) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if isinstance(size, Mapping):
        return int(size['height']), int(size['width'])
    height, width = size
    return int(height), int(width)


# ---- SAM


@dataclass(frozen=True)
class SamInput:
    """A picture in SAM's square, and what leads mask logits back to the picture's pixels."""

    pixels: np.ndarray  # (3, S, S) float32, normalised; zeros right of and below the picture
    resized: tuple[int, int]  # (height, width) of the picture inside the square [px]
    original: tuple[int, int]  # (H, W) of the picture itself [px]


def sam_resized(original: tuple[int, int], size: int) -> tuple[int, int]:
    """Return (height, width) of a picture (H, W) with its longer side scaled to `size` [px]."""
    scale = size / max(original)
    height, width = (max(1, int(side * scale + 0.5)) for side in original)
    return height, width


def sam_input(image: np.ndarray, size: int) -> SamInput:
    """Return SAM's view of a picture (H, W, 3) uint8 RGB in a square of `size` pixels.

    Raises:
        ImageError: the picture is not (H, W, 3) uint8.
    """
    original = check_rgb(image).shape[:2]
    height, width = sam_resized(original, size)
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    values = (np.asarray(resized, np.float32) - np.float32(SAM_MEAN)) / np.float32(SAM_STD)
    pixels = np.zeros((3, size, size), np.float32)  # zeros after normalising: the mean colour
    pixels[:, :height, :width] = values.transpose(2, 0, 1)
    return SamInput(pixels, (height, width), (original[0], original[1]))
