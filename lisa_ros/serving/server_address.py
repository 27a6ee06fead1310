# SPDX-License-Identifier: Apache-2.0
"""The address of a server of models, with the token for it. Any thread."""

from __future__ import annotations

from dataclasses import dataclass, field

import httpx2

from lisa_ros.error_text import one_line
from lisa_ros.errors import SettingsError


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
