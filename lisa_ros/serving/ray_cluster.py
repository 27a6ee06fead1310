# SPDX-License-Identifier: Apache-2.0
"""A Ray cluster and the Serve application of a model in it. All functions block; one thread."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import socket
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

from lisa_ros.error_text import one_line
from lisa_ros.errors import LisaError, SettingsError
from lisa_ros.optional_packages import install_command
from lisa_ros.ray_environment import own_cluster_options, prepare_ray
from lisa_ros.serving.model_server import ModelServer, ReplicaPlan

if TYPE_CHECKING:
    from ray.serve import Application

DEPLOYMENT = 'ModelServer'
_DRAIN = 300.0  # how long a replica that is replaced may finish its requests [s]
_SLACK = 8  # requests beyond the queue and the batch that a replica takes, to refuse them itself
_OBJECT_STORE = 512 << 20  # shared memory of a cluster of our own [bytes]
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


def replica_errors() -> tuple[type[Exception], ...]:
    """Return what is raised when a replica ends, or its node is lost."""
    ray, _ = import_ray()
    return (ray.exceptions.RayError,)


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


def has_room(plan: PoolPlan) -> bool:
    """Return whether the cluster has room for another replica."""
    ray, _ = import_ray()
    free = ray.available_resources()
    return free.get('CPU', 0) >= 1 and free.get('GPU', 0) >= _gpus(plan)


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
        ModelServer,
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


def check_loads(plan: PoolPlan) -> None:
    """Load a model in a process beside the replicas, and end it.

    Raises:
        SettingsError: it cannot be loaded.
    """
    ray, _ = import_ray()
    resources = {'num_cpus': 1, 'num_gpus': _gpus(plan)}
    trial = ray.remote(ModelServer).options(**resources).remote(plan.replica)
    try:
        ray.get(trial.describe.remote())
    except ray.exceptions.RayError as error:
        cause = getattr(error, 'cause', None)
        reason = str(cause) if isinstance(cause, LisaError) else _last_line(str(error))
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
