# SPDX-License-Identifier: Apache-2.0
"""When an answer stops before its end: a cancel, or the time limit; and what was ready by then.

Any thread.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np

from lisa_ros.perception.backend import Cancellation
from lisa_ros.results import Event, MaskReady, Segmentation, Status, Token, answer_text


class Deadline:
    """The end of a time limit that begins now."""

    def __init__(self, limit: float | None):
        """Begin.

        Args:
            limit: [s]; None: no limit.
        """
        self.limit = limit
        self.at = math.inf if limit is None else time.monotonic() + limit  # [s, monotonic]

    @property
    def is_over(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() >= self.at

    @property
    def seconds_left(self) -> float | None:
        """How long it lasts [s], at least 0; None without a limit."""
        return None if self.limit is None else max(0.0, self.at - time.monotonic())


@dataclass(frozen=True)
class EarlyEnd:
    """How an answer ended that is not complete."""

    status: Status
    reason: str


CANCELLED = EarlyEnd(Status.CANCELLED, 'cancelled during the answer')


def timed_out(limit: float) -> EarlyEnd:
    """Return the end of an answer that took longer than `answer_timeout` [s]."""
    reason = (
        f'the answer took longer than answer_timeout ({limit:.3g} s): raise it if that is normal'
    )
    return EarlyEnd(Status.TIMED_OUT, reason)


class StopCondition:
    """A cancel or the end of the time, whichever comes first; a `Cancellation`."""

    def __init__(self, cancel: Cancellation, deadline: Deadline):
        self._cancel, self._deadline = cancel, deadline

    def is_set(self) -> bool:
        """Return whether the answer must stop."""
        return self._cancel.is_set() or self._deadline.is_over

    @property
    def seconds_left(self) -> float | None:
        """How long the answer may take from now on [s], at least 0; None: no limit."""
        return self._deadline.seconds_left

    @property
    def early_end(self) -> EarlyEnd | None:
        """How the answer ends if it stops now; None if it may go on."""
        if self._cancel.is_set():
            return CANCELLED
        return timed_out(self._deadline.limit) if self._deadline.is_over else None


class PartialAnswer:
    """The tokens and masks of an answer so far, for a backend that does not come to an end."""

    def __init__(self, query: str, shape: tuple[int, int]):
        """Begin.

        Args:
            query: as the user typed it.
            shape: (H, W) of the image [px]; (0, 0) if it is not known.
        """
        self._query, self._shape = query, shape
        self._answer_raw = ''
        self._masks: list[MaskReady] = []

    def add(self, event: Event) -> None:
        """Keep a token or a mask."""
        if isinstance(event, Token):
            self._answer_raw += event.text
        elif isinstance(event, MaskReady):
            self._masks.append(event)

    def result(self, end: EarlyEnd) -> Segmentation:
        """Return what was ready as a result."""
        logits = np.zeros((0, *self._shape), np.float32)
        if self._masks:
            logits = np.stack([event.mask_logits for event in self._masks])
        names = [event.name for event in self._masks]
        return Segmentation(
            query=self._query,
            answer=answer_text(self._answer_raw),
            answer_raw=self._answer_raw,
            masks=logits > 0,
            mask_logits=logits,
            scores=np.array([event.score for event in self._masks], np.float32),
            status=end.status,
            reason=end.reason,
            names=tuple(names) if any(names) else (),
        )
