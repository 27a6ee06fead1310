# SPDX-License-Identifier: Apache-2.0
"""Refine the boundary of a mask with the edges of the image.

SAM decodes masks on a grid of a quarter of its input size. Enlarged to the image, a cell of the
grid has several pixels: about five for a small model. Two known methods follow the image's edges:
a guided filter (He, Sun and Tang, "Guided Image Filtering", ECCV 2010) on the logits, and GrabCut
(Rother, Kolmogorov and Blake, SIGGRAPH 2004; OpenCV's) in a narrow band round the boundary.

The cells of the released LISA are small; its masks are refined only on request.
Letters: H x W the image [px], h x w a part of it. Pure numpy and OpenCV, any thread.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from lisa_ros.perception.masks import box_slices

_FILTER_RADIUS = 1.6  # of the guided filter [cells]
_BAND = 0.6  # half width of the uncertain band at the boundary [cells]
_SURROUNDINGS = 3.0  # width of the background that GrabCut learns colours from [cells]
_MAX_LOGIT = 3.0  # logits are clipped to this before filtering
_EPSILON = 1e-4  # eps of the guided filter, for colours 0..1: smaller variance is no edge
_MIN_PIXELS = 20  # smaller masks stay unchanged: too few colours to learn from


def refine_mask_logits(image: np.ndarray, logits: np.ndarray, cell: float) -> np.ndarray:
    """Return the logits of the refined mask, (H, W) float32.

    An image thinner than a cell keeps its logits: it has no boundary to refine. Otherwise, logits
    far from the mask are unchanged. Near it, the sign is that of the refined mask and the
    magnitude that of the guided filter's result.

    Args:
        image: (H, W, 3) uint8 RGB.
        logits: (H, W) float32, of one mask.
        cell: size of a cell of the grid on which the logits were decoded [px].
    """
    mask = logits > 0
    if np.count_nonzero(mask) < _MIN_PIXELS or min(mask.shape) < cell:
        return logits
    radius, band = max(2, round(_FILTER_RADIUS * cell)), max(1, round(_BAND * cell))
    surroundings = round(_SURROUNDINGS * cell)
    part = box_slices(mask, 2 * radius + surroundings)
    colours = np.ascontiguousarray(image[part])
    filtered = _guided_filter(colours, np.clip(logits[part], -_MAX_LOGIT, _MAX_LOGIT), radius)
    if not (filtered > 0).any():
        return logits  # the filter removed the whole mask: keep it as it was
    refined = _grab_cut(colours, filtered > 0, band, surroundings)
    magnitude = np.maximum(np.abs(filtered), 1e-3)
    result = logits.copy()
    result[part] = np.where(refined, magnitude, -magnitude)
    return result


def _guided_filter(image: np.ndarray, values: np.ndarray, radius: int) -> np.ndarray:
    """Return values (h, w) as locally linear functions of the colours, float32 (He, eq. 19 to 21).

    Each pixel's system of three equations is solved by inverting a symmetric 3 x 3 matrix.
    """
    guide = [plane.astype(np.float32) / 255 for plane in cv2.split(image)]
    window = (2 * radius + 1, 2 * radius + 1)

    def mean(array: np.ndarray) -> np.ndarray:
        return cv2.blur(array, window, borderType=cv2.BORDER_REFLECT)

    mean_guide, mean_values = [mean(plane) for plane in guide], mean(values)
    covariance = [
        mean(plane * values) - mean_plane * mean_values
        for plane, mean_plane in zip(guide, mean_guide, strict=True)
    ]
    pairs = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))
    a, b, c, d, e, f = (
        mean(guide[i] * guide[j])
        - mean_guide[i] * mean_guide[j]
        + np.float32(_EPSILON if i == j else 0)
        for i, j in pairs
    )
    adjugate = ((d * f - e * e, c * e - b * f, b * e - c * d),)
    adjugate += ((adjugate[0][1], a * f - c * c, b * c - a * e),)
    adjugate += ((adjugate[0][2], adjugate[1][2], a * d - b * b),)
    determinant = a * adjugate[0][0] + b * adjugate[0][1] + c * adjugate[0][2]
    slope = [_dot(row, covariance) / determinant for row in adjugate]
    offset = mean_values - _dot(slope, mean_guide)
    return _dot([mean(plane) for plane in slope], guide) + mean(offset)


def _dot(left: Sequence[np.ndarray], right: Sequence[np.ndarray]) -> np.ndarray:
    """Return the sum of the products of two lists of planes, (h, w)."""
    products = [a * b for a, b in zip(left, right, strict=True)]
    total = products[0]
    for product in products[1:]:
        total += product
    return total


def _grab_cut(image: np.ndarray, mask: np.ndarray, band: int, surroundings: int) -> np.ndarray:
    """Segment a band round a mask's boundary again; return the new mask, (h, w) bool.

    Returns the mask unchanged if there is no background to learn from, or if GrabCut fails.

    Args:
        image: (h, w, 3) uint8 RGB.
        mask: (h, w) bool.
        band: width of the band outside the boundary [px]; inside it is a third of that.
        surroundings: width of the known background outside the band [px].
    """
    inner, outer = _grown(mask, -max(1, band // 3)), _grown(mask, band)
    labels = np.full(mask.shape, cv2.GC_BGD, np.uint8)
    labels[outer] = cv2.GC_PR_BGD
    labels[mask] = cv2.GC_PR_FGD
    labels[inner] = cv2.GC_FGD
    part = box_slices(_grown(mask, band + surroundings))
    part_labels = labels[part].copy()
    if not (part_labels == cv2.GC_BGD).any():
        return mask
    cv2.setRNGSeed(0)  # the same image gives the same mask
    models = np.zeros((1, 65)), np.zeros((1, 65))
    colours = np.ascontiguousarray(image[part])
    try:
        cv2.grabCut(colours, part_labels, None, *models, 2, cv2.GC_INIT_WITH_MASK)
    except cv2.error:  # too few pixels for its five colour components
        return mask
    refined = np.zeros_like(mask)
    refined[part] = (part_labels == cv2.GC_FGD) | (part_labels == cv2.GC_PR_FGD)
    return refined if refined.any() else mask


def _grown(mask: np.ndarray, pixels: int) -> np.ndarray:
    """Return the mask dilated by some pixels, or eroded if the number is negative."""
    side = 2 * abs(pixels) + 1
    change = cv2.dilate if pixels > 0 else cv2.erode
    return change(mask.astype(np.uint8), np.ones((side, side), np.uint8)).astype(bool)
