# SPDX-License-Identifier: Apache-2.0
"""One question with what became of it: what every evaluation yields, and every report reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from lisa_ros.errors import DataError
from lisa_ros.evaluation import metrics
from lisa_ros.evaluation.metrics import Overlap
from lisa_ros.perception import overlay
from lisa_ros.results import Segmentation


@dataclass(frozen=True)
class Case:
    """A question, its answer, and how good it is. One name, one case: runs are paired by it."""

    name: str
    group: str  # the picture or frame: its questions succeed or fail together
    category: str  # kind of query
    about: str  # what is asked for, however it is put
    query: str  # as it was put
    answer: str
    status: str  # of results.Status
    present: bool | None  # whether there is something to find; None: nobody knows
    found: bool  # whether at least one mask came
    overlap: Overlap | None  # of all masks together with the truth; None without a truth
    boundary: float | None  # F of the outlines
    scores: tuple[float, ...]  # of the masks
    seconds: dict[str, float] = field(default_factory=dict)  # by stage, in the order run
    time_to_first_mask: float | None = None  # [s] until the first mask
    image: Path | None = None  # an overlay for people to look at

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
    group: str,
    place: int | str,
    sort: str,
    about: str,
    result: Segmentation,
    truth: np.ndarray | None,
    picture: Path | None = None,
) -> Case:
    """Compare an answer with the truth.

    Args:
        group: the picture or frame.
        place: of the question among those about it.
        sort: kind of query.
        about: what is asked for.
        result: the answer.
        truth: (H, W) bool or uint8 0, 1 and metrics.IGNORED; None: nobody knows.
        picture: an overlay.
    """
    found = union_mask(result)
    known = truth is not None
    return Case(
        name=f'{group}.{place}',
        group=group,
        category=sort,
        about=about,
        query=result.query.strip(),
        answer=result.answer,
        status=result.status.name,
        present=bool((truth == 1).any()) if known else None,
        found=bool(found.any()),
        overlap=metrics.overlap(found, truth) if known else None,
        boundary=metrics.boundary_f(found, truth) if known else None,
        scores=tuple(map(float, result.scores)),
        seconds=dict(result.timings),
        time_to_first_mask=result.time_to_first_mask,
        image=picture,
    )


def union_mask(result: Segmentation) -> np.ndarray:
    """Return where any mask of an answer is, (H, W) bool."""
    return result.masks.any(axis=0)


def figures(cases: Sequence[Case], forced: bool = False, seed: int = 0) -> dict[str, object]:
    """Return the figures of the cases with a truth, with 95 % intervals of the two that matter.

    gIoU is over all of them (1 where nothing is there and nothing was found), P@ and the
    boundary's F over those with something to find, as gRefCOCO has them; N-acc. and T-acc. tell
    presence, and nothing where masks were `forced`. Seconds are of pictures looked at anew: the
    next question about the same one costs only the words.
    """
    fresh = [case.total for case in cases if 'clip' in case.seconds]
    told = {'asked': len(cases), 'seconds': percentiles(fresh)}
    cases = [case for case in cases if case.overlap is not None]
    if not cases:
        return {'count': 0, **told}
    there = [case for case in cases if case.present]
    rows = np.array([[c.overlap.intersection, c.overlap.union, c.iou] for c in cases])
    groups = [case.group for case in cases]
    found, present = [case.found for case in cases], [bool(case.present) for case in cases]
    overlaps = [case.overlap for case in cases]
    outlines = [case.boundary for case in there]

    def whole(some: np.ndarray) -> float:
        return float(some[:, 0].sum() / (some[:, 1].sum() + 1e-10))

    told |= {
        'count': len(cases),
        'giou': metrics.giou(overlaps),
        'giou_interval': metrics.interval(
            rows[:, 2], lambda r: float(r.mean()), groups, seed=seed
        ),
        # nothing over nothing, which the original's formula calls 0, tells nothing
        'ciou': metrics.ciou(overlaps) if rows[:, 1].any() else None,
        'ciou_interval': metrics.interval(rows, whole, groups, seed=seed),
        'boundary_f': float(np.mean(outlines)) if outlines else None,
        **{
            f'p@{at}': metrics.precision_at([c.overlap for c in there], at)
            for at in metrics.THRESHOLDS
        },
        'n_acc': None if forced else metrics.no_target_accuracy(found, present),
        't_acc': None if forced else metrics.target_accuracy(found, present),
    }
    return {name: _told(value) for name, value in told.items()}


def delays(cases: Sequence[Case]) -> dict[str, dict[str, float]]:
    """Return percentiles of the seconds to the first mask, to the answer and of each stage.

    Of pictures looked at anew, as in `figures`.
    """
    fresh = [case for case in cases if 'clip' in case.seconds]
    stages = dict.fromkeys(stage for case in fresh for stage in case.seconds)
    spent = {
        'to the first mask [s]': [
            c.time_to_first_mask for c in fresh if c.time_to_first_mask is not None
        ],
        'to the answer [s]': [case.total for case in fresh],
        **{f'{s} [s]': [c.seconds[s] for c in fresh if s in c.seconds] for s in stages},
    }
    return {name: percentiles(some) for name, some in spent.items() if some}


def percentiles(seconds: Sequence[float]) -> dict[str, float] | None:
    """Return median, 90th and 99th percentile, None of nothing."""
    if not seconds:
        return None
    return dict(zip(('p50', 'p90', 'p99'), metrics.percentiles(seconds), strict=True))


def _told(value: object) -> object:
    """Return a figure, None where there is none: JSON has no NaN."""
    if isinstance(value, tuple):
        return None if any(v != v for v in value) else list(value)
    return None if value != value else value


def draw(
    path: Path, image: np.ndarray, result: Segmentation, truth: np.ndarray | None, side: int = 480
) -> None:
    """Write a small picture of what was found and what was meant, as JPEG.

    Args:
        path: its folder is made.
        image: (H, W, 3) uint8 RGB.
        result: the answer.
        truth: as `case_of` has it; pixels that are ignored are shown as they are.
        side: the longest of the picture [px].

    Raises:
        DataError: it cannot be written.
    """
    height, width = image.shape[:2]
    scale = min(1.0, side / max(height, width))
    size = (round(width * scale), round(height * scale))
    found = union_mask(result)
    real = found if truth is None else truth == 1
    if truth is not None:
        found = found & (truth != metrics.IGNORED)

    def small(pixels: np.ndarray, how: int) -> np.ndarray:
        return cv2.resize(pixels, size, interpolation=how)

    shown = overlay.draw_errors(
        small(image, cv2.INTER_AREA),
        *(small(mask.astype(np.uint8), cv2.INTER_NEAREST) > 0 for mask in (found, real)),
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(shown).save(path, quality=82)
    except OSError as error:
        raise DataError(f'{path}: cannot be written ({error}); give another --out') from error
