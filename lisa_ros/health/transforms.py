# SPDX-License-Identifier: Apache-2.0
"""Judge whether TF knows the transforms that the node needs, and whether they can be right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lisa_ros.health.outcomes import Outcome
from lisa_ros.health.verdict import WINDOW, Level, Problem, Verdict, verdict


@dataclass(frozen=True)
class TransformReport:
    """The transforms at one moment."""

    now: float  # [s, monotonic]
    target_frame: str  # the parameter; empty: none
    gravity_frame: str  # the parameter; empty: none
    map_frame: str  # the parameter; empty: none
    lookups: Sequence[Outcome]  # the newest of each pair of frames
    missing: str = ''  # what TF does not know at this moment, with the cure; empty: nothing
    axis_doubt: str = ''  # why a frame of images may not be optical, with the cure; empty: it is


def judge_transforms(report: TransformReport) -> Verdict:
    """Return whether transforms are missing or doubtful."""
    values = {
        'target_frame': report.target_frame or 'none',
        'gravity_frame': report.gravity_frame or 'none',
        'map_frame': report.map_frame or 'none',
    }
    failed = [
        lookup
        for lookup in report.lookups
        if lookup.reason and report.now - lookup.at < WINDOW and _is_needed(lookup, report)
    ]
    texts = dict.fromkeys([lookup.reason for lookup in failed[-2:]])
    if report.missing and not failed:
        texts = {report.missing: None}
    if report.axis_doubt:
        texts[report.axis_doubt] = None
    problems = [Problem(Level.WARN, text) for text in texts]
    return verdict(problems, 'all transforms are known', values)


def _is_needed(lookup: Outcome, report: TransformReport) -> bool:
    """Return whether the parameters still ask for a transform; they may have changed."""
    target = lookup.subject.rpartition(' to ')[2]
    return target in (report.target_frame, report.gravity_frame, report.map_frame)
