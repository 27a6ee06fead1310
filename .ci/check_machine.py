# SPDX-License-Identifier: Apache-2.0
"""Say at once what `make setup` would miss on this machine, and what works all the same."""

import platform
import shutil
import sys

missing = []
# The pinned Transformers starts at Python 3.11, the ROS wheels end at 3.13.
if not (3, 11) <= sys.version_info[:2] <= (3, 13):
    missing.append(
        f'this is Python {platform.python_version()}, 3.11 to 3.13 will do: '
        'name one, as in `make setup PYTHON=python3.12`'
    )
if (sys.platform, platform.machine()) != ('linux', 'x86_64'):
    missing.append(
        f'{platform.system()} on {platform.machine()}: the ROS wheels are for Linux on x86-64. '
        '`pip install .` gives the command lisa-ros, without ROS; '
        'a ROS 2 distribution and `colcon build` give the node'
    )
missing += [
    f'no {tool}: `apt install build-essential cmake` has it'
    for tool in ('cmake', 'g++', 'gcc')
    if not shutil.which(tool)
]
if missing:
    sys.exit('\n'.join(f'make setup: {line}' for line in missing))
