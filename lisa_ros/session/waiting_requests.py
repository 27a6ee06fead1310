# SPDX-License-Identifier: Apache-2.0
"""The commands and goals of one camera that wait, and when each of them is due.

Threads: the scheduler calls every method with its lock held.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Collection, Iterator

from lisa_ros.session.client_turns import ClientTurns
from lisa_ros.session.frame_buffer import FrameBuffer, SyncedMessages
from lisa_ros.session.options import SessionOptions
from lisa_ros.session.request import Request, RequestKind


class WaitingRequests:
    """Keeps requests in the order of arrival; scheduler.py has the rules."""

    def __init__(self, frames: FrameBuffer) -> None:
        """Make an empty queue of the camera with these frames."""
        self._frames = frames
        self._requests: list[Request] = []
        self._turns = ClientTurns()

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests)

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, request: object) -> bool:
        return request in self._requests

    @property
    def goal_count(self) -> int:
        """How many goals wait for their first answer."""
        return sum(r.kind is RequestKind.GOAL and r.previous is None for r in self._requests)

    def add_command(self, command: Request) -> Request | None:
        """Add a command; return the waiting one that it replaces, None: there is none."""
        for position, waiting in enumerate(self._requests):
            if waiting.kind is RequestKind.COMMAND:
                self._requests[position] = command
                return waiting
        self._requests.append(command)
        return None

    def add_goal(self, goal: Request) -> None:
        """Add a goal."""
        self._requests.append(goal)

    def remove(self, requests: Collection[Request]) -> None:
        """Remove these requests."""
        self._requests = [request for request in self._requests if request not in requests]

    def due_at(
        self, newest: SyncedMessages | None, options: SessionOptions, busy: Collection[str]
    ) -> float:
        """Return when the first request is due [s, monotonic]; infinite: none, as far as known.

        Args:
            newest: the newest frame; None: no image has come yet.
            options: `image_timeout` and `watch_rate` apply.
            busy: keys of dialogues that are being answered; their requests wait.
        """
        requests = self._takeable(busy)
        return min((self._due_at(r, newest, options) for r in requests), default=math.inf)

    def take(
        self, newest: SyncedMessages | None, options: SessionOptions, busy: Collection[str]
    ) -> Request:
        """Remove and return the request that is due and whose client has its turn.

        Args: those of `due_at`, which has said that one is due.
        """
        now = time.monotonic()
        due = [r for r in self._takeable(busy) if self._due_at(r, newest, options) <= now]
        request = self._turns.next(due)
        self._requests.remove(request)
        if request.previous is not None:  # the wait for a newer frame does not count as delay
            request = dataclasses.replace(request, created=now)
        return request

    def ready(self, newest: SyncedMessages | None, options: SessionOptions) -> list[Request]:
        """Return the requests without continuous goals that wait for a frame or `watch_rate`."""
        now = time.monotonic()
        return [
            request
            for request in self._requests
            if request.previous is None or self._due_at(request, newest, options) <= now
        ]

    def _takeable(self, busy: Collection[str]) -> list[Request]:
        return [request for request in self._requests if request.dialogue not in busy]

    def _due_at(
        self, request: Request, newest: SyncedMessages | None, options: SessionOptions
    ) -> float:
        """Return when to answer a request, or to fail it for lack of an image [s, monotonic]."""
        if request.frame is not None:
            return request.created
        if request.previous is not None:
            if newest is None or newest.arrival <= request.previous.arrival:
                return math.inf
            return request.previous.started_at + 1 / options.watch_rate
        if newest is not None:
            return max(request.created, self._frames.usable_at(newest))
        return request.created + options.image_timeout
