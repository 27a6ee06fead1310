# SPDX-License-Identifier: Apache-2.0
"""Free the shared memory of Fast DDS that nobody uses any more.

A process that is killed leaves its segment in /dev/shm, and Fast DDS never frees it: after two
kills of this node, the 64 MB of a Docker container are full. So the node frees it, at its start
and now and then.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterable
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_SEGMENTS = Path('/dev/shm')  # noqa: S108  # where Fast DDS keeps its segments on Linux
_SEGMENT = re.compile('fast(?:dds|rtps)_[0-9a-f]{16}')  # of Fast DDS 3 and of 2
_LOCK_SUFFIX = '_el'  # of a file that a process holds locked as long as it uses the segment
_MIN_AGE = 5.0  # a process may have made a younger segment and not locked it yet [s]


def remove_abandoned_segments(folder: Path = _SEGMENTS) -> int:
    """Free the shared memory of processes that were killed; what a living one uses stays.

    Like `fastdds shm clean`, it looks at the locks: the kernel frees those of a dead process, also
    in another container. It leaves what belongs to another user.

    Args:
        folder: where the segments are.

    Returns:
        The number of segments that were removed.
    """
    if fcntl is None or not folder.is_dir():
        return 0
    locks = [
        path
        for path in folder.glob(f'*{_LOCK_SUFFIX}')
        if _SEGMENT.fullmatch(path.name.removesuffix(_LOCK_SUFFIX))
    ]
    return sum(map(_remove_if_abandoned, locks))


def own_segments() -> list[Path]:
    """Return the locks of the segments that this process holds now; none but on Linux."""
    locks = []
    for descriptor in Path('/proc/self/fd').glob('*'):
        with contextlib.suppress(OSError):  # closed meanwhile
            lock = descriptor.readlink()
            name = lock.name.removesuffix(_LOCK_SUFFIX)
            if lock.parent == _SEGMENTS and name != lock.name and _SEGMENT.fullmatch(name):
                locks.append(lock)
    return locks


def remove_segments(locks: Iterable[Path]) -> None:
    """Remove segments, by their locks; who has mapped one may read on.

    For a process that ends without a teardown, or in the middle of it.
    """
    for lock in locks:
        lock.with_name(lock.name.removesuffix(_LOCK_SUFFIX)).unlink(missing_ok=True)
        lock.unlink(missing_ok=True)


def _remove_if_abandoned(lock: Path) -> bool:
    """Remove a segment and the file of its lock if nobody holds that; return whether it did."""
    with contextlib.suppress(OSError), lock.open('rb') as file:
        if time.time() - os.fstat(file.fileno()).st_mtime < _MIN_AGE:
            return False
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        remove_segments([lock])
        return True
    return False  # it is locked, belongs to another user, or another node was faster
