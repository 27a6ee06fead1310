# SPDX-License-Identifier: Apache-2.0
"""The ends of one camera's requests: each is counted, noted for the diagnostics, and delivered.

Threads: every method may be called from any thread and returns at once. Results go to the
listeners on the delivery thread; after its `close`, on the caller's, so the caller must not hold a
lock then.
"""

from __future__ import annotations

import dataclasses
import threading
import time

from lisa_ros.perception.stopping import CANCELLED
from lisa_ros.results import ANSWERED, Segmentation, Status, unanswered
from lisa_ros.session.delivery import DeliveryThread
from lisa_ros.session.frame_buffer import SyncedMessages
from lisa_ros.session.request import CancelReason, CancelToken, Request, RequestCounters
from lisa_ros.session.request_history import RequestHistory


class RequestEnds:
    """Counts and delivers what becomes of requests."""

    def __init__(self, delivery: DeliveryThread) -> None:
        """Count from zero; results go to the listeners on the thread of `delivery`."""
        self.counters, self.history = RequestCounters(), RequestHistory()
        self._delivery = delivery
        self._lock = threading.Lock()  # of the counts

    def finish(self, request: Request, frame: SyncedMessages | None, result: Segmentation) -> None:
        """End a request; the frame is None if there was none before its end."""
        with self._lock:
            self.counters.count(result.status)
        is_begun = frame is not None and frame.frozen_at > 0
        seconds = time.monotonic() - frame.frozen_at if is_begun else None
        self.history.add_end(result.status, result.reason, seconds, result.token_count or 0)
        self._delivery.finished(request, frame, result)

    def end_unstarted(self, request: Request, status: Status, reason: str) -> None:
        """End a request that the model has not started."""
        self.finish(request, None, unanswered(request.text, status, reason))

    def count_cancelled(self, request: Request) -> None:
        """Count background work that was cancelled; nobody waits for its result."""
        with self._lock:
            if request.cancellation.reason is CancelReason.PREEMPTED:
                self.counters.preempted += 1
            else:
                self.counters.cancelled += 1

    def reject(self, reason: str) -> None:
        """Count a goal that was not accepted, or not kept."""
        with self._lock:
            self.counters.rejected += 1
        self.history.add_rejection(reason)


def with_cancel_reason(result: Segmentation, cancellation: CancelToken) -> Segmentation:
    """Return the result of a request that nobody wants any more as CANCELLED, with the reason.

    The backend does not know why it was cancelled. What else it says, such as that it has not
    returned, stays.
    """
    if not cancellation.is_revoked:
        return result
    reason = cancellation.reason.value
    if result.status is Status.CANCELLED:
        if result.reason not in ('', CANCELLED.reason):
            return result
        if cancellation.reason is CancelReason.CANCELLED:
            reason = CANCELLED.reason
    elif result.status not in ANSWERED:
        return result
    return dataclasses.replace(result, status=Status.CANCELLED, reason=reason)
