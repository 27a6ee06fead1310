# SPDX-License-Identifier: Apache-2.0
"""Choose the next request so that the clients of a camera take turns."""

from __future__ import annotations

from collections.abc import Sequence

from lisa_ros.session.request import Request

_CLIENTS_KEPT = 1000


class ClientTurns:
    """Remembers whose turn it was; for one thread, or under a lock.

    One client with fifty goals delays the goal of another by one answer, not by fifty.
    """

    def __init__(self) -> None:
        self._served: dict[
            str, int
        ] = {}  # by client: the turn that it was served in, oldest first
        self._turn = 0

    def next(self, requests: Sequence[Request]) -> Request:
        """Return the request whose client was served longest ago; of several the first."""
        request = min(requests, key=lambda request: self._served.get(request.client, 0))
        self._turn += 1
        self._served.pop(request.client, None)
        self._served[request.client] = self._turn
        if len(self._served) > _CLIENTS_KEPT:
            del self._served[next(iter(self._served))]
        return request
