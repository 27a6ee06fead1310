# SPDX-License-Identifier: Apache-2.0
"""A virtual environment with the packages of a thin node only: what is not linked is not there."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

REQUIREMENTS = Path(__file__).parents[1] / 'config/requirements'
THIN = ('library.txt', 'thin.txt')


def make_thin_environment(folder: Path) -> Path:
    """Make a virtual environment; return its interpreter.

    It has all packages of this one, except those that other requirement files than THIN bring.
    """
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', folder], check=True)
    others = {file.name for file in REQUIREMENTS.glob('*.txt')} - set(THIN)
    kept = _closure(THIN)
    absent = _entries(_closure(others) - kept) - _entries(kept)
    purelib = Path(sysconfig.get_path('purelib'))
    target = next(folder.glob('lib/python*/site-packages'))
    for path in purelib.iterdir():
        if path.name not in absent and not (target / path.name).exists():
            (target / path.name).symlink_to(path)
    for library in purelib.parents[1].glob('*.so*'):  # those of ROS are found from the packages
        (folder / 'lib' / library.name).symlink_to(library)
    return folder / 'bin/python'


def _closure(files: set[str] | tuple[str, ...]) -> set[str]:
    """Return the names of the installed packages that requirement files bring."""
    found: set[str] = set()
    waiting = [Requirement(line) for file in files for line in _lines(REQUIREMENTS / file)]
    while waiting:
        requirement = waiting.pop()
        name = _normal(requirement.name)
        if name in found or not _applies(requirement, {''}):
            continue
        try:
            needed = [Requirement(line) for line in metadata.requires(name) or []]
        except metadata.PackageNotFoundError:
            continue
        found.add(name)
        for each in needed:
            if _applies(each, requirement.extras or {''}):
                each.marker = None  # it named the extra
                waiting.append(each)
    return found


def _applies(requirement: Requirement, extras: set[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({'extra': extra}) for extra in extras)


def _lines(file: Path) -> list[str]:
    lines = (line.partition('#')[0].strip() for line in file.read_text().splitlines())
    return [line for line in lines if line and not line.startswith('-')]


def _normal(name: str) -> str:
    return re.sub('[-_.]+', '-', name).lower()


def _entries(packages: set[str]) -> set[str]:
    """Return the files and folders of packages in site-packages."""
    files = [file for name in packages for file in metadata.files(name) or []]
    return {file.parts[0] for file in files if file.parts[0] != '..'}
