# SPDX-License-Identifier: Apache-2.0
"""Write findings as a table for people, or as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence

from lisa_ros.doctor.finding import Finding, worst
from lisa_ros.health.verdict import Level

_LEVEL_WIDTH = 6
_MAX_CHECK_WIDTH = 28


def as_table(findings: Sequence[Finding]) -> str:
    """Return a line for each finding, and a line "cure: ..." below it."""
    width = min(_MAX_CHECK_WIDTH, max((len(finding.check) for finding in findings), default=0))
    lines = []
    for finding in findings:
        level = finding.level.name
        lines.append(
            f'{level:<{_LEVEL_WIDTH}} {finding.check:<{width}}  {_line(finding.observed)}'
        )
        if finding.cure:
            lines.append(f'{"":<{_LEVEL_WIDTH}} {"":<{width}}  cure: {_line(finding.cure)}')
    return '\n'.join([*lines, summary(findings)])


def summary(findings: Sequence[Finding]) -> str:
    """Return how many findings have which level."""
    counts = {level: sum(f.level is level for f in findings) for level in Level}
    return f'{counts[Level.ERROR]} errors, {counts[Level.WARN]} warnings, {counts[Level.OK]} OK'


def to_json(findings: Sequence[Finding]) -> str:
    """Return the findings as JSON: {"level": "WARN", "findings": [{"check": ...}, ...]}."""
    rows = [
        {'check': f.check, 'level': f.level.name, 'observed': f.observed, 'cure': f.cure}
        for f in findings
    ]
    return json.dumps({'level': worst(findings).name, 'findings': rows}, indent=2)


def _line(text: str) -> str:
    """Return a text on one line, without characters that control a terminal."""
    return ' '.join(''.join(c if c.isprintable() else ' ' for c in text).split())
