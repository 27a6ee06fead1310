# SPDX-License-Identifier: Apache-2.0
"""Check the versions of Python and of the packages that lisa_ros imports.

The versions are read from the packages' metadata: nothing is imported.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata, util

import lisa_ros
from lisa_ros.doctor.finding import Finding
from lisa_ros.health.verdict import Level

MIN_PYTHON = (3, 10)
# by distribution, as in config/requirements: the oldest version, and the first that is too new
THIN_BOUNDS: Mapping[str, tuple[str, str]] = {  # library.txt and thin.txt
    'httpx2': ('2.16', ''),
    'jinja2': ('3.1', ''),
    'lz4': ('3.0', ''),
    'numpy': ('1.26', ''),
    'opencv-python-headless': ('4.6', ''),
    'pillow': ('10', ''),
    'pyyaml': ('6', ''),
    'rosbags': ('0.10', ''),
    'tqdm': ('4.66', ''),
}
LOCAL_BOUNDS: Mapping[str, tuple[str, str]] = {  # local.txt
    'huggingface_hub': ('1', ''),
    'safetensors': ('0.4', ''),
    'sentencepiece': ('0.2', ''),
    'tokenizers': ('0.22', ''),
    'torch': ('2.9', ''),
    'transformers': ('5.20', '6'),
}
BOUNDS = {**THIN_BOUNDS, **LOCAL_BOUNDS}
_SERVER_PYTHON = (3, 11)  # that httpx2 needs, see thin.txt
_SHOWN = ('torch', 'transformers', 'numpy', 'opencv-python-headless', 'rosbags')
_MODULES = {'opencv-python-headless': 'cv2', 'pillow': 'PIL', 'pyyaml': 'yaml'}
_OPENCV = (  # distributions of cv2
    *('opencv-python-headless', 'opencv-python'),
    *('opencv-contrib-python-headless', 'opencv-contrib-python'),
)
_NO_VERSION = ''  # of a module of the system, such as Debian's python3-opencv


def check_versions(*, is_served: bool = False) -> list[Finding]:
    """Return the findings about Python, lisa_ros and all packages.

    Args:
        is_served: the model is on a server, so that PyTorch is not needed here.
    """
    names = [name for name in BOUNDS if not (is_served and name in LOCAL_BOUNDS)]
    if sys.version_info < _SERVER_PYTHON and not is_served:
        names.remove('httpx2')
    return [
        judge_python(sys.version_info[:3]),
        *judge_packages({name: installed_version(name) for name in names}),
        *judge_opencv([name for name in _OPENCV if _distribution_version(name)]),
    ]


def installed_version(distribution: str) -> str | None:
    """Return the version of an installed package; '' if it does not tell; None: not installed."""
    names = _OPENCV if distribution == _OPENCV[0] else (distribution,)
    versions = filter(None, map(_distribution_version, names))
    module = _MODULES.get(distribution, distribution)
    return next(versions, _NO_VERSION if util.find_spec(module) else None)


def _distribution_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def judge_python(version: Sequence[int]) -> Finding:
    """Return the finding about the version of Python, (major, minor, micro)."""
    text = '.'.join(map(str, version))
    prefix = f'Python {text} in {sys.prefix}, {platform.machine()}, lisa_ros'
    observed = f'{prefix} {lisa_ros.__version__} in {os.path.dirname(lisa_ros.__file__)}'  # noqa: PTH120
    if tuple(version[:2]) >= MIN_PYTHON:
        return Finding('Python', Level.OK, observed)
    cure = f'install Python {".".join(map(str, MIN_PYTHON))} or later'
    return Finding('Python', Level.ERROR, observed, cure)


def judge_packages(versions: Mapping[str, str | None]) -> list[Finding]:
    """Return the findings about packages: one for each that does not fit, one for all others.

    Args:
        versions: by distribution; '' of unknown version; None: not installed.
    """
    findings = []
    for name, version in versions.items():
        oldest, too_new = BOUNDS[name]
        requirement = f'{name}>={oldest}' + (f',<{too_new}' if too_new else '')
        cure = f"pip install '{requirement}'"
        if version is None:
            findings.append(Finding('packages', Level.ERROR, f'{name} is not installed', cure))
        elif version and not _is_between(version, oldest, too_new):
            observed = f'{name} {version}; expected {requirement}'
            findings.append(Finding('packages', Level.ERROR, observed, cure))
    shown = ', '.join(f'{n} {versions[n] or "?"}' for n in _SHOWN if versions.get(n) is not None)
    return [*findings, Finding('packages', Level.OK, shown)] if shown else findings


def judge_opencv(distributions: Sequence[str]) -> list[Finding]:
    """Return a warning if several packages bring the module cv2."""
    if len(distributions) < 2:
        return []
    observed = f'{" and ".join(distributions)} overwrite the files of each other (module cv2)'
    unwanted = ' '.join(distributions)
    cure = f'pip uninstall {unwanted}; pip install opencv-python-headless'
    return [Finding('packages', Level.WARN, observed, cure)]


def _is_between(version: str, oldest: str, too_new: str) -> bool:
    numbers = _numbers(version)
    return numbers >= _numbers(oldest) and (not too_new or numbers < _numbers(too_new))


def _numbers(version: str) -> tuple[int, ...]:
    """Return the numbers at the beginning of a version: (2, 13, 0) of "2.13.0+cpu"."""
    match = re.match(r'\d+(\.\d+)*', version)
    return tuple(map(int, match[0].split('.'))) if match else ()
