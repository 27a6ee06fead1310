# SPDX-License-Identifier: Apache-2.0
"""Metrics of masks, answers and runs, as the benchmarks define them. Needs only NumPy.

I and U are the intersection and union of foreground pixels. gIoU and cIoU are those of ReasonSeg
(LISA, arXiv 2308.00692, section 4.1), with the small constants of LISA's own evaluation
(train_ds.py, `validate`; utils.intersectionAndUnionGPU). N-acc. and T-acc. are those of gRefCOCO
(GRES, arXiv 2306.00968, section 5.1); boundary F is that of DAVIS (Perazzi et al., CVPR 2016,
section 4).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lisa_ros.perception.masks import IGNORED_PIXEL

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)  # IoU thresholds of P@threshold


@dataclass(frozen=True)
class Overlap:
    """Intersection and union of two masks [px]."""

    intersection: int
    union: int

    @property
    def iou(self) -> float:
        """I / (U + 1e-5), as in gIoU, and 1 where both masks are empty."""
        return self.intersection / (self.union + 1e-5) if self.union else 1.0

    def reaches(self, threshold: float) -> bool:
        """Return whether I / U is at least a threshold; always where both masks are empty.

        The constant of `iou` would keep an IoU of exactly the threshold below it.
        """
        return not self.union or self.intersection / self.union >= threshold


def overlap(predicted: np.ndarray, target: np.ndarray) -> Overlap:
    """Compare a mask, (H, W) bool, with the ground truth, bool or uint8: 0, 1, IGNORED_PIXEL."""
    counted = target != IGNORED_PIXEL
    predicted, target = (predicted > 0) & counted, (target > 0) & counted
    return Overlap(int((predicted & target).sum()), int((predicted | target).sum()))


def giou(overlaps: Sequence[Overlap]) -> float:
    """Return gIoU, the mean IoU, in which each query has the same weight; NaN without overlaps."""
    return float(np.mean([o.iou for o in overlaps])) if overlaps else float('nan')


def ciou(overlaps: Sequence[Overlap]) -> float:
    """Return cIoU, sum of I / sum of U: large objects weigh more; see `cumulative_iou`."""
    return cumulative_iou(sum(o.intersection for o in overlaps), sum(o.union for o in overlaps))


def cumulative_iou(intersection: float, union: float) -> float:
    """Return cIoU of sums over masks [px]; NaN where all masks are empty, or there are none.

    The original gives 0 there, which would tell of wrong masks: the answers that all objects are
    absent are right.
    """
    return intersection / (union + 1e-10) if union else float('nan')


def precision_at(overlaps: Sequence[Overlap], threshold: float) -> float:
    """Return P@threshold, the share of masks with at least this IoU; NaN without overlaps."""
    return float(np.mean([o.reaches(threshold) for o in overlaps])) if overlaps else float('nan')


def boundary_f(predicted: np.ndarray, target: np.ndarray, tolerance: float = 0.008) -> float:
    """Return boundary F, 0..1: the F-score of the precision and recall of a mask's outline.

    A pixel of one outline is matched if a pixel of the other one is not farther away than
    `tolerance` times the image diagonal, rounded up [px]. The result is 1 for two empty masks,
    and 0 for an empty and a non-empty one.

    Args:
        predicted: (H, W) bool.
        target: (H, W) bool or uint8 0, 1 and IGNORED_PIXEL.
        tolerance: share of the image diagonal.
    """
    counted = target != IGNORED_PIXEL
    predicted, target = (predicted > 0) & counted, (target > 0) & counted
    if not predicted.any() or not target.any():
        return float(predicted.any() == target.any())
    outlines = _outline(predicted), _outline(target)
    if not all(outline.any() for outline in outlines):  # a mask of all pixels has no outline
        return float(outlines[0].any() == outlines[1].any())
    radius = int(np.ceil(tolerance * np.hypot(*target.shape)))
    near_predicted, near_target = (_dilate(outline, radius) for outline in outlines)
    precision, recall = near_target[outlines[0]].mean(), near_predicted[outlines[1]].mean()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def _outline(mask: np.ndarray) -> np.ndarray:
    """Return the pixels whose right, lower or lower right neighbour differs (DAVIS, seg2bmap)."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode='edge')
    right, below, diagonal = padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    return (mask ^ right) | (mask ^ below) | (mask ^ diagonal)


def _dilate(mask: np.ndarray, radius: int) -> np.ndarray:
    """Return the mask dilated by a disk of this radius [px]."""
    height, width = mask.shape
    padded = np.pad(mask, ((radius, radius), (radius + 1, radius))).cumsum(axis=1, dtype=np.int32)
    dilated = np.zeros_like(mask)
    for dy in range(-radius, radius + 1):
        half_width = int(np.sqrt(radius * radius - dy * dy))
        rows = padded[radius + dy : radius + dy + height]
        ends = rows[:, radius + 1 + half_width :][:, :width]
        starts = rows[:, radius - half_width :][:, :width]
        dilated |= ends > starts
    return dilated


def no_target_accuracy(found: Sequence[bool], present: Sequence[bool]) -> float:
    """Return N-acc., the share of absent objects whose mask is empty; NaN without any."""
    correct = [not f for f, p in zip(found, present, strict=True) if not p]
    return float(np.mean(correct)) if correct else float('nan')


def target_accuracy(found: Sequence[bool], present: Sequence[bool]) -> float:
    """Return T-acc., the share of present objects with a mask, right or wrong; NaN without any."""
    correct = [f for f, p in zip(found, present, strict=True) if p]
    return float(np.mean(correct)) if correct else float('nan')


def percentiles(
    values: Sequence[float], percents: Sequence[int] = (50, 90, 99)
) -> dict[str, float] | None:
    """Return percentiles, linearly interpolated, as {'p50': ...}; None without values."""
    if not len(values):
        return None
    names = (f'p{percent}' for percent in percents)
    return dict(zip(names, np.percentile(values, percents).tolist(), strict=True))


# ---- confidence intervals and comparison of two runs


def bootstrap_interval(
    rows: np.ndarray,
    statistic: Callable[[np.ndarray], float],
    groups: Sequence[object] | None = None,
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a statistic (Efron 1979).

    Whole groups are resampled with replacement: queries about one image are not independent.

    Args:
        rows: (N, ...) values.
        statistic: computes the value from rows.
        groups: N keys; rows with the same key form a group. None: each row is a group.
        level: confidence level, 0..1.
        resamples: number of bootstrap samples.
        seed: seed of the random generator.

    Returns:
        The lower and the upper end, over the samples whose statistic is not NaN; NaN if there are
        none, or fewer than two groups.
    """
    rows_of_groups = _rows_of_groups(groups, len(rows))
    if len(rows_of_groups) < 2:
        return float('nan'), float('nan')
    rng = np.random.default_rng(seed)
    values = np.empty(resamples)
    for i in range(resamples):
        sample = rng.integers(len(rows_of_groups), size=len(rows_of_groups))
        values[i] = statistic(rows[np.concatenate([rows_of_groups[group] for group in sample])])
    values = values[~np.isnan(values)]
    if not len(values):
        return float('nan'), float('nan')
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _rows_of_groups(groups: Sequence[object] | None, count: int) -> list[np.ndarray]:
    """Return the row indices of each group, groups in order of appearance."""
    indices: dict[object, list[int]] = {}
    for index, group in enumerate(range(count) if groups is None else groups):
        indices.setdefault(group, []).append(index)
    return [np.array(group) for group in indices.values()]


MIN_CHANGE = 0.01  # a query with a smaller difference counts neither as better nor as worse


@dataclass(frozen=True)
class Difference:
    """Two runs on the same queries, compared query by query."""

    mean: float  # mean of second minus first
    low: float  # lower end of its 95 % bootstrap interval
    high: float  # upper end
    p: float  # p-value: probability of a difference at least as large if the runs did not differ
    better: int  # queries on which the second run is better by more than MIN_CHANGE
    worse: int
    count: int


def compare_paired(
    first: Sequence[float],
    second: Sequence[float],
    groups: Sequence[object] | None = None,
    *,
    permutations: int = 10000,
    seed: int = 0,
) -> Difference:
    """Compare two runs by a value of each query, such as its IoU.

    The p-value is that of a paired permutation test (random signs). All differences of a group
    get the same sign.

    Args:
        first: N values of the first run.
        second: N values of the second run, for the same queries.
        groups: N keys, as in `bootstrap_interval`.
        permutations: number of permutations.
        seed: seed of the random generator.

    Raises:
        ValueError: the runs have different numbers of queries.
    """
    if len(first) != len(second):
        raise ValueError(
            f'{len(first)} and {len(second)} queries: both runs must have the same queries to be '
            'compared query by query'
        )
    differences = np.subtract(second, first, dtype=float)
    if not len(differences):
        return Difference(*[float('nan')] * 4, 0, 0, 0)
    rng = np.random.default_rng(seed)
    sums = np.array(
        [differences[members].sum() for members in _rows_of_groups(groups, len(differences))]
    )
    total, as_extreme = abs(differences.sum()), 0
    for start in range(0, permutations, 500):
        signs = rng.choice((-1.0, 1.0), size=(min(500, permutations - start), len(sums)))
        as_extreme += int((np.abs(signs @ sums) >= total - 1e-9).sum())
    low, high = bootstrap_interval(differences, lambda rows: float(rows.mean()), groups, seed=seed)
    return Difference(
        float(differences.mean()),
        low,
        high,
        # never 0: the observed signs count as one permutation
        (as_extreme + 1) / (permutations + 1),
        int((differences > MIN_CHANGE).sum()),
        int((differences < -MIN_CHANGE).sum()),
        len(differences),
    )
