# SPDX-License-Identifier: Apache-2.0
"""Bounding box, overlap, RLE, label image and confidence image of masks, for every package.

Letters: N masks of one answer, H x W the image [px]. Pure numpy, any thread.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

IGNORED_PIXEL = 255  # in ground truth: of pixels that are left out of losses and metrics
MAX_MASKS = 254  # of one answer: 0 is background in a label image, 255 "unlabelled" in vision_msgs
# IoU above which two masks show one object; a mask of two objects and a mask of one of them have
# an IoU of about 0.5
SAME_OBJECT_IOU = 0.6
_BLOCK = 1 << 16  # pixels that are computed at a time, so that they stay in the processor's cache


def bounding_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return the tight box of a (H, W) bool mask as (x, y, width, height) [px]; empty: zeros."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        return 0, 0, 0, 0
    x, y = int(columns[0]), int(rows[0])
    return x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1


def box_slices(mask: np.ndarray, margin: int = 0) -> tuple[slice, slice]:
    """Return the rows and columns of a mask's box and a margin [px] round it, cut at 0.

    The slices may end beyond the image, where numpy cuts them. The mask must not be empty.
    """
    x, y, width, height = bounding_box(mask)
    return (
        slice(max(0, y - margin), y + height + margin),
        slice(max(0, x - margin), x + width + margin),
    )


def touches_edge(mask: np.ndarray) -> bool:
    """Return whether a (H, W) bool mask reaches the edge of the image, and may end beyond it."""
    return bool(mask[[0, -1]].any() or mask[:, [0, -1]].any())


def area(mask: np.ndarray) -> int:
    """Return the number of pixels of a mask."""
    return int(np.count_nonzero(mask))


def iou(first: np.ndarray, second: np.ndarray) -> float:
    """Return intersection over union of two (H, W) bool masks; 1 if both are empty."""
    union = np.count_nonzero(first | second)
    return float(np.count_nonzero(first & second) / union) if union else 1.0


def shows_one_of(mask: np.ndarray, others: Iterable[np.ndarray]) -> bool:
    """Return whether a (H, W) bool mask shows the object of one of the other masks.

    An empty mask shows none.
    """
    if not mask.any():
        return False
    box, own_area = box_slices(mask), area(mask)
    for other in others:
        shared = area(mask[box] & other[box])
        if shared > SAME_OBJECT_IOU * (own_area + area(other) - shared):
            return True
    return False


def encode_rle(mask: np.ndarray) -> dict[str, list[int]]:
    """Return a (H, W) bool mask as COCO's uncompressed RLE: {'size': [H, W], 'counts': [...]}.

    The counts run down the columns. The first one counts zeros, and may be 0.
    `pycocotools.mask.frPyObjects(rle, H, W)` reads the result.
    """
    pixels = np.asarray(mask, dtype=bool).ravel(order='F')
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    counts = np.diff(np.concatenate([[0], changes, [pixels.size]])).tolist()
    if pixels.size and pixels[0]:
        counts.insert(0, 0)
    return {'size': list(mask.shape), 'counts': counts}


def decode_rle(encoded: dict[str, list[int]]) -> np.ndarray:
    """Return the (H, W) bool mask of COCO's uncompressed RLE."""
    counts = encoded['counts']
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(encoded['size'], order='F')


def label_image(masks: np.ndarray, mask_logits: np.ndarray) -> np.ndarray:
    """Return one image of all masks, (H, W) uint8: 0 background, n for the n-th mask.

    A pixel of several masks gets the mask with the highest logit there. Masks after the first
    MAX_MASKS are not drawn.

    Args:
        masks: (N, H, W) bool.
        mask_logits: (N, H, W) float32 of the same masks.
    """
    if len(masks) == 1:
        return masks[0].astype(np.uint8)
    labels = np.zeros(masks.shape[1:], np.uint8)
    highest = np.full(masks.shape[1:], -np.inf, np.float32)
    pairs = zip(masks[:MAX_MASKS], mask_logits[:MAX_MASKS], strict=True)
    for number, (mask, logits) in enumerate(pairs, 1):
        box = box_slices(mask) if mask.any() else (slice(0), slice(0))
        wins = mask[box] & (logits[box] > highest[box])
        np.copyto(labels[box], number, where=wins)
        np.copyto(highest[box], logits[box], where=wins)
    return labels


def confidence_image(mask_logits: np.ndarray) -> np.ndarray:
    """Return the probability of each pixel to be in a mask, (H, W) uint8: 0..255 for 0..1.

    It is the sigmoid of the highest of the (N, H, W) float32 logits; zeros if N is 0.
    """
    if len(mask_logits) == 0:
        return np.zeros(mask_logits.shape[1:], np.uint8)
    height, width = mask_logits.shape[1:]
    confidence = np.empty((height, width), np.uint8)
    step = max(1, _BLOCK // max(1, width))
    buffer = np.empty((step, width), np.float32)
    with np.errstate(over='ignore'):  # exp(100) is infinite in float32, and 255 / inf is 0
        for start in range(0, height, step):
            rows = slice(start, start + step)
            highest = (
                mask_logits[0, rows] if len(mask_logits) == 1 else mask_logits[:, rows].max(0)
            )
            values = buffer[: len(highest)]
            np.exp(np.negative(highest, out=values), out=values)
            np.divide(255, np.add(values, 1, out=values), out=values)
            confidence[rows] = np.add(values, 0.5, out=values)  # rounded, as it is cut
    return confidence
