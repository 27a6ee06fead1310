# SPDX-License-Identifier: Apache-2.0
"""One model for several sessions: who may use it next.

First come, first served among the sessions, each of which waits at most once: so they take turns,
round robin, and none starves. A session that has only a standing query to answer lets the others
go first, and stops answering as soon as another one has a request.

Threads: every method may be called from any thread. What it calls back (`urgent`, `make_room`)
takes no lock, so that no two sessions can wait for one another.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_LOOK = 0.05  # how often who waits looks whether it is next [s]


@dataclass(frozen=True, eq=False)
class _Waiter:
    """A session that has the turn, or waits for it."""

    urgent: Callable[[], bool]  # whether somebody waits for it
    make_room: Callable[[], None]  # stop what is not urgent, soon


class ModelLock:
    """The turns of one model."""

    def __init__(self):
        self._waiting: list[_Waiter] = []
        self._playing: _Waiter | None = None
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def acquire(self, urgent: Callable[[], bool], make_room: Callable[[], None]) -> Iterator[None]:
        """Wait for the turn, and have it within the block."""
        player = _Waiter(urgent, make_room)
        with self._changed:
            self._waiting.append(player)
            # Who is urgent changes without a notice, so it is looked at again and again.
            while not self._changed.wait_for(lambda: self._may_play(player), _LOOK):
                pass
            self._waiting.remove(player)
            self._playing = player
        try:
            yield
        finally:
            with self._changed:
                self._playing = None
                self._changed.notify_all()

    def preempt_background(self) -> None:
        """Somebody waits whom what is not urgent has to make room for."""
        playing = self._playing
        if playing is not None and not playing.urgent():
            playing.make_room()

    def has_urgent_waiter(self) -> bool:
        """Return whether somebody urgent waits for the turn."""
        return any(player.urgent() for player in tuple(self._waiting))

    def _may_play(self, player: _Waiter) -> bool:
        return self._playing is None and self._next() is player

    def _next(self) -> _Waiter:
        return next((one for one in self._waiting if one.urgent()), self._waiting[0])
