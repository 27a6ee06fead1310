# SPDX-License-Identifier: Apache-2.0
"""Choose the next request so that the clients of a camera take turns."""

from __future__ import annotations

from collections.abc import Sequence

from lisa_ros.session.request import Request

_CLIENTS_KEPT = 1000


class ClientTurns:
    """Remembers whose turn it was; for one thread, or under a lock.

    One client with fifty goals delays the goal of another by one answer, not by fifty. A new
    client comes before the one that was served last, but not before clients that have waited
    longer: a client for each goal does not delay a command for ever either.
    """

    def __init__(self) -> None:
        # by name of the client: the turn that it was served in, oldest first
        self._served: dict[str, int] = {}
        self._turn = 0

    def next(self, requests: Sequence[Request]) -> Request:
        """Return the request whose client was served longest ago; of several the first."""
        for request in requests:
            self._served.setdefault(request.client.name, self._turn - 1)
        request = min(requests, key=lambda request: self._served[request.client.name])
        self._turn += 1
        del self._served[request.client.name]
        self._served[request.client.name] = self._turn
        while len(self._served) > _CLIENTS_KEPT:
            del self._served[next(iter(self._served))]
        return request
