# SPDX-License-Identifier: Apache-2.0
"""The queues of all cameras: which job the model gets next, and when.

Commands and goals come before background work; within each, the cameras take turns, one job at a
time. Background work also waits while a command or goal is due within 0.1 s.

Threads: every method is called with the lock of the inference thread held.
"""

from __future__ import annotations

import math
import time

from lisa_ros.session.answering import InferenceJob
from lisa_ros.session.inference_batch import RequestQueue, Urgency

_PREEMPT_AHEAD = 0.1  # background work gives way this long before a command or goal is due [s]


class JobQueues:
    """Takes jobs of the queues in turns; see the module's docstring."""

    def __init__(self) -> None:
        self._queues: list[RequestQueue] = []  # the first one is served next

    def add(self, queue: RequestQueue) -> None:
        """Serve another camera."""
        self._queues.append(queue)

    def remove(self, queue: RequestQueue) -> None:
        """Stop serving a camera; no effect if it is not served."""
        self._queues = [served for served in self._queues if served is not queue]

    def take(self, urgency: Urgency) -> tuple[RequestQueue, InferenceJob] | None:
        """Take a job of this urgency; None if none is due."""
        while (queue := self._due_queue(urgency)) is not None:
            self._queues.remove(queue)
            self._queues.append(queue)  # the other cameras come first now
            job = queue.take(urgency)
            if job is not None:
                return queue, job
        return None

    def _due_queue(self, urgency: Urgency) -> RequestQueue | None:
        """Return the first queue with a request that is due now."""
        now = time.monotonic()
        return next((queue for queue in self._queues if queue.due_at(urgency) <= now), None)

    @property
    def is_urgent_soon(self) -> bool:
        """Whether a command or goal is due within 0.1 s: background work must wait."""
        return self.next_due_at(Urgency.URGENT) - time.monotonic() <= _PREEMPT_AHEAD

    @property
    def seconds_until_due(self) -> float | None:
        """The time until the next request is due [s]; None: none is due yet."""
        due_at = self.next_due_at(Urgency.URGENT)
        if not self.is_urgent_soon:
            due_at = min(due_at, self.next_due_at(Urgency.BACKGROUND))
        return None if due_at == math.inf else max(0.0, due_at - time.monotonic())

    def next_due_at(self, urgency: Urgency) -> float:
        """Return the earliest `due_at` of all queues [s, monotonic]."""
        return min((queue.due_at(urgency) for queue in self._queues), default=math.inf)
