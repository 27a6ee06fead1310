# SPDX-License-Identifier: Apache-2.0
"""Calibration of mask scores: a score should be the probability that its mask is right.

Of the masks with a score of 0.8, eight of ten should be right. A mask is right if its IoU with the
ground truth is at least `mask_scores.RIGHT`; a mask of an absent object is never right. Only
answers with exactly one mask count, so that each score belongs to one ground-truth mask.

The expected calibration error is that of Guo et al., arXiv 1706.04599. The scores are put into ten
bins of equal width. The error of a bin is the gap between its mean score and its share of right
masks; the mean over the bins is weighted with their sizes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from lisa_ros.errors import CheckpointError, DataError, SettingsError
from lisa_ros.evaluation.cases import Case
from lisa_ros.evaluation.metrics import Overlap
from lisa_ros.files.output import check_output_file, output_error
from lisa_ros.model.json_file import read_json
from lisa_ros.perception import mask_scores

BINS = 10
CONFIG_CURE = 'calibrate a copy of the model folder, or let this user write the file'
PLOT_CURE = 'give another --plot'
_MIN_MASKS = 20  # fewer masks are not enough for a fit


def scored_outcomes(cases: Iterable[Case]) -> np.ndarray:
    """Return (score, 1 if right else 0) of each answer with exactly one mask, (N, 2)."""
    rows = [
        (case.scores[0], is_right(case))
        for case in cases
        if len(case.scores) == 1 and case.overlap is not None
    ]
    return np.array(rows, float).reshape(-1, 2)


def is_right(case: Case) -> bool:
    """Return whether the object was present and the masks match it; `overlap` must be set."""
    return is_match(case.overlap)


def is_match(overlap: Overlap) -> bool:
    """Return whether masks overlap with a present object as much as right ones do."""
    return overlap.reaches(mask_scores.RIGHT) and overlap.intersection > 0


def reliability_bins(outcomes: np.ndarray) -> list[tuple[float, float, int]]:
    """Return (mean score, share of right masks, count) of each bin that is not empty.

    Args:
        outcomes: (N, 2) as `scored_outcomes` returns them.
    """
    scores, right = outcomes.T
    bins = np.minimum((scores * BINS).astype(int), BINS - 1)
    return [
        (float(scores[bins == i].mean()), float(right[bins == i].mean()), int(count))
        for i, count in enumerate(np.bincount(bins, minlength=BINS))
        if count
    ]


def expected_calibration_error(outcomes: np.ndarray) -> float | None:
    """Return the expected calibration error of (N, 2) outcomes; None if N is 0."""
    if len(outcomes) == 0:
        return None
    gaps = [(abs(score - right), count) for score, right, count in reliability_bins(outcomes)]
    return float(np.average([gap for gap, _ in gaps], weights=[count for _, count in gaps]))


def fit_weights(cases: Sequence[Case], penalty: float = 1e-3) -> tuple[float, ...]:
    """Return the weights of `mask_scores.features`, by logistic regression (Newton's method).

    `fit_isotonic_curve` fits the curve that corrects the resulting probabilities.

    Args:
        cases: cases with score features; only those with exactly one mask, not empty, are used.
        penalty: L2 penalty on the weights except the intercept, per mask.

    Raises:
        DataError: there are fewer than 20 masks, or all are right, or all are wrong.
    """
    usable = _cases_with_one_mask(cases)
    right = np.array([is_right(case) for case in usable], float)
    if len(usable) < _MIN_MASKS or right.min(initial=1) == right.max(initial=0):
        raise DataError(
            f'{len(usable)} masks, {int(right.sum())} of them right: a calibration needs at least '
            f'{_MIN_MASKS} masks, with right and wrong ones; use a test set with more queries'
        )
    x = np.stack([mask_scores.features(case.score_features[0]) for case in usable])
    weights = np.zeros(x.shape[1])
    ridge = penalty * len(x) * np.diag([0.0, 1.0, 1.0, 1.0])
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(x @ weights, -30, 30)))
        gradient = x.T @ (p - right) + ridge @ weights
        hessian = (x * (p * (1 - p))[:, None]).T @ x + ridge + 1e-9 * np.eye(len(weights))
        step = np.linalg.solve(hessian, gradient)
        weights -= step
        if np.abs(step).max() < 1e-8:
            break
    return tuple(round(float(weight), 5) for weight in weights)


def fit_isotonic_curve(
    cases: Sequence[Case], weights: Sequence[float], knots: int = 8
) -> tuple[tuple[float, float], ...]:
    """Return the knots of a curve that corrects the probabilities of `fit_weights`.

    The curve maps the probability of the logistic regression to the share of right masks. It is an
    isotonic regression (pool adjacent violators) over groups of equal size, with straight lines
    between the group means. It corrects errors that the four weights cannot.

    Args:
        cases: those that `fit_weights` used, or others.
        weights: what `fit_weights` returned.
        knots: number of groups before pooling; each should have about 50 masks.
    """
    usable = _cases_with_one_mask(cases)
    rows = sorted(
        (mask_scores.score(case.score_features[0], weights), is_right(case)) for case in usable
    )
    pools: list[tuple[float, float, int]] = []  # (sum of probabilities, right masks, all masks)
    for group in np.array_split(np.array(rows, float), knots):
        if len(group) == 0:
            continue
        pools.append((group[:, 0].sum(), group[:, 1].sum(), len(group)))
        while len(pools) > 1 and pools[-2][1] / pools[-2][2] >= pools[-1][1] / pools[-1][2]:
            pools[-2:] = [tuple(map(sum, zip(*pools[-2:], strict=True)))]
    curve = [(p / count, right / count) for p, right, count in pools]
    (low, first), (high, last) = curve[0], curve[-1]
    # below the first and above the last knot the curve has slope 1, clipped to 0..1
    curve = [(0.0, max(0.0, first - low)), *curve, (1.0, min(1.0, last + 1 - high))]
    return tuple((round(float(p), 4), round(float(share), 4)) for p, share in curve)


def _cases_with_one_mask(cases: Sequence[Case]) -> list[Case]:
    """Return the cases with the score features of exactly one mask, which is not empty."""
    return [
        case
        for case in cases
        if len(case.score_features) == 1 and case.score_features[0].mean_mask_prob > 0
    ]


def best_threshold(scores: Sequence[float], present: Sequence[bool]) -> float:
    """Return the score threshold that best separates present from absent objects.

    Args:
        scores: N, the best score of each answer; 0 if it has no mask.
        present: N, whether the object was present.
    """
    scores, present = np.asarray(scores, float), np.asarray(present, bool)
    thresholds = np.round(np.arange(0.02, 0.99, 0.01), 2)
    accuracies = np.array([((scores >= t) == present).mean() for t in thresholds])
    best = thresholds[accuracies >= accuracies.max() - 1e-9]
    return float(best[len(best) // 2])


def read_config(folder: Path) -> dict:
    """Return the config.json of a checkpoint in lisa_ros format.

    Raises:
        DataError: it is missing, unreadable or of another format.
    """
    path = folder / 'config.json'
    try:
        config = read_json(path)
    except CheckpointError as error:
        raise DataError(f'{error}; give a model folder in lisa_ros format') from error
    if config.get('model_type') != 'lisa_ros':
        raise DataError(
            f'{path} has model_type {config.get("model_type")!r}, expected lisa_ros: save the '
            'model with lisa_ros.model.export.save first'
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
    """Write weights, curve and threshold into the config.json of a checkpoint.

    Args:
        folder: checkpoint in lisa_ros format.
        weights: those of `fit_weights`.
        curve: of `fit_isotonic_curve`.
        threshold: confidence threshold, 0..1.
        refine: also switch mask refinement on; False leaves it as it is.

    Raises:
        DataError: the config cannot be read.
        OutputError: it cannot be written.
    """
    config = read_config(folder)
    config |= {
        'refine': refine or config.get('refine', False),
        'calibration': list(weights),
        'calibration_curve': [list(knot) for knot in curve],
        'confidence_threshold': threshold,
    }
    path = folder / 'config.json'
    try:
        path.write_text(json.dumps(config, indent=2) + '\n')
    except OSError as error:
        raise output_error(path, error, CONFIG_CURE) from error


def check_plot(path: Path) -> Path:
    """Return the file that a plot is written to; without a suffix it gets .png.

    Raises:
        SettingsError: matplotlib writes no images of this kind.
        OutputError: the file cannot be written.
    """
    from matplotlib.backend_bases import FigureCanvasBase

    path = path if path.suffix else path.with_name(f'{path.name}.png')
    kinds = FigureCanvasBase.get_supported_filetypes()
    if path.suffix[1:].lower() not in kinds:
        raise SettingsError(
            f'{path}: no kind of image that matplotlib writes; expected .png or one of '
            f'{", ".join(sorted(kinds))}'
        )
    check_output_file(path, PLOT_CURE)
    return path


def plot_reliability(outcomes: np.ndarray, path: Path, title: str) -> None:
    """Write a reliability plot as PNG: share of right masks over score, and number of masks.

    Args:
        outcomes: (N, 2) as `scored_outcomes` returns them.
        path: of the image file.
        title: of the plot.

    Raises:
        OutputError: the file cannot be written.
    """
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    bins = reliability_bins(outcomes)
    figure, (upper, lower) = pyplot.subplots(
        2, 1, figsize=(4.6, 5.4), sharex=True, height_ratios=(3, 1), layout='constrained'
    )
    upper.plot([0, 1], [0, 1], color='0.7', linestyle='--', label='calibrated')
    upper.plot([b[0] for b in bins], [b[1] for b in bins], 'o-', color='#d1495b', label='measured')
    upper.set(
        ylabel=f'share right (IoU at least {mask_scores.RIGHT})', ylim=(0, 1.02), title=title
    )
    upper.legend(loc='upper left')
    lower.bar([b[0] for b in bins], [b[2] for b in bins], width=0.07, color='#30638e')
    lower.set(xlabel='score', ylabel='masks', xlim=(0, 1))
    try:
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise output_error(path, error, PLOT_CURE) from error
    finally:
        pyplot.close(figure)
