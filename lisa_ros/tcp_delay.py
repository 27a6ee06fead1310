# SPDX-License-Identifier: Apache-2.0
"""Let a server send the parts of a response at once.

The system keeps a small packet back until the one before it is acknowledged, which takes up to
40 ms (Nagle's algorithm and delayed acknowledgements, RFC 896 and RFC 1122). asyncio switches that
off for connections of listeners that say their protocol; those of the standard library do not.
"""

from __future__ import annotations

import socket


def send_at_once(listener: socket.socket) -> None:
    """Switch the delay off for the connections of a TCP listener; they inherit its options."""
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
