# SPDX-License-Identifier: Apache-2.0
"""Give Fast DDS enough shared memory for large messages, and take back what is not in use.

By default a Fast DDS process has 0.5 MB of shared memory for everything it publishes, in segments
of 64 kB. A mask of 640 x 480 pixels takes five segments, and an answer with mask, confidence and
overlay needs more than there are: segments are overwritten before they are read. They are sent
again three seconds later, or more if several processes compete for the CPU (measured by
`benchmarks/bursts.py`). With 32 MB nothing is overwritten.

Histories: by default Fast DDS keeps the buffer of each message that was read, in the size of the
largest one it has held, for later messages. Bursts on queues of a thousand commands or goals then
cost memory for good: 4000 hostile goals took 110 MB, and more came. With the policy DYNAMIC a
buffer is freed with its message (the same goals: 20 MB).

A process that is killed leaves its segment in /dev/shm, and Fast DDS frees it nowhere: after two
kills of this node, the 64 MB of a Docker container are full. So the node frees it, at its start
and now and then.

A graph on one computer: with ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST, rmw_fastrtps adds transports
of its own to those of the profile. Two UDP transports of a process listen on the same ports, and
answers to the first announcements are lost: nodes then found each other after 3 s instead of 0.5
to 1 s. So there is a profile without UDP for this case.

The memory belongs to the sender: receivers need no profile. It does not help the images of a
camera driver, which is a sender of its own (docs/commands.md).
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

from lisa_ros.resources import FASTDDS_LOCALHOST_PROFILE, FASTDDS_PROFILE

_PROFILE_VARIABLE = 'FASTDDS_DEFAULT_PROFILES_FILE'
_PROFILE_VARIABLE_2 = 'FASTRTPS_DEFAULT_PROFILES_FILE'  # of Fast DDS 2; with 3, it gives a warning
_FAST_DDS_2 = ('humble', 'iron', 'jazzy')  # the distributions with Fast DDS 2
_QOS_VARIABLE = 'RMW_FASTRTPS_USE_QOS_FROM_XML'  # 1: the profile's policy for histories counts
# each of these variables and files means that the user has configured transports
_USER_VARIABLES = (
    _PROFILE_VARIABLE,
    _PROFILE_VARIABLE_2,
    'FASTDDS_BUILTIN_TRANSPORTS',
    'SKIP_DEFAULT_XML',
)
_SEGMENTS = Path('/dev/shm')  # noqa: S108  # where Fast DDS keeps its segments on Linux
_SEGMENT = re.compile('fast(?:dds|rtps)_[0-9a-f]{16}')  # of Fast DDS 3 and of 2
_LOCK_SUFFIX = '_el'  # of a file that a process holds locked as long as it uses the segment
_MIN_AGE = 5.0  # a process may have made a younger segment and not locked it yet [s]
_USER_FILES = ('DEFAULT_FASTDDS_PROFILES.xml', 'DEFAULT_FASTRTPS_PROFILES.xml')


def configure_shared_memory() -> bool:
    """Give this process 32 MB of shared memory for Fast DDS, and histories that free memory.

    Call it before `rclpy.init`, with the variables of the ROS graph set. Other DDS implementations
    ignore it.

    Returns:
        False if the user has configured transports: then nothing is changed.
    """
    if any(os.environ.get(name) for name in _USER_VARIABLES):
        return False
    if any(map(os.path.exists, _USER_FILES)):
        return False
    has_fast_dds_2 = os.environ.get('ROS_DISTRO') in _FAST_DDS_2
    os.environ[_PROFILE_VARIABLE_2 if has_fast_dds_2 else _PROFILE_VARIABLE] = str(profile())
    os.environ.setdefault(_QOS_VARIABLE, '1')
    return True


def profile() -> Path:
    """Return the profile for the range of discovery that the environment asks for."""
    reach = os.environ.get('ROS_AUTOMATIC_DISCOVERY_RANGE', '')
    is_localhost = reach == 'LOCALHOST' or os.environ.get('ROS_LOCALHOST_ONLY') == '1'
    return FASTDDS_LOCALHOST_PROFILE if is_localhost else FASTDDS_PROFILE


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
