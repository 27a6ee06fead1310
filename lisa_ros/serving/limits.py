# SPDX-License-Identifier: Apache-2.0
"""The bounds of the HTTP server against large, slow and many requests."""

from __future__ import annotations

from dataclasses import dataclass, field

from lisa_ros.serving.query_reading import QueryLimits


@dataclass(frozen=True)
class ServerLimits:
    """What one client, and all of them together, may use."""

    query: QueryLimits = field(default_factory=QueryLimits)
    body_bytes: int = 32 << 20  # of one request
    waiting_bytes: int = 512 << 20  # of the bodies that are uploaded or answered at a time
    image_pixels: int = 25_000_000
    connections: int = 1000
    header_seconds: float = 10.0  # for the head of a request
    upload_seconds: float = 30.0  # for its body
    send_seconds: float = 30.0  # in which a client must read 64 KiB of an answer, or the rest
    default_deadline: float = 30.0  # of a query without one [s]
