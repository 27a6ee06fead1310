# SPDX-License-Identifier: Apache-2.0
"""The plots of a report, as shapes that the template draws as SVG."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lisa_ros.evaluation.calibration import is_match
from lisa_ros.evaluation.metrics import Overlap

_UNIT_TICKS = ((0.0, '0'), (0.5, '0.5'), (1.0, '1'))


@dataclass(frozen=True)
class Bar:
    """A bar on the x axis; all lengths are in the unit square."""

    x: float  # left end
    width: float
    height: float
    opacity: float = 1.0


@dataclass(frozen=True)
class Plot:
    """Bars or a line in the unit square, y up."""

    title: str
    x_label: str
    colour: str  # a variable of the style sheet
    bars: Sequence[Bar] = ()
    line: Sequence[tuple[float, float]] = ()
    has_diagonal: bool = False
    ticks: Sequence[tuple[float, str]] = _UNIT_TICKS  # of the x axis


def reliability(cases: Sequence[Mapping]) -> Plot:
    """Return the share of right masks by score, as `calibration` counts them."""
    outcomes = [
        (case['scores'][0], is_match(Overlap(case['intersection'], case['union'])))
        for case in cases
        if len(case['scores']) == 1 and case['iou'] is not None
    ]
    bars = []
    for low in np.arange(0, 1, 0.1):
        right = [is_right for score, is_right in outcomes if low <= min(score, 0.999) < low + 0.1]
        if right:
            opacity = 0.35 + 0.65 * min(1, len(right) / 20)  # pale where there are few
            bars.append(Bar(low + 0.01, 0.08, float(np.mean(right)), opacity))
    title, x_label = 'share of right masks, by score', 'score of the mask'
    return Plot(title, x_label, '--accent', bars, has_diagonal=True)


def iou_histogram(cases: Sequence[Mapping]) -> Plot:
    """Return the distribution of the IoU."""
    ious = [case['iou'] for case in cases if case['iou'] is not None]
    counts, _ = np.histogram(ious, bins=20, range=(0, 1))
    highest = max(1, counts.max())
    bars = [Bar(i / 20 + 0.004, 0.042, float(count / highest)) for i, count in enumerate(counts)]
    return Plot(f'IoU (highest bar: {counts.max()})', 'IoU', '--missed', bars)


def latency(timings: Iterable[Mapping[str, float]]) -> Plot | None:
    """Return the cumulative distribution of the answer time; None without an answer.

    Args:
        timings: seconds by stage, of each case; empty for a query that failed.
    """
    seconds = np.sort([sum(stages.values()) for stages in timings if stages])
    if not len(seconds):
        return None
    longest = float(seconds[-1]) or 1.0
    shares = np.arange(1, len(seconds) + 1) / len(seconds)
    line = [(0.0, 0.0), *((x / longest, y) for x, y in zip(seconds, shares, strict=True))]
    ticks = [(at, f'{at * longest:.2g}') for at in (0.0, 0.5, 1.0)]
    return Plot('share answered, by time', 'seconds', '--wrong', line=line, ticks=ticks)
