# SPDX-License-Identifier: Apache-2.0
"""How to install the packages that only some commands need.

They are listed in config/requirements, a file for each purpose. In a ROS workspace the files are
in share/lisa_ros, and `pip install 'lisa_ros[voice]'` would have no effect there.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from lisa_ros.errors import SettingsError
from lisa_ros.resources import SOURCE_ROOT

_FOLDER = Path('config', 'requirements')
# modules of config/requirements/local.txt: a model on this machine needs them
_LOCAL = (
    *('huggingface_hub', 'safetensors', 'sentencepiece', 'tokenizers', 'torch', 'transformers'),
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
    """Name the cure if an import fails because PyTorch or what belongs to it is not installed.

    Args:
        user: what needs them, such as "model 'lisa-tabletop'".

    Raises:
        SettingsError: a package of config/requirements/local.txt is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        name = (error.name or '').split('.')[0]
        if name not in _LOCAL:
            raise
        raise SettingsError(
            f'{user} needs {name}, which is not installed: {install_command("local")}; or use a '
            'model on a server, model http://SERVER:8000'
        ) from error
