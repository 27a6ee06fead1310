# SPDX-License-Identifier: Apache-2.0
"""Bags asked the same commands: one, several after one another, or many as tasks of Ray Data.

Each bag gets a report of its own in a folder of its own, and all together one more. A folder gets
its name when everything is in it, so an answer is there whole or not at all, and once: a bag that
is asked twice, because a worker died after its work was done, keeps the first answers; and a run
that was stopped goes on with the bags that are left.

    out/<bag>/report.html ...     of each bag
    out/report.html ...           of all of them
    out/plan.json                 what was asked, so that nothing else is mixed with it
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import shutil
import socket
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import ModuleType

from tqdm import tqdm

from lisa_ros.errors import DataError, LisaError, SettingsError
from lisa_ros.evaluation import bag as replay
from lisa_ros.evaluation import report
from lisa_ros.evaluation.cases import Case
from lisa_ros.evaluation.command_file import Command
from lisa_ros.evaluation.ground_truth import GroundTruth, open_ground_truth
from lisa_ros.evaluation.result_bag import ResultBag
from lisa_ros.perception.segmenter import Segmenter

_PART = '.part-'
_DEATHS = 3  # of workers over one bag, until it counts as broken: Ray would try for ever


@dataclass(frozen=True)
class BatchPlan:
    """What every bag is asked, and of which model; it travels to the workers."""

    model: Mapping[str, object]  # arguments of Segmenter.load, the `name` among them
    commands: Sequence[Command]
    truth: str | None = None  # as `open_truth` takes it; {} stands for the bag's name
    topic: str | None = None
    every: int = 10
    batch: int = 1  # frames that go through CLIP and SAM at once
    settings: Mapping[str, object] = field(default_factory=dict)  # as the report tells them


@dataclass(frozen=True)
class BagJob:
    """A bag to ask about."""

    name: str  # of its folder; no other task has it
    bag: Path


@dataclass(frozen=True)
class RayPool:
    """Where many bags are asked about: a Ray cluster."""

    address: str | None = None  # None: one on this machine, for as long as it takes
    workers: int | None = None  # processes with a model each; None: as many as fit
    threads: int = 1  # of each, where no GPU is


def evaluate_bag(
    segmenter: Segmenter,
    bag: Path,
    plan: BatchPlan,
    truth: GroundTruth | None,
    out: Path,
    progress: bool = True,
) -> dict:
    """Ask about one bag; write its report and its answers; return what report.json has.

    The `truth` is what `open_truth` makes of the plan's.

    Raises:
        DataError: the bag, its pictures or the truth are not what they should be.
    """
    report.ensure_folder(out)
    with ResultBag(out / 'answers_bag') as answers:
        cases = list(
            replay.evaluate_offline(
                segmenter,
                bag,
                plan.commands,
                topic=plan.topic,
                truth=truth,
                every=plan.every,
                batch=plan.batch,
                out=out / 'pictures',
                results=answers,
                progress=progress,
            )
        )
    run = report.Run(
        title=f'{plan.model["name"]} on {bag.name}',
        mode='offline',
        settings={**plan.settings, 'bag': str(bag), 'truth': str(plan.truth)},
        cases=cases,
        conditions={'most memory so far [MiB]': report.peak_memory()},
    )
    return report.write(run, out)


def evaluate_bags(
    tasks: Sequence[BagJob], plan: BatchPlan, out: Path, pool: RayPool | None = None
) -> dict:
    """Ask about several bags; write a report of each and one of all; return the latter.

    Bags that an earlier run with the same plan has finished are not asked again. What is wrong
    with a bag is told in the report of all, and does not keep the others from being asked.

    Args:
        tasks: the bags.
        plan: what is asked.
        out: the folder; with machines of a cluster, one that all of them see, as the bags.
        pool: None: one bag after another, in this process.

    Raises:
        DataError: the folder holds an evaluation of another plan, or of another bag of the same
            name; or no bag could be used.
        SettingsError: Ray is not installed or not to be reached, or its workers cannot work.
    """
    _begin(plan, out)
    _sweep(out)
    left = [task for task in tasks if not _is_done(out / task.name)]
    for task in tasks:
        _same_bag(task, out)
    broken: dict[str, str] = {}
    work = _here(left, plan, out) if pool is None else _on_ray(left, plan, out, pool)
    with contextlib.closing(work), tqdm(total=len(tasks), desc='bags', unit='bag') as bar:
        bar.update(len(tasks) - len(left))
        for name, error in work:
            if error:
                broken[name] = error
            bar.update(1)
    _sweep(out)
    done = [task.name for task in tasks if task.name not in broken]
    if not done:
        raise DataError(f'none of {len(tasks)} bags could be used: {next(iter(broken.values()))}')
    return _all_together(done, broken, plan, out)


def _begin(plan: BatchPlan, out: Path) -> None:
    """Note the plan in the folder, or see that it is the one that is noted there."""
    noted = json.loads(json.dumps(asdict(plan)))
    path = report.ensure_folder(out) / 'plan.json'
    try:
        if path.exists() and json.loads(path.read_text(encoding='utf-8')) != noted:
            raise DataError(
                f'{out} holds an evaluation with another model, other commands or settings: '
                'give another --out, or remove it'
            )
        path.write_text(json.dumps(noted, indent=1) + '\n', encoding='utf-8')
    except (OSError, ValueError) as error:
        raise DataError(f'{path}: {error}; give another --out') from error


def _parts(out: Path) -> list[Path]:
    """Return the folders of bags that are being asked about, or whose worker died."""
    return [part for part in out.iterdir() if part.name.startswith(_PART)]


def _sweep(out: Path) -> None:
    for part in _parts(out):
        shutil.rmtree(part, ignore_errors=True)


def _is_done(folder: Path) -> bool:
    return (folder / 'report.json').is_file()


def _same_bag(task: BagJob, out: Path) -> None:
    """See that what is done under a task's name is about its bag.

    Raises:
        DataError: it is about another one.
    """
    if _is_done(out / task.name):
        known = report.read(out / task.name)['settings'].get('bag')
        if known != str(task.bag):
            raise DataError(
                f'{out / task.name} is about {known}, not {task.bag}: give another --out, or '
                'remove it'
            )


def _answer(segmenter: Segmenter, task: BagJob, plan: BatchPlan, out: Path) -> str:
    """Ask about one bag; return what was wrong with it, or nothing."""
    if _is_done(out / task.name):  # its worker died before it could say so
        return ''
    deaths = [part for part in _parts(out) if part.name.rpartition('-')[0] == _PART + task.name]
    if len(deaths) >= _DEATHS:
        return f'{task.bag}: {len(deaths)} workers died over it; is there memory enough for it?'
    part = report.ensure_folder(out / f'{_PART}{task.name}-{uuid.uuid4().hex}')
    own = replace(plan, truth=plan.truth and plan.truth.replace('{}', task.bag.stem))
    try:
        truth = open_ground_truth(own.truth, task.bag) if own.truth else None
        evaluate_bag(segmenter, task.bag, own, truth, part, progress=False)
    except DataError as error:
        shutil.rmtree(part, ignore_errors=True)
        return str(error)
    try:
        part.rename(out / task.name)
    except OSError:
        shutil.rmtree(part)
        if not _is_done(out / task.name):
            raise
    return ''


def _here(tasks: Sequence[BagJob], plan: BatchPlan, out: Path) -> Iterator[tuple[str, str]]:
    """Yield each bag's name and what was wrong with it, asked one after another."""
    segmenter = Segmenter.load(**plan.model) if tasks else None
    for task in tasks:
        yield task.name, _answer(segmenter, task, plan, out)


class _Worker:
    """A process of the cluster with a model of its own."""

    def __init__(self, plan: BatchPlan, out: Path, threads: int, folder: str):
        import torch

        torch.set_num_threads(threads)
        self._plan, self._out = plan, out
        self._fault = ''  # told with the first bag: an exception here is lost in Ray's own words
        try:
            os.chdir(folder)  # paths were given from there
            self._segmenter = Segmenter.load(**plan.model)
        except (LisaError, OSError) as error:
            self._fault = f'{platform.node()}: {error}'

    def __call__(self, row: dict) -> dict:
        if self._fault:
            return {'name': row['name'], 'error': '', 'fault': self._fault}
        task = BagJob(row['name'], Path(row['bag']))
        error = _answer(self._segmenter, task, self._plan, self._out)
        return {'name': task.name, 'error': error, 'fault': ''}


def _on_ray(
    tasks: Sequence[BagJob], plan: BatchPlan, out: Path, pool: RayPool
) -> Iterator[tuple[str, str]]:
    """Yield as `_here`, as the bags are done, whichever comes first."""
    if not tasks:
        return
    with _cluster(pool) as ray:
        device = str(plan.model.get('device') or 'auto')
        gpus = int(ray.cluster_resources().get('GPU', 0))
        gpus = gpus if device.startswith(('auto', 'cuda')) else 0
        most = gpus or max(1, int(ray.cluster_resources()['CPU']) // pool.threads)
        rows = [{'name': task.name, 'bag': str(task.bag)} for task in tasks]
        asked = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            _Worker,
            fn_constructor_args=(plan, out, pool.threads, str(Path.cwd())),
            compute=ray.data.ActorPoolStrategy(
                size=min(pool.workers or most, len(rows)),
                max_tasks_in_flight_per_actor=2,  # the next one waits at the worker
            ),
            num_cpus=pool.threads,
            num_gpus=1 if gpus else 0,
        )
        for row in asked.iter_rows():
            if row['fault']:
                raise SettingsError(f'a worker cannot work: {row["fault"]}')
            yield row['name'], row['error']


@contextlib.contextmanager
def _cluster(pool: RayPool) -> Iterator[ModuleType]:
    """Give Ray, joined to a cluster, or with one begun on this machine.

    Raises:
        SettingsError: there is no Ray, no such cluster, or it broke down.
    """
    os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')  # nothing is told to anybody
    os.environ.setdefault('RAY_BACKEND_LOG_LEVEL', 'fatal')
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise SettingsError(
            f"--ray needs Ray Data ({error}): pip install 'lisa_ros[ray]'; without --ray the bags "
            'are asked one after another'
        ) from error
    ray.data.DataContext.get_current().enable_progress_bars = False  # there is one, by bag
    logging.getLogger('ray.data').setLevel(logging.ERROR)
    try:
        _join(ray, pool)
        yield ray
    except (ray.exceptions.RayError, OSError) as error:
        where, last = pool.address or 'a cluster of its own', str(error).strip().splitlines()[-1:]
        raise SettingsError(
            f'Ray at {where} cannot go on ({type(error).__name__}: {"".join(last)}); '
            'what is done is kept, and the same command goes on with the rest'
        ) from error
    finally:
        ray.shutdown()


def _join(ray: ModuleType, pool: RayPool) -> None:
    """Join a cluster, or begin one on this machine."""
    quiet = {'log_to_driver': False, 'logging_level': 'error'}
    if pool.address:
        host, _, port = pool.address.rpartition(':')
        if host and port.isdigit():  # or Ray tries for ten minutes
            socket.create_connection((host, int(port)), timeout=5).close()
        ray.init(address=pool.address, **quiet)
        return
    wanted = pool.workers and pool.workers * pool.threads
    ray.init(address='local', num_cpus=wanted, include_dashboard=False, **quiet)


def _all_together(
    names: Sequence[str], broken: Mapping[str, str], plan: BatchPlan, out: Path
) -> dict:
    """Write the report of all bags, from those of each."""
    cases: list[Case] = []
    by_bag = {}
    for name in names:
        kept = report.read(out / name)
        cases += report.cases(kept, out / name, f'{name}/')
        by_bag[name] = kept['figures']['all']
    run = report.Run(
        title=f'{plan.model["name"]} on {len(names)} bags',
        mode='offline',
        settings={**plan.settings, 'bags': ', '.join(names), 'truth': str(plan.truth)},
        cases=cases,
        broken=[f'{name}: {error}' for name, error in broken.items()],
        by_bag=by_bag,
    )
    return report.write(run, out)
