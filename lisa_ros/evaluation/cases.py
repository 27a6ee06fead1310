# SPDX-License-Identifier: Apache-2.0
"""One question with what became of it: what every evaluation yields, and every report reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from lisa_ros import masks
from lisa_ros.evaluation import metrics
from lisa_ros.evaluation.metrics import Overlap
from lisa_ros.results import Segmentation


@dataclass(frozen=True)
class Case:
    """A question, its answer, and how good it is. One name, one case: runs are paired by it."""

    name: str
    sort: str  # kind of query
    query: str
    answer: str
    status: str  # of results.Status
    present: bool | None  # whether there is something to find; None: nobody knows
    found: bool  # whether at least one mask came
    overlap: Overlap | None  # of all masks together with the truth; None without a truth
    boundary: float | None  # F of the outlines
    scores: tuple[float, ...]  # of the masks
    seconds: dict[str, float] = field(default_factory=dict)  # by stage, in the order run
    picture: Path | None = None  # an overlay for people to look at

    @property
    def iou(self) -> float | None:
        """Return the IoU, 1 where nothing is there and nothing was found; None without a truth."""
        return self.overlap and self.overlap.iou

    @property
    def score(self) -> float | None:
        """Return the highest score of its masks, None without one."""
        return max(self.scores, default=None)

    @property
    def total(self) -> float:
        """Return how long the answer took [s]."""
        return sum(self.seconds.values())


def case_of(
    name: str,
    sort: str,
    result: Segmentation,
    truth: np.ndarray | None,
    picture: Path | None = None,
) -> Case:
    """Compare an answer with the truth, (H, W) bool or uint8 0, 1 and metrics.IGNORED, or None."""
    found = together(result)
    known = truth is not None
    return Case(
        name=name,
        sort=sort,
        query=result.query.strip(),
        answer=result.answer,
        status=result.status.name,
        present=bool((truth == 1).any()) if known else None,
        found=bool(found.any()),
        overlap=metrics.overlap(found, truth) if known else None,
        boundary=metrics.boundary_f(found, truth) if known else None,
        scores=tuple(map(float, result.scores)),
        seconds=dict(result.timings),
        picture=picture,
    )


def together(result: Segmentation) -> np.ndarray:
    """Return where any mask of an answer is, (H, W) bool."""
    return result.masks.any(axis=0)


def figures(cases: Sequence[Case], seed: int = 0) -> dict[str, object]:
    """Return the figures of the cases with a truth, with 95 % intervals of the two that matter.

    gIoU, cIoU, P@ and the boundary's F are over all cases, those with nothing to find included
    (1 if nothing was found, else 0), as gRefCOCO has it; N-acc. and T-acc. tell the two apart.
    """
    seconds = metrics.percentiles([case.total for case in cases])
    asked = len(cases)
    cases = [case for case in cases if case.overlap is not None]
    if not cases:
        return {'count': 0, 'asked': asked, 'seconds': _percentiles(seconds)}
    overlaps = [case.overlap for case in cases]
    found, present = [case.found for case in cases], [case.present for case in cases]
    told = {
        'count': len(cases),
        'asked': asked,
        'giou': metrics.giou(overlaps),
        'giou_interval': metrics.interval(overlaps, metrics.giou, seed=seed),
        'ciou': metrics.ciou(overlaps),
        'ciou_interval': metrics.interval(overlaps, metrics.ciou, seed=seed),
        'boundary_f': float(np.mean([case.boundary for case in cases])),
        **{f'p@{at}': metrics.precision_at(overlaps, at) for at in metrics.THRESHOLDS},
        'n_acc': metrics.no_target_accuracy(found, present),
        't_acc': metrics.target_accuracy(found, present),
        'seconds': _percentiles(seconds),
    }
    return {name: _told(value) for name, value in told.items()}


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    return dict(zip(('p50', 'p90', 'p99'), seconds, strict=True))


def _told(value: object) -> object:
    """Return a figure, None where there is none: JSON has no NaN."""
    if isinstance(value, tuple):
        return None if any(v != v for v in value) else list(value)
    return None if value != value else value


def draw(path: Path, image: np.ndarray, found: np.ndarray, truth: np.ndarray) -> None:
    """Write a small picture of what was found and what was meant, as JPEG.

    Args:
        path: its folder is made.
        image: (H, W, 3) uint8 RGB.
        found: (H, W) bool.
        truth: (H, W) bool; `found` itself where nobody knows.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    shown = Image.fromarray(masks.compared(image, found, truth))
    shown.thumbnail((480, 480))
    shown.save(path, quality=82)
