# SPDX-License-Identifier: Apache-2.0
"""Store of dialogue histories: the earlier turns that the next query can refer to.

Threads: every method may be called from any thread.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from lisa_ros.results import Dialogue, Segmentation

MAX_TURNS = 16  # turns kept of each dialogue; the prompt drops the oldest that do not fit


class DialogueStore:
    """Dialogues by key; beyond `max_dialogues` the least recently used one is dropped.

    An answer that is still running when its dialogue is cleared is not added to it.
    """

    def __init__(self, max_dialogues: int = 64):
        self._max_dialogues = max_dialogues
        self._dialogues: OrderedDict[str, Dialogue] = OrderedDict()
        self._clear_count = 0
        self._lock = threading.Lock()

    def get(self, key: str, max_turns: int = MAX_TURNS) -> tuple[Dialogue, int]:
        """Return the last `max_turns` turns of a dialogue, and a ticket for `append`."""
        with self._lock:
            return self._dialogues.get(key, Dialogue()).last(max_turns), self._clear_count

    def append(self, key: str, ticket: int, result: Segmentation) -> None:
        """Add a query and its answer, unless the store was cleared since `get`."""
        with self._lock:
            if ticket != self._clear_count:
                return
            extended = self._dialogues.get(key, Dialogue()).extended(result)
            self._dialogues[key] = extended.last(MAX_TURNS)
            self._dialogues.move_to_end(key)
            while len(self._dialogues) > self._max_dialogues:
                self._dialogues.popitem(last=False)

    def replace(self, key: str, ticket: int, earlier: Dialogue, result: Segmentation) -> None:
        """Add a query and its answer after these turns, in place of its former answer.

        No effect if other turns have come since, or if the store was cleared since `get`.
        """
        with self._lock:
            extended = earlier.extended(result).last(MAX_TURNS)
            present = self._dialogues.get(key, Dialogue())
            if ticket == self._clear_count and present.turns[:-1] == extended.turns[:-1]:
                self._dialogues[key] = extended
                self._dialogues.move_to_end(key)

    def clear(self) -> None:
        """Drop every dialogue."""
        with self._lock:
            self._dialogues.clear()
            self._clear_count += 1
