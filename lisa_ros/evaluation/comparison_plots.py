# SPDX-License-Identifier: Apache-2.0
"""The plots of a comparison, as shapes that the template draws as SVG.

All coordinates are in the unit square, y up. A run has the same letter and colour everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

COLOURS = (  # on light and on dark paper; far from those of right, wrong and missed pixels
    *('#8b5cf6', '#f59e0b', '#0891b2', '#ec4899', '#84a01c', '#6366f1', '#b45309', '#64748b'),
)
_STAGE_COLOURS = (
    *('#7aa6da', '#b294bb', '#e7c547', '#70c0b1', '#e78c45', '#a3685a', '#969896', '#c397d8'),
)
# of an axis of seconds: the first row that gives no more than _MOST_TICKS ticks
_TICK_FACTORS = ((1, 1.5, 2, 3, 4, 5, 7), (1, 2, 5), (1,))
_MOST_TICKS = 8
_LABEL_GAP = 0.07  # between labels, of the plot's height
_SMALLEST, _LARGEST = 0.012, 0.045  # radius of a dot, of the plot's height


@dataclass(frozen=True)
class Dot:
    """A run in the plot of quality against seconds."""

    letter: str
    colour: str
    label: str
    x: float
    y: float
    radius: float
    x_end: float  # of the whisker: the 90th percentile of the seconds
    y_ends: tuple[float, float] | None  # of the whisker: the interval of gIoU
    label_y: float
    is_left: bool  # whether the label is left of the dot


@dataclass(frozen=True)
class QualityPlot:
    """gIoU against the seconds to the answer."""

    dots: Sequence[Dot]
    front: Sequence[tuple[float, float]]  # through the runs that no other one beats in both
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    has_sizes: bool  # whether the area of a dot shows the memory of the run


@dataclass(frozen=True)
class Curve:
    """The share of queries of a run whose IoU is at least x."""

    letter: str
    colour: str
    line: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Segment:
    """A stage in the bar of a run."""

    colour: str
    stage: str
    x: float
    width: float
    seconds: float


@dataclass(frozen=True)
class StageBar:
    """Where the time of a run goes."""

    letter: str
    colour: str
    segments: Sequence[Segment]
    seconds: float  # sum of the stages


@dataclass(frozen=True)
class StagePlot:
    """The bars of all runs, with one scale."""

    bars: Sequence[StageBar]
    stages: Mapping[str, str]  # colour by stage


def letter_of(index: int) -> str:
    """Return the letter of a run: A to Z, then AA."""
    letter = chr(ord('A') + index % 26)
    return letter if index < 26 else letter_of(index // 26 - 1) + letter


def colour_of(index: int) -> str:
    """Return the colour of a run."""
    return COLOURS[index % len(COLOURS)]


def quality_plot(rows: Sequence[Mapping]) -> QualityPlot | None:
    """Return gIoU against seconds; None if no run has both.

    Args:
        rows: of `comparison.compare`.
    """
    shown = [
        (index, row)
        for index, row in enumerate(rows)
        if not row['failure']
        and row['seconds_to_answer']
        and row['figures'].get('giou') is not None
    ]
    if not shown:
        return None
    x_range, x_ticks = _log_axis(
        [row['seconds_to_answer'][name] for _, row in shown for name in ('p50', 'p90')]
    )
    y_range, y_ticks = _quality_axis([value for _, row in shown for value in _quality_values(row)])
    memory = [_memory(row) for _, row in shown]
    has_sizes = all(memory) and _same_kind(shown)
    largest = max(filter(None, memory), default=1.0)

    def x_of(seconds: float) -> float:
        low, high = x_range
        return (math.log10(max(seconds, 1e-6)) - low) / (high - low)

    def y_of(quality: float) -> float:
        low, high = y_range
        return (quality - low) / (high - low)

    dots = []
    for (index, row), used in zip(shown, memory, strict=True):
        seconds, interval = row['seconds_to_answer'], row['figures'].get('giou_interval')
        radius = _LARGEST * math.sqrt(used / largest) if has_sizes else 0.02
        x = x_of(seconds['p50'])
        dots.append(
            Dot(
                letter_of(index),
                colour_of(index),
                row['name'],
                x,
                y_of(row['figures']['giou']),
                max(_SMALLEST, radius),
                x_of(seconds['p90']),
                interval and (y_of(interval[0]), y_of(interval[1])),
                0.0,
                x > 0.6,
            )
        )
    return QualityPlot(_with_labels(dots), _front(dots), x_ticks, y_ticks, has_sizes)


def _quality_values(row: Mapping) -> Iterable[float]:
    yield row['figures']['giou']
    yield from row['figures'].get('giou_interval') or ()


def _memory(row: Mapping) -> float | None:
    """Return the memory that limits where a run fits: of the GPU if it uses one [MiB]."""
    return row['peak_gpu_memory'] or row['peak_memory']


def _same_kind(shown: Sequence[tuple[int, Mapping]]) -> bool:
    """Return whether all runs used a GPU, or none did."""
    return len({row['peak_gpu_memory'] is None for _, row in shown}) == 1


def _log_axis(
    seconds: Sequence[float],
) -> tuple[tuple[float, float], list[tuple[float, str]]]:
    """Return the ends (logarithms to base 10) and the ticks of an axis of seconds."""
    low, high = (math.log10(max(end, 1e-6)) for end in (min(seconds), max(seconds)))
    margin = max(0.12 * (high - low), 0.15)
    low, high = low - margin, high + margin
    for factors in _TICK_FACTORS:
        shown = [
            factor * 10.0**exponent
            for exponent in range(math.floor(low), math.ceil(high) + 1)
            for factor in factors
            if low <= math.log10(factor) + exponent <= high
        ]
        if len(shown) <= _MOST_TICKS:
            break
    return (low, high), [
        ((math.log10(tick) - low) / (high - low), f'{tick:.6g}') for tick in shown
    ]


def _quality_axis(
    values: Sequence[float],
) -> tuple[tuple[float, float], list[tuple[float, str]]]:
    """Return the ends and the ticks of an axis of gIoU, which shows no less than 0.3 of it."""
    low, high = max(0.0, min(values) - 0.03), min(1.0, max(values) + 0.03)
    spare = max(0.0, 0.3 - (high - low))
    low, high = max(0.0, low - spare / 2), min(1.0, high + spare / 2)
    low, high = math.floor(low * 20) / 20, math.ceil(high * 20) / 20
    step = 0.05 if high - low <= 0.4 else 0.1 if high - low <= 0.7 else 0.2
    first = math.ceil(low / step - 1e-9)
    ticks = [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]
    return (low, high), [((tick - low) / (high - low), f'{tick:.2f}') for tick in ticks]


def _front(dots: Sequence[Dot]) -> list[tuple[float, float]]:
    """Return the steps through the dots that no other one beats in quality and in seconds."""
    steps: list[tuple[float, float]] = []
    for dot in sorted(dots, key=lambda dot: (dot.x, -dot.y)):
        if not steps or dot.y > steps[-1][1]:
            steps += [(dot.x, steps[-1][1])] if steps else []
            steps.append((dot.x, dot.y))
    return steps if len(steps) > 1 else []


def _with_labels(dots: Sequence[Dot]) -> list[Dot]:
    """Return the dots with places of their labels: beside the dots, and not on each other."""
    placed: list[Dot] = []
    for is_left in (False, True):
        y = -1.0
        for dot in sorted((d for d in dots if d.is_left == is_left), key=lambda dot: dot.y):
            y = max(dot.y, y + _LABEL_GAP)
            placed.append(Dot(**{**vars(dot), 'label_y': y}))
    return placed


def iou_curves(reports: Sequence[Mapping | None]) -> list[Curve]:
    """Return the share of queries with at least an IoU, for each run with ground truth."""
    curves = []
    thresholds = np.linspace(0, 1, 101)
    for index, report in enumerate(reports):
        ious = (
            [case['iou'] for case in report['cases'] if case['iou'] is not None] if report else []
        )
        if ious:
            shares = (np.array(ious)[:, None] >= thresholds - 1e-4).mean(axis=0)
            line = list(zip(thresholds.tolist(), shares.tolist(), strict=True))
            curves.append(Curve(letter_of(index), colour_of(index), line))
    return curves


def stage_plot(rows: Sequence[Mapping]) -> StagePlot | None:
    """Return where the time of each run goes; None without stages."""
    shown = [(index, row['stage_seconds']) for index, row in enumerate(rows) if not row['failure']]
    names = dict.fromkeys(stage for _, stages in shown for stage in stages)
    longest = max((sum(stages.values()) for _, stages in shown), default=0.0)
    if not longest:
        return None
    colours = {
        stage: _STAGE_COLOURS[number % len(_STAGE_COLOURS)] for number, stage in enumerate(names)
    }
    bars = []
    for index, stages in shown:
        x, segments = 0.0, []
        for stage, seconds in stages.items():
            segments.append(Segment(colours[stage], stage, x, seconds / longest, seconds))
            x += seconds / longest
        total = sum(stages.values())
        bars.append(StageBar(letter_of(index), colour_of(index), segments, total))
    return StagePlot(bars, colours)
