# SPDX-License-Identifier: Apache-2.0
"""Judge the node itself: its lifecycle state, and other nodes of its name."""

from __future__ import annotations

from dataclasses import dataclass

from lisa_ros.health.verdict import Level, Problem, Verdict, verdict

# DDS drops a killed process after 20 s: until then a restarted node sees its own name twice.
_LEASE = 25.0  # [s]
FAILED_TRANSITION = 'last failed transition'  # the name of its reason on /diagnostics
_CURES = {
    'unconfigured': 'ros2 lifecycle set {name} configure, then activate',
    'inactive': 'ros2 lifecycle set {name} activate',
    'finalized': 'restart the node',
}


@dataclass(frozen=True)
class Lifecycle:
    """The state of a lifecycle node."""

    state: str  # unconfigured, inactive, active, finalized; or configuring, activating, ...
    since: float  # [s, monotonic]
    error: str = ''  # why the last transition failed; empty: it did not


@dataclass(frozen=True)
class NodeReport:
    """The node at one moment; times in seconds on the monotonic clock."""

    now: float
    name: str  # full name
    lifecycle: Lifecycle
    same_name: int  # nodes of this name in the graph, itself included
    same_name_since: float | None  # when a second one was seen first; None: there is none


def judge_node(report: NodeReport) -> Verdict:
    """Return the state of the node."""
    values = {
        'state': report.lifecycle.state,
        'in this state for [s]': f'{report.now - report.lifecycle.since:.1f}',
        'nodes of this name': report.same_name,
    }
    if report.lifecycle.error:
        values[FAILED_TRANSITION] = report.lifecycle.error
    return verdict([_state(report), _same_name(report)], 'active', values)


def _state(report: NodeReport) -> Problem | None:
    lifecycle = report.lifecycle
    if lifecycle.state == 'active':
        return None
    cure = _CURES.get(lifecycle.state, '').format(name=report.name)
    if not cure:
        seconds = report.now - lifecycle.since
        return Problem(Level.WARN, f'{lifecycle.state} (for {seconds:.0f} s): wait')
    if lifecycle.error:
        return Problem(Level.ERROR, f'{lifecycle.state}: {lifecycle.error}; then {cure}')
    return Problem(Level.WARN, f'{lifecycle.state}, so nothing is answered: {cure}')


def _same_name(report: NodeReport) -> Problem | None:
    if report.same_name_since is None:
        return None
    seconds = report.now - report.same_name_since
    text = (
        f'{report.same_name} nodes have the name {report.name}, and requests may go to either: '
        f'stop one, or rename it with -r __node:=NAME'
    )
    if seconds < _LEASE:
        return Problem(Level.WARN, f'{text} (a killed one is gone in {_LEASE - seconds:.0f} s)')
    return Problem(Level.ERROR, text)
