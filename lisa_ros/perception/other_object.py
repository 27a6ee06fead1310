# SPDX-License-Identifier: Apache-2.0
"""Queries about "the other one": the answer must not repeat the masks of the dialogue. Any thread.

The model does not see earlier masks; the words alone do not tell which object is left.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from lisa_ros.perception.backend import Query

_OTHER_OBJECT = re.compile(
    r'\b(an)?others?\b(?! (side|end|half|hand|way)\b)|\b(something|anything|what|which) else\b'
)


def asks_for_other_object(query: str) -> bool:
    """Return whether a query asks for an object other than those shown before."""
    return _OTHER_OBJECT.search(query.lower()) is not None


def excluded_masks(query: Query, shape: tuple[int, int]) -> Sequence[np.ndarray]:
    """Return the masks, (H, W) bool, that the answer must not repeat.

    Only a query about "the other one" has such masks: those of the last turn with a mask.
    """
    shown = query.dialogue.shown
    if shown is None or shown.shape[1:] != shape or not asks_for_other_object(query.text):
        return ()
    return shown
