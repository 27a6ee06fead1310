# SPDX-License-Identifier: Apache-2.0
"""Send a request to another replica if one ends or is full: one answer, or one clear error.

One asyncio loop.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import AsyncIterator

from lisa_ros.serving.batch_queue import deadline_error
from lisa_ros.serving.problems import Problem, ProblemError
from lisa_ros.serving.replies import Answer, ModelRequest

_log = logging.getLogger(__name__)
_MAX_LOSSES = 3  # replicas that may end under one request
_PAUSE = 0.02  # between two tries [s]


class Tries:
    """The replicas that one request has been sent to, and what it is sent as next."""

    def __init__(self, request: ModelRequest):
        self.end = time.monotonic() + request.seconds
        self._request = request
        self._losses = self._refusals = 0

    @property
    def request(self) -> ModelRequest:
        """The request for the next replica: with the time that is left.

        After a loss it is in a batch of its own; after a refusal it goes to any replica.
        """
        if not self._losses and not self._refusals:
            return self._request
        return dataclasses.replace(
            self._request,
            alone=self._losses > 0,
            stream='' if self._refusals else self._request.stream,
            seconds=max(0.0, self.end - time.monotonic()),
        )

    async def after_loss(self, error: Exception) -> None:
        """Wait a little before the next try.

        Raises:
            ProblemError: too many replicas ended, or the deadline has passed.
        """
        self._losses += 1
        _log.warning('a replica ended while it answered (%s)', type(error).__name__)
        if self._losses == _MAX_LOSSES:
            raise lost_error() from error
        await self._pause(error)

    async def after_refusal(self, error: ProblemError, replicas: int) -> None:
        """Wait a little if another try makes sense, else raise the error.

        A full replica is not the only one, and a request that a lost replica had accepted waits
        until the deadline.
        """
        self._refusals += 1
        is_full = error.problem is Problem.OVERLOADED
        if not is_full or not (self._losses or self._refusals < replicas):
            raise error
        await self._pause(error)

    async def _pause(self, error: Exception) -> None:
        if time.monotonic() + _PAUSE > self.end:
            raise deadline_error(self._request.seconds) from error
        await asyncio.sleep(_PAUSE)


async def unsent_events(
    events: AsyncIterator[bytes | Answer], sent: list[bytes]
) -> AsyncIterator[bytes | Answer]:
    """Yield the events behind those that the client has, and note them in `sent`.

    Raises:
        ProblemError: REPLICA_LOST: they begin otherwise, so that the client cannot go on.
    """
    sent_count = len(sent)
    index = 0
    async for event in events:
        if isinstance(event, bytes):
            if index < sent_count:
                if event != sent[index]:
                    raise lost_error()
                index += 1
                continue
            sent.append(event)
            index += 1
        yield event


def lost_error() -> ProblemError:
    """Return the error of a request under which replicas have ended."""
    return ProblemError(
        Problem.REPLICA_LOST,
        'the process of the model ended while it answered, and so did those that tried again: '
        'send another image or command, or look into the log of the server',
        1.0,
    )
