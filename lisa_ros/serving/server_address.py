# SPDX-License-Identifier: Apache-2.0
"""The address of a server of models, and the token for it. Any thread."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from lisa_ros.error_text import one_line
from lisa_ros.errors import DataError, SettingsError
from lisa_ros.files.text import read_text
from lisa_ros.perception.backend import LoadOptions
from lisa_ros.vlm.remote_vlm import read_key


@dataclass(frozen=True)
class ServerAddress:
    """Where a server is, and how it is spoken to."""

    url: str  # "http://host:8000" or "https://host/path", without the part "/v1/..."
    token: str = field(default='', repr=False)  # sent as bearer token; '': none


def parsed_url(url: str) -> httpx2.URL:
    """Return the address of a server, without a slash at its end.

    Raises:
        SettingsError: it is no such address, or contains a password, a query or a fragment.
    """
    example = 'expected an address such as http://gpu-server:8000'
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise SettingsError(
            f'the address of the server cannot be read ({one_line(error)}); {example}'
        ) from None
    if parsed.userinfo or parsed.query or parsed.fragment:
        raise SettingsError(
            'the address of the server has a user, a password, a query or a fragment, which would '
            f'be logged; {example}, and a token in a file or an environment variable'
        )
    if parsed.scheme not in ('http', 'https') or not parsed.host:
        raise SettingsError(f'the address of the server is {one_line(url)!r}; {example}')
    return parsed.copy_with(path=parsed.path.rstrip('/') or '/')


def read_token(options: LoadOptions) -> str:
    """Return the bearer token that the options name; '': none.

    Raises:
        SettingsError: both are named, or what is named has no token.
    """
    if options.api_key_env and options.api_key_file:
        raise SettingsError('api_key_env and api_key_file are both set: expected one of them')
    if not options.api_key_file:
        return read_key(options.api_key_env)
    try:
        token = read_text(Path(options.api_key_file)).strip()
    except DataError as error:
        raise SettingsError(f'api_key_file {error}') from error
    if not token or not token.isascii() or not token.isprintable() or ' ' in token:
        raise SettingsError(
            f'api_key_file {options.api_key_file} has no token; expected one line with the '
            'token alone, of visible ASCII characters without spaces'
        )
    return token
