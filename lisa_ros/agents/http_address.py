# SPDX-License-Identifier: Apache-2.0
"""The address of the HTTP server: a port of this machine that no other machine reaches."""

from __future__ import annotations

from dataclasses import dataclass

from lisa_ros.error_text import short_repr
from lisa_ros.errors import SettingsError

_LOOPBACK = {'': '127.0.0.1', '127.0.0.1': '127.0.0.1', 'localhost': '127.0.0.1', '[::1]': '::1'}
_LARGEST_PORT = 65535


@dataclass(frozen=True)
class HttpAddress:
    """Where the server listens."""

    host: str  # 127.0.0.1 or ::1
    port: int  # 0: a free one

    @classmethod
    def parse(cls, text: str) -> HttpAddress:
        """Return the address of a text: PORT, or HOST:PORT with a host of loopback.

        Raises:
            SettingsError: it is neither; another interface would let other machines command the
                robot.
        """
        host, _, port = text.rpartition(':')
        if host not in _LOOPBACK:
            raise SettingsError(
                f'--http {short_repr(text)}: only this machine may connect; expected PORT, or '
                '127.0.0.1:PORT or [::1]:PORT. From another machine use an SSH tunnel'
            )
        if not (port.isascii() and port.isdecimal() and int(port) <= _LARGEST_PORT):
            raise SettingsError(
                f'--http {short_repr(text)}: expected a port of 0 to {_LARGEST_PORT}'
            )
        return cls(_LOOPBACK[host], int(port))
