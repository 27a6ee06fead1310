# SPDX-License-Identifier: Apache-2.0
"""The bounded queue of a replica: batches by deadline and size, the newest of each stream.

All methods run in one asyncio loop; `Ticket.is_unwanted` may be called from any thread.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

import numpy as np

from lisa_ros.perception.backend import InferenceOptions, Query
from lisa_ros.results import Event, Segmentation, Status
from lisa_ros.serving.problems import Problem, ProblemError


@dataclass(frozen=True)
class BatchLimits:
    """How requests wait and go together."""

    places: int = 16  # of the queue
    largest: int = 8  # requests of a batch
    wait: float = 0.02  # longest wait for others once the model is free [s]
    # of the time of the batch before, which is the most that a wait may cost
    wait_share: float = 0.1


@dataclass(eq=False)
class Ticket:
    """A request in the queue."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    query: Query
    options: InferenceOptions
    deadline: float  # [s, monotonic]
    stream: str = ''
    number: int = 0  # of a stream's requests, the one with the largest is the newest
    alone: bool = False  # in a batch of its own
    events: asyncio.Queue[Event] | None = None  # gets Token and MaskReady; None: nobody listens
    result: asyncio.Future[Segmentation] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    queued_at: float = field(default_factory=time.monotonic)
    begun_at: float = 0.0  # [s, monotonic]; 0: waits
    batch_size: int = 0
    sent_events: int = 0  # that are out
    has_left: bool = False  # the client has gone

    @property
    def is_unwanted(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self.has_left or time.monotonic() > self.deadline

    def finish(self, result: Segmentation) -> None:
        """End it with an answer; one that the deadline has cut off is none."""
        if result.status is Status.CANCELLED and time.monotonic() > self.deadline:
            self.fail(deadline_error(time.monotonic() - self.queued_at))
        if not self.result.done():
            self.result.set_result(result)

    def fail(self, error: ProblemError) -> None:
        """End it without an answer."""
        if not self.result.done():
            self.result.set_exception(error)
            self.result.exception()  # asyncio would log one that nobody waits for


class BatchQueue:
    """Requests that wait for the model."""

    def __init__(self, limits: BatchLimits):
        self._limits = limits
        self._waiting: list[Ticket] = []
        self._arrival = asyncio.Event()
        self._arriving = 0
        self._batch_seconds = self._batch_size = 0.0
        self._largest = limits.largest

    @property
    def largest(self) -> int:
        """How many requests a batch may have: as planned, or what the memory is enough for."""
        return self._largest

    def lower(self, largest: int) -> None:
        """Let batches have fewer requests from now on."""
        self._largest = max(1, min(self._largest, largest))

    @property
    def length(self) -> int:
        """How many requests wait."""
        return len(self._waiting)

    @property
    def seconds_per_request(self) -> float:
        """The model's time of the last batch by its size; 0: there was none [s]."""
        return self._batch_seconds / self._batch_size if self._batch_size else 0.0

    def announce(self, stream: str) -> None:
        """Count a request that is being decoded: a batch may wait for it.

        Args:
            stream: of the request; '': none.

        Raises:
            ProblemError: OVERLOADED: it would find no place.
        """
        self._drop_unwanted()
        is_replacement = any(_is_of(stream, ticket) for ticket in self._waiting)
        if len(self._waiting) >= self._limits.places and not is_replacement:
            raise self.overloaded()
        self._arriving += 1

    def withdraw(self) -> None:
        """Undo `announce`: the request is in the queue, or has failed."""
        self._arriving -= 1
        self._arrival.set()

    def put(self, ticket: Ticket) -> None:
        """Let a request wait; an older one of its stream that waits ends as SUPERSEDED.

        Images are decoded in parallel: a request may come behind a newer one.

        Raises:
            ProblemError: OVERLOADED: all places are taken; SUPERSEDED: a newer one waits.
        """
        same_stream = [waiting for waiting in self._waiting if _is_of(ticket.stream, waiting)]
        if any(waiting.number > ticket.number for waiting in same_stream):
            raise _superseded(ticket.stream)
        for waiting in same_stream:
            self.remove(waiting)
            waiting.fail(_superseded(ticket.stream))
        self._drop_unwanted()
        if len(self._waiting) >= self._limits.places:
            raise self.overloaded()
        self._waiting.append(ticket)
        self._arrival.set()

    def overloaded(self) -> ProblemError:
        """Return the error of a full queue, with the time until a place is likely to be free."""
        seconds = self.seconds_per_request * len(self._waiting)
        return ProblemError(
            Problem.OVERLOADED,
            f'{len(self._waiting)} requests wait; expected at most {self._limits.places}: send '
            'again later, or send fewer',
            seconds,
        )

    def remove(self, ticket: Ticket) -> None:
        """Take a request out of the queue if it waits."""
        if ticket in self._waiting:
            self._waiting.remove(ticket)

    async def next_batch(self) -> list[Ticket]:
        """Wait for requests; return those that the model answers next, the most urgent first.

        They have the same options. If another request is being decoded, or if the batch before had
        several, it waits for more for a small share of that batch's time.
        """
        while True:
            await self._wait_for_one()
            await self._wait_for_more()
            batch = self._take()
            if batch:
                return batch

    def finish(self, size: int, seconds: float) -> None:
        """Note how long the model took for a batch."""
        self._batch_size, self._batch_seconds = size, seconds

    async def _wait_for_one(self) -> None:
        while not self._waiting:
            self._arrival.clear()
            await self._arrival.wait()

    async def _wait_for_more(self) -> None:
        wait = min(self._limits.wait, self._limits.wait_share * self._batch_seconds)
        end = time.monotonic() + wait
        while len(self._waiting) < self._largest and (seconds := end - time.monotonic()) > 0:
            if not self._arriving and self._batch_size <= max(1, len(self._waiting)):
                return
            self._arrival.clear()
            try:
                await asyncio.wait_for(self._arrival.wait(), seconds)
            except asyncio.TimeoutError:
                return

    def _take(self) -> list[Ticket]:
        self._drop_unwanted()
        by_deadline = sorted(self._waiting, key=lambda ticket: ticket.deadline)
        if not by_deadline:
            return []
        first, *further = by_deadline
        batch = [first]
        if not first.alone:
            fitting = [t for t in further if not t.alone and t.options == first.options]
            batch += fitting[: self._largest - 1]
        now = time.monotonic()
        for ticket in batch:
            self._waiting.remove(ticket)
            ticket.begun_at, ticket.batch_size = now, len(batch)
        return batch

    def _drop_unwanted(self) -> None:
        for ticket in [ticket for ticket in self._waiting if ticket.is_unwanted]:
            self._waiting.remove(ticket)
            ticket.fail(deadline_error(time.monotonic() - ticket.queued_at))


def deadline_error(seconds: float) -> ProblemError:
    """Return the error of a request without an answer after some seconds [s]."""
    return ProblemError(
        Problem.DEADLINE,
        f'no answer after {seconds:.2f} s; expected one before the deadline: give a longer '
        '"deadline" (answer_timeout of a thin node; above 300 s --deadline of the server), send '
        'fewer requests, or add replicas',
    )


def _superseded(stream: str) -> ProblemError:
    """Return the error of a request that a newer one of its stream replaces."""
    return ProblemError(
        Problem.SUPERSEDED,
        f'a newer request of the stream {stream!r} came before this one was begun; expected one '
        'request of a stream at a time, or none with its name',
    )


def _is_of(stream: str, ticket: Ticket) -> bool:
    """Return whether a request belongs to a stream."""
    return bool(stream) and ticket.stream == stream
