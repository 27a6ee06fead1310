# SPDX-License-Identifier: Apache-2.0
"""Ask a server several queries at the same time, each in a thread, and merge their events.

The caller's thread iterates; it alone sees the events.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

from lisa_ros.errors import LisaError
from lisa_ros.perception.backend import BatchRequest, Cancellation
from lisa_ros.results import Event

IN_FLIGHT = 8  # requests at a time; the server refuses what it has no place for


class Asker(Protocol):
    """Answers one request, on the thread that iterates."""

    def __call__(self, request: BatchRequest) -> Iterator[Event]:
        """Yield the events of an answer; raise a LisaError if it fails."""


@dataclass(frozen=True)
class _EitherCancel:
    """A cancel of one request, or of all of them."""

    own: Cancellation
    all: threading.Event

    def is_set(self) -> bool:
        return self.all.is_set() or self.own.is_set()


def parallel_events(
    requests: Sequence[BatchRequest], ask: Asker, in_flight: int = IN_FLIGHT
) -> Iterator[tuple[int, Event]]:
    """Yield the events of all answers, each with the number of its request.

    A request that fails ends as FAILED. If the iteration is given up, all requests are cancelled.

    Args:
        requests: to ask.
        ask: how; it is called in a thread.
        in_flight: how many at a time.

    Raises:
        Exception: the first one that is no LisaError; the other requests are cancelled.
    """
    events: queue.SimpleQueue[tuple[int, Event | Exception | None]] = queue.SimpleQueue()
    given_up = threading.Event()

    def answer(number: int, request: BatchRequest) -> None:
        request = replace(request, cancel=_EitherCancel(request.cancel, given_up))
        try:
            for event in ask(request):
                events.put((number, event))
        except LisaError as error:
            events.put((number, request.failed(error)))
        except Exception as error:  # noqa: BLE001  # raised where the events are read
            events.put((number, error))
        events.put((number, None))

    with ThreadPoolExecutor(in_flight, thread_name_prefix='lisa-batch') as threads:
        for number, request in enumerate(requests):
            threads.submit(answer, number, request)
        try:
            unfinished = len(requests)
            while unfinished:
                number, event = events.get()
                if isinstance(event, Exception):
                    raise event
                if event is None:
                    unfinished -= 1
                else:
                    yield number, event
        finally:
            given_up.set()
