# SPDX-License-Identifier: Apache-2.0
"""Say at once what `make setup` would miss on this machine, and what works all the same."""

import importlib.util
import platform
import shutil
import sys
import sysconfig
from pathlib import Path

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
# Debian and Ubuntu keep these apart from Python: the interfaces are compiled, pip comes by venv.
python = f'python{sys.version_info[0]}.{sys.version_info[1]}'
if not Path(sysconfig.get_path('include'), 'Python.h').is_file():
    missing.append(f'no Python.h for {sys.executable}: `apt install {python}-dev` has it')
own_pip = Path(__file__).parents[1] / '.venv' / 'bin' / 'pip'  # of a .venv that is there already
if not own_pip.exists() and not importlib.util.find_spec('ensurepip'):
    missing.append(f'no ensurepip in {sys.executable}: `apt install {python}-venv` has it')
if missing:
    sys.exit('\n'.join(f'make setup: {line}' for line in missing))
