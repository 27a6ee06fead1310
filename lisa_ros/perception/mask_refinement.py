# SPDX-License-Identifier: Apache-2.0
"""Refine the boundary of a mask with the edges of the image.

SAM decodes masks on a grid of a quarter of its input size. Enlarged to the image, a cell of the
grid has several pixels: ten for a small model and a camera of 640 x 480. Two known methods follow
the image's edges: a guided filter (He, Sun and Tang, "Guided Image Filtering", ECCV 2010) on the
logits, and GrabCut (Rother, Kolmogorov and Blake, SIGGRAPH 2004; OpenCV's) in a narrow band round
the boundary. Both run on a reduced image where cells are large, since their time grows with the
pixels. The pixels of the image itself then get the mask by the linear models of the reduced one
(He and Sun, "Fast Guided Filter", arXiv 1505.00996).

The cells of the released LISA are small; its masks are refined only on request.
Letters: H x W the image [px], h x w a part of it. Pure numpy and OpenCV, any thread.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

from lisa_ros.perception.masks import box_slices

_WORKING_CELL = 6.0  # images are reduced by a whole number until a cell has about this size [px]
_FILTER_RADIUS = 1.6  # of the guided filter [cells]
_BAND = 0.6  # half width of the uncertain band at the boundary [cells]
_SURROUNDINGS = 3.0  # width of the background that GrabCut learns colours from [cells]
_MAX_LOGIT = 3.0  # logits are clipped to this before filtering
_EPSILON = 1e-4  # eps of the guided filter, for colours 0..1: smaller variance is no edge
_ENLARGING_RADIUS = 3  # of the guided filter from the reduced image to the image [reduced px]
_MIN_PIXELS = 20  # smaller masks stay unchanged: too few colours to learn from
_MIN_LOGIT = 1e-3  # magnitude of a refined logit, at least


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
    scale = max(1, round(cell / _WORKING_CELL))
    margin = math.ceil((2 * _FILTER_RADIUS + _SURROUNDINGS) * cell)
    part = box_slices(mask, margin)
    colours, part_logits = np.ascontiguousarray(image[part]), logits[part]
    if scale == 1:
        refined = _refined(colours, part_logits, cell)
    else:
        reduced, reduced_logits = (_reduced(array, scale) for array in (colours, part_logits))
        refined = _refined(reduced, reduced_logits, cell / scale)
        if refined is not None:
            refined = _enlarged(colours, reduced, refined)
    if refined is None or not (refined > 0).any():
        return logits  # the filter removed the whole mask: keep it as it was
    result = logits.copy()
    result[part] = refined
    return result


def _refined(image: np.ndarray, logits: np.ndarray, cell: float) -> np.ndarray | None:
    """Return refined logits of an image of their size, (h, w); None: the filter removed all."""
    radius, band = max(2, round(_FILTER_RADIUS * cell)), max(1, round(_BAND * cell))
    filtered = _guided_filter(image, np.clip(logits, -_MAX_LOGIT, _MAX_LOGIT), radius)
    if not (filtered > 0).any():
        return None
    mask = _grab_cut(image, filtered > 0, band, round(_SURROUNDINGS * cell))
    magnitude = np.maximum(np.abs(filtered), _MIN_LOGIT)
    return np.where(mask, magnitude, -magnitude)


def _reduced(array: np.ndarray, scale: int) -> np.ndarray:
    """Return an image or logits, smaller by a factor."""
    height, width = (max(1, round(side / scale)) for side in array.shape[:2])
    return cv2.resize(array, (width, height), interpolation=cv2.INTER_AREA)


def _enlarged(image: np.ndarray, reduced: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Return the logits of a reduced image for the image itself, with its edges, (h, w)."""
    size = image.shape[1::-1]

    def enlarge(plane: np.ndarray) -> np.ndarray:
        return cv2.resize(plane, size, interpolation=cv2.INTER_LINEAR)

    signs = np.where(logits > 0, np.float32(1), np.float32(-1))
    slopes, offset = _linear_models(_planes(reduced), signs, _ENLARGING_RADIUS)
    signs = _dot([enlarge(plane) for plane in slopes], _planes(image)) + enlarge(offset)
    return np.copysign(enlarge(np.abs(logits)), signs)


def _guided_filter(image: np.ndarray, values: np.ndarray, radius: int) -> np.ndarray:
    """Return values (h, w) as locally linear functions of the colours, float32 (He, eq. 19)."""
    guide = _planes(image)
    slopes, offset = _linear_models(guide, values, radius)
    return _dot(slopes, guide) + offset


def _planes(image: np.ndarray) -> list[np.ndarray]:
    """Return the colours of an image, each (h, w) float32 in 0..1."""
    return [plane.astype(np.float32) / 255 for plane in cv2.split(image)]


def _linear_models(
    guide: Sequence[np.ndarray], values: np.ndarray, radius: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the mean linear model of values round each pixel (He, eq. 19 to 21).

    Each pixel's system of three equations is solved by inverting a symmetric 3 x 3 matrix.

    Args:
        guide: three colours, each (h, w) float32.
        values: (h, w) float32.
        radius: of the square window [px].

    Returns:
        Slopes for the three colours and an offset, each (h, w) float32.
    """
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
    slopes = [_dot(row, covariance) / determinant for row in adjugate]
    offset = mean_values - _dot(slopes, mean_guide)
    return [mean(plane) for plane in slopes], mean(offset)


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
        cv2.grabCut(colours, part_labels, None, *models, 1, cv2.GC_INIT_WITH_MASK)
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
