# SPDX-License-Identifier: Apache-2.0
"""Return memory that nobody uses to the system, now and then.

- Objects that refer to each other in a circle, such as a goal and its callbacks, stay until Python
  collects garbage. In a large program it does so rarely, and an image may hang on such a circle.
- glibc keeps what was freed: after messages of many sizes the heap has holes, and the resident
  memory grows for hours although no more is in use. `malloc_trim` gives the holes back.
- Fast DDS leaves the shared memory of killed processes, see fastdds_segments.py.

Threads: any.
"""

from __future__ import annotations

import ctypes
import functools
import gc
from collections.abc import Callable

from lisa_ros.ros import fastdds_segments

RECLAIM_PERIOD = 10.0  # between two calls of `reclaim` [s]; each takes some milliseconds


def reclaim() -> None:
    """Return garbage, free pages of the heap, and shared memory of processes that were killed."""
    gc.collect()  # some milliseconds: startup.py excludes the objects of the imports
    trim = _malloc_trim()
    if trim is not None:
        trim(0)
    fastdds_segments.remove_abandoned_segments()


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    """Return the function of the C library; None if it has none: macOS, Windows, musl."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
