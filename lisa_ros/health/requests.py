# SPDX-License-Identifier: Apache-2.0
"""Judge a camera's requests: failing answers, waiting requests, a full queue, rejections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lisa_ros.health.verdict import WINDOW, Level, Problem, Verdict, verdict
from lisa_ros.results import ANSWERED, BROKEN, Status
from lisa_ros.session.request import RequestCounters
from lisa_ros.session.request_history import Rejection, RequestEnd

_LAST_REQUESTS = 10  # of which the share of failures is given
_LONG_WAIT = 10.0  # a request that waits longer is a warning [s]
_NO_IMAGE_WAIT = 2.0  # a request that waits longer for the first image is one, too [s]
_SLOW_DELIVERY = 1.0  # and one that waits longer for answers to be published [s]
_NEARLY_FULL = 0.8  # share of `goals_kept`
_NOT_AS_ASKED = (*BROKEN, Status.STALE_INPUT, Status.REPEATED)


@dataclass(frozen=True)
class RequestReport:
    """The requests of one camera at one moment; times in seconds on the monotonic clock."""

    now: float
    counters: RequestCounters
    ends: Sequence[RequestEnd]  # in the order of time
    rejections: Sequence[Rejection]  # in the order of time
    waiting_goals: int
    goals_kept: int  # how many may wait
    seconds_waiting: float  # of the next request; 0: none waits
    seconds_running: float  # 0: none runs
    undelivered: int  # results whose publishing has not ended
    max_undelivered: int  # at this number the model waits
    awaits_first_image: bool = False


def judge_requests(report: RequestReport) -> Verdict:
    """Return the state of a camera's requests."""
    problems = [
        _failures(report),
        _rejections(report),
        _queue(report),
        _wait(report),
        _delivery(report),
    ]
    return verdict(problems, 'answering' if report.seconds_running else 'ready', _values(report))


def _failures(report: RequestReport) -> Problem | None:
    recent = [
        end
        for end in report.ends
        if report.now - end.at < WINDOW and end.status in (*ANSWERED, *_NOT_AS_ASKED)
    ][-_LAST_REQUESTS:]
    failed = [end for end in recent if end.status in _NOT_AS_ASKED]
    if not failed:
        return None
    newest = failed[-1]
    is_lasting = recent[-1] is newest and len(failed) >= 2 and 2 * len(failed) >= len(recent)
    count = f'{len(failed)} of the last {len(recent)} requests'
    text = (
        f'{count if len(recent) > 1 else "the last request"} failed; '
        f'{report.now - newest.at:.0f} s ago {newest.status.name}: {newest.reason}'
    )
    return Problem(Level.ERROR if is_lasting else Level.WARN, text)


def _rejections(report: RequestReport) -> Problem | None:
    recent = [r for r in report.rejections if report.now - r.at < WINDOW]
    if not recent:
        return None
    goals = f'{len(recent)} goals of the last {WINDOW:.0f} s were not accepted'
    return Problem(Level.WARN, f'{goals}: {recent[-1].reason}')


def _queue(report: RequestReport) -> Problem | None:
    if report.waiting_goals < _NEARLY_FULL * report.goals_kept:
        return None
    fill = f'{report.waiting_goals} of {report.goals_kept} goals wait'
    cure = 'send fewer at once, or raise goals_kept'
    if report.waiting_goals < report.goals_kept:
        return Problem(Level.WARN, f'the queue is nearly full, {fill}: {cure}')
    return Problem(Level.ERROR, f'the queue is full, {fill}, and more are rejected: {cure}')


def _wait(report: RequestReport) -> Problem | None:
    if report.seconds_waiting > _NO_IMAGE_WAIT and report.awaits_first_image:
        text = 'a command waits for the first image: check the camera and the remapping of image'
        return Problem(Level.WARN, text)
    if report.seconds_waiting > _LONG_WAIT:
        text = f'the next request has waited for {report.seconds_waiting:.0f} s: the model is busy'
        return Problem(Level.WARN, f'{text} with earlier ones; send fewer')
    return None


def _delivery(report: RequestReport) -> Problem | None:
    if report.undelivered < report.max_undelivered or report.seconds_waiting < _SLOW_DELIVERY:
        return None
    text = f'{report.undelivered} answers wait to be published, and the next request for them'
    return Problem(
        Level.WARN, f'{text}: lower transform_timeout, or close slow subscribers of large topics'
    )


def _values(report: RequestReport) -> dict[str, object]:
    counters = report.counters
    return {
        'commands': counters.commands,
        'answered': counters.answered,
        'failed': counters.failed,
        'timed out': counters.timed_out,
        'server unreachable': counters.unreachable,
        'stale image': counters.stale,
        'cancelled': counters.cancelled,
        'repeated (cut off)': counters.repeated,
        'superseded (dropped)': counters.superseded,
        'preempted (asked again)': counters.preempted,
        'rejected goals': counters.rejected,
        'waiting goals': report.waiting_goals,
        'without depth': counters.without_depth,
        'images': counters.images,
        'running for [s]': f'{report.seconds_running:.1f}',
        'waiting for [s]': f'{report.seconds_waiting:.1f}',
        'last answer took [s]': f'{counters.last_seconds:.2f}',
    }
