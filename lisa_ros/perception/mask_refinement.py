# SPDX-License-Identifier: Apache-2.0
"""Masks that end where things end: edges of the picture sharpen what a coarse decoder guessed.

SAM decodes masks on a grid, a quarter of its input, and the grid's cells are enlarged to pixels:
of a small model some five pixels each. Two well-known steps bring the picture's own edges back
in: a guided filter (He, Sun and Tang, "Guided Image Filtering", ECCV 2010) on the logits, and
GrabCut (Rother, Kolmogorov and Blake, SIGGRAPH 2004; OpenCV's) in the narrow band in doubt.

The released LISA has fine cells and masks of its own; nothing of this is done to it unless asked.
Letters: H x W the picture's pixels. Pure numpy and OpenCV, any thread.
"""

from __future__ import annotations

import cv2
import numpy as np

_REACH = 1.6  # radius of the guided filter [cells]
_BAND = 0.6  # half width of the band in doubt [cells]
_AROUND = 3.0  # surroundings that colours are learnt from [cells]
_CLIP = 3.0  # logits beyond are as sure
_SMOOTH = 1e-4  # eps of the guided filter, of colours 0..1: below it is no edge
_LEAST = 20  # pixels that a mask must have, or there is nothing to learn from


def refine_mask_logits(image: np.ndarray, logits: np.ndarray, cell: float) -> np.ndarray:
    """Return the logits of a mask that follows the picture's edges, (H, W) float32.

    Those far from the mask stay as they are; near it the sign is new, and the size is that of the
    filter's answer.

    Args:
        image: (H, W, 3) uint8 RGB.
        logits: (H, W) float32, of one mask.
        cell: size of a cell of the grid that they were decoded on [pixels].
    """
    mask = logits > 0
    if np.count_nonzero(mask) < _LEAST:
        return logits
    reach, band = max(2, round(_REACH * cell)), max(1, round(_BAND * cell))
    part = _around(mask, 2 * reach + round(_AROUND * cell))
    colours = np.ascontiguousarray(image[part])
    filtered = _guided(colours, np.clip(logits[part], -_CLIP, _CLIP), reach)
    if not (filtered > 0).any():
        return logits  # it has nothing of its own in the picture: left as it is
    cut = _grab_cut(colours, filtered > 0, band, round(_AROUND * cell))
    size = np.maximum(np.abs(filtered), 1e-3)
    result = logits.copy()
    result[part] = np.where(cut, size, -size)
    return result


def _around(mask: np.ndarray, margin: int) -> tuple[slice, slice]:
    """Return the rows and columns of a mask's box with a margin [pixels]."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return tuple(
        slice(max(0, int(found[0]) - margin), int(found[-1]) + 1 + margin)
        for found in (rows, columns)
    )


def _guided(image: np.ndarray, values: np.ndarray, radius: int) -> np.ndarray:
    """Return values (h, w) as locally linear functions of the colours, float32 (He, eq. 19 to 21).

    The system of three equations a pixel is solved by the inverse of a symmetric matrix.
    """
    guide = image.astype(np.float32) / 255
    side = (2 * radius + 1, 2 * radius + 1)

    def mean(array: np.ndarray) -> np.ndarray:
        return cv2.blur(array, side, borderType=cv2.BORDER_REFLECT)

    centre, level = mean(guide), mean(values)
    with_values = mean(guide * values[..., None]) - centre * level[..., None]
    pairs = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))
    a, b, c, d, e, f = (
        mean(guide[..., i] * guide[..., j])
        - centre[..., i] * centre[..., j]
        + np.float32(_SMOOTH if i == j else 0)
        for i, j in pairs
    )
    inverse = ((d * f - e * e, c * e - b * f, b * e - c * d),)
    inverse += ((inverse[0][1], a * f - c * c, b * c - a * e),)
    inverse += ((inverse[0][2], inverse[1][2], a * d - b * b),)
    volume = a * inverse[0][0] + b * inverse[0][1] + c * inverse[0][2]
    slope = np.stack(
        [sum(row[i] * with_values[..., i] for i in range(3)) / volume for row in inverse], axis=-1
    )
    offset = level - (slope * centre).sum(axis=-1)
    return (mean(slope) * guide).sum(axis=-1) + mean(offset)


def _grab_cut(image: np.ndarray, mask: np.ndarray, band: int, around: int) -> np.ndarray:
    """Return the mask (h, w) bool cut anew in a band round its edge; as it is where that fails."""
    inner, outer, seen = (
        _grown(mask, -max(1, band // 3)),
        _grown(mask, band),
        _grown(mask, band + around),
    )
    labels = np.full(mask.shape, cv2.GC_BGD, np.uint8)
    labels[outer] = cv2.GC_PR_BGD
    labels[mask] = cv2.GC_PR_FGD
    labels[inner] = cv2.GC_FGD
    part = _around(seen, 0)
    near = labels[part].copy()
    if not (near == cv2.GC_BGD).any():
        return mask
    cv2.setRNGSeed(0)  # the same picture, the same mask
    models = np.zeros((1, 65)), np.zeros((1, 65))
    colours = np.ascontiguousarray(image[part])
    try:
        cv2.grabCut(colours, near, None, *models, 2, cv2.GC_INIT_WITH_MASK)
    except cv2.error:  # too few pixels for its five colours
        return mask
    cut = np.zeros_like(mask)
    cut[part] = (near == cv2.GC_FGD) | (near == cv2.GC_PR_FGD)
    return cut if cut.any() else mask


def _grown(mask: np.ndarray, by: int) -> np.ndarray:
    """Return the mask with its edge moved out by so many pixels, in where that is negative."""
    side = 2 * abs(by) + 1
    change = cv2.dilate if by > 0 else cv2.erode
    return change(mask.astype(np.uint8), np.ones((side, side), np.uint8)).astype(bool)
