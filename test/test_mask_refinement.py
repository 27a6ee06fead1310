# SPDX-License-Identifier: Apache-2.0
"""Coarse masks are brought to the picture's edges, far from them nothing changes."""

import cv2
import numpy as np
import pytest

from lisa_ros.perception.mask_refinement import refine_mask_logits
from lisa_ros.perception.masks import iou

CELL = 5.0


def scene(seed=0, noise=6.0):
    """A picture of a disc and a box on a table of another colour, and the truth of the disc."""
    rng = np.random.default_rng(seed)
    picture = np.full((240, 320, 3), (150, 120, 90), np.float32)
    truth = np.zeros((240, 320), np.uint8)
    cv2.circle(truth, (140, 110), 33, 1, -1)
    picture[truth > 0] = (40, 90, 160)
    picture[150:210, 220:290] = (200, 60, 50)
    picture += rng.normal(0, noise, picture.shape)
    return np.clip(picture, 0, 255).astype(np.uint8), truth > 0


def coarse(truth, shift=0):
    """The logits of a decoder whose cells have five pixels, a little beside the truth."""
    small = cv2.resize(truth.astype(np.float32), (64, 48), interpolation=cv2.INTER_AREA)
    logits = cv2.resize(small * 8 - 4, truth.shape[::-1], interpolation=cv2.INTER_LINEAR)
    return np.roll(logits, shift, axis=1)


@pytest.mark.parametrize('shift', [0, 2, 3])
def test_a_coarse_mask_is_brought_to_the_edges(shift):
    picture, truth = scene()
    logits = coarse(truth, shift)
    before = iou(logits > 0, truth)
    after = iou(refine_mask_logits(picture, logits, CELL) > 0, truth)
    assert after > 0.985
    assert after > before
    assert shift == 0 or 1 - after < (1 - before) / 2


def test_logits_far_from_the_mask_stay_as_they_are():
    picture, truth = scene()
    logits = coarse(truth) + np.random.default_rng(1).normal(0, 0.1, truth.shape)
    logits = logits.astype(np.float32)
    after = refine_mask_logits(picture, logits, CELL)
    assert after.dtype == np.float32
    np.testing.assert_array_equal(after[:, 250:], logits[:, 250:])
    np.testing.assert_array_equal(logits, logits)


def test_the_same_picture_gives_the_same_mask():
    picture, truth = scene(noise=30)
    logits = coarse(truth)
    np.testing.assert_array_equal(
        refine_mask_logits(picture, logits, CELL), refine_mask_logits(picture, logits, CELL)
    )


def test_a_thing_at_the_border_is_cut_as_well():
    picture, truth = scene()
    picture, truth = picture[90:, 120:].copy(), truth[90:, 120:]
    after = refine_mask_logits(picture, coarse(truth)[: truth.shape[0], : truth.shape[1]], CELL)
    assert iou(after > 0, truth) > 0.97


@pytest.mark.parametrize('size', [0, 3])
def test_a_mask_of_next_to_nothing_stays_as_it_is(size):
    picture, _ = scene()
    logits = np.full((240, 320), -3, np.float32)
    logits[50 : 50 + size, 50 : 50 + size] = 3
    np.testing.assert_array_equal(refine_mask_logits(picture, logits, CELL), logits)


@pytest.mark.parametrize('value', [0, 127])
def test_a_picture_without_edges_and_a_mask_of_all_end_in_no_error(value):
    flat = np.full((60, 80, 3), value, np.uint8)
    everything = np.full((60, 80), 4, np.float32)
    assert (refine_mask_logits(flat, everything, CELL) > 0).all()
    half = everything.copy()
    half[:, 40:] = -4
    assert iou(refine_mask_logits(flat, half, CELL) > 0, half > 0) > 0.85


def test_the_answer_has_what_a_mask_has():
    """The sign is the mask, and no logit is zero or not a number."""
    picture, truth = scene()
    after = refine_mask_logits(picture, coarse(truth), CELL)
    assert np.isfinite(after).all()
    assert (after != 0).all()
