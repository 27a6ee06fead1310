# SPDX-License-Identifier: Apache-2.0
"""The replicas of a model on Ray Serve: deployment, routing, retries and updates of the weights.

Serve starts replicas, watches them and replaces those that end. Requests of a stream go to the
same replica, whose caches know its images and prompts (consistent hashing); if it ends, another
one answers. `start`, `update` and `close` block and belong in a thread; the other methods run in
one asyncio loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import math
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, NoReturn

from lisa_ros.errors import SettingsError
from lisa_ros.ray_environment import delete_cluster_folders, exit_with_own_cluster
from lisa_ros.serving.batch_queue import deadline_error
from lisa_ros.serving.model_server import ReplicaPlan
from lisa_ros.serving.models import ModelsState
from lisa_ros.serving.problems import Problem, ProblemError
from lisa_ros.serving.ray_cluster import (
    DEPLOYMENT,
    PoolPlan,
    application,
    call_errors,
    check_loads,
    connect,
    import_ray,
    problem_of,
    spare_place,
    start_failure,
)
from lisa_ros.serving.replies import Answer, ModelRequest, Refusal
from lisa_ros.serving.retries import Tries, unsent_events
from lisa_ros.serving.wire_format import Served

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

_log = logging.getLogger(__name__)
_POLL = 0.5  # between two looks at the replicas [s]
_SEEN_FOR = 10.0  # replicas that were seen longer ago count as lost, until one answers [s]


class RayModels:
    """The replicas of one model, as `Models`."""

    def __init__(self, plan: PoolPlan):
        self._plan = plan
        self._handle: DeploymentHandle | None = None
        self._description: dict[str, object] | None = None
        self._served: Served | None = None
        self._running = self._wanted = 0
        self._seen_at = -math.inf  # [s, monotonic]
        self._in_flight = self._lost = 0
        self._has_ended = threading.Event()
        self._watcher: threading.Thread | None = None

    # ---- life; these methods block

    def start(self) -> None:
        """Connect to Ray, start the replicas and wait until one is ready.

        Raises:
            SettingsError: Ray Serve is not installed, the cluster cannot be reached, or the
                replicas cannot load the model.
        """
        connect(self._plan)
        self._deploy(self._plan, surge=0)
        self._watcher = threading.Thread(target=self._watch, name='replicas', daemon=True)
        self._watcher.start()

    def update(self, replica: ReplicaPlan) -> None:
        """Replace the replicas by those of another plan, one after the other, while they answer.

        If there is room for another replica, the model is loaded on trial first, and then each new
        replica is ready before an old one ends.

        Raises:
            SettingsError: the model cannot be loaded. With room, the old replicas go on. Without,
                those that were stopped start again.
        """
        before = self._plan
        plan = dataclasses.replace(before, replica=replica)
        with spare_place(plan) as place:
            if place is not None:
                check_loads(plan, place)
        surge = int(place is not None)
        try:
            self._deploy(plan, surge)
        except SettingsError as error:
            _log.error('%s; the earlier weights are loaded again', error)
            try:
                self._deploy(before, surge)
            except SettingsError as second:
                raise SettingsError(f'{error}; and now {second}') from error
            raise

    def close(self) -> None:
        """Stop the replicas, and the cluster if it is our own."""
        self._has_ended.set()
        ray, serve = import_ray()
        if not ray.is_initialized():
            return
        if self._plan.address is not None:
            with contextlib.suppress(Exception):  # a cluster that has ended needs no clean-up
                serve.delete(self._plan.app)
        ray.shutdown()  # and with it the cluster, if it is our own
        delete_cluster_folders()

    def exit_while_deploying(self) -> NoReturn:
        """End this process while another thread is in `start` or `update`, and what they started.

        That thread cannot be stopped: once Ray is shut down, its next call starts a new cluster.
        """
        self._has_ended.set()
        if self._plan.address is None:
            exit_with_own_cluster()
        ray, serve = import_ray()
        with contextlib.suppress(Exception):  # a cluster that has ended needs no clean-up
            if ray.is_initialized():
                serve.delete(self._plan.app)
        os._exit(0)

    def _deploy(self, plan: PoolPlan, surge: int) -> None:
        """Deploy the replicas of a plan and wait until the application runs.

        Raises:
            SettingsError: they cannot start; until another deployment, no replica may answer.
        """
        _, serve = import_ray()
        self._served = None
        try:
            handle = serve.run(application(plan, surge), name=plan.app, route_prefix=None)
            description = handle.describe.remote().result(timeout_s=60)
        except Exception as error:  # Ray wraps what the replica raised
            raise SettingsError(
                f'the replicas of {plan.replica.model} cannot start: {start_failure(error, plan)}'
            ) from error
        self._plan = plan
        self._served = served = plan.replica.served
        self._description = {'name': served.model, 'version': served.version, **description}
        self._handle = handle
        self._look()

    def _watch(self) -> None:
        """Count the replicas until the end."""
        while not self._has_ended.wait(_POLL):
            with contextlib.suppress(Exception):  # at the end the controller is gone
                self._look()

    def _look(self) -> None:
        _, serve = import_ray()
        application = serve.status().applications.get(self._plan.app)
        deployment = application.deployments.get(DEPLOYMENT) if application else None
        states = deployment.replica_states if deployment else {}
        counts = {str(getattr(state, 'value', state)): count for state, count in states.items()}
        running, before = counts.get('RUNNING', 0), self._running
        self._running, self._seen_at = running, time.monotonic()
        self._wanted = sum(counts.values()) - counts.get('STOPPING', 0)
        if running != before:
            _log.info('%d of %d replicas answer', running, self._wanted)

    # ---- requests; these methods run in the loop of the HTTP server

    @property
    def served(self) -> Served | None:
        """The model of the replicas; None: those that were deployed last could not start."""
        return self._served

    @property
    def state(self) -> ModelsState:
        """The replicas, as they were seen last.

        Ray's calls wait for a head that is lost, and its processes end a minute later.
        """
        batches = self._plan.replica.batches
        is_seen = time.monotonic() - self._seen_at < _SEEN_FOR
        return ModelsState(
            replicas=self._running if is_seen else 0,
            wanted=self._wanted,
            in_flight=self._in_flight,
            capacity=max(1, self._running) * (batches.places + batches.largest),
            lost=self._lost,
            description=self._description,
        )

    async def answer(self, request: ModelRequest) -> Answer:
        """Return the answer of a replica; if it ends before, that of another one."""
        with self._admitted(request):
            tries = Tries(request)
            while True:
                try:
                    return await self._ask(tries.request, tries.end)
                except (ProblemError, *call_errors()) as error:  # noqa: PERF203  # loop of tries
                    await self._after(error, tries)

    async def stream(self, request: ModelRequest) -> AsyncIterator[bytes | Answer]:
        """Yield the events of a replica; if it ends, the rest of another one's."""
        sent: list[bytes] = []
        with self._admitted(request):
            tries = Tries(request)
            while True:
                try:
                    events = self._listen(tries.request, tries.end)
                    async with contextlib.aclosing(events):
                        async for event in unsent_events(events, sent):
                            yield event
                    return
                except (ProblemError, *call_errors()) as error:  # noqa: PERF203  # loop of tries
                    await self._after(error, tries)

    async def _after(self, error: Exception, tries: Tries) -> None:
        """Wait before the next try of a request.

        Raises:
            ProblemError: there is none.
        """
        problem = error if isinstance(error, ProblemError) else problem_of(error)
        if problem is None:
            self._lost += 1
            await tries.after_loss(error)
        elif problem is error:
            await tries.after_refusal(problem, self._running)
        else:
            if problem.problem is Problem.INTERNAL:
                _log.error('a replica has met a bug', exc_info=error)
            raise problem from error

    @contextlib.contextmanager
    def _admitted(self, request: ModelRequest) -> Iterator[None]:
        """Count a request.

        Raises:
            ProblemError: NOT_READY, or OVERLOADED: at once, without asking a replica.
        """
        state = self.state
        if self._handle is None or state.description is None:
            raise ProblemError(
                Problem.NOT_READY, 'the model is being loaded; try again when /readyz says so', 5.0
            )
        # a newer request of a stream may replace one that waits
        if state.in_flight >= state.capacity + (len(request.stream) > 0):
            raise ProblemError(
                Problem.OVERLOADED,
                f'{state.in_flight} requests wait or are being answered; expected at most '
                f'{state.capacity}: send again later, or send fewer',
                1.0,
            )
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    async def _ask(self, request: ModelRequest, end: float) -> Answer:
        """Return the answer of one replica."""
        assert self._handle is not None  # noqa: S101  # `_admitted` has checked it
        response = self._handle.options(session_id=request.stream).answer.remote(request)
        try:
            reply = await asyncio.wait_for(response, end - time.monotonic())
        except asyncio.TimeoutError as error:
            response.cancel()
            raise deadline_error(request.seconds) from error
        except asyncio.CancelledError:
            response.cancel()
            raise
        self._seen_at = time.monotonic()
        if isinstance(reply, Refusal):
            raise reply.error()
        return reply

    async def _listen(self, request: ModelRequest, end: float) -> AsyncIterator[bytes | Answer]:
        """Yield the events of one replica."""
        assert self._handle is not None  # noqa: S101  # `_admitted` has checked it
        handle = self._handle.options(session_id=request.stream, stream=True)
        response = handle.stream.remote(request)
        try:
            while True:
                event = await asyncio.wait_for(anext(response), end - time.monotonic())
                self._seen_at = time.monotonic()
                if isinstance(event, Refusal):
                    raise event.error()
                yield event
        except StopAsyncIteration:
            return
        except asyncio.TimeoutError as error:
            raise deadline_error(request.seconds) from error
        finally:
            response.cancel()
