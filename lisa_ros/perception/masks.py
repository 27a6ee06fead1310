# SPDX-License-Identifier: Apache-2.0
"""What can be said about masks and drawn from them: boxes, RLE, label images, pictures for people.

Letters: N masks of one answer, H x W the picture's pixels. Pure numpy and OpenCV, any thread.
"""

from __future__ import annotations

import numpy as np


def bounding_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return the tight box of a (H, W) bool mask as (x, y, width, height) pixels; empty: zeros."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        return 0, 0, 0, 0
    x, y = int(columns[0]), int(rows[0])
    return x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1


def area(mask: np.ndarray) -> int:
    """Return the number of pixels of the mask."""
    return int(np.count_nonzero(mask))


def iou(one: np.ndarray, other: np.ndarray) -> float:
    """Return intersection over union of two (H, W) bool masks; two empty ones agree: 1."""
    union = np.count_nonzero(one | other)
    return float(np.count_nonzero(one & other) / union) if union else 1.0


def encode_rle(mask: np.ndarray) -> dict[str, list[int]]:
    """Return a (H, W) bool mask as COCO's uncompressed RLE: {'size': [H, W], 'counts': [...]}.

    The counts run down the columns and begin with the zeros, so that the first may be 0;
    `pycocotools.mask.frPyObjects(rle, H, W)` reads it.
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
    """Return one picture of all masks, (H, W) uint8: 0 background, 1..254 the mask's place.

    A pixel of several masks goes to the one with the highest logit there. From the 255th mask on
    nothing is drawn: 255 is "unlabelled" in vision_msgs.

    Args:
        masks: (N, H, W) bool.
        mask_logits: (N, H, W) float32 of the same masks.
    """
    labels = np.zeros(masks.shape[1:], np.uint8)
    highest = np.full(masks.shape[1:], -np.inf, np.float32)
    for number, (mask, logits) in enumerate(zip(masks[:254], mask_logits[:254], strict=True), 1):
        wins = mask & (logits > highest)
        labels[wins] = number
        highest[wins] = logits[wins]
    return labels


def confidence_image(mask_logits: np.ndarray) -> np.ndarray:
    """Return how sure the model is of each pixel, (H, W) uint8: 0..255 for probability 0..1.

    The probability is the sigmoid of the highest of the (N, H, W) float32 logits; zeros without
    a mask.
    """
    if len(mask_logits) == 0:
        return np.zeros(mask_logits.shape[1:], np.uint8)
    highest = np.clip(mask_logits.max(axis=0), -30, 30)  # exp stays finite in float32
    return np.rint(255 / (1 + np.exp(-highest))).astype(np.uint8)
