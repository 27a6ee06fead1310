# SPDX-License-Identifier: Apache-2.0
"""Give Fast DDS enough shared memory for large messages; see also fastdds_segments.py.

By default a Fast DDS process has 0.5 MB of shared memory for everything it publishes, in segments
of 64 kB. A mask of 640 x 480 pixels takes five segments, and an answer with mask, confidence and
overlay needs more than there are: segments are overwritten before they are read. They are sent
again three seconds later, or more if several processes compete for the CPU (measured by
`benchmarks/bursts.py`). With 32 MB nothing is overwritten.

Histories: by default Fast DDS keeps the buffer of each message after it was read, for later
messages; a buffer never becomes smaller. Bursts on queues of a thousand commands or goals then
cost memory for good: 4000 hostile goals took 110 MB, and the next ones took more. With the policy
DYNAMIC a buffer is freed with its message (the same goals: 20 MB). rmw_fastrtps takes this policy
from a profile only together with the publication mode, and then does not read
RMW_FASTRTPS_PUBLICATION_MODE. So with ASYNCHRONOUS there, histories are those of rmw_fastrtps.

A graph on one computer: with ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST, rmw_fastrtps adds transports
of its own to those of the profile. Two UDP transports of a process listen on the same ports, and
answers to the first announcements are lost: nodes then found each other after 3 s instead of 0.5
to 1 s. So there is a profile without UDP for this case.

The memory belongs to the sender: receivers need no profile. It does not help the images of a
camera driver, which is a sender of its own (docs/commands.md).
"""

from __future__ import annotations

import os
from pathlib import Path

from lisa_ros.discovery_range import is_localhost
from lisa_ros.resources import FASTDDS_LOCALHOST_PROFILE, FASTDDS_PROFILE

_PROFILE_VARIABLE = 'FASTDDS_DEFAULT_PROFILES_FILE'
_PROFILE_VARIABLE_2 = 'FASTRTPS_DEFAULT_PROFILES_FILE'  # of Fast DDS 2; with 3, it gives a warning
_FAST_DDS_2 = ('humble', 'iron', 'jazzy')  # the distributions with Fast DDS 2
_QOS_VARIABLE = 'RMW_FASTRTPS_USE_QOS_FROM_XML'  # 1: the profile's policy for histories counts
_MODE_VARIABLE = 'RMW_FASTRTPS_PUBLICATION_MODE'
_PROFILE_MODES = ('', 'SYNCHRONOUS', 'AUTO')  # the profile is SYNCHRONOUS; AUTO is what it says
# each of these variables and files means that the user has configured transports
_USER_VARIABLES = (
    _PROFILE_VARIABLE,
    _PROFILE_VARIABLE_2,
    'FASTDDS_BUILTIN_TRANSPORTS',
    'SKIP_DEFAULT_XML',
)
_USER_FILES = ('DEFAULT_FASTDDS_PROFILES.xml', 'DEFAULT_FASTRTPS_PROFILES.xml')


def configure_shared_memory() -> bool:
    """Give this process 32 MB of shared memory for Fast DDS, and histories that free memory.

    Call it before `rclpy.init`, with the variables of the ROS graph set. Other DDS implementations
    ignore it. If the user has chosen asynchronous publication, histories are left as they are.

    Returns:
        False if the user has configured transports: then nothing is changed.
    """
    if any(os.environ.get(name) for name in _USER_VARIABLES):
        return False
    if any(map(os.path.exists, _USER_FILES)):
        return False
    has_fast_dds_2 = os.environ.get('ROS_DISTRO') in _FAST_DDS_2
    os.environ[_PROFILE_VARIABLE_2 if has_fast_dds_2 else _PROFILE_VARIABLE] = str(profile())
    if os.environ.get(_MODE_VARIABLE, '') in _PROFILE_MODES:
        os.environ.setdefault(_QOS_VARIABLE, '1')
    return True


def profile() -> Path:
    """Return the profile for the range of discovery that the environment asks for."""
    return FASTDDS_LOCALHOST_PROFILE if is_localhost(os.environ) else FASTDDS_PROFILE
