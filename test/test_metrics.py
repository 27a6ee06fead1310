# SPDX-License-Identifier: Apache-2.0
"""Metrics equal slow implementations of their definitions, and LISA's own code."""

import numpy as np
import pytest
import torch

from lisa_ros.evaluation.metrics import (
    THRESHOLDS,
    Overlap,
    bootstrap_interval,
    boundary_f,
    ciou,
    compare_paired,
    cumulative_iou,
    giou,
    no_target_accuracy,
    overlap,
    percentiles,
    precision_at,
    target_accuracy,
)


def counted(predicted, target):
    """Intersection and union, pixel by pixel."""
    intersection = union = 0
    for a, b in zip(predicted.ravel().tolist(), target.ravel().tolist(), strict=True):
        if b == 255:
            continue
        intersection += bool(a) and b == 1
        union += bool(a) or b == 1
    return intersection, union


def test_overlaps_of_random_masks_equal_those_counted_by_pixel():
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(50):
        predicted = rng.random((12, 9)) < rng.uniform(0, 1)
        target = rng.choice([0, 1, 255], (12, 9), p=[0.5, 0.4, 0.1]).astype(np.uint8)
        pairs.append((overlap(predicted, target), *counted(predicted, target)))
    for result, intersection, union in pairs:
        assert (result.intersection, result.union) == (intersection, union)
    ious = [intersection / (union + 1e-5) if union else 1.0 for _, intersection, union in pairs]
    assert giou([result for result, *_ in pairs]) == pytest.approx(np.mean(ious), abs=1e-9)
    total = sum(b for _, b, _ in pairs) / (sum(e for *_, e in pairs) + 1e-10)
    assert ciou([result for result, *_ in pairs]) == pytest.approx(total, abs=1e-9)


def test_two_empty_masks_agree_and_an_empty_and_a_full_one_do_not():
    empty, full = np.zeros((3, 3), bool), np.ones((3, 3), bool)
    assert overlap(empty, empty).iou == 1.0
    assert overlap(empty, full).iou == 0.0
    assert overlap(full, np.full((3, 3), 255, np.uint8)).iou == 1.0  # no pixel counts


def test_figures_of_no_mask_are_nan():
    assert np.isnan(giou([]))
    assert np.isnan(ciou([]))


def original(predicted, targets):
    """train_ds.py's `validate` with utils.intersectionAndUnionGPU, with one mask per image."""
    total_intersection, total_union, per_mask = 0.0, 0.0, []
    for mask, labels in zip(predicted, targets, strict=True):
        output = torch.from_numpy(mask).int().view(-1)
        target = torch.from_numpy(labels).int().view(-1)
        output[target == 255] = 255
        same = output[output == target]
        area = [torch.histc(x.float(), bins=2, min=0, max=1) for x in (same, output, target)]
        union = area[1] + area[2] - area[0]
        iou = area[0] / (union + 1e-5)
        iou[union == 0] += 1.0
        total_intersection = total_intersection + area[0].double()
        total_union = total_union + union.double()
        per_mask.append(float(iou[1]))
    return np.mean(per_mask), float((total_intersection / (total_union + 1e-10))[1])


def test_figures_are_those_of_the_original_code():
    rng = np.random.default_rng(1)
    predicted, targets = [], []
    for number in range(200):
        filled = (0.0, 1.0, rng.uniform(0, 1))[number % 3]
        predicted.append(rng.random((16, 12)) < filled)
        shares = ([1, 0, 0], [0, 0, 1], [0.5, 0.4, 0.1], [0.9, 0, 0.1])[number % 4]
        targets.append(rng.choice([0, 1, 255], (16, 12), p=shares).astype(np.uint8))
    overlaps = [overlap(f, t) for f, t in zip(predicted, targets, strict=True)]
    reference = original(predicted, targets)
    assert giou(overlaps) == pytest.approx(reference[0], abs=1e-6)
    assert ciou(overlaps) == pytest.approx(reference[1], abs=1e-6)
    assert sum(result.union == 0 for result in overlaps) > 10


def test_precision_counts_masks_at_or_above_the_threshold():
    pairs = [(1, 2), (6, 10), (9, 10), (0, 5)]
    empty, full = np.zeros(10, bool), np.ones(10, bool)
    overlaps = []
    for intersection, union in pairs:
        predicted, target = empty.copy(), empty.copy()
        predicted[:intersection], target[:union] = True, True
        overlaps.append(overlap(predicted[None], target[None]))
    assert overlaps[0].iou < 0.5  # includes the 1e-5 of the original code
    assert precision_at(overlaps, 0.5) == 0.75
    assert precision_at(overlaps, 0.6) == 0.5
    assert precision_at(overlaps, 0.9) == 0.25
    assert precision_at([overlap(full[None], full[None])], 0.9) == 1.0


@pytest.mark.parametrize('threshold', THRESHOLDS)
def test_an_overlap_of_exactly_the_threshold_reaches_it(threshold):
    for union in (10, 100, 1000, 1_000_000):
        intersection = round(threshold * union)
        assert Overlap(intersection, union).reaches(threshold)
        assert not Overlap(intersection - 1, union).reaches(threshold)
    assert Overlap(0, 0).reaches(threshold)


def test_cumulative_iou_of_empty_masks_is_unknown_and_counts_in_no_interval():
    """LISA's formula gives 0 for answers that are right."""
    absent, half = Overlap(0, 0), Overlap(1, 2)
    assert np.isnan(ciou([absent] * 5))
    assert ciou([absent, half]) == pytest.approx(0.5)
    assert ciou([Overlap(0, 3)]) == 0.0

    def statistic(rows):
        return cumulative_iou(*rows.sum(axis=0))

    rows = np.array([[0, 0]] * 4 + [[1, 2]], float)
    assert bootstrap_interval(rows, statistic) == pytest.approx((0.5, 0.5))
    assert np.isnan(bootstrap_interval(rows[:4], statistic)).all()


def test_outlines_match_within_the_tolerance():
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


def test_target_and_no_target_accuracy_count_present_and_absent_objects():
    predicted, present = [True, False, True, False], [True, True, False, False]
    assert target_accuracy(predicted, present) == no_target_accuracy(predicted, present) == 0.5
    assert np.isnan(no_target_accuracy([True], [True]))
    assert percentiles([1, 2, 3, 4, 5], (50, 90)) == {'p50': 3.0, 'p90': 4.6}
    assert percentiles([]) is None


def test_an_interval_covers_the_mean_as_often_as_its_level_says():
    rng = np.random.default_rng(2)
    covered = []
    for number in range(200):
        rows = rng.normal(5, 2, 40)
        low, high = bootstrap_interval(rows, np.mean, resamples=300, seed=number)
        covered.append(low <= 5 <= high)
    assert 0.88 < np.mean(covered) < 0.99
    assert bootstrap_interval(rows, np.mean, resamples=50) == bootstrap_interval(
        rows, np.mean, resamples=50
    )
    assert np.isnan(bootstrap_interval(rows[:1], np.mean)).all()
    assert np.isnan(bootstrap_interval(rows, np.mean, ['one image'] * 40)).all()


def test_queries_about_one_image_are_resampled_together():
    rng = np.random.default_rng(4)
    means = rng.normal(0, 1, 20)
    rows, groups = np.repeat(means, 5), np.repeat(np.arange(20), 5)
    alone, together = bootstrap_interval(rows, np.mean), bootstrap_interval(rows, np.mean, groups)
    assert together[1] - together[0] > 1.8 * (alone[1] - alone[0])  # the root of five
    change = rng.normal(0.3, 1, 20)
    some = np.repeat(change, 5)
    assert compare_paired(some * 0, some).p < compare_paired(some * 0, some, groups).p
    assert compare_paired(some * 0, some, groups).p == pytest.approx(
        compare_paired(change * 0, change).p, abs=0.02
    )


def brute_force_boundary_f(predicted, target, radius):
    """Boundary F by the distances between all pixels of both outlines."""

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

    def matched(some, others):
        return np.mean(
            [any((y - b) ** 2 + (x - a) ** 2 <= radius**2 for b, a in others) for y, x in some]
        )

    predicted_line, target_line = line(predicted), line(target)
    precision, recall = matched(predicted_line, target_line), matched(target_line, predicted_line)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize('seed', range(6))
def test_boundary_f_equals_that_of_brute_force(seed):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:40, :60]

    def blob():
        middle, radii = rng.uniform((10, 15), (30, 45)), rng.uniform(4, 14, 2)
        return ((y - middle[0]) / radii[0]) ** 2 + ((x - middle[1]) / radii[1]) ** 2 < 1

    predicted, target = blob(), blob()
    tolerance = (0.008, 0.03)[seed % 2]
    radius = int(np.ceil(tolerance * np.hypot(40, 60)))
    assert boundary_f(predicted, target, tolerance) == pytest.approx(
        brute_force_boundary_f(predicted, target, radius)
    )


def test_two_runs_are_compared_pair_by_pair():
    rng = np.random.default_rng(3)
    first = rng.uniform(0, 1, 60)
    same = compare_paired(first, first)
    assert (same.mean, same.p, same.better, same.worse) == (0.0, 1.0, 0, 0)
    better = compare_paired(first, first + rng.uniform(0, 0.05, 60))
    assert better.p < 0.001
    assert 0 < better.low < better.mean < better.high
    chances = [
        compare_paired(first, first + rng.normal(0, 0.1, 60), permutations=400, seed=n).p
        for n in range(60)
    ]
    assert 0.2 < np.median(chances) < 0.8  # p is uniform for runs that are alike
    with pytest.raises(ValueError, match='60 and 59 queries'):
        compare_paired(first, first[1:])
