# SPDX-License-Identifier: Apache-2.0
"""How to install the packages that only some commands need.

They are listed in config/requirements, a file for each purpose. In a ROS workspace the files are
in share/lisa_ros, and `pip install 'lisa_ros[voice]'` would have no effect there.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from lisa_ros.error_text import error_summary
from lisa_ros.errors import SettingsError
from lisa_ros.resources import SOURCE_ROOT

_FOLDER = Path('config', 'requirements')
# modules of config/requirements/local.txt: a model on this machine needs them
_LOCAL = (
    *('huggingface_hub', 'safetensors', 'sentencepiece', 'tokenizers', 'torch', 'transformers'),
)
# cures of packages that are installed and cannot be imported, by what the error says
_IMPORT_CURES = (
    (
        re.compile('torchvision'),
        'install the torchvision that fits this torch, or remove it: lisa_ros does not need it',
    ),
    (
        re.compile('static TLS'),
        'start it with LD_PRELOAD=FILE, the library that the error names',
    ),
    (
        re.compile('cannot open shared object|undefined symbol'),
        'install this library, or the build of the package that fits this computer',
    ),
)


def is_served(model: str) -> bool:
    """Return whether a model is the address of a server: then PyTorch is not needed here."""
    return model.startswith(('http:', 'https:'))


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


@contextlib.contextmanager
def local_model_packages(user: str) -> Iterator[None]:
    """Name the cure if an import fails: PyTorch or what belongs to it is missing or broken.

    Args:
        user: what needs them, such as "model 'lisa-tabletop'".

    Raises:
        SettingsError: a package is missing, or does not fit the others or this computer.
    """
    try:
        yield
    except Exception as error:  # the import of a package may raise anything
        problem = import_problem(user, error)
        if problem is None:
            raise
        raise SettingsError(problem) from error


def import_problem(user: str, error: BaseException) -> str | None:
    """Return what is wrong with a package, with the cure; None if the error is of something else.

    Args:
        user: what needs the package.
        error: as it was caught.
    """
    if not _is_import_error(error):
        return None
    name = (getattr(error, 'name', None) or '').split('.')[0]
    if isinstance(error, ModuleNotFoundError) and name in _LOCAL:
        return (
            f'{user} needs {name}, which is not installed for {sys.executable}: '
            f'{install_command("local")}{_other_environment()}; or use a model on a server, model '
            'http://SERVER:8000'
        )
    while error.__cause__ is not None:  # transformers raises one error for all
        error = error.__cause__
    summary = error_summary(error)
    cures = (cure for pattern, cure in _IMPORT_CURES if pattern.search(summary))
    cure = next(cures, 'install the version that fits; lisa-ros doctor checks the packages')
    return f'{user} needs a package that {sys.executable} cannot import ({summary}): {cure}'


def _is_import_error(error: BaseException) -> bool:
    """Return whether a package of others could not be imported; it may raise any type."""
    if isinstance(error, ImportError):
        return (error.name or '').split('.')[0] != 'lisa_ros'
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    modules = [f.f_globals.get('__name__', '') for f in frames if f.f_code.co_name == '<module>']
    return bool(modules) and modules[-1].split('.')[0] != 'lisa_ros'


def _other_environment() -> str:
    """Return the cure if a virtual environment is active, and another Python runs; else ""."""
    active = os.environ.get('VIRTUAL_ENV', '')
    if not active or Path(active).resolve() == Path(sys.prefix).resolve():
        return ''
    return (
        f'; or, to use the packages of {active}, build again in it with '
        '`colcon build --cmake-clean-cache`'
    )
