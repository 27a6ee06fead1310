# SPDX-License-Identifier: Apache-2.0
"""Read the key for a server, from an environment variable or a file. Any thread."""

from __future__ import annotations

import os
from pathlib import Path

from lisa_ros.errors import DataError, SettingsError
from lisa_ros.files.text import read_text


def read_api_key(api_key_env: str | None, api_key_file: str | Path | None) -> str:
    """Return the key that the settings name; '' if they name none. It is in no error.

    Args:
        api_key_env: name of the environment variable with the key; None or '': none.
        api_key_file: file with the key on one line; None or '': none.

    Raises:
        SettingsError: both are named, or what is named has no key.
    """
    if api_key_env and api_key_file:
        raise SettingsError('api_key_env and api_key_file are both set: expected one of them')
    return _file_key(Path(api_key_file)) if api_key_file else _variable_key(api_key_env)


def _variable_key(name: str | None) -> str:
    if not name:
        return ''
    key = os.environ.get(name, '').strip()
    if not key:
        raise SettingsError(  # without the value: it may be the key itself
            'api_key_env is not the name of an environment variable that is set where the model '
            'is loaded: export it there, and give its name, not the key'
        )
    if not _may_be_key(key):
        raise SettingsError(
            'the environment variable that api_key_env names has spaces or characters that no key '
            'has: set it again'
        )
    return key


def _file_key(path: Path) -> str:
    try:
        key = read_text(path).strip()
    except DataError as error:
        raise SettingsError(f'api_key_file {error}') from error
    if not _may_be_key(key):
        raise SettingsError(
            f'api_key_file {path} has no token; expected one line with the token alone, of '
            'visible ASCII characters without spaces'
        )
    return key


def _may_be_key(key: str) -> bool:
    return bool(key) and key.isascii() and key.isprintable() and ' ' not in key
