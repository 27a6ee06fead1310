# SPDX-License-Identifier: Apache-2.0
"""How the HTTP server uses the models: the `Models` protocol."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from lisa_ros.serving.replies import Answer, ModelRequest


@dataclass(frozen=True)
class ModelsState:
    """The replicas of the served model at one moment."""

    replicas: int  # that answer
    wanted: int  # replicas that should answer
    in_flight: int  # requests that have no answer yet
    capacity: int  # requests that may be in flight
    lost: int  # requests so far whose replica ended
    # of GET /v1/models: name, version, precision, device and capabilities; None: not loaded yet
    description: dict[str, object] | None = None

    @property
    def is_ready(self) -> bool:
        """Whether a request would be answered."""
        return self.replicas > 0 and self.description is not None


class Models(Protocol):
    """The replicas of a model; all methods run in one asyncio loop."""

    @property
    def state(self) -> ModelsState:
        """The replicas at this moment."""

    async def answer(self, request: ModelRequest) -> Answer:
        """Return the answer of one replica; cancelling the call gives its place free.

        Raises:
            ProblemError: there is no answer, and why.
        """

    def stream(self, request: ModelRequest) -> AsyncIterator[bytes | Answer]:
        """Yield server-sent events, then the answer, as `answer`; close it to give it up."""
