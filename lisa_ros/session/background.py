# SPDX-License-Identifier: Apache-2.0
"""Background work of one camera: a standing query, or a repetition of the last query.

Threads: the scheduler calls every method with its lock held.
"""

from __future__ import annotations

import dataclasses
import math
import time

from lisa_ros.session.frame_buffer import SyncedMessages
from lisa_ros.session.request import CancelToken, Request, RequestKind


class BackgroundWork:
    """Decides which background request is next and when; each frame is asked about once."""

    def __init__(self) -> None:
        self._standing: Request | None = None  # template of each request of the standing query
        self._requery: Request | None = None
        self._asked: int | None = None  # arrival of the frame that was asked about last
        self._asked_at = -math.inf  # [s, monotonic]

    @property
    def standing_text(self) -> str | None:
        """The standing query; None if there is none."""
        return self._standing and self._standing.text

    @property
    def is_pending(self) -> bool:
        """Whether there is anything to ask, now or about a later frame."""
        return self._standing is not None or self._requery is not None

    def set_standing(self, request: Request) -> None:
        """Ask a query about every new frame, beginning with the newest one at once."""
        self._standing, self._requery = request, None
        self._asked, self._asked_at = None, -math.inf

    def add_requery(self, request: Request) -> None:
        """Ask a query once; no effect if a standing query or another requery is pending."""
        if not self.is_pending:
            self._requery = request

    def drop_requery(self) -> None:
        """Drop the requery: another query was answered."""
        self._requery = None

    def clear(self) -> None:
        """Drop the standing query and the requery."""
        self._standing = self._requery = None

    def due_at(self, frame: SyncedMessages | None, max_rate: float) -> float:
        """Return the earliest time to take a request [s, monotonic]; infinite: none to take yet.

        Args:
            frame: the newest frame.
            max_rate: maximum rate of requests [Hz].
        """
        if not self.is_pending or frame is None:
            return math.inf
        if self._asked is not None and frame.arrival <= self._asked:
            return math.inf
        return self._asked_at + 1 / max_rate

    def take(self, frame: SyncedMessages) -> Request:
        """Return the request that is due, about this frame."""
        template = self._standing or self._requery
        now = time.monotonic()
        request = dataclasses.replace(template, created=now, cancellation=CancelToken())
        self._asked, self._asked_at = frame.arrival, now
        if request.kind is RequestKind.REQUERY:
            self._requery = request
        return request

    def note_asked(self, frame: SyncedMessages) -> None:
        """Note that the request that was taken is about another frame."""
        self._asked = frame.arrival

    def ended(self, request: Request, cancelled: bool) -> None:
        """Record the end of a request; a cancelled one is asked again about the same frame."""
        if cancelled:
            self._asked = None
        elif request is self._requery:  # not cleared or replaced meanwhile
            self._requery = None
