# SPDX-License-Identifier: Apache-2.0
"""Which replica gets a request: that of its stream, or the one with the fewest requests.

Ray's own router hashes the number of a request that has no stream: of ten such requests, one of
two idle replicas may get nine. Ray imports this module where the requests come from.
"""

from __future__ import annotations

from ray.serve._private.request_router.common import PendingRequest
from ray.serve._private.request_router.replica_wrapper import RunningReplica
from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter


class StreamRouter(ConsistentHashRouter):
    """Consistent hashing of streams; other requests go where the queue is shortest."""

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Return replicas in ranks; of a rank, Ray takes the one with the fewest requests.

        Args:
            candidate_replicas: that run.
            pending_request: its session is the stream; None: any request.
        """
        # it also makes Ray wait between its tries to find a replica
        ranks = await super().choose_replicas(candidate_replicas, pending_request)
        if pending_request is None or pending_request.metadata.session_id:
            return ranks
        return [list(candidate_replicas)] if candidate_replicas else []
