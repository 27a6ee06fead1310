# SPDX-License-Identifier: Apache-2.0
"""gIoU and cIoU as the ReasonSeg benchmark defines them (LISA, arXiv 2308.00692, section 4.1).

Of each mask the foreground's intersection I and union U count, in pixels. gIoU is the mean of
I / U over masks, so that every request weighs the same; cIoU is the sum of all I over the sum of
all U, so that big things weigh more. The small constants are those of LISA's own evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

IGNORED = 255  # a truth of this value leaves its pixel out of both masks


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
    """Return the mean IoU over masks; NaN of none."""
    return float(np.mean([one.iou for one in overlaps])) if overlaps else float('nan')


def ciou(overlaps: Sequence[Overlap]) -> float:
    """Return the sum of intersections over the sum of unions; NaN of none."""
    if not overlaps:
        return float('nan')
    return sum(o.intersection for o in overlaps) / (sum(o.union for o in overlaps) + 1e-10)
