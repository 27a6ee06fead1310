# SPDX-License-Identifier: Apache-2.0
"""Settings of native libraries that suit a robot: the C library's memory, and OpenMP's threads.

- glibc gives a freed array of some megabytes back to the system at once, and the system has to
  clear the pages of the next one. That was more than half of what the exchange of an image and its
  mask with the model's process cost. So freed memory is kept; the node returns it every 10 s
  (ros/memory_reclaim.py).
- The threads of OpenMP, which PyTorch uses, wait for each other in a loop. Beside other programs
  on all cores, a thread in such a loop takes the core from the one that it waits for. So threads
  sleep after a short wait.

What the user has set in the environment stays. Imports nothing but the standard library: OpenMP
reads its settings when PyTorch is imported.
"""

from __future__ import annotations

import ctypes
import os
import sys

# Parameters of mallopt(3).
_MMAP_THRESHOLD, _TRIM_THRESHOLD, _ARENA_MAX = -3, -1, -8
_LARGEST_HEAP_ARRAY = 32 << 20  # the largest that glibc accepts; larger arrays are mapped [bytes]
_KEPT = 256 << 20  # free memory at the end of a heap that is kept [bytes]
_LOWER_PRIORITY, _LOWEST_PRIORITY = 5, 19  # added to the nice value, and its largest value
_ARENAS = 1  # heaps; by default up to 8 for each core; `malloc_trim` returns all of one heap only


def apply() -> None:
    """Apply the settings to this process and to those that it starts."""
    if not any(name.startswith(('MALLOC_', 'GLIBC_TUNABLES')) for name in os.environ):
        _keep_freed_memory()
    if not any(name in os.environ for name in ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')):
        os.environ['GOMP_SPINCOUNT'] = '1000'


def lower_thread_priority() -> None:
    """Let other threads go before this one and those that it starts; on Linux only.

    With a nice value of 5, a thread gets a quarter of a core that it shares with one of 0.
    """
    if sys.platform == 'linux':  # elsewhere it is the priority of the process
        nice = os.getpriority(os.PRIO_PROCESS, 0)
        os.setpriority(os.PRIO_PROCESS, 0, min(nice + _LOWER_PRIORITY, _LOWEST_PRIORITY))


def _keep_freed_memory() -> None:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS, Windows, musl
        return
    mallopt(_MMAP_THRESHOLD, _LARGEST_HEAP_ARRAY)
    mallopt(_TRIM_THRESHOLD, _KEPT)
    mallopt(_ARENA_MAX, _ARENAS)
