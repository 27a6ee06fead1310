# SPDX-License-Identifier: Apache-2.0
"""Judge the model: not loaded, hung, dead, out of reach, loaded again, or slower than before."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from lisa_ros.health.verdict import Level, Problem, Verdict, verdict
from lisa_ros.perception.health import HealthState, ModelHealth
from lisa_ros.results import ANSWERED
from lisa_ros.session.inference_batch import BatchUse
from lisa_ros.session.request_history import RequestEnd

_RECENT_FAILURE = 10.0  # how long a model's failure is a warning after it answers again [s]
_SLOW_ANSWER = 30.0  # an answer that takes longer is a warning [s]
_RECENT_ANSWERS = 3  # whose median is compared with that of the earlier ones
_RECENT_SECONDS = 60.0  # how long such answers count [s]
_AS_LONG = 0.7  # share of the tokens from which an earlier answer is as long
_MIN_EARLIER = 5  # answers that tell what is usual
_SLOWER = 3.0  # times the usual duration
_SLOWER_SECONDS = 0.5  # and at least so much longer [s]
_NEAR_LIMIT = 0.5  # share of `answer_timeout`


@dataclass(frozen=True)
class ModelReport:
    """The model at one moment; times in seconds on the monotonic clock."""

    now: float
    model: str  # the parameter
    device: str  # in use; before the model is loaded, the parameter
    precision: str  # in use; empty: the backend does not tell
    isolation: str  # the parameter; server: the model is on one
    fallback: str  # the model that answers while the server cannot be reached; empty: none
    health: ModelHealth | None  # None: no model is loaded
    loading_since: float | None  # None: it is not being loaded
    ends: Sequence[RequestEnd]  # of all cameras, in the order of time
    answer_timeout: float  # 0: none
    batch_use: BatchUse


def judge_model(report: ModelReport) -> Verdict:
    """Return the state of the model."""
    values = {
        'model': report.model,
        'device': report.device,
        'precision': report.precision or 'unknown',
        'isolation': report.isolation,
    }
    health = report.health
    if health is None:
        return verdict([_not_loaded(report)], '', values)
    values['reloads'] = health.reloads
    if health.failure is not None:
        values['last failure'] = health.failure.cause
        values['last failure [s ago]'] = f'{report.now - health.failure.at:.1f}'
    use = report.batch_use
    values['requests at once'] = use.last
    values['requests at once, most so far'] = use.largest
    values['requests at once, limit'] = use.fitting
    usual, recent = _durations(report)
    if usual:
        values['usual answer [s]'] = f'{usual:.2f}'
    if recent:
        values['recent answers [s]'] = f'{recent:.2f}'
    healthy = f'{report.model} is loaded'
    if health.state is HealthState.BUSY:
        healthy = f'{report.model} has been answering for {report.now - health.since:.1f} s'
    problems = [_state(report, health), _speed(report, usual, recent), _memory(use)]
    return verdict(problems, healthy, values)


def _not_loaded(report: ModelReport) -> Problem:
    if report.loading_since is None:
        return Problem(Level.WARN, 'no model: the node is not configured')
    seconds = report.now - report.loading_since
    return Problem(Level.WARN, f'{report.model} is being loaded (for {seconds:.0f} s): wait')


def _state(report: ModelReport, health: ModelHealth) -> Problem | None:
    seconds = report.now - health.since
    if health.state in (HealthState.HUNG, HealthState.DEAD):
        return Problem(Level.ERROR, health.cause)
    if health.state is HealthState.UNREACHABLE:
        text = f'{health.cause} (for {seconds:.1f} s)'
        if report.fallback:
            return Problem(Level.WARN, f'{text}; {report.fallback} answers')
        return Problem(Level.ERROR, f'{text}: start the server or wait for it, or see the network')
    if health.state is HealthState.RELOADING:
        return Problem(Level.WARN, f'{health.cause} (for {seconds:.1f} s)')
    if health.failure is not None and report.now - health.failure.at < _RECENT_FAILURE:
        text = f'{report.model} is loaded; a moment ago: {health.failure.cause}'
        return Problem(Level.WARN, text)
    if health.state is HealthState.BUSY and seconds >= _SLOW_ANSWER:
        text = f'{report.model} has been answering for {seconds:.1f} s: it is slow or hangs'
        return Problem(Level.WARN, f'{text}; set answer_timeout')
    return None


def _memory(use: BatchUse) -> Problem | None:
    if not use.failed_size:
        return None
    text = f'the memory of the device was not enough for {use.failed_size} requests at once'
    return Problem(
        Level.WARN,
        f'{text}: {use.fitting} are the limit now; lower cache_memory, or end other programs that '
        'use the device. To try larger batches again, change max_batch',
    )


def _durations(report: ModelReport) -> tuple[float, float]:
    """Return how long answers usually take, and the newest ones [s]; 0: too few to tell."""
    answered = [e for e in report.ends if e.status in ANSWERED and e.seconds is not None]
    newest = answered[-_RECENT_ANSWERS:]
    # Shorter answers, such as to yes/no questions, say nothing of these.
    shortest = _AS_LONG * max((end.tokens for end in newest), default=0)
    earlier = [e.seconds for e in answered[:-_RECENT_ANSWERS] if e.tokens >= shortest]
    is_recent = len(newest) == _RECENT_ANSWERS and report.now - newest[-1].at < _RECENT_SECONDS
    recent = statistics.median(end.seconds for end in newest) if is_recent else 0.0
    if len(earlier) < _MIN_EARLIER:
        return 0.0, recent
    # The lower quartile: a model that stays slow does not become the usual case soon.
    return statistics.quantiles(earlier, n=4, method='inclusive')[0], recent


def _speed(report: ModelReport, usual: float, recent: float) -> Problem | None:
    if usual and recent > max(_SLOWER * usual, usual + _SLOWER_SECONDS):
        text = f'answers take {recent:.1f} s, earlier ones took {usual:.2f} s: another program'
        return Problem(
            Level.WARN,
            f'{text} uses the processor or the GPU, or it is throttled: see top and nvidia-smi',
        )
    limit = report.answer_timeout
    if limit and recent > _NEAR_LIMIT * limit:
        text = f'answers take {recent:.1f} s, answer_timeout allows {limit:g} s'
        return Problem(Level.WARN, f'{text}: raise it, use a GPU, or lower max_new_tokens')
    return None
