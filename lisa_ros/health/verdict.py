# SPDX-License-Identifier: Apache-2.0
"""Levels, problems and verdicts: what every judgement of the health returns.

WARN: the node answers, with less than it could, or it did not a moment ago. ERROR: it does not
answer as it should. A problem counts while its cause is there, or for `WINDOW` after it happened,
so that a level returns to OK by itself. All of this is immutable: any thread.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

WINDOW = 30.0  # how long a past event counts [s]


class Level(enum.IntEnum):
    """How bad it is; the numbers are those of diagnostic_msgs/DiagnosticStatus."""

    OK = 0
    WARN = 1
    ERROR = 2


@dataclass(frozen=True)
class Problem:
    """Something that is wrong."""

    level: Level
    text: str  # the cause and the cure, one line


@dataclass(frozen=True)
class Verdict:
    """The state of one part."""

    level: Level
    message: str  # cause and cure of each problem, the worst first; one line
    values: Mapping[str, object] = field(default_factory=dict)  # by name with unit


def verdict(
    problems: Sequence[Problem | None], healthy: str, values: Mapping[str, object]
) -> Verdict:
    """Return the verdict of several judgements.

    Args:
        problems: None where nothing is wrong.
        healthy: the message if there is no problem.
        values: figures for whoever looks closer.
    """
    present = sorted(filter(None, problems), key=lambda problem: -problem.level)
    if not present:
        return Verdict(Level.OK, healthy, values)
    return Verdict(present[0].level, '; '.join(problem.text for problem in present), values)
