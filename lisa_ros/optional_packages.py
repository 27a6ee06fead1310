# SPDX-License-Identifier: Apache-2.0
"""How to install the packages that only some commands need.

They are listed in config/requirements, a file for each purpose. In a ROS workspace the files are
in share/lisa_ros, and `pip install 'lisa_ros[voice]'` would have no effect there.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from lisa_ros.resources import SOURCE_ROOT

_FOLDER = Path('config', 'requirements')


def install_command(purpose: str) -> str:
    """Return the command that installs the packages for a purpose: voice, train, ray, gpu, ...

    It fits how lisa_ros itself was installed: by colcon, as a source folder, or by pip.
    """
    prefixes = os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep)
    roots = [Path(prefix, 'share', 'lisa_ros') for prefix in prefixes if prefix]
    for root in (*roots, SOURCE_ROOT):
        file = root / _FOLDER / f'{purpose}.txt'
        if file.is_file():
            return f'pip install -r {shlex.quote(str(file))}'
    return f"pip install 'lisa_ros[{purpose}]'"
