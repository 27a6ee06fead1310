# SPDX-License-Identifier: Apache-2.0
"""When requests to a model in another process end early, and how. Any thread."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from lisa_ros.perception.backend import STOP_GRACE, BatchRequest, Cancellation, InferenceOptions
from lisa_ros.perception.stopping import CANCELLED, Deadline, EarlyEnd, timed_out
from lisa_ros.results import Done, Event, Status

_SHORT_WAIT = 0.1  # a shorter wait for the model is not taken off `answer_timeout` [s]


@dataclass(frozen=True)
class RequestLimits:
    """When a request ends early."""

    answer: Deadline  # the child stops by itself
    stop: Deadline  # the child is killed

    @classmethod
    def of(cls, answer_timeout: float | None) -> RequestLimits:
        """Begin the time limits of an answer [s]; None: no limit."""
        stop = None if answer_timeout is None else answer_timeout + STOP_GRACE
        return cls(Deadline(answer_timeout), Deadline(stop))

    def options(self, options: InferenceOptions) -> InferenceOptions:
        """Return the options for a child that was waited for: with the time that is left."""
        left = self.answer.seconds_left
        if left is None or left >= options.answer_timeout - _SHORT_WAIT:
            return options
        return dataclasses.replace(options, answer_timeout=left)

    def with_limit(self, event: Event) -> Event:
        """Return an event with `answer_timeout` in its reason; the child had the rest of it."""
        if not isinstance(event, Done) or event.result.status is not Status.TIMED_OUT:
            return event
        reason = timed_out(self.answer.limit).reason
        return Done(dataclasses.replace(event.result, reason=reason))

    def end_of_killed(self, cancels: Collection[Cancellation]) -> EarlyEnd:
        """Return how a request ends whose child was killed."""
        if cancels and all(cancel.is_set() for cancel in cancels):
            return CANCELLED
        reason = (
            f'the model has not returned for {self.stop.limit:.3g} s (answer_timeout: '
            f'{self.answer.limit:.3g} s); its process was ended and is being loaded again'
        )
        return EarlyEnd(Status.TIMED_OUT, reason)


@dataclass(frozen=True)
class AnyCancelled:
    """Whether one of several requests is cancelled; a `Cancellation`."""

    cancels: Collection[Cancellation]

    def is_set(self) -> bool:
        """Return whether one of them is."""
        return any(cancel.is_set() for cancel in self.cancels)


def batch_ends(end: EarlyEnd, requests: Mapping[int, BatchRequest]) -> dict[int, EarlyEnd]:
    """Return which answers of a batch end, and how.

    Args:
        end: of one request alone: cancelled while the model was loaded again, or killed.
        requests: those without a result.
    """
    if end.status is Status.CANCELLED:
        return {number: end for number, request in requests.items() if request.cancel.is_set()}
    return {n: CANCELLED if request.cancel.is_set() else end for n, request in requests.items()}
