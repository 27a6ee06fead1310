# SPDX-License-Identifier: Apache-2.0
"""What the clients of HTTP servers share: why there is no connection, and when to try again.

Any thread.
"""

from __future__ import annotations

import contextlib
import email.utils
import ipaddress
import os
import ssl
import time

from lisa_ros.error_text import one_line


def tls_fault(error: BaseException) -> str | None:
    """Return why TLS failed, to follow the name of a server; None: it did not."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return (
                f'has a certificate that is not trusted ({one_line(cause.verify_message)}): add '
                'that of its issuer to the system, or name a file with it in the environment '
                'variable SSL_CERT_FILE'
            )
        if isinstance(cause, ssl.SSLError):
            return f'does not speak TLS ({one_line(cause)})'
    return None


def connection_fault(error: BaseException) -> str:
    """Return why there is no connection, as the operating system says it."""
    causes = _causes(error)
    numbers = [c.errno for c in causes if isinstance(c, OSError) and (c.errno or 0) > 0]
    return os.strerror(numbers[0]) if numbers else one_line(causes[-1])


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == 'localhost'


def retry_after(value: str, date: str = '') -> float | None:
    """Return the time that a Retry-After header asks for [s], at least 0; None: it has none.

    Args:
        value: of the header.
        date: of the header Date: what the server's clock says, which may be wrong.
    """
    seconds = value.strip()
    if seconds.isascii() and seconds.isdecimal():
        return float(seconds)
    end, now = _timestamp(value), _timestamp(date)
    return None if end is None else max(0.0, end - (time.time() if now is None else now))


def _timestamp(date: str) -> float | None:
    """Return the time of an HTTP date [s]; None: it is none."""
    try:
        return email.utils.parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None


def _causes(error: BaseException) -> list[BaseException]:
    """Return an error, and what it was raised from."""
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    return causes
