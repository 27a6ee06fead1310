# SPDX-License-Identifier: Apache-2.0
"""Figures of masks, of answers and of runs, as the benchmarks define them. Pure numpy.

Of each mask the foreground's intersection I and union U count, in pixels. gIoU and cIoU are those
of ReasonSeg (LISA, arXiv 2308.00692, section 4.1), with the small constants of LISA's own
evaluation (train_ds.py, `validate`; utils.intersectionAndUnionGPU). N-acc. and T-acc. are those of
gRefCOCO (GRES, arXiv 2306.00968, section 5.1); the boundary's F is that of DAVIS (Perazzi et al.,
CVPR 2016, section 4).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

IGNORED = 255  # a truth of this value leaves its pixel out of both masks
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)  # of P@


@dataclass(frozen=True)
class Overlap:
    """What two masks share, in pixels."""

    intersection: int
    union: int

    @property
    def iou(self) -> float:
        """I / (U + 1e-5), and 1 where both masks are empty."""
        return self.intersection / (self.union + 1e-5) if self.union else 1.0


def overlap(found: np.ndarray, truth: np.ndarray) -> Overlap:
    """Compare a mask (H, W) bool with the truth, (H, W) bool or uint8 0, 1 and IGNORED."""
    counted = truth != IGNORED
    found, truth = (found > 0) & counted, (truth > 0) & counted
    return Overlap(int((found & truth).sum()), int((found | truth).sum()))


def giou(overlaps: Sequence[Overlap]) -> float:
    """Return the mean IoU over masks, so that every request weighs the same; NaN of none."""
    return float(np.mean([one.iou for one in overlaps])) if overlaps else float('nan')


def ciou(overlaps: Sequence[Overlap]) -> float:
    """Return the sum of all I over the sum of all U: big things weigh more; NaN of none."""
    if not overlaps:
        return float('nan')
    return sum(o.intersection for o in overlaps) / (sum(o.union for o in overlaps) + 1e-10)


def precision_at(overlaps: Sequence[Overlap], threshold: float) -> float:
    """Return P@threshold, the share of masks whose IoU is that or more; NaN of none."""
    return float(np.mean([one.iou >= threshold for one in overlaps])) if overlaps else float('nan')


def boundary_f(found: np.ndarray, truth: np.ndarray, tolerance: float = 0.008) -> float:
    """Return how well the outlines agree, 0..1: F of their precision and recall.

    A pixel of one outline is met if the other runs within `tolerance` of the picture's diagonal,
    rounded up. Two empty masks agree (1); an empty one and another do not (0).

    Args:
        found: (H, W) bool.
        truth: (H, W) bool or uint8 0, 1 and IGNORED.
        tolerance: share of the diagonal.
    """
    counted = truth != IGNORED
    found, truth = (found > 0) & counted, (truth > 0) & counted
    if not found.any() or not truth.any():
        return float(found.any() == truth.any())
    ours, theirs = _outline(found), _outline(truth)
    if not ours.any() or not theirs.any():  # one fills the picture, which has no outline
        return float(ours.any() == theirs.any())
    radius = int(np.ceil(tolerance * np.hypot(*truth.shape)))
    near_ours, near_theirs = (_grown(line, radius) for line in (ours, theirs))
    precision, recall = near_theirs[ours].mean(), near_ours[theirs].mean()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def _outline(mask: np.ndarray) -> np.ndarray:
    """Return the pixels whose right, lower or diagonal neighbour differs: DAVIS' seg2bmap."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode='edge')
    right, below, across = padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    return (mask ^ right) | (mask ^ below) | (mask ^ across)


def _grown(mask: np.ndarray, radius: int) -> np.ndarray:
    """Return the pixels within `radius` of a mask's: a dilation with a disk."""
    height, width = mask.shape
    padded = np.pad(mask, ((radius, radius), (radius + 1, radius))).cumsum(axis=1, dtype=np.int32)
    grown = np.zeros_like(mask)
    for down in range(-radius, radius + 1):
        reach = int(np.sqrt(radius * radius - down * down))
        rows = padded[radius + down : radius + down + height]
        ends = rows[:, radius + 1 + reach :][:, :width]
        starts = rows[:, radius - reach :][:, :width]
        grown |= ends > starts
    return grown


def no_target_accuracy(found: Sequence[bool], present: Sequence[bool]) -> float:
    """Return N-acc., the share of absent targets that got no mask, not a pixel; NaN of none."""
    right = [not f for f, p in zip(found, present, strict=True) if not p]
    return float(np.mean(right)) if right else float('nan')


def target_accuracy(found: Sequence[bool], present: Sequence[bool]) -> float:
    """Return T-acc., the share of present targets that got a mask, right or not; NaN of none."""
    right = [f for f, p in zip(found, present, strict=True) if p]
    return float(np.mean(right)) if right else float('nan')


def percentiles(values: Sequence[float], wanted: Sequence[float] = (50, 90, 99)) -> list[float]:
    """Return percentiles by linear interpolation (numpy's default); NaN of none."""
    return np.percentile(values, wanted).tolist() if len(values) else [float('nan')] * len(wanted)


# ---- how sure a figure is


def interval(
    rows: np.ndarray,
    figure: Callable[[np.ndarray], float],
    groups: Sequence[object] | None = None,
    *,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the bootstrap interval of a figure: groups of rows are drawn anew, with replacement.

    Percentile bootstrap (Efron 1979) by groups: questions about one picture succeed or fail
    together, so that it is pictures that are drawn.

    Args:
        rows: (n, ...) what the figure is taken of.
        figure: rows to a number.
        groups: n, which rows belong together; None: each is alone.
        level: share of the samples within the interval.
        draws: samples.
        seed: the same seed, the same interval.

    Returns:
        Its low and its high end; NaN of fewer than two groups.
    """
    members = _members(groups, len(rows))
    if len(members) < 2:
        return float('nan'), float('nan')
    rng = np.random.default_rng(seed)
    values = np.empty(draws)
    for draw in range(draws):
        chosen = rng.integers(len(members), size=len(members))
        values[draw] = figure(rows[np.concatenate([members[i] for i in chosen])])
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _members(groups: Sequence[object] | None, count: int) -> list[np.ndarray]:
    """Return the places of each group's rows."""
    places: dict[object, list[int]] = {}
    for place, group in enumerate(range(count) if groups is None else groups):
        places.setdefault(group, []).append(place)
    return [np.array(group) for group in places.values()]


@dataclass(frozen=True)
class Difference:
    """Two runs on the same questions, compared question by question."""

    mean: float  # of the second minus the first
    low: float  # of its 95 % bootstrap interval
    high: float
    p: float  # of a difference at least as large if the runs were alike
    better: int  # questions on which the second is better by more than 0.01
    worse: int
    count: int


def paired(
    first: Sequence[float],
    second: Sequence[float],
    groups: Sequence[object] | None = None,
    *,
    draws: int = 10000,
    seed: int = 0,
) -> Difference:
    """Compare two runs by a value of each question, such as its IoU.

    `p` is that of the paired permutation test: each group's differences take either sign.

    Args:
        first: a value of each question.
        second: the other run's.
        groups: which questions belong together, see `interval`.
        draws: permutations.
        seed: the same seed, the same p.

    Raises:
        ValueError: the runs have not as many questions.
    """
    if len(first) != len(second):
        raise ValueError(
            f'{len(first)} and {len(second)} questions cannot be compared pair by pair'
        )
    change = np.subtract(second, first, dtype=float)
    if not len(change):
        return Difference(*[float('nan')] * 4, 0, 0, 0)
    rng = np.random.default_rng(seed)
    sums = np.array([change[places].sum() for places in _members(groups, len(change))])
    total, extreme = abs(change.sum()), 0
    for start in range(0, draws, 500):
        signs = rng.choice((-1.0, 1.0), size=(min(500, draws - start), len(sums)))
        extreme += int((np.abs(signs @ sums) >= total - 1e-9).sum())
    low, high = interval(change, lambda rows: float(rows.mean()), groups, seed=seed)
    return Difference(
        float(change.mean()),
        low,
        high,
        (extreme + 1) / (draws + 1),  # never 0: the runs as they are count, too
        int((change > 0.01).sum()),
        int((change < -0.01).sum()),
        len(change),
    )
