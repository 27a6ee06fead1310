# SPDX-License-Identifier: Apache-2.0
"""Check this machine before `make setup`: name what is missing and how to install it."""

import importlib.util
import platform
import shutil
import sys
import sysconfig
from pathlib import Path

missing = []
# The pinned Transformers needs Python 3.11 or newer; the ROS wheels exist up to 3.13.
if not (3, 11) <= sys.version_info[:2] <= (3, 13):
    missing.append(
        f'Python {platform.python_version()} found, 3.11 to 3.13 expected: '
        'choose one, for example `make setup PYTHON=python3.12`'
    )
if (sys.platform, platform.machine()) != ('linux', 'x86_64'):
    missing.append(
        f'{platform.system()} on {platform.machine()} found, the ROS wheels need Linux on x86-64: '
        'use `pip install ".[local]"` for the command lisa-ros without ROS, '
        'or a ROS 2 distribution and `colcon build` for the node'
    )
missing += [
    f'{tool} not found: run `apt install build-essential cmake`'
    for tool in ('cmake', 'g++', 'gcc')
    if not shutil.which(tool)
]
# Debian and Ubuntu package these separately. The interfaces need the headers, pip needs ensurepip.
python = f'python{sys.version_info[0]}.{sys.version_info[1]}'
if not Path(sysconfig.get_path('include'), 'Python.h').is_file():
    missing.append(f'Python.h not found for {sys.executable}: run `apt install {python}-dev`')
venv_pip = Path(__file__).parents[1] / '.venv' / 'bin' / 'pip'  # of an existing .venv
if not venv_pip.exists() and not importlib.util.find_spec('ensurepip'):
    missing.append(f'ensurepip not found in {sys.executable}: run `apt install {python}-venv`')
if missing:
    sys.exit('\n'.join(f'make setup: {line}' for line in missing))
