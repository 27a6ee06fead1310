# SPDX-License-Identifier: Apache-2.0
"""What a check reports: a level, what it found, and one cure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lisa_ros.health.verdict import Level


@dataclass(frozen=True)
class Finding:
    """One row of the table."""

    check: str  # its subject: "GPU"
    level: Level
    observed: str  # one line
    cure: str = ''  # one line; empty: nothing is to be done, or `observed` names it


@dataclass(frozen=True)
class Check:
    """A check; it may take long or raise anything."""

    name: str  # of its subject
    run: Callable[[], Sequence[Finding]]


def worst(findings: Sequence[Finding]) -> Level:
    """Return the highest level."""
    return max((finding.level for finding in findings), default=Level.OK)
