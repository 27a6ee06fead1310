# SPDX-License-Identifier: Apache-2.0
"""Find out whether a language model repeats itself without end.

Greedy generation can fall into a loop: on an image of noise a small model writes dots, or one
[SEG] after the other without a mask, until the token limit. No true answer repeats a short piece
of text that often, unless it lists many objects: then each repetition brings a new mask.
"""

from __future__ import annotations

from collections.abc import Sequence

_MAX_PERIOD = 8  # longest piece that is looked for [tokens]
_MIN_LENGTH = 24  # of all its repetitions together [tokens]
_MIN_COUNT = 4  # of repetitions


def repeated_tail(token_ids: Sequence[int]) -> int:
    """Return how many tokens at the end only repeat the ones before; 0 if the text is no loop.

    Args:
        token_ids: the answer since its last new mask.
    """
    for period in range(1, _MAX_PERIOD + 1):
        length = max(_MIN_LENGTH, _MIN_COUNT * period)
        tail = token_ids[-length:]
        if len(tail) == length and all(tail[i] == tail[i - period] for i in range(period, length)):
            return length - period
    return 0
