# SPDX-License-Identifier: Apache-2.0
"""Jobs that the model answers together, and the queues that they come from.

Threads: the inference thread owns these objects; another one changes them under its lock alone.
"""

from __future__ import annotations

import dataclasses
import enum
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from lisa_ros.perception.backend import InferenceOptions
from lisa_ros.perception.stopping import EarlyEnd, PartialAnswer
from lisa_ros.results import Event, Segmentation
from lisa_ros.session.answering import InferenceJob
from lisa_ros.session.request import CancelReason


class Urgency(enum.Enum):
    """Priority of a request, highest first."""

    URGENT = enum.auto()  # commands and goals
    BACKGROUND = enum.auto()  # standing queries and requeries


class RequestQueue(Protocol):
    """The methods of a camera's `RequestScheduler` that the inference thread calls."""

    def due_at(self, urgency: Urgency) -> float:
        """Return the earliest time to take a request [s, monotonic], with `changed` held.

        Infinite if there is no such request, or if it depends on a message still to come.
        """

    def take(self, urgency: Urgency) -> InferenceJob | None:
        """Take the due request, with `changed` held; None if the request failed at once."""

    def renew(self, job: InferenceJob, has_events: bool) -> InferenceJob | EarlyEnd:
        """Look again at a job that a batch has left, with `changed` held.

        Args:
            job: it begins now.
            has_events: the queue was told events about its frame.

        Returns:
            The job; with the newest frame if its own has become too old and there are no events.
            How it ends if there is no frame that is new enough.
        """

    def event(self, job: InferenceJob, event: Event) -> None:
        """Take a token or mask of a job."""

    def complete(self, job: InferenceJob, result: Segmentation) -> None:
        """Take the result of a job.

        A result that breaks the protocol raises an exception before anything has changed; then
        the job can be completed with another result.
        """


@dataclass(frozen=True)
class BatchUse:
    """How many requests are answered at once."""

    limit: int  # 1: one after the other
    last: int = 0  # in the last batch, or the running one
    largest: int = 0  # so far
    failed_size: int = 0  # size of the last batch for which the memory was not enough; 0: none

    @property
    def fitting(self) -> int:
        """The limit, lowered to what the memory holds."""
        return min(self.limit, max(1, self.failed_size // 2)) if self.failed_size else self.limit

    def with_limit(self, limit: int) -> BatchUse:
        """Return it with a limit; a new one is tried in full."""
        if limit == self.limit:
            return self
        return dataclasses.replace(self, limit=limit, failed_size=0)

    def begun(self, count: int) -> BatchUse:
        """Return it when `count` requests are begun."""
        return dataclasses.replace(self, last=count, largest=max(self.largest, count))


@dataclass(eq=False)
class Run:
    """A job that the backend answers, or has been given up on."""

    queue: RequestQueue
    job: InferenceJob
    partial: PartialAnswer  # what the queue was told
    told: int = 0  # events that the queue was told
    events: int = 0  # of this try
    is_alone: bool = False  # it is asked without others: a batch could not answer it
    is_claimed: bool = False  # somebody ends the job: the thread, or who gave it up

    @classmethod
    def of(cls, queue: RequestQueue, job: InferenceJob) -> Run:
        """Begin."""
        return cls(queue, job, PartialAnswer(job.request.text, (0, 0)))

    def begin_again(self, *, alone: bool) -> None:
        """Ask the backend again; what the queue was told is not told twice."""
        self.events, self.is_alone = 0, alone

    def add(self, event: Event) -> None:
        """Tell the queue an event, unless it knows it from an earlier try; lock held."""
        self.events += 1
        if self.events > self.told:
            self.told += 1
            self.partial.add(event)
            self.queue.event(self.job, event)

    @property
    def is_background(self) -> bool:
        """Whether it gives way to commands and goals."""
        return self.job.request.kind.is_background

    def cancel(self, reason: CancelReason) -> None:
        """Stop the answer as soon as possible."""
        self.job.request.cancellation.cancel(reason)


@dataclass(eq=False)
class Batch:
    """Runs that the backend answers together, at least one; all of one urgency."""

    runs: Sequence[Run]
    options: InferenceOptions
    deadline: float  # when it is given up [s, monotonic]
    is_too_large: bool = False  # the memory was not enough for it
    started_at: float = field(default_factory=time.monotonic)  # [s, monotonic]

    @property
    def is_claimed(self) -> bool:
        """Whether all runs have ended, or were given up."""
        return all(run.is_claimed for run in self.runs)

    @property
    def is_late(self) -> bool:
        """Whether its time is over."""
        return time.monotonic() >= self.deadline

    @property
    def is_given_up(self) -> bool:
        """Whether nobody waits for the backend any more, which has not returned in time."""
        return self.is_late and self.is_claimed

    @property
    def seconds(self) -> float:
        """How long it has run [s]."""
        return time.monotonic() - self.started_at
