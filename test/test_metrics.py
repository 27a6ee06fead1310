# SPDX-License-Identifier: Apache-2.0
"""Figures by their definitions, the slow way; and those of LISA by its own code."""

import numpy as np
import pytest
import torch

from lisa_ros.evaluation.metrics import (
    boundary_f,
    ciou,
    giou,
    interval,
    no_target_accuracy,
    overlap,
    paired,
    percentiles,
    precision_at,
    target_accuracy,
)


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


def original(found, truths):
    """train_ds.py's `validate` with utils.intersectionAndUnionGPU, each mask a picture's own."""
    both, either, per_mask = 0.0, 0.0, []
    for mask, truth in zip(found, truths, strict=True):
        output = torch.from_numpy(mask).int().view(-1)
        target = torch.from_numpy(truth).int().view(-1)
        output[target == 255] = 255
        same = output[output == target]
        area = [torch.histc(x.float(), bins=2, min=0, max=1) for x in (same, output, target)]
        union = area[1] + area[2] - area[0]
        iou = area[0] / (union + 1e-5)
        iou[union == 0] += 1.0
        both, either = both + area[0].double(), either + union.double()
        per_mask.append(float(iou[1]))
    return np.mean(per_mask), float((both / (either + 1e-10))[1])


def test_figures_are_those_of_the_original_code():
    rng = np.random.default_rng(1)
    found, truths = [], []
    for number in range(200):
        filled = (0.0, 1.0, rng.uniform(0, 1))[number % 3]
        found.append(rng.random((16, 12)) < filled)
        shares = ([1, 0, 0], [0, 0, 1], [0.5, 0.4, 0.1], [0.9, 0, 0.1])[number % 4]
        truths.append(rng.choice([0, 1, 255], (16, 12), p=shares).astype(np.uint8))
    overlaps = [overlap(f, t) for f, t in zip(found, truths, strict=True)]
    theirs = original(found, truths)
    assert giou(overlaps) == pytest.approx(theirs[0], abs=1e-6)
    assert ciou(overlaps) == pytest.approx(theirs[1], abs=1e-6)
    assert sum(one.union == 0 for one in overlaps) > 10


def test_precision_counts_what_is_above():
    pairs = [(1, 2), (6, 10), (9, 10), (0, 5)]
    empty, one = np.zeros(10, bool), np.ones(10, bool)
    overlaps = []
    for both, either in pairs:
        found, truth = empty.copy(), empty.copy()
        found[:both], truth[:either] = True, True
        overlaps.append(overlap(found[None], truth[None]))
    assert overlaps[0].iou < 0.5  # the original's 1e-5 is in it
    assert precision_at(overlaps, 0.5) == 0.5
    assert precision_at(overlaps, 0.7) == 0.25
    assert precision_at([overlap(one[None], one[None])], 0.9) == 1.0


def test_outlines_meet_within_their_tolerance():
    square = np.zeros((100, 100), bool)
    square[20:60, 20:60] = True
    assert boundary_f(square, square) == 1.0
    assert boundary_f(np.roll(square, 2, axis=1), square) == 1.0  # 0.008 of 141 pixels, up: 2
    shifted = boundary_f(np.roll(square, 6, axis=1), square)
    # the sides left and right are missed; above and below meet but for 4 of 40 pixels
    assert shifted == pytest.approx(0.46, abs=0.03)
    nothing = np.zeros_like(square)
    assert boundary_f(nothing, nothing) == 1.0
    assert boundary_f(nothing, square) == boundary_f(square, nothing) == 0.0
    full = np.ones_like(square)
    assert boundary_f(full, nothing) == boundary_f(nothing, full) == 0.0
    assert boundary_f(full, full) == 1.0
    ignored = np.where(np.roll(square, 30, axis=1) & ~square, 255, square).astype(np.uint8)
    assert boundary_f(square | (ignored == 255), ignored) == 1.0


def test_presence_is_told_for_what_is_there_and_what_is_not():
    found, present = [True, False, True, False], [True, True, False, False]
    assert target_accuracy(found, present) == no_target_accuracy(found, present) == 0.5
    assert np.isnan(no_target_accuracy([True], [True]))
    assert percentiles([1, 2, 3, 4, 5], (50, 90)) == [3.0, 4.6]
    assert np.isnan(percentiles([])).all()


def test_an_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(2)
    covered = []
    for number in range(200):
        rows = rng.normal(5, 2, 40)
        low, high = interval(rows, np.mean, draws=300, seed=number)
        covered.append(low <= 5 <= high)
    assert 0.88 < np.mean(covered) < 0.99
    assert interval(rows, np.mean, draws=50) == interval(rows, np.mean, draws=50)
    assert np.isnan(interval(rows[:1], np.mean)).all()
    assert np.isnan(interval(rows, np.mean, ['one picture'] * 40)).all()


def test_questions_about_one_picture_count_together():
    rng = np.random.default_rng(4)
    pictures = rng.normal(0, 1, 20)
    rows, groups = np.repeat(pictures, 5), np.repeat(np.arange(20), 5)
    alone, together = interval(rows, np.mean), interval(rows, np.mean, groups)
    assert together[1] - together[0] > 1.8 * (alone[1] - alone[0])  # the root of five
    change = rng.normal(0.3, 1, 20)
    some = np.repeat(change, 5)
    assert paired(some * 0, some).p < paired(some * 0, some, groups).p
    assert paired(some * 0, some, groups).p == pytest.approx(
        paired(change * 0, change).p, abs=0.02
    )


def brute(found, truth, radius):
    """F of the outlines, pixel by pixel, by the distance to the nearest of the other one."""

    def line(mask):
        height, width = mask.shape
        return [
            (y, x)
            for y in range(height)
            for x in range(width)
            if any(
                mask[y, x] != mask[min(y + down, height - 1), min(x + right, width - 1)]
                for down, right in ((0, 1), (1, 0), (1, 1))
            )
        ]

    def met(some, others):
        return np.mean(
            [any((y - b) ** 2 + (x - a) ** 2 <= radius**2 for b, a in others) for y, x in some]
        )

    ours, theirs = line(found), line(truth)
    precision, recall = met(ours, theirs), met(theirs, ours)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize('seed', range(6))
def test_outlines_are_compared_as_by_hand(seed):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:40, :60]

    def blob():
        middle, radii = rng.uniform((10, 15), (30, 45)), rng.uniform(4, 14, 2)
        return ((y - middle[0]) / radii[0]) ** 2 + ((x - middle[1]) / radii[1]) ** 2 < 1

    found, truth = blob(), blob()
    tolerance = (0.008, 0.03)[seed % 2]
    radius = int(np.ceil(tolerance * np.hypot(40, 60)))
    assert boundary_f(found, truth, tolerance) == pytest.approx(brute(found, truth, radius))


def test_two_runs_are_compared_pair_by_pair():
    rng = np.random.default_rng(3)
    first = rng.uniform(0, 1, 60)
    same = paired(first, first)
    assert (same.mean, same.p, same.better, same.worse) == (0.0, 1.0, 0, 0)
    better = paired(first, first + rng.uniform(0, 0.05, 60))
    assert better.p < 0.001
    assert 0 < better.low < better.mean < better.high
    chances = [
        paired(first, first + rng.normal(0, 0.1, 60), draws=400, seed=n).p for n in range(60)
    ]
    assert 0.2 < np.median(chances) < 0.8  # of runs that are alike, any p is as likely
    with pytest.raises(ValueError, match='60 and 59 questions'):
        paired(first, first[1:])
