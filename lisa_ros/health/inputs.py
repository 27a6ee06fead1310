# SPDX-License-Identifier: Apache-2.0
"""Judge an input topic: nobody publishes, nothing comes, type, QoS, two publishers, stamps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lisa_ros.health.verdict import Level, Problem, Verdict, verdict

_MISSING = 5  # so many messages in a row must be missing before an input is called silent
_SHORTEST, _LONGEST = 1.0, 10.0  # silence that is reported at the soonest, at the latest [s]
_OF_UNKNOWN_RATE = 2.0  # silence that is reported of an input that has no rate yet [s]


def silent_after(rate: float) -> float:
    """Return how long an input of this rate [Hz] may be without a message [s]."""
    if rate <= 0:
        return _OF_UNKNOWN_RATE
    return min(max(_SHORTEST, _MISSING / rate), _LONGEST)


@dataclass(frozen=True)
class InputReport:
    """An input topic at one moment."""

    topic: str  # full name
    is_required: bool  # without it nothing is answered
    publishers: Sequence[str]  # full names of their nodes, one for each publisher of its type
    is_latched: bool  # all publishers are transient local: one message may be all there is
    silence: float  # since the last message [s]; infinite before the first
    rate: float  # of the last messages [Hz]
    stamp_age: float  # of the last message at its arrival [s]
    incompatible_qos: str = ''  # the policy on which a publisher and the node disagree
    stamp_fault: str = ''  # what is wrong with the stamps, and the cure
    type_fault: str = ''  # which publishers send another type, and the cure

    @property
    def is_silent(self) -> bool:
        """Whether messages that should have come are missing."""
        return self.silence > silent_after(self.rate)


def judge_input(report: InputReport) -> Verdict:
    """Return the state of an input topic."""
    return verdict(_problems(report), _healthy(report), _values(report))


def _healthy(report: InputReport) -> str:
    if not report.publishers:
        return 'nobody publishes it (optional)'
    return f'{report.rate:.1f} Hz' if not report.is_silent else 'latched'


def other_type_fault(type_name: str, others: Mapping[str, str]) -> str:
    """Return that publishers send another type, from which nothing is received, and the cure.

    Args:
        type_name: what the node subscribes to, such as sensor_msgs/msg/Image.
        others: type by full name of the node, of the publishers of other types.
    """
    if not others:
        return ''
    senders = ', '.join(f'{node} sends {kind}' for node, kind in sorted(others.items()))
    return (
        f'{senders}, the node expects {type_name}: remap the topic to one of this type (to '
        'receive compressed images, set image_transport or depth_transport, and remap to the '
        'name without /compressed)'
    )


def _problems(report: InputReport) -> list[Problem | None]:
    level = Level.ERROR if report.is_required else Level.WARN
    if report.type_fault and (report.is_silent or not report.publishers):
        return [Problem(level, report.type_fault)]
    if not report.publishers:
        text = 'nobody publishes it: start the camera, or remap the topic (ros2 topic list)'
        return [Problem(level, text) if report.is_required else None]
    if report.is_silent:
        return [_silence(report), _several(report)]
    fault = report.stamp_fault if report.is_required else ''
    return [Problem(Level.WARN, fault) if fault else None, _several(report)]


def _silence(report: InputReport) -> Problem | None:
    if report.incompatible_qos:
        cure = f'set qos_overrides.{report.topic}.subscription'
        text = f'QoS of the publisher is incompatible ({report.incompatible_qos}): {cure}'
        return Problem(Level.ERROR, text)
    if report.is_latched and report.silence < float('inf'):
        return None
    level = Level.ERROR if report.is_required else Level.WARN
    text = 'there is a publisher, but no message comes: check the camera and its cable'
    return Problem(level, f'{text} ({", ".join(sorted(set(report.publishers)))})')


def _several(report: InputReport) -> Problem | None:
    if len(report.publishers) < 2:
        return None
    names = ', '.join(sorted(report.publishers))
    return Problem(
        Level.WARN,
        f'{len(report.publishers)} publishers send on it ({names}), and their messages may '
        'alternate: stop all but one, or remap (a publisher that was killed stays in the graph '
        'for 20 s)',
    )


def _values(report: InputReport) -> dict[str, object]:
    has_come = report.silence < float('inf')
    return {
        'rate [Hz]': f'{0 if report.is_silent else report.rate:.1f}',
        'publishers': len(report.publishers),
        'last message [s ago]': f'{report.silence:.1f}' if has_come else 'never',
        'age at arrival [s]': f'{report.stamp_age:.3f}' if has_come else 'unknown',
    }
