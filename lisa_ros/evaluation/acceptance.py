# SPDX-License-Identifier: Apache-2.0
"""Accept or reject the answers of a live run by thresholds, and print them as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lisa_ros.evaluation.cases import Case
from lisa_ros.evaluation.live import LiveAnswer
from lisa_ros.results import Status

MIN_IOU = {'explicit': 0.6, 'implicit': 0.6}  # by category; other categories have no minimum
ABSENT = 'absent'  # the category of queries without a target


@dataclass(frozen=True)
class Verdict:
    """An answer and what is wrong with it."""

    case: Case
    latency: float  # from the command to its answer [s]
    fault: str  # '': accepted
    positions: tuple[tuple[float, float, float], ...] = ()  # centroids, optical frame [m]

    @property
    def iou(self) -> float | None:
        """IoU of all masks with all targets; None if absent or unanswered."""
        return self.case.iou if self.case.present and _is_answered(self.case) else None

    @property
    def text(self) -> str:
        """The answer, or why there is none."""
        return self.case.answer or self.case.reason


def judge(answer: LiveAnswer, case: Case) -> Verdict:
    """Return the verdict on an answer.

    Args:
        answer: of the node.
        case: the answer compared with the ground truth of its frame.
    """
    return Verdict(case, answer.latency, _fault(case), answer.positions)


def _fault(case: Case) -> str:
    if not _is_answered(case):
        return f'{case.status}: {case.reason}'
    if case.category == ABSENT:
        count = len(case.scores)
        return f'{count} mask(s) for an absent object' if count else ''
    if case.overlap is None:
        return 'the answer has no ground truth'
    min_iou = MIN_IOU.get(case.category, 0.0)
    return '' if case.overlap.reaches(min_iou) else f'IoU {case.iou:.2f} is below {min_iou:g}'


def _is_answered(case: Case) -> bool:
    return case.status in (Status.FOUND.name, Status.NOT_FOUND.name)


def table(verdicts: Sequence[Verdict]) -> str:
    """Return the answers as text, one per line, with a header."""
    rows = [('command', 'answer', 'status', 'IoU', 's', 'where [m]', '')]
    for verdict in verdicts:
        iou = '-' if verdict.iou is None else f'{verdict.iou:.2f}'
        positions = ', '.join(
            ' '.join(f'{metres:.2f}' for metres in position) for position in verdict.positions
        )
        case = verdict.case
        cells = (case.expression, verdict.text, case.status, iou, f'{verdict.latency:.2f}')
        rows.append((*cells, positions or '-', verdict.fault))
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    lines = [
        '  '.join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[6]])
        for row in rows
    ]
    return '\n'.join(line.rstrip() for line in [lines[0], '-' * len(lines[0]), *lines[1:]])
