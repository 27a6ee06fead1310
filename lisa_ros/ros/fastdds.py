# SPDX-License-Identifier: Apache-2.0
"""How large messages leave our processes: whole.

By default a process of Fast DDS has half a megabyte of shared memory for all that it says, in
pieces of 64 kB. A mask of 640 x 480 pixels has five pieces, and an answer with its mask,
confidence and overlay more than fit at once: pieces are overwritten before they are read. They
come again, three seconds later, and where several processes want the CPU, later than that
(`benchmarks/bursts.py` counts it). With room for an answer nothing is overwritten.

The room is the sender's own: whoever hears us needs nothing, and a camera of someone else's has
what its process is given (docs/commands.md).
"""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

PROFILE = Path(str(files('lisa_ros'))) / 'ros' / 'fastdds.xml'
_FILE, _FILE_OF_2 = 'FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE'
_WITH_2 = ('humble', 'iron', 'jazzy')  # Fast DDS 2; of 3, rmw_fastrtps warns of the old name
# whoever set one of these, or put a file there, has chosen
_CHOSEN = (_FILE, _FILE_OF_2, 'FASTDDS_BUILTIN_TRANSPORTS', 'SKIP_DEFAULT_XML')
_FOUND = ('DEFAULT_FASTDDS_PROFILES.xml', 'DEFAULT_FASTRTPS_PROFILES.xml')


def configure_shared_memory() -> bool:
    """Let what this process says over Fast DDS have 32 MB of shared memory; before `rclpy.init`.

    Another DDS does not look at it.

    Returns:
        False if the user has chosen transports already: then they stay.
    """
    if any(os.environ.get(name) for name in _CHOSEN) or any(map(os.path.exists, _FOUND)):
        return False
    old = os.environ.get('ROS_DISTRO') in _WITH_2
    os.environ[_FILE_OF_2 if old else _FILE] = str(PROFILE)
    return True
