# SPDX-License-Identifier: Apache-2.0
"""gIoU and cIoU by their definitions, counted pixel by pixel."""

import numpy as np
import pytest

from lisa_ros.evaluation.metrics import ciou, giou, overlap


def counted(found, truth):
    """Intersection and union the slow way."""
    both = either = 0
    for a, b in zip(found.ravel().tolist(), truth.ravel().tolist(), strict=True):
        if b == 255:
            continue
        both += bool(a) and b == 1
        either += bool(a) or b == 1
    return both, either


def test_random_masks_give_what_counting_gives():
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(50):
        found = rng.random((12, 9)) < rng.uniform(0, 1)
        truth = rng.choice([0, 1, 255], (12, 9), p=[0.5, 0.4, 0.1]).astype(np.uint8)
        pairs.append((overlap(found, truth), *counted(found, truth)))
    for one, both, either in pairs:
        assert (one.intersection, one.union) == (both, either)
    shares = [both / (either + 1e-5) if either else 1.0 for _, both, either in pairs]
    assert giou([one for one, *_ in pairs]) == pytest.approx(np.mean(shares), abs=1e-9)
    whole = sum(b for _, b, _ in pairs) / (sum(e for *_, e in pairs) + 1e-10)
    assert ciou([one for one, *_ in pairs]) == pytest.approx(whole, abs=1e-9)


def test_two_empty_masks_agree_and_one_does_not():
    empty, full = np.zeros((3, 3), bool), np.ones((3, 3), bool)
    assert overlap(empty, empty).iou == 1.0
    assert overlap(empty, full).iou == 0.0
    assert overlap(full, np.full((3, 3), 255, np.uint8)).iou == 1.0  # nothing is left to compare


def test_no_mask_at_all_is_no_figure():
    assert np.isnan(giou([]))
    assert np.isnan(ciou([]))
