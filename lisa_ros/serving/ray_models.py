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
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

from lisa_ros.error_text import one_line
from lisa_ros.errors import SettingsError
from lisa_ros.optional_packages import install_command
from lisa_ros.ray_environment import OWN_CLUSTER_ADDRESS, prepare_ray
from lisa_ros.serving.batch_queue import deadline_error
from lisa_ros.serving.model_server import ModelServer, ReplicaPlan
from lisa_ros.serving.models import ModelsState
from lisa_ros.serving.problems import Problem, ProblemError
from lisa_ros.serving.replies import Answer, ModelRequest, Refusal

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

_log = logging.getLogger(__name__)
_DEPLOYMENT = 'ModelServer'
_TRIES = 3  # replicas that may end under one request
_PAUSE = 0.02  # between two tries [s]
_POLL = 0.5  # between two looks at the replicas [s]
_DRAIN = 300.0  # how long a replica that is replaced may finish its requests [s]
_SLACK = 8  # requests beyond the queue and the batch that a replica takes, to refuse them itself
_OBJECT_STORE = 512 << 20  # shared memory of a cluster of our own [bytes]
_MAX_REPLICAS_OF_CPU = 4  # with --replicas auto, without a GPU


@dataclass(frozen=True)
class PoolPlan:
    """A model and its replicas."""

    replica: ReplicaPlan
    replicas: int | None = 1  # None: as many as the queue needs, within the GPUs
    gpus: float = 1.0  # of a replica, if the cluster has any; a fraction shares a GPU
    address: str | None = None  # of a Ray cluster; None: one of our own on this machine
    app: str = 'lisa-ros'  # name of the Serve application


class RayModels:
    """The replicas of one model, as `Models`."""

    def __init__(self, plan: PoolPlan):
        self._plan = plan
        self._handle: DeploymentHandle | None = None
        self._description: dict[str, object] | None = None
        self._running = self._wanted = 0
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
        _connect(self._plan)
        self._deploy(self._plan, surge=0)
        self._watcher = threading.Thread(target=self._watch, name='replicas', daemon=True)
        self._watcher.start()

    def update(self, replica: ReplicaPlan) -> None:
        """Replace the replicas by those of another plan, one after the other, while they answer.

        If there is room for another replica, a new one is ready before an old one ends.

        Raises:
            SettingsError: the new replicas cannot load the model; the old ones go on.
        """
        old, new = self._plan, dataclasses.replace(self._plan, replica=replica)
        try:
            self._deploy(new, surge=1 if _has_room(new) else 0)
        except SettingsError:
            with contextlib.suppress(SettingsError):
                self._deploy(old, surge=0)
            raise
        self._plan = new

    def close(self) -> None:
        """Stop the replicas, and the cluster if it is our own."""
        self._has_ended.set()
        ray, serve = _ray()
        if not ray.is_initialized():
            return
        with contextlib.suppress(Exception):  # a cluster that has ended needs no clean-up
            serve.delete(self._plan.app, _blocking=self._plan.address is not None)
            if self._plan.address is None:
                serve.shutdown()
        ray.shutdown()

    def _deploy(self, plan: PoolPlan, surge: int) -> None:
        """Deploy the replicas of a plan and wait until the application runs."""
        _, serve = _ray()
        try:
            handle = serve.run(_application(plan, surge), name=plan.app, route_prefix=None)
            description = handle.describe.remote().result(timeout_s=60)
        except Exception as error:  # Ray wraps what the replica raised
            raise SettingsError(
                f'the replicas of {plan.replica.model} cannot start: {_cause(error, plan)}'
            ) from error
        served = plan.replica.served
        self._description = {'name': served.model, 'version': served.version, **description}
        self._handle = handle
        self._look()

    def _watch(self) -> None:
        """Count the replicas until the end."""
        while not self._has_ended.wait(_POLL):
            with contextlib.suppress(Exception):  # at the end the controller is gone
                self._look()

    def _look(self) -> None:
        _, serve = _ray()
        application = serve.status().applications.get(self._plan.app)
        deployment = application.deployments.get(_DEPLOYMENT) if application else None
        states = deployment.replica_states if deployment else {}
        counts = {str(getattr(state, 'value', state)): count for state, count in states.items()}
        running, before = counts.get('RUNNING', 0), self._running
        self._running = running
        self._wanted = sum(counts.values()) - counts.get('STOPPING', 0)
        if running != before:
            _log.info('%d of %d replicas answer', running, self._wanted)

    # ---- requests; these methods run in the loop of the HTTP server

    @property
    def state(self) -> ModelsState:
        """The replicas, as they were seen last."""
        batches = self._plan.replica.batches
        return ModelsState(
            replicas=self._running,
            wanted=self._wanted,
            in_flight=self._in_flight,
            capacity=max(1, self._running) * (batches.places + batches.largest),
            lost=self._lost,
            description=self._description,
        )

    async def answer(self, request: ModelRequest) -> Answer:
        """Return the answer of a replica; if it ends before, that of another one."""
        with self._admitted(request):
            tries = _Tries(request)
            while True:
                try:
                    return await self._ask(tries.request, tries.end)
                except ProblemError as error:
                    await tries.after_refusal(error, self._running)
                except _replica_errors() as error:
                    self._lost += 1
                    await tries.after_loss(error)

    async def stream(self, request: ModelRequest) -> AsyncIterator[bytes | Answer]:
        """Yield the events of a replica; if it ends, the rest of another one's."""
        sent: list[bytes] = []
        with self._admitted(request):
            tries = _Tries(request)
            while True:
                try:
                    events = self._listen(tries.request, tries.end)
                    async with contextlib.aclosing(events):
                        async for event in _unsent(events, sent):
                            yield event
                    return
                except ProblemError as error:
                    await tries.after_refusal(error, self._running)
                except _replica_errors() as error:
                    self._lost += 1
                    await tries.after_loss(error)

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
                if isinstance(event, Refusal):
                    raise event.error()
                yield event
        except StopAsyncIteration:
            return
        except asyncio.TimeoutError as error:
            raise deadline_error(request.seconds) from error
        finally:
            response.cancel()


class _Tries:
    """The replicas that one request has been sent to, and what it is sent as next."""

    def __init__(self, request: ModelRequest):
        self.end = time.monotonic() + request.seconds
        self._request = request
        self._losses = self._refusals = 0

    @property
    def request(self) -> ModelRequest:
        """The request for the next replica: with the time that is left.

        After a loss it is in a batch of its own; after a refusal it goes to any replica.
        """
        if not self._losses and not self._refusals:
            return self._request
        return dataclasses.replace(
            self._request,
            alone=self._losses > 0,
            stream='' if self._refusals else self._request.stream,
            seconds=max(0.0, self.end - time.monotonic()),
        )

    async def after_loss(self, error: Exception) -> None:
        """Wait a little before the next try.

        Raises:
            ProblemError: too many replicas ended, or the deadline has passed.
        """
        self._losses += 1
        _log.warning('a replica ended while it answered (%s)', type(error).__name__)
        if self._losses == _TRIES:
            raise _lost_error() from error
        await self._pause(error)

    async def after_refusal(self, error: ProblemError, replicas: int) -> None:
        """Wait a little if another try makes sense, else raise the error.

        A full replica is not the only one, and a request that a lost replica had accepted waits
        until the deadline.
        """
        self._refusals += 1
        is_full = error.problem is Problem.OVERLOADED
        if not is_full or not (self._losses or self._refusals < replicas):
            raise error
        await self._pause(error)

    async def _pause(self, error: Exception) -> None:
        if time.monotonic() + _PAUSE > self.end:
            raise deadline_error(self._request.seconds) from error
        await asyncio.sleep(_PAUSE)


async def _unsent(
    events: AsyncIterator[bytes | Answer], sent: list[bytes]
) -> AsyncIterator[bytes | Answer]:
    """Yield the events behind those that the client has, and note them in `sent`.

    Raises:
        ProblemError: REPLICA_LOST: they begin otherwise, so that the client cannot go on.
    """
    known = len(sent)
    index = 0
    async for event in events:
        if isinstance(event, bytes):
            if index < known:
                if event != sent[index]:
                    raise _lost_error()
                index += 1
                continue
            sent.append(event)
            index += 1
        yield event


def _lost_error() -> ProblemError:
    return ProblemError(
        Problem.REPLICA_LOST,
        'the process of the model ended while it answered, and so did those that tried again: '
        'send another image or command, or look into the log of the server',
        1.0,
    )


# ---- Ray


def _ray() -> tuple[ModuleType, ModuleType]:
    """Import Ray and Ray Serve.

    Raises:
        SettingsError: they are not installed.
    """
    try:
        import ray
        from ray import serve
    except ImportError as error:
        raise SettingsError(
            f'lisa-ros serve needs Ray Serve ({error}): {install_command("serve")}'
        ) from error
    return ray, serve


def _replica_errors() -> tuple[type[Exception], ...]:
    """Return what is raised when a replica ends, or its node is lost."""
    ray, _ = _ray()
    return (ray.exceptions.RayError,)


def _connect(plan: PoolPlan) -> None:
    """Connect to the cluster, or start one that only this machine reaches.

    Raises:
        SettingsError: the cluster cannot be reached.
    """
    prepare_ray(plan.address)
    ray, serve = _ray()
    logging.getLogger('ray.serve').setLevel(logging.ERROR)  # this process logs what matters
    quiet = {'log_to_driver': False, 'logging_level': 'error'}
    try:
        if plan.address:
            host, _, port = plan.address.rpartition(':')
            if host and port.isdigit():  # Ray itself would retry for ten minutes
                socket.create_connection((host, int(port)), timeout=5).close()
            ray.init(address=plan.address, **quiet)
        else:
            ray.init(
                address='local',
                include_dashboard=False,
                _node_ip_address=OWN_CLUSTER_ADDRESS,
                num_cpus=max(os.cpu_count() or 1, 4 * (plan.replicas or _MAX_REPLICAS_OF_CPU)),
                object_store_memory=_OBJECT_STORE,
                **quiet,
            )
        serve.start(proxy_location='Disabled')
    except (ray.exceptions.RayError, OSError, RuntimeError) as error:
        address = plan.address or 'a cluster of its own'
        raise SettingsError(
            f'Ray at {address} cannot be reached or started ({one_line(error)}); check --ray, or '
            'leave it out'
        ) from error


def _gpus(plan: PoolPlan) -> float:
    """Return the share of a GPU that a replica takes; 0: it uses the CPU."""
    ray, _ = _ray()
    device = str(plan.replica.load_options.device or 'auto')
    has_gpu = ray.cluster_resources().get('GPU', 0) > 0
    return plan.gpus if has_gpu and device.startswith(('auto', 'cuda')) else 0.0


def _has_room(plan: PoolPlan) -> bool:
    """Return whether the cluster has room for another replica."""
    ray, _ = _ray()
    free = ray.available_resources()
    return free.get('CPU', 0) >= 1 and free.get('GPU', 0) >= _gpus(plan)


def _application(plan: PoolPlan, surge: int):  # a type of Ray
    """Return the Serve application of a plan.

    Args:
        plan: of the replicas.
        surge: whether a new replica is ready before an old one ends: 1, or 0.
    """
    ray, serve = _ray()
    gpus = _gpus(plan)
    replica = plan.replica
    if not gpus and replica.load_options.threads is None:
        threads = max(1, (os.cpu_count() or 1) // (plan.replicas or 1))
        load_options = dataclasses.replace(replica.load_options, threads=threads)
        replica = dataclasses.replace(replica, load_options=load_options)
    places = replica.batches.places + replica.batches.largest
    count: dict[str, object] = {'num_replicas': plan.replicas}
    if plan.replicas is None:
        total = ray.cluster_resources().get('GPU', 0)
        largest = int(total / gpus) if gpus else min(_MAX_REPLICAS_OF_CPU, os.cpu_count() or 1)
        count = {
            'autoscaling_config': {
                'min_replicas': 1,
                'max_replicas': max(1, largest),
                'target_ongoing_requests': replica.batches.largest,
                'upscale_delay_s': 5,
                'downscale_delay_s': 120,
            }
        }
    deployment = serve.deployment(
        ModelServer,
        name=_DEPLOYMENT,
        max_ongoing_requests=places + _SLACK,
        ray_actor_options={'num_cpus': 1, 'num_gpus': gpus},
        health_check_period_s=1,
        health_check_timeout_s=30,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=_DRAIN,
        max_constructor_retry_count=1,
        max_surge_percent=surge,
        request_router_config={
            'request_router_class': 'ray.serve.experimental.consistent_hash_router:'
            'ConsistentHashRouter'
        },
        logging_config={'log_level': 'WARNING', 'enable_access_log': False},
        **count,
    )
    return deployment.bind(replica)


def _cause(error: Exception, plan: PoolPlan) -> str:
    """Return why an application does not run, on one line."""
    _, serve = _ray()
    with contextlib.suppress(Exception):
        application = serve.status().applications[plan.app]
        message = application.deployments[_DEPLOYMENT].message or application.message
        lines = [line.strip() for line in message.splitlines() if line.strip()]
        causes = [line for line in lines if 'Error: ' in line]
        return one_line(causes[-1] if causes else lines[-1], 1000)
    return one_line(error, 1000)
