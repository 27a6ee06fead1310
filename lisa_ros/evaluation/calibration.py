# SPDX-License-Identifier: Apache-2.0
"""Are the scores honest? Of masks with a score of 0.8, eight of ten should be right.

A mask is right if its IoU with what was asked for is at least `confidence.RIGHT`; a mask of what
is not there never is. Only answers of just one mask count, so that a score has one truth.
The expected calibration error is that of Guo et al., arXiv 1706.04599: scores in ten bins of equal
width, and the gap between mean score and share of right ones, weighed by the bins' sizes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from lisa_ros.errors import DataError
from lisa_ros.evaluation.metrics import Overlap
from lisa_ros.perception import mask_scores
from lisa_ros.results import ScoreFeatures

BINS = 10


class Answered(Protocol):
    """What is needed of a graded answer."""

    overlap: Overlap
    scores: tuple[float, ...]
    evidence: tuple[ScoreFeatures, ...]


def scored_outcomes(graded: Iterable[Answered]) -> np.ndarray:
    """Return score and whether the mask is right, of each answer with one mask: (n, 2)."""
    rows = [(g.scores[0], is_right(g)) for g in graded if len(g.scores) == 1]
    return np.array(rows, float).reshape(-1, 2)


def is_right(answered: Answered) -> bool:
    """Return whether there was something to find and the mask is it."""
    return answered.overlap.iou >= mask_scores.RIGHT and answered.overlap.intersection > 0


def binned(scores_right: np.ndarray) -> list[tuple[float, float, int]]:
    """Return (mean score, share right, count) of each bin that is not empty."""
    scores, right = scores_right.T
    places = np.minimum((scores * BINS).astype(int), BINS - 1)
    return [
        (float(scores[places == i].mean()), float(right[places == i].mean()), int(n))
        for i, n in enumerate(np.bincount(places, minlength=BINS))
        if n
    ]


def expected_error(scores_right: np.ndarray) -> float | None:
    """Return the expected calibration error; None of no mask at all."""
    if len(scores_right) == 0:
        return None
    gaps = [(abs(score - right), n) for score, right, n in binned(scores_right)]
    return float(np.average([gap for gap, _ in gaps], weights=[n for _, n in gaps]))


def fit(graded: Sequence[Answered], penalty: float = 1e-3) -> tuple[float, ...]:
    """Return the weights of `confidence.features`, by logistic regression (Newton's method).

    `straighten` gives the curve that goes with them.

    Raises:
        DataError: there are not both right and wrong masks to learn from.
    """
    one = _weighed(graded)
    right = np.array([is_right(g) for g in one], float)
    if len(one) < 20 or right.min(initial=1) == right.max(initial=0):
        raise DataError(
            f'{len(one)} masks, {int(right.sum())} of them right: a calibration needs at least 20 '
            'and both sorts: sit an exam with more questions'
        )
    x = np.stack([mask_scores.features(g.evidence[0]) for g in one])
    weights = np.zeros(x.shape[1])
    ridge = penalty * len(x) * np.diag([0.0, 1.0, 1.0, 1.0])
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(x @ weights, -30, 30)))
        slope = x.T @ (p - right) + ridge @ weights
        bend = (x * (p * (1 - p))[:, None]).T @ x + ridge + 1e-9 * np.eye(len(weights))
        step = np.linalg.solve(bend, slope)
        weights -= step
        if np.abs(step).max() < 1e-8:
            break
    return tuple(round(float(w), 5) for w in weights)


def fit_isotonic_curve(
    graded: Sequence[Answered], weights: Sequence[float], knots: int = 8
) -> tuple[tuple[float, float], ...]:
    """Return the curve from the regression's probability to the share that is right.

    Isotonic regression (pool adjacent violators) over groups of equal size, the groups' means
    joined by straight lines: a regression of four weights has a shape of its own, and what is
    left between it and the truth is the same for all masks of one probability.

    Args:
        graded: the answers that `fit` learnt from, or others.
        weights: what it learnt.
        knots: groups before pooling; each wants 50 masks or so.
    """
    one = _weighed(graded)
    rows = sorted((mask_scores.score(g.evidence[0], weights), is_right(g)) for g in one)
    pools: list[tuple[float, float, int]] = []  # (sum of probabilities, of right ones, count)
    for group in np.array_split(np.array(rows, float), knots):
        if len(group) == 0:
            continue
        pools.append((group[:, 0].sum(), group[:, 1].sum(), len(group)))
        while len(pools) > 1 and pools[-2][1] / pools[-2][2] >= pools[-1][1] / pools[-1][2]:
            pools[-2:] = [tuple(map(sum, zip(*pools[-2:], strict=True)))]
    curve = [(p / n, right / n) for p, right, n in pools]
    (low, least), (high, most) = curve[0], curve[-1]  # beyond them it goes on with slope one
    curve = [(0.0, max(0.0, least - low)), *curve, (1.0, min(1.0, most + 1 - high))]
    return tuple((round(float(p), 4), round(float(share), 4)) for p, share in curve)


def _weighed(graded: Sequence[Answered]) -> list[Answered]:
    """Return the answers that have evidence of just one mask, which is not empty."""
    return [g for g in graded if len(g.evidence) == 1 and g.evidence[0].mean_mask_prob > 0]


def best_threshold(scores: Sequence[float], present: Sequence[bool]) -> float:
    """Return the threshold from which on "it is there" is right most often.

    Args:
        scores: the best score of each answer, 0 without a mask.
        present: whether there was something to find.
    """
    scores, present = np.asarray(scores, float), np.asarray(present, bool)
    tries = np.round(np.arange(0.02, 0.99, 0.01), 2)
    right = [((scores >= t) == present).mean() for t in tries]
    good = tries[np.array(right) >= max(right) - 1e-9]
    return float(good[len(good) // 2])


def read_config(folder: Path) -> dict:
    """Return the config.json of a checkpoint of our own layout.

    Raises:
        DataError: there is none.
    """
    path = folder / 'config.json'
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f'{path}: not readable ({error}); name a model folder of ours') from error
    if config.get('model_type') != 'lisa_ros':
        raise DataError(
            f'{path} is of model_type {config.get("model_type")!r}, not ours: save the model with '
            'lisa_ros.model.export.save first'
        )
    return config


def save_calibration(
    folder: Path,
    weights: Sequence[float],
    curve: Sequence[tuple[float, float]],
    threshold: float,
    *,
    refine: bool = False,
) -> None:
    """Write calibration and threshold into a checkpoint of our own layout; refine: that, too."""
    config = read_config(folder)
    config |= {
        'refine': refine or config.get('refine', False),
        'calibration': list(weights),
        'calibration_curve': [list(knot) for knot in curve],
        'confidence_threshold': threshold,
    }
    (folder / 'config.json').write_text(json.dumps(config, indent=2) + '\n')


def plot(scores_right: np.ndarray, path: Path, title: str) -> None:
    """Draw the reliability plot: share of right masks over score, and how many there are."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    bins = binned(scores_right)
    figure, (above, below) = pyplot.subplots(
        2, 1, figsize=(4.6, 5.4), sharex=True, height_ratios=(3, 1), layout='constrained'
    )
    above.plot([0, 1], [0, 1], color='0.7', linestyle='--', label='honest')
    above.plot([b[0] for b in bins], [b[1] for b in bins], 'o-', color='#d1495b', label='measured')
    above.set(
        ylabel=f'share right (IoU at least {mask_scores.RIGHT})', ylim=(0, 1.02), title=title
    )
    above.legend(loc='upper left')
    below.bar([b[0] for b in bins], [b[2] for b in bins], width=0.07, color='#30638e')
    below.set(xlabel='score', ylabel='masks', xlim=(0, 1))
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
