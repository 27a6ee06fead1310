# SPDX-License-Identifier: Apache-2.0
"""What GET /metrics shows, for Prometheus. Any thread."""

from __future__ import annotations

import contextlib

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from lisa_ros.serving.models import ModelsState
from lisa_ros.serving.replies import ReplyFigures

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)


class ServerMetrics:
    """The metrics of one server."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            'lisa_requests', 'requests of /v1/segment, by result', ['result'], registry=registry
        )
        self._seconds = Histogram(
            'lisa_request_seconds',
            'arrival to answer, of requests that got one',
            buckets=_SECONDS,
            registry=registry,
        )
        self._stages = Histogram(
            'lisa_stage_seconds',
            'time of an answer, by stage',
            ['stage'],
            buckets=_SECONDS,
            registry=registry,
        )
        self._batches = Histogram(
            'lisa_batch_size',
            'requests of the batch of an answer',
            buckets=_SIZES,
            registry=registry,
        )
        self._waiting = Gauge(
            'lisa_queue_length', 'requests in the queue of the last replica', registry=registry
        )
        self._gpu = Gauge(
            'lisa_gpu_memory_bytes', 'memory of PyTorch', ['replica', 'kind'], registry=registry
        )
        self._limit = Gauge(
            'lisa_batch_limit',
            'requests that a batch may have: --max-batch, or 1 if the model answers no batches; '
            'less after the memory was not enough',
            ['replica'],
            registry=registry,
        )
        self._replicas = Gauge('lisa_replicas', 'replicas that answer', registry=registry)
        self._in_flight = Gauge('lisa_requests_in_flight', 'without answer', registry=registry)
        self._lost = Counter(
            'lisa_requests_replica_lost', 'requests whose replica ended', registry=registry
        )
        self._counted_lost = 0
        self._replica_ids: list[str] = []  # of the last ones that answered

    def count(self, result: str) -> None:
        """Count a request.

        Args:
            result: a status of `results.Status`, the name of a problem, or "client_left".
        """
        self._requests.labels(result).inc()

    def observe(self, figures: ReplyFigures, seconds: float) -> None:
        """Add the figures of an answer, and the time since its request arrived [s]."""
        self._seconds.observe(seconds)
        self._batches.observe(figures.batch_size)
        self._waiting.set(figures.waiting)
        for stage, seconds in figures.seconds.items():
            self._stages.labels(stage).observe(seconds)
        if figures.replica:
            self._observe_replica(figures)

    def text(self, state: ModelsState) -> bytes:
        """Return all metrics."""
        self._replicas.set(state.replicas)
        self._in_flight.set(state.in_flight)
        self._lost.inc(state.lost - self._counted_lost)
        self._counted_lost = state.lost
        return generate_latest(self._registry)

    def _observe_replica(self, figures: ReplyFigures) -> None:
        """Set the state of a replica; those that have ended are dropped in time."""
        if figures.replica not in self._replica_ids:
            self._replica_ids.append(figures.replica)
            if len(self._replica_ids) > 64:
                self._drop(self._replica_ids.pop(0))
        name, memory = figures.replica, figures.gpu_memory
        self._limit.labels(name).set(figures.largest_batch)
        if memory is not None:
            self._gpu.labels(name, 'allocated').set(memory.allocated)
            self._gpu.labels(name, 'reserved').set(memory.reserved)

    def _drop(self, name: str) -> None:
        self._limit.remove(name)
        for kind in ('allocated', 'reserved'):
            with contextlib.suppress(KeyError):  # it has no GPU
                self._gpu.remove(name, kind)
