# SPDX-License-Identifier: Apache-2.0
"""How a client sends an image, and how masks of a smaller image become masks of the whole one.

Letters: H x W the image [px]. Any thread.
"""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass

import cv2
import numpy as np

from lisa_ros.results import Dialogue, MaskReady, Segmentation
from lisa_ros.serving.query_format import RawImage
from lisa_ros.serving.wire_format import RAW_TYPE

DEFAULT_JPEG_QUALITY = 90
_SHORTEST_SIDE = 448 / 1024  # of the longest one: the largest CLIP's input beside SAM's


class ImageFormat(enum.Enum):
    """How the pixels of an image travel."""

    JPEG = 'jpeg'  # small; masks differ by a few pixels at their boundaries
    PNG = 'png'  # without loss
    RAW = 'raw'  # without loss and without work for the processors, 3 bytes a pixel


@dataclass(frozen=True)
class ImageCoding:
    """How images are sent."""

    image_format: ImageFormat = ImageFormat.JPEG
    jpeg_quality: int = DEFAULT_JPEG_QUALITY  # 1 to 100

    @property
    def is_lossless(self) -> bool:
        """Whether every pixel arrives as it is."""
        return self.image_format is not ImageFormat.JPEG


@dataclass(frozen=True)
class SentImage:
    """An image as it is sent."""

    content: bytes
    media_type: str
    raw: RawImage | None = None  # None: `content` is a file


def encode_image(image: np.ndarray, coding: ImageCoding) -> SentImage:
    """Encode a (H, W, 3) uint8 RGB image, of sides that `check_rgb` accepts."""
    height, width = image.shape[:2]
    if coding.image_format is ImageFormat.RAW:
        return SentImage(image.tobytes(), RAW_TYPE, RawImage(width, height, 'rgb8'))
    name, options = '.png', [cv2.IMWRITE_PNG_COMPRESSION, 1]
    if coding.image_format is ImageFormat.JPEG:
        name, options = '.jpg', [cv2.IMWRITE_JPEG_QUALITY, coding.jpeg_quality]
    _, content = cv2.imencode(name, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    return SentImage(content.tobytes(), f'image/{coding.image_format.value}')


def fitted_image(image: np.ndarray, longest_side: int | None) -> np.ndarray:
    """Return a (H, W, 3) image whose sides are at most `longest_side` [px]; None: any.

    The shorter side of a long image stays larger: CLIP scales that one to its own size.
    """
    height, width = image.shape[:2]
    if longest_side is None or max(height, width) <= longest_side:
        return image
    shortest_side = _SHORTEST_SIDE * longest_side
    scale = max(longest_side / max(height, width), shortest_side / min(height, width))
    if scale >= 1:
        return image
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def fitted_dialogue(
    dialogue: Dialogue, image_shape: tuple[int, int], shape: tuple[int, int]
) -> Dialogue:
    """Return a dialogue whose masks have the size of the image that is sent.

    Masks of an image of another size are left out, as a model here does.

    Args:
        dialogue: the earlier turns.
        image_shape: (H, W) of the image of the query.
        shape: (H, W) of the image that is sent.
    """
    shown = dialogue.shown
    if shown is None:
        return dialogue
    if shown.shape[1:] != image_shape:
        return dataclasses.replace(dialogue, shown=None)
    if image_shape == shape:
        return dialogue
    smaller = [_resized(mask.astype(np.uint8), shape, cv2.INTER_NEAREST) > 0 for mask in shown]
    stack = np.stack(smaller) if smaller else np.zeros((0, *shape), bool)
    return dataclasses.replace(dialogue, shown=stack)


def enlarged_mask(event: MaskReady, shape: tuple[int, int]) -> MaskReady:
    """Return a mask in the size (H, W) of the whole image."""
    if event.mask.shape == shape:
        return event
    logits = _resized(event.mask_logits, shape, cv2.INTER_LINEAR)
    return dataclasses.replace(event, mask=logits > 0, mask_logits=logits)


def enlarged_result(result: Segmentation, shape: tuple[int, int]) -> Segmentation:
    """Return a result with masks in the size (H, W) of the whole image."""
    if result.masks.shape[1:] == shape:
        return result
    logits = np.zeros((0, *shape), np.float32)
    if len(result.mask_logits):
        logits = np.stack([_resized(mask, shape, cv2.INTER_LINEAR) for mask in result.mask_logits])
    return dataclasses.replace(result, masks=logits > 0, mask_logits=logits)


def _resized(pixels: np.ndarray, shape: tuple[int, int], interpolation: int) -> np.ndarray:
    return cv2.resize(pixels, (shape[1], shape[0]), interpolation=interpolation)
