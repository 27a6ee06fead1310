# SPDX-License-Identifier: Apache-2.0
"""Part of a picture, looked at alone, and its masks put back into the whole.

A region is (x, y, width, height) [pixels], as sensor_msgs/RegionOfInterest has it.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from lisa_ros.errors import ImageError
from lisa_ros.results import Dialogue, MaskReady, Segmentation

Region = tuple[int, int, int, int]

OUTSIDE_LOGIT = -100.0  # logit of what was not looked at


def crop(image: np.ndarray, region: Region) -> np.ndarray:
    """Return the part of a picture, (h, w, 3), that lies in a region.

    Raises:
        ImageError: the region is not within the picture.
    """
    x, y, width, height = region
    rows, columns = image.shape[:2]
    if min(x, y) < 0 or min(width, height) < 1 or x + width > columns or y + height > rows:
        raise ImageError(
            f'the region of {width} x {height} pixels at ({x}, {y}) is not within the picture of '
            f'{columns} x {rows}'
        )
    return image[y : y + height, x : x + width]


def crop_dialogue(dialogue: Dialogue, region: Region) -> Dialogue:
    """Return the dialogue with what it has shown of the whole picture cropped to a region."""
    if dialogue.shown is None:
        return dialogue
    x, y, width, height = region
    shown = dialogue.shown[:, y : y + height, x : x + width]
    return dataclasses.replace(dialogue, shown=shown)


def paste_mask(event: MaskReady, region: Region, shape: tuple[int, int]) -> MaskReady:
    """Return a mask of a region as one of the whole picture, (H, W)."""
    logits = _in_whole(event.mask_logits[None], region, shape)[0]
    return dataclasses.replace(event, mask=logits > 0, mask_logits=logits)


def paste_result(result: Segmentation, region: Region, shape: tuple[int, int]) -> Segmentation:
    """Return an answer about a region as one about the whole picture, (N, H, W)."""
    logits = _in_whole(result.mask_logits, region, shape)
    return dataclasses.replace(result, masks=logits > 0, mask_logits=logits)


def _in_whole(logits: np.ndarray, region: Region, shape: tuple[int, int]) -> np.ndarray:
    x, y, width, height = region
    whole = np.full((len(logits), *shape), OUTSIDE_LOGIT, np.float32)
    whole[:, y : y + height, x : x + width] = logits
    return whole
