# SPDX-License-Identifier: Apache-2.0
"""Judge the goals of ~/segment: how many each client has, and which go on for ever."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lisa_ros.error_text import shortened
from lisa_ros.health.verdict import WINDOW, Level, Problem, Verdict, verdict

UNKNOWN_CLIENT = 'unknown client'  # there may be several: goals_per_client does not count them
_LISTED = 10  # goals
_QUERY_CHARS = 40
_NEARLY = 0.8  # share of `goals_per_client`


@dataclass(frozen=True)
class OpenGoal:
    """A goal that has not ended."""

    client: str  # name of the client's node, or UNKNOWN_CLIENT
    query: str
    is_continuous: bool
    seconds: float  # since it came [s]


@dataclass(frozen=True)
class Departure:
    """A client that left the ROS graph with goals that had not ended."""

    client: str  # name of its node, or UNKNOWN_CLIENT
    goals: int
    at: float  # [s, monotonic]


@dataclass(frozen=True)
class GoalReport:
    """All goals at one moment."""

    now: float  # [s, monotonic]
    goals: Sequence[OpenGoal]
    per_client: int  # `goals_per_client`
    departures: Sequence[Departure] = ()  # the newest last


def judge_goals(report: GoalReport) -> Verdict:
    """Return which clients have goals."""
    continuous = [goal for goal in report.goals if goal.is_continuous]
    owners = Counter(goal.client for goal in continuous)
    values: dict[str, object] = {'goals': len(report.goals), 'continuous goals': len(continuous)}
    for client, count in Counter(goal.client for goal in report.goals).most_common(_LISTED):
        values[f'goals of {client}'] = f'{count}, {owners[client]} of them continuous'
    for number, goal in enumerate(continuous[:_LISTED], 1):
        text = f'{shortened(goal.query, _QUERY_CHARS)!r} of {goal.client}'
        values[f'continuous goal {number}'] = f'{text} for {goal.seconds:.0f} s'
    healthy = f'{len(report.goals)} goals' if report.goals else 'no goals'
    if continuous:
        clients = ', '.join(f'{count} of {client}' for client, count in owners.most_common(3))
        healthy = f'{healthy}; continuous: {clients}'
    return verdict([_greedy(report), _departed(report)], healthy, values)


def _greedy(report: GoalReport) -> Problem | None:
    clients = Counter(goal.client for goal in report.goals if goal.client != UNKNOWN_CLIENT)
    client, count = clients.most_common(1)[0] if clients else ('', 0)
    if count < _NEARLY * report.per_client or count < 2:
        return None
    text = f'{client} has {count} goals, goals_per_client allows {report.per_client}'
    return Problem(Level.WARN, f'{text}: let it wait for answers, or cancel continuous goals')


def _departed(report: GoalReport) -> Problem | None:
    recent = [departure for departure in report.departures if report.now - departure.at < WINDOW]
    if not recent:
        return None
    last = recent[-1]
    text = f'the client {last.client} has left the ROS graph, and its {last.goals} goals ended'
    others = f' (clients that left before it: {len(recent) - 1})' if len(recent) > 1 else ''
    return Problem(Level.WARN, f'{text}{others}: see the log of that client')
