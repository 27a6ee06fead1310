# SPDX-License-Identifier: Apache-2.0
"""What has been said so far, by camera and dialogue: the turns that the next question refers to.

Threads: every method may be called from any thread.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from lisa_ros.results import Dialogue, Segmentation

MOST_TURNS = 16  # kept of each; the prompt leaves out what does not fit, oldest first


class DialogueStore:
    """Dialogues by key. The least recently used are forgotten beyond `most`.

    An answer that was on its way while its dialogue was forgotten stays forgotten, too.
    """

    def __init__(self, most: int = 64):
        self._most = most
        self._turns: OrderedDict[str, Dialogue] = OrderedDict()
        self._resets = 0
        self._lock = threading.Lock()

    def get(self, key: str, most: int = MOST_TURNS) -> tuple[Dialogue, int]:
        """Return the last `most` turns, and a ticket for `extend`."""
        with self._lock:
            return self._turns.get(key, Dialogue()).last(most), self._resets

    def append(self, key: str, ticket: int, result: Segmentation) -> None:
        """Add a question and its answer, unless all was forgotten since `begin`."""
        with self._lock:
            if ticket != self._resets:
                return
            extended = self._turns.get(key, Dialogue()).extended(result)
            self._turns[key] = extended.last(MOST_TURNS)
            self._turns.move_to_end(key)
            while len(self._turns) > self._most:
                self._turns.popitem(last=False)

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._turns.clear()
            self._resets += 1
