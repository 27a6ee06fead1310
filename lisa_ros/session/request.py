# SPDX-License-Identifier: Apache-2.0
"""A request on its way to an answer: its kind, its listener, its cancellation."""

from __future__ import annotations

import enum
import threading
import time
from dataclasses import dataclass, field
from typing import Protocol

from lisa_ros.error_text import shortened
from lisa_ros.results import Dialogue, Event, Region, Segmentation, Status
from lisa_ros.session.frame_buffer import SyncedMessages


class RequestKind(enum.Enum):
    """Origin of a request; it decides the order of answers."""

    COMMAND = enum.auto()  # from ~/command: superseded by a newer command while it waits
    GOAL = enum.auto()  # from the action: waits for its turn, no other request replaces it
    STANDING = enum.auto()  # one answer of a standing query ("watch:"): background work
    REQUERY = enum.auto()  # the last query again, to correct the tracker: background work

    @property
    def is_background(self) -> bool:
        """Whether it runs only while no command or goal is due, and gives way to both."""
        return self in (RequestKind.STANDING, RequestKind.REQUERY)


class CancelReason(enum.Enum):
    """Why a request ends early; results of requests that had not started have it as `reason`."""

    CANCELLED = 'cancelled'  # its client cancelled it
    STOPPED = 'stopped'  # "stop" or ~/stop
    SHUTDOWN = 'shutting down'  # the node deactivates or ends
    TIMED_OUT = 'the answer took longer than answer_timeout'
    PREEMPTED = 'preempted by a command or goal'  # background work only: it is asked again
    CLIENT_GONE = 'its client has gone'  # a goal whose client has left the ROS graph
    CLIENT_LIMIT = 'its client has too many goals, see goals_per_client'


class CancelToken:
    """Stops one request; a `backend.Cancellation`. Any thread may call every method."""

    def __init__(self) -> None:
        self._cancelled = threading.Event()
        self._reason: CancelReason | None = None

    def cancel(self, reason: CancelReason) -> None:
        """Stop the request as soon as possible; the first reason other than PREEMPTED stays."""
        if self._reason in (None, CancelReason.PREEMPTED):
            self._reason = reason
            self._cancelled.set()

    def is_set(self) -> bool:
        """Return whether the request has to stop."""
        return self._cancelled.is_set()

    @property
    def is_revoked(self) -> bool:
        """Whether nobody wants an answer any more, not even a complete one."""
        return self._reason not in (None, CancelReason.PREEMPTED)

    @property
    def reason(self) -> CancelReason | None:
        """Why the request has to stop; None while it may run."""
        return self._reason


@dataclass
class RequestClient:
    """Who sent a request; of a goal it may become known a moment after the goal."""

    name: str = 'unknown'  # all unknown clients count as one

    def identify(self, name: str) -> None:
        """Set the name; any thread."""
        self.name = name


COMMANDS = RequestClient('commands')  # all senders of commands, which are not told apart


class RequestListener(Protocol):
    """Receives the events and results of requests, in this order, on the delivery thread."""

    def started(self, request: Request, frame: SyncedMessages) -> None:
        """The model begins to answer the request about this frame."""

    def event(self, request: Request, event: Event) -> None:
        """The model has generated a token or a mask."""

    def finished(
        self, request: Request, frame: SyncedMessages | None, result: Segmentation
    ) -> None:
        """The request has ended: answered, failed, cancelled or superseded.

        Called once for each request, except for background work that was cancelled. The frame is
        None if the request ended before there was one.
        """


@dataclass(frozen=True)
class PreviousAnswer:
    """The last answer to a continuous goal; the next one is about a newer frame."""

    arrival: int  # of its frame
    started_at: float  # when the model began it [s, monotonic]
    turns: Dialogue = field(default_factory=Dialogue)  # the earlier turns of its prompt
    ticket: int = 0  # of the dialogue store, when they were read


@dataclass(frozen=True, eq=False)
class Request:
    """A query with its frame, its listener and the data that decide when it is answered."""

    text: str
    kind: RequestKind
    listener: RequestListener
    frame: SyncedMessages | None = None  # a frame of its own; None: the camera's newest
    dialogue: str | None = None  # key of the dialogue it belongs to; None: no earlier turns
    client: RequestClient = field(default_factory=lambda: COMMANDS)  # clients take turns
    is_continuous: bool = False  # a goal that is answered again until it is cancelled
    turns: Dialogue = field(default_factory=Dialogue)  # of a requery, of a begun continuous goal
    ticket: int = 0  # of the dialogue store, when `turns` were read
    previous: PreviousAnswer | None = None  # of a continuous goal: wait for a newer frame
    max_age: float = 0.0  # of the frame when the model begins [s]; 0: as the node's limit
    region: Region | None = None  # look only here [px]; None: the whole image
    explain: bool = False  # ask for a reason
    yes_no: bool = False  # answer with yes or no, see `backend.Query`
    created: float = field(default_factory=time.monotonic)  # [s, monotonic]
    cancellation: CancelToken = field(default_factory=CancelToken)

    def ends_at_stop(self, goals: bool) -> bool:
        """Return whether "stop" ends it: commands, and goals without an end of their own.

        Args:
            goals: "stop" ends all goals.
        """
        is_goal = self.kind is RequestKind.GOAL
        return self.kind is RequestKind.COMMAND or self.is_continuous or (goals and is_goal)

    @property
    def description(self) -> str:
        """Its kind and its text, shortened, such as "goal 'the red mug'"."""
        kind = 'goal' if self.kind is RequestKind.GOAL else 'command'
        if self.is_continuous:
            kind = 'continuous goal'
        return f'{kind} {shortened(self.text)!r}'


@dataclass
class RequestCounters:
    """Counts since the scheduler was made, for the diagnostics."""

    images: int = 0
    commands: int = 0  # commands and goals
    answered: int = 0  # FOUND and NOT_FOUND
    failed: int = 0
    timed_out: int = 0  # the answer took longer than `answer_timeout`
    unreachable: int = 0  # the server of the model gave no answer, or a part of one
    stale: int = 0  # the newest image was older than the request allows
    cancelled: int = 0
    repeated: int = 0  # answers in a loop, without a mask
    superseded: int = 0  # commands that a newer one replaced before they started
    preempted: int = 0  # background requests that gave way to a command or goal
    rejected: int = 0  # goals beyond `goals_kept`
    without_depth: int = 0  # requests without a depth image within the tolerance
    last_seconds: float = 0.0  # from the creation of the last answered request to its result [s]

    def count(self, status: Status) -> None:
        """Count the end of a request."""
        if status is Status.FAILED:
            self.failed += 1
        elif status is Status.TIMED_OUT:
            self.timed_out += 1
        elif status is Status.UNREACHABLE:
            self.unreachable += 1
        elif status is Status.STALE_INPUT:
            self.stale += 1
        elif status is Status.CANCELLED:
            self.cancelled += 1
        elif status is Status.SUPERSEDED:
            self.superseded += 1
        elif status is Status.REPEATED:
            self.repeated += 1
        else:
            self.answered += 1


def length_error(text: str, max_chars: int) -> str:
    """Return why a text is too long for a command or a goal; empty if it is not."""
    if len(text) <= max_chars:
        return ''
    return (
        f'the text has {len(text)} characters, max_command_chars allows {max_chars}: say it in '
        'fewer words'
    )
