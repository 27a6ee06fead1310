# SPDX-License-Identifier: Apache-2.0
"""Check that NumPy, OpenCV and cv_bridge can be imported beside each other.

cv_bridge of a ROS distribution is compiled against the distribution's NumPy. With NumPy 2 of pip
it raises, or ends the process. lisa_ros does not use it, but other nodes of the same Python may.
"""

from __future__ import annotations

from lisa_ros.doctor.finding import Finding
from lisa_ros.doctor.probe import ProbeResult, run_probe
from lisa_ros.health.verdict import Level

MODULES = ('numpy', 'cv2', 'cv_bridge')
_NUMPY_SIGNS = ('numpy', '_array_api', 'multiarray', 'sigsegv')
_MAX_CHARS = 200


def check_import(name: str, timeout: float) -> list[Finding]:
    """Return the finding about one of MODULES, within `timeout` [s]."""
    return [judge_import(name, run_probe(_PROBE, [name], timeout))]


def judge_import(name: str, result: ProbeResult) -> Finding:
    """Return the finding about one module.

    Args:
        name: numpy, cv2 or cv_bridge.
        result: of `imports_probe`.
    """
    if result.is_late:
        cure = 'give more time with --timeout'
        return Finding(f'import {name}', Level.WARN, f'import {result.error}', cure)
    error = result.error or str(result.facts.get('error', ''))
    if not error and not result.facts.get('is_installed'):
        return _missing(name)
    if not error:
        return Finding(f'import {name}', Level.OK, _version(result))
    level = Level.WARN if name == 'cv_bridge' else Level.ERROR
    observed, cure = f'cannot be imported: {error[-_MAX_CHARS:]}', _cure(name, error.lower())
    return Finding(f'import {name}', level, observed, cure)


def _missing(name: str) -> Finding:
    if name == 'cv_bridge':
        return Finding(f'import {name}', Level.OK, 'not installed; lisa_ros does not need it')
    package = 'opencv-python-headless' if name == 'cv2' else name
    return Finding(f'import {name}', Level.ERROR, 'not installed', f'pip install {package}')


def _version(result: ProbeResult) -> str:
    version = result.facts.get('version') or 'of unknown version'
    return f'{version}, {result.facts.get("file")}'


def _cure(name: str, error: str) -> str:
    if 'libgl' in error or 'libglib' in error or 'libgthread' in error:
        return 'pip uninstall opencv-python; pip install opencv-python-headless'
    if name == 'cv_bridge' and any(sign in error for sign in _NUMPY_SIGNS):
        return (
            'it was compiled for NumPy 1: keep lisa_ros in a virtual environment of its own, or '
            "pip install 'numpy<2', or build vision_opencv from source"
        )
    if name == 'cv2' and any(sign in error for sign in _NUMPY_SIGNS):
        return "pip install --upgrade 'opencv-python-headless>=4.10' numpy"
    return f'install {name} again for this Python; see the error'


_PROBE = 'lisa_ros.doctor.imports_probe'
