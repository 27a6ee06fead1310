# SPDX-License-Identifier: Apache-2.0
"""What the clients of HTTP servers share: proxies, why there is no connection, new tries.

Any thread.
"""

from __future__ import annotations

import contextlib
import email.utils
import ipaddress
import os
import ssl
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from lisa_ros.error_text import one_line
from lisa_ros.errors import SettingsError

if TYPE_CHECKING:
    import httpx2


def async_client(
    url: httpx2.URL, headers: Mapping[str, str], kept_idle: float
) -> httpx2.AsyncClient:
    """Return a client of one server.

    Proxies are those of HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY, also in lower case. This
    machine has none: a proxy would look for the server on its own.

    Args:
        url: of the server.
        headers: of each request.
        kept_idle: how long an unused connection stays open [s].

    Raises:
        SettingsError: the environment names a proxy or certificates that cannot be used.
    """
    import httpx2  # the server needs this module, and no client

    context = _tls_context(url)
    try:
        return httpx2.AsyncClient(
            headers=headers,
            limits=httpx2.Limits(keepalive_expiry=kept_idle),
            verify=context,
            trust_env=not is_loopback(url.host),
        )
    except ImportError:
        reason = 'SOCKS needs the package socksio: pip install socksio'
    except (ValueError, httpx2.InvalidURL):  # the message may quote a password in the address
        reason = 'it is not an address of http://, https:// or socks5://'
    raise SettingsError(
        f'the proxy for {url.host} cannot be used ({reason}); correct HTTP_PROXY, HTTPS_PROXY or '
        'ALL_PROXY in the environment, to an address such as http://proxy:3128'
    )


def _tls_context(url: httpx2.URL) -> ssl.SSLContext:
    """Return the trusted certificates: of SSL_CERT_FILE or SSL_CERT_DIR, else of the system."""
    import httpx2

    try:
        return httpx2.create_ssl_context()
    except OSError as error:
        if url.scheme != 'https':  # only a proxy may need them
            return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        raise SettingsError(
            f'the certificates for {url.host} cannot be read ({one_line(error)}) {_origin()}'
        ) from None


def _origin() -> str:
    """Return where certificates come from, with the cure."""
    for name in ('SSL_CERT_FILE', 'SSL_CERT_DIR'):  # the first one alone counts
        if value := os.environ.get(name):
            return f'from {name}={value}; correct it in the environment, or remove it'
    return 'from the system; install ca-certificates again'


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
