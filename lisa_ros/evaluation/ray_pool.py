# SPDX-License-Identifier: Apache-2.0
"""Evaluate bags as tasks of Ray Data, on this machine or on a cluster."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import platform
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from lisa_ros.errors import LisaError, OutputError, SettingsError
from lisa_ros.evaluation.bag_job import BagJob, BatchPlan, run_job
from lisa_ros.optional_packages import install_command
from lisa_ros.ray_environment import delete_cluster_folders, own_cluster_options, prepare_ray


@dataclass(frozen=True)
class RayPool:
    """A Ray cluster and the workers to use."""

    address: str | None = None  # None: start a cluster on this machine for this run
    workers: int | None = None  # processes with one model each; None: as many as fit
    threads: int = 1  # of each worker, without a GPU


class _Worker:
    """A process of the cluster with its own model."""

    def __init__(self, plan: BatchPlan, out: Path, threads: int, folder: str):
        load_options = dataclasses.replace(plan.load_options, threads=threads)
        self._plan = dataclasses.replace(plan, load_options=load_options)
        self._out = out
        self._fault = ''  # returned with the first bag: Ray would bury an exception here
        try:
            os.chdir(folder)  # paths are relative to it
            self._segmenter = self._plan.load_segmenter()
        except (LisaError, OSError) as error:
            self._fault = f'{platform.node()}: {error}'

    def __call__(self, row: dict) -> dict:
        if self._fault:
            return {'name': row['name'], 'error': '', 'fault': self._fault}
        job = BagJob(row['name'], Path(row['bag']))
        try:
            error = run_job(self._segmenter, job, self._plan, self._out)
        except OutputError as output_error:
            fault = f'{platform.node()}: {output_error}'
            return {'name': job.name, 'error': '', 'fault': fault}
        return {'name': job.name, 'error': error, 'fault': ''}


def run_on_ray(
    jobs: Sequence[BagJob], plan: BatchPlan, out: Path, pool: RayPool
) -> Iterator[tuple[str, str]]:
    """Yield the name and the error ('' for none) of each bag as it finishes.

    Raises:
        SettingsError: Ray is not installed, the cluster cannot be reached or broke down, or the
            workers cannot load the model.
    """
    if not jobs:
        return
    with _connected_ray(pool) as ray:
        device = str(plan.load_options.device or 'auto')
        gpus = int(ray.cluster_resources().get('GPU', 0))
        gpus = gpus if device.startswith(('auto', 'cuda')) else 0
        max_workers = gpus or max(1, int(ray.cluster_resources()['CPU']) // pool.threads)
        rows = [{'name': job.name, 'bag': str(job.bag)} for job in jobs]
        results = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            _Worker,
            fn_constructor_args=(plan, out, pool.threads, str(Path.cwd())),
            compute=ray.data.ActorPoolStrategy(
                size=min(pool.workers or max_workers, len(rows)),
                max_tasks_in_flight_per_actor=2,  # one runs, the next waits at the worker
            ),
            num_cpus=pool.threads,
            num_gpus=1 if gpus else 0,
        )
        for row in results.iter_rows():
            if row['fault']:
                raise SettingsError(f'a worker cannot work: {row["fault"]}')
            yield row['name'], row['error']


@contextlib.contextmanager
def _connected_ray(pool: RayPool) -> Iterator[ModuleType]:
    """Import Ray and connect to a cluster, or start one on this machine.

    Raises:
        SettingsError: Ray is not installed, there is no such cluster, or it broke down.
    """
    prepare_ray(pool.address)
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise SettingsError(
            f'--ray needs Ray Data ({error}): {install_command("ray")}; without --ray the bags '
            'are evaluated one after another'
        ) from error
    ray.data.DataContext.get_current().enable_progress_bars = False  # `evaluate_bags` has one
    logging.getLogger('ray.data').setLevel(logging.ERROR)
    try:
        _connect(ray, pool)
        yield ray
    except (ray.exceptions.RayError, OSError) as error:
        address = pool.address or 'a cluster of its own'
        last_line = ''.join(str(error).strip().splitlines()[-1:])
        raise SettingsError(
            f'Ray at {address} failed ({type(error).__name__}: {last_line}); finished bags are '
            'kept: run the same command again for the rest'
        ) from error
    finally:
        ray.shutdown()
        delete_cluster_folders()


def _connect(ray: ModuleType, pool: RayPool) -> None:
    """Connect to a cluster, or start one on this machine."""
    quiet = {'log_to_driver': False, 'logging_level': 'error'}
    if pool.address:
        host, _, port = pool.address.rpartition(':')
        if host and port.isdecimal():  # Ray itself would retry for ten minutes
            socket.create_connection((host, int(port)), timeout=5).close()
        ray.init(address=pool.address, **quiet)
        return
    cpus = pool.workers and pool.workers * pool.threads
    ray.init(num_cpus=cpus, **own_cluster_options(), **quiet)
