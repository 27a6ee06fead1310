# SPDX-License-Identifier: Apache-2.0
"""A Backend that answers with a second model while the server of the first cannot be reached.

A request whose server gives nothing is asked again, of the second model and within the same
`answer_timeout`. One whose server broke off in the middle ends as UNREACHABLE: its words are out.

Threads: as every Backend, one thread at a time asks. `interrupt`, `close` and the properties may
be used from any thread.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from lisa_ros.model.cache_use import CacheUse
from lisa_ros.perception.backend import (
    AnswersBatches,
    Backend,
    BatchRequest,
    Cancellation,
    Capabilities,
    InferenceOptions,
    Query,
    ReportsCache,
    ReportsNotices,
    ReportsPeakMemory,
    SupervisedBackend,
    precision_of,
)
from lisa_ros.perception.health import HealthState, ModelHealth, newest_failure
from lisa_ros.perception.process_memory import GpuMemory
from lisa_ros.perception.stopping import Deadline
from lisa_ros.results import Done, Event, Status


class FallbackBackend:
    """Two models; see the module's docstring for rules and threads."""

    def __init__(self, first: SupervisedBackend, second: Backend, second_name: str):
        """Combine two models.

        Args:
            first: on a server.
            second: answers while the server cannot be reached.
            second_name: of the second model, for the reason of its answers.
        """
        self._first, self._second, self._second_name = first, second, second_name

    @property
    def device(self) -> str:
        """The address of the server."""
        return self._first.device

    @property
    def capabilities(self) -> Capabilities:
        """What the model can do that answers now."""
        return self._current.capabilities

    @property
    def precision(self) -> str:
        """The number format of the model that answers now; empty if it is unknown."""
        return precision_of(self._current)

    @property
    def notices(self) -> tuple[str, ...]:
        """What the user should know of both models."""
        backends = (self._first, self._second)
        reporting = [backend for backend in backends if isinstance(backend, ReportsNotices)]
        return tuple(notice for backend in reporting for notice in backend.notices)

    @property
    def health(self) -> ModelHealth:
        """The state of the first model, or of the second one if that is worse."""
        health = self._first.health
        if not isinstance(self._second, SupervisedBackend):
            return health
        fallback = self._second.health
        failure = newest_failure(health.failure, fallback.failure)
        is_worse = health.state is HealthState.UNREACHABLE and fallback.state is not HealthState.OK
        return dataclasses.replace(fallback if is_worse else health, failure=failure)

    @property
    def memory(self) -> int:
        """Resident memory of the second model's process [bytes]; 0 if it has none."""
        return self._second.memory if isinstance(self._second, SupervisedBackend) else 0

    @property
    def peak_memory(self) -> int:
        """Largest resident memory of the second model's process [bytes]; 0 if it has none."""
        return self._second.peak_memory if isinstance(self._second, ReportsPeakMemory) else 0

    @property
    def cache_use(self) -> CacheUse | None:
        """What the second model keeps of earlier prompts; None: nothing."""
        return self._second.cache_use if isinstance(self._second, ReportsCache) else None

    @property
    def gpu_memory(self) -> GpuMemory | None:
        """Memory of the second model on the GPU of this machine."""
        return self._second.gpu_memory if isinstance(self._second, SupervisedBackend) else None

    def interrupt(self, cause: str) -> None:
        """End the running request, whichever model answers it."""
        for backend in (self._first, self._second):
            if isinstance(backend, SupervisedBackend):
                backend.interrupt(cause)

    def close(self) -> None:
        """Free both models; no more requests."""
        for backend in (self._first, self._second):
            if isinstance(backend, SupervisedBackend):
                backend.close()

    def encode_images(self, images: Sequence[np.ndarray]) -> None:
        """Encode images with the model that answers now."""
        self._current.encode_images(images)

    def clear_cache(self) -> None:
        """Drop the features of earlier images, of both models."""
        self._first.clear_cache()
        self._second.clear_cache()

    def stream(
        self,
        image: np.ndarray,
        query: Query,
        options: InferenceOptions,
        cancel: Cancellation,
    ) -> Iterator[Event]:
        """Answer a query; see `Backend.stream`.

        Raises:
            ImageError, QueryError: as the model raises them, by the call.
        """
        deadline = Deadline(options.answer_timeout)
        if self._first.health.state is HealthState.UNREACHABLE:
            cause, limit = self._first.health.cause, None
        else:
            events = self._first.stream(image, query, options, cancel)
            first = next(events)
            if not _is_unreachable(first) or cancel.is_set() or deadline.is_over:
                return itertools.chain((first,), events)
            cause, limit = first.result.reason, options.answer_timeout
        remaining = dataclasses.replace(options, answer_timeout=deadline.seconds_left)
        events = self._second.stream(image, query, remaining, cancel)
        return (self._marked(event, cause, limit) for event in events)

    def stream_batch(
        self, requests: Sequence[BatchRequest], options: InferenceOptions
    ) -> Iterator[tuple[int, Event]]:
        """Answer several queries at once with the model that answers now; see `AnswersBatches`.

        A request whose server gives nothing has no Done: it is to be asked alone, by `stream`.
        """
        current, cause = self._current, self._first.health.cause
        if not isinstance(current, AnswersBatches):
            return
        begun = set()
        for number, event in current.stream_batch(requests, options):
            if current is self._second:
                yield number, self._marked(event, cause)
            elif number in begun or not _is_unreachable(event):
                begun.add(number)
                yield number, event

    @property
    def _current(self) -> Backend:
        """The model that answers now."""
        is_unreachable = self._first.health.state is HealthState.UNREACHABLE
        return self._second if is_unreachable else self._first

    def _marked(self, event: Event, cause: str, limit: float | None = None) -> Event:
        """Return an event of the second model; its result says why it answered.

        Args:
            event: of the second model.
            cause: why the first one gave nothing.
            limit: `answer_timeout` [s] if the first model has taken a part of it; None: none.
        """
        if not isinstance(event, Done):
            return event
        result, by = event.result, f'answered by {self._second_name}'
        if result.status is Status.TIMED_OUT and limit is not None:
            by += f' in what was left of answer_timeout ({limit:.3g} s)'
        reasons = filter(None, (result.reason, f'{by}: {cause}'))
        return Done(dataclasses.replace(result, reason='; '.join(reasons)))


def _is_unreachable(event: Event) -> bool:
    """Return whether an answer ends because its server gives nothing."""
    return isinstance(event, Done) and event.result.status is Status.UNREACHABLE
