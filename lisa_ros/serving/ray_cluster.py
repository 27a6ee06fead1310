# SPDX-License-Identifier: Apache-2.0
"""A Ray cluster and the Serve application of a model in it. All functions block; one thread."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

from lisa_ros.error_text import one_line
from lisa_ros.errors import LisaError, SettingsError
from lisa_ros.optional_packages import install_command
from lisa_ros.ray_environment import own_cluster_options, prepare_ray
from lisa_ros.serving.model_server import ModelServer, ReplicaPlan
from lisa_ros.serving.problems import Problem, ProblemError

if TYPE_CHECKING:
    from ray.serve import Application
    from ray.util.placement_group import PlacementGroup

DEPLOYMENT = 'ModelServer'
_DRAIN = 300.0  # how long a replica that is replaced may finish its requests [s]
_SLACK = 8  # requests beyond the queue and the batch that a replica takes, to refuse them itself
_OBJECT_STORE = 512 << 20  # shared memory of a cluster of our own [bytes]
_PLACE_SECONDS = 10.0  # in which Ray finds a place, if there is one [s]
_TRIAL_SECONDS = 3600.0  # for the largest model from a slow disk; else Ray waits for ever [s]
_RETRY_WITHOUT_REPLICAS = 5.0  # when a new try makes sense [s]
_MAX_REPLICAS_OF_CPU = 4  # with --replicas auto, without a GPU
_ROUTER = 'lisa_ros.serving.stream_router:StreamRouter'


@dataclass(frozen=True)
class PoolPlan:
    """A model and its replicas."""

    replica: ReplicaPlan
    replicas: int | None = 1  # None: as many as the queue needs, within the GPUs
    gpus: float = 1.0  # of a replica, if the cluster has any; a fraction shares a GPU
    address: str | None = None  # of a Ray cluster; None: one of our own on this machine
    app: str = 'lisa-ros'  # name of the Serve application


class _Replica(ModelServer):
    """A replica with the name that Serve gives it: process ids of two machines may be equal."""

    def __init__(self, plan: ReplicaPlan):
        _, serve = import_ray()
        super().__init__(plan, serve.get_replica_context().replica_id.unique_id)


def import_ray() -> tuple[ModuleType, ModuleType]:
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


def call_errors() -> tuple[type[Exception], ...]:
    """Return what the call of a replica raises."""
    ray, serve = import_ray()
    return ray.exceptions.RayError, serve.exceptions.RayServeException


def problem_of(error: Exception) -> ProblemError | None:
    """Return how a request ends whose call has failed.

    Args:
        error: one of `call_errors`.

    Returns:
        INTERNAL: the replica has a bug, which another one would have, too. NOT_READY: Serve has
        no replicas. None: the replica has ended, or its node is lost.
    """
    ray, _ = import_ray()
    if not isinstance(error, ray.exceptions.RayError):
        reason = one_line(getattr(error, 'message', error))
        detail = f'no replica can answer ({reason}); see the log of the server'
        return ProblemError(Problem.NOT_READY, detail, _RETRY_WITHOUT_REPLICAS)
    cause = getattr(error, 'cause', None)  # of a RayTaskError: what a method has raised
    if isinstance(cause, Exception) and not isinstance(cause, ray.exceptions.RayError):
        detail = f'{type(cause).__name__}: the log of the server has more; report it'
        return ProblemError(Problem.INTERNAL, detail)
    return None


def connect(plan: PoolPlan) -> None:
    """Connect to the cluster, or start one that only this machine reaches.

    Raises:
        SettingsError: the cluster cannot be reached.
    """
    prepare_ray(plan.address)
    os.environ.setdefault('RAY_worker_niceness', '0')  # else 15: replicas starve on a busy machine
    ray, serve = import_ray()
    logging.getLogger('ray.serve').setLevel(logging.ERROR)  # this process logs what matters
    quiet = {'log_to_driver': False, 'logging_level': 'error'}
    try:
        if plan.address:
            host, _, port = plan.address.rpartition(':')
            if host and port.isdecimal():  # Ray itself would retry for ten minutes
                socket.create_connection((host, int(port)), timeout=5).close()
            ray.init(address=plan.address, **quiet)
        else:
            ray.init(
                num_cpus=max(os.cpu_count() or 1, 4 * (plan.replicas or _MAX_REPLICAS_OF_CPU)),
                object_store_memory=_OBJECT_STORE,
                **own_cluster_options(),
                **quiet,
            )
        serve.start(proxy_location='Disabled')
    except (ray.exceptions.RayError, OSError, RuntimeError) as error:
        raise SettingsError(_unreachable(plan.address, error)) from error


def _unreachable(address: str | None, error: Exception) -> str:
    """Say why there is no cluster, and the cure."""
    if address is None:
        return f'Ray cannot start ({one_line(error)}); check that /tmp and /dev/shm have room'
    return (
        f'Ray at {address} cannot be reached ({one_line(error)}); check --ray, and that this '
        f'machine is a node of the cluster: ray start --address={address} --num-cpus=0 '
        '--num-gpus=0 makes it one without replicas'
    )


def _gpus(plan: PoolPlan) -> float:
    """Return the share of a GPU that a replica takes; 0: it uses the CPU."""
    ray, _ = import_ray()
    device = str(plan.replica.load_options.device or 'auto')
    has_gpu = ray.cluster_resources().get('GPU', 0) > 0
    return plan.gpus if has_gpu and device.startswith(('auto', 'cuda')) else 0.0


@contextlib.contextmanager
def spare_place(plan: PoolPlan) -> Iterator[PlacementGroup | None]:
    """Hold the place of another replica during the block; None: there is none.

    What is free on all machines and GPUs together does not tell: 0.4 and 0.4 of two GPUs have no
    place for 0.6.
    """
    ray, _ = import_ray()
    gpus = _gpus(plan)
    group = ray.util.placement_group([{'CPU': 1.0, **({'GPU': gpus} if gpus else {})}])
    try:
        yield group if group.wait(_PLACE_SECONDS) else None
    finally:
        ray.util.remove_placement_group(group)


def application(plan: PoolPlan, surge: int) -> Application:
    """Return the Serve application of a plan.

    Args:
        plan: of the replicas.
        surge: whether a new replica is ready before an old one ends: 1, or 0.
    """
    ray, serve = import_ray()
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
        _Replica,
        name=DEPLOYMENT,
        max_ongoing_requests=places + _SLACK,
        ray_actor_options={'num_cpus': 1, 'num_gpus': gpus},
        health_check_period_s=1,
        health_check_timeout_s=30,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=_DRAIN,
        max_constructor_retry_count=1,
        max_surge_percent=surge,
        request_router_config={'request_router_class': _ROUTER},
        logging_config={'log_level': 'WARNING', 'enable_access_log': False},
        **count,
    )
    return deployment.bind(replica)


def start_failure(error: Exception, plan: PoolPlan) -> str:
    """Return why an application does not run, on one line."""
    _, serve = import_ray()
    with contextlib.suppress(Exception):
        application = serve.status().applications[plan.app]
        message = application.deployments[DEPLOYMENT].message or application.message
        return _last_line(message)
    return one_line(error, 1000)


def check_loads(plan: PoolPlan, place: PlacementGroup) -> None:
    """Load a model in a process beside the replicas, and end it.

    Args:
        plan: of the replicas.
        place: of the process.

    Raises:
        SettingsError: it cannot be loaded.
    """
    ray, _ = import_ray()
    trial = (
        ray.remote(ModelServer)
        .options(
            num_cpus=1,
            num_gpus=_gpus(plan),
            scheduling_strategy=ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(
                place
            ),
        )
        .remote(plan.replica)
    )
    try:
        ray.get(trial.describe.remote(), timeout=_TRIAL_SECONDS)
    except ray.exceptions.RayError as error:
        cause = getattr(error, 'cause', None)
        reason = str(cause) if isinstance(cause, LisaError) else _last_line(str(error))
        if isinstance(error, ray.exceptions.GetTimeoutError):
            reason = f'one is not ready after {_TRIAL_SECONDS / 60:g} minutes'
        raise SettingsError(
            f'the replicas of {plan.replica.model} cannot start: {reason}'
        ) from error
    finally:
        ray.kill(trial)


def _last_line(text: str) -> str:
    """Return the last line of a text that names an error, else the last one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ['unknown']
    causes = [line for line in lines if 'Error: ' in line]
    return one_line([*lines, *causes][-1], 1000)
