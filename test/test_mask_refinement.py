# SPDX-License-Identifier: Apache-2.0
"""Coarse masks follow the edges of the image; logits far from the mask do not change."""

import cv2
import numpy as np
import pytest

from lisa_ros.perception.mask_refinement import refine_mask_logits
from lisa_ros.perception.masks import iou

CELL = 5.0


def scene(seed=0, noise=6.0, factor=1):
    """An image of a disc and a box on a table of another colour, and the mask of the disc.

    The image has 320 x 240 pixels, times the factor.
    """
    rng = np.random.default_rng(seed)
    image = np.full((240 * factor, 320 * factor, 3), (150, 120, 90), np.float32)
    mask = np.zeros(image.shape[:2], np.uint8)
    cv2.circle(mask, (140 * factor, 110 * factor), 33 * factor, 1, -1)
    image[mask > 0] = (40, 90, 160)
    image[150 * factor : 210 * factor, 220 * factor : 290 * factor] = (200, 60, 50)
    image += rng.normal(0, noise, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), mask > 0


def coarse(mask, shift=0):
    """The logits of a decoder with 64 x 48 cells, shifted from the mask by some pixels."""
    small = cv2.resize(mask.astype(np.float32), (64, 48), interpolation=cv2.INTER_AREA)
    logits = cv2.resize(small * 8 - 4, mask.shape[::-1], interpolation=cv2.INTER_LINEAR)
    return np.roll(logits, shift, axis=1)


@pytest.mark.parametrize('shift', [0, 2, 3])
def test_a_coarse_mask_is_moved_to_the_edges(shift):
    image, mask = scene()
    logits = coarse(mask, shift)
    before = iou(logits > 0, mask)
    after = iou(refine_mask_logits(image, logits, CELL) > 0, mask)
    assert after > 0.985
    assert after > before
    assert shift == 0 or 1 - after < (1 - before) / 2


@pytest.mark.parametrize('factor', [2, 3, 4, 6])
@pytest.mark.parametrize('shift', [0, 2])
def test_a_large_image_is_refined_to_its_own_pixels(factor, shift):
    """The mask is found on a reduced image; its boundary follows the edges of the whole one."""
    image, mask = scene(factor=factor)
    logits = coarse(mask, shift * factor)
    after = refine_mask_logits(image, logits, CELL * factor)
    assert after.shape == mask.shape
    assert after.dtype == np.float32
    assert iou(after > 0, mask) > 0.985
    boundary = cv2.dilate(mask.astype(np.uint8), None) - cv2.erode(mask.astype(np.uint8), None)
    # within a pixel of the reduced image, everywhere
    near = cv2.dilate(boundary, np.ones((2 * factor + 1, 2 * factor + 1), np.uint8)) > 0
    assert not ((after > 0) != mask)[~near].any()
    np.testing.assert_array_equal(after[:, 250 * factor :], logits[:, 250 * factor :])


@pytest.mark.parametrize('factor', [2, 4])
@pytest.mark.parametrize('size', [(3, 200), (200, 3), (11, 11)])
def test_a_thin_mask_in_a_large_image_is_no_error(factor, size):
    image, _ = scene(factor=factor)
    logits = np.full(image.shape[:2], -3, np.float32)
    logits[100 : 100 + size[0], 100 : 100 + size[1]] = 3
    after = refine_mask_logits(image, logits, CELL * factor)
    assert np.isfinite(after).all()
    assert (after > 0).any()


def test_logits_far_from_the_mask_stay_as_they_are():
    image, mask = scene()
    logits = coarse(mask) + np.random.default_rng(1).normal(0, 0.1, mask.shape)
    logits = logits.astype(np.float32)
    after = refine_mask_logits(image, logits, CELL)
    assert after.dtype == np.float32
    np.testing.assert_array_equal(after[:, 250:], logits[:, 250:])


def test_the_same_image_gives_the_same_mask():
    image, mask = scene(noise=30)
    logits = coarse(mask)
    np.testing.assert_array_equal(
        refine_mask_logits(image, logits, CELL), refine_mask_logits(image, logits, CELL)
    )


def test_an_object_at_the_border_is_refined_as_well():
    image, mask = scene()
    image, mask = image[90:, 120:].copy(), mask[90:, 120:]
    after = refine_mask_logits(image, coarse(mask)[: mask.shape[0], : mask.shape[1]], CELL)
    assert iou(after > 0, mask) > 0.97


@pytest.mark.parametrize('size', [0, 3])
def test_a_tiny_mask_is_unchanged(size):
    image, _ = scene()
    logits = np.full((240, 320), -3, np.float32)
    logits[50 : 50 + size, 50 : 50 + size] = 3
    np.testing.assert_array_equal(refine_mask_logits(image, logits, CELL), logits)


@pytest.mark.parametrize('value', [0, 127])
def test_an_image_without_edges_and_a_full_mask_are_no_error(value):
    flat = np.full((60, 80, 3), value, np.uint8)
    full = np.full((60, 80), 4, np.float32)
    assert (refine_mask_logits(flat, full, CELL) > 0).all()
    half = full.copy()
    half[:, 40:] = -4
    assert iou(refine_mask_logits(flat, half, CELL) > 0, half > 0) > 0.85


def test_refined_logits_are_finite_and_not_zero():
    image, mask = scene()
    after = refine_mask_logits(image, coarse(mask), CELL)
    assert np.isfinite(after).all()
    assert (after != 0).all()
