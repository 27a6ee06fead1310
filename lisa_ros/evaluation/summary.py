# SPDX-License-Identifier: Apache-2.0
"""Figures of many cases: accuracy with confidence intervals, and latency percentiles."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lisa_ros.evaluation import metrics
from lisa_ros.evaluation.answering import WHOLE_ANSWER
from lisa_ros.evaluation.cases import Case
from lisa_ros.results import BROKEN

TO_MASK, TO_ANSWER = 'to the first mask [s]', 'to the answer [s]'  # names of `latencies`

Figures = dict[str, float | int | list[float] | dict[str, float] | None]


def figures(cases: Sequence[Case], forced: bool = False, seed: int = 0) -> Figures:
    """Return the figures of the cases that have ground truth.

    gIoU covers all of these cases, with a 95 % interval, and so does cIoU. P@ and boundary F cover
    those with something to find, as in gRefCOCO. N-acc. and T-acc. measure whether the model
    knows what is present; they are None where masks were `forced`. `seconds` covers first queries
    about an image: later ones reuse its features. `queries` counts all cases, `count`
    those with ground truth.

    Args:
        cases: all cases of a run or of a category.
        forced: whether the answers were teacher forced.
        seed: of the bootstrap.
    """
    result: Figures = {
        'queries': len(cases),
        'seconds': metrics.percentiles([case.total_time for case in _first_queries(cases)]),
    }
    cases = [case for case in cases if case.overlap is not None]
    if not cases:
        return {'count': 0, **result}
    result |= {
        'count': len(cases),
        **_overlap_figures(cases, seed),
        **_present_figures([case for case in cases if case.present]),
        **_presence_figures(cases, forced),
    }
    return {name: _without_nan(value) for name, value in result.items()}


def figures_by_category(cases: Sequence[Case], forced: bool = False) -> dict[str, Figures]:
    """Return the figures of all cases as `all`, then those of each category if there are two."""
    categories = list(dict.fromkeys(case.category for case in cases))
    rows = {'all': figures(cases, forced)}
    if len(categories) > 1:
        for category in categories:
            rows[category] = figures([c for c in cases if c.category == category], forced)
    return rows


def latencies(cases: Sequence[Case]) -> dict[str, dict[str, float]]:
    """Return percentiles [s] of the time to the first mask, to the answer and of each stage.

    Covers first queries about an image, as `figures` does.
    """
    cases = _first_queries(cases)
    stages = dict.fromkeys(stage for case in cases for stage in case.timings)
    samples = {
        TO_MASK: [
            case.time_to_first_mask for case in cases if case.time_to_first_mask is not None
        ],
        TO_ANSWER: [case.total_time for case in cases],
        **{
            f'{stage} [s]': [case.timings[stage] for case in cases if stage in case.timings]
            for stage in stages
        },
    }
    return {name: metrics.percentiles(seconds) for name, seconds in samples.items() if seconds}


def costs(cases: Sequence[Case]) -> dict[str, object]:
    """Return what the answers cost; None where nothing is known.

    `queries` and `failed` count all cases, `tokens` is the mean length of an answer that did not
    fail. The percentiles `seconds_to_mask` and `seconds_to_answer`, and the means `stage_seconds`,
    cover first queries about an image, as `latencies` does.
    """
    first = _first_queries(cases)
    answered = [case for case in cases if not _is_broken(case)]
    counts = [case.token_count for case in answered if case.token_count is not None]
    known = latencies(cases)
    stages = dict.fromkeys(stage for case in first for stage in case.timings)
    return {
        'queries': len(cases),
        'failed': sum(map(_is_broken, cases)),
        'seconds_to_mask': known.get(TO_MASK),
        'seconds_to_answer': known.get(TO_ANSWER),
        'stage_seconds': {
            stage: float(np.mean([case.timings.get(stage, 0.0) for case in first]))
            for stage in stages
        },
        'tokens': float(np.mean(counts)) if counts else None,
    }


def _first_queries(cases: Sequence[Case]) -> list[Case]:
    """Return the cases whose image was encoded for them, not reused from an earlier query.

    Stages tell that of a LISA. Of a backend with other stages it is the first case of each image
    that has no history, and of one without stages all cases. A query that failed is left out: how
    long a server was not reached is no time to an answer.
    """
    first = [case for case in cases if {'clip', WHOLE_ANSWER} & case.timings.keys()]
    if not first:
        of_image: dict[str, Case] = {}
        for case in cases:
            if case.timings and not case.history:
                of_image.setdefault(case.group, case)
        first = list(of_image.values())
    return [case for case in first if not _is_broken(case)]


def _is_broken(case: Case) -> bool:
    return case.status in [status.name for status in BROKEN]


def _overlap_figures(cases: Sequence[Case], seed: int) -> Figures:
    """Return gIoU and cIoU with their bootstrap intervals."""
    overlaps = [case.overlap for case in cases]
    groups = [case.group for case in cases]
    rows = np.array([[o.intersection, o.union, o.iou] for o in overlaps])

    def mean_iou(ious: np.ndarray) -> float:
        return float(ious.mean())

    def cumulative_iou(sampled: np.ndarray) -> float:
        return metrics.cumulative_iou(float(sampled[:, 0].sum()), float(sampled[:, 1].sum()))

    return {
        'giou': metrics.giou(overlaps),
        'giou_interval': metrics.bootstrap_interval(rows[:, 2], mean_iou, groups, seed=seed),
        'ciou': metrics.ciou(overlaps),
        'ciou_interval': metrics.bootstrap_interval(rows, cumulative_iou, groups, seed=seed),
    }


def _present_figures(present: Sequence[Case]) -> Figures:
    """Return boundary F and P@ of the cases with something to find."""
    outlines = [case.boundary_f for case in present]
    return {
        'boundary_f': float(np.mean(outlines)) if outlines else None,
        **{
            f'p@{threshold}': metrics.precision_at([case.overlap for case in present], threshold)
            for threshold in metrics.THRESHOLDS
        },
    }


def _presence_figures(cases: Sequence[Case], forced: bool) -> Figures:
    found, present = [case.found for case in cases], [bool(case.present) for case in cases]
    return {
        'n_acc': None if forced else metrics.no_target_accuracy(found, present),
        't_acc': None if forced else metrics.target_accuracy(found, present),
    }


def _without_nan(value: object) -> object:
    """Return a value that JSON can hold: None instead of NaN, a list instead of a tuple."""
    if isinstance(value, tuple):
        return None if any(map(math.isnan, value)) else list(value)
    return None if isinstance(value, float) and math.isnan(value) else value
