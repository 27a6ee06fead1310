# SPDX-License-Identifier: Apache-2.0
"""Evaluate several bags with the same commands: one after another, or on a Ray cluster.

Each bag gets a report in a folder of its own, and all bags together one more. A run that was
stopped continues with the bags that are left.

    out/<bag>/report.html ...     of each bag
    out/report.html ...           of all bags
    out/plan.json                 what was asked, so that runs of other plans are not mixed in
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from lisa_ros.errors import DataError
from lisa_ros.evaluation import report
from lisa_ros.evaluation.bag_job import BagJob, BatchPlan, remove_partial, run_job
from lisa_ros.evaluation.cases import Case, Mode
from lisa_ros.evaluation.plan_file import check_or_write_plan
from lisa_ros.evaluation.ray_pool import RayPool, run_on_ray
from lisa_ros.evaluation.report_files import read_cases, read_report
from lisa_ros.evaluation.resources import largest, measured_resources
from lisa_ros.files.folder_lock import hold_folder
from lisa_ros.files.text import encodable


def evaluate_bags(
    jobs: Sequence[BagJob], plan: BatchPlan, out: Path, pool: RayPool | None = None
) -> dict:
    """Evaluate several bags; write a report of each and one of all.

    Bags that an earlier run of the same plan finished are not evaluated again. A bag that cannot
    be used is named in the report of all; the others are evaluated.

    Args:
        jobs: the bags.
        plan: what to ask, and with which model.
        out: the folder; on a cluster all machines must see it and the bags under the same path.
        pool: the workers; None: one bag after another, in this process.

    Returns:
        The content of report.json of all bags.

    Raises:
        DataError: the folder holds an evaluation of another plan, of other files, or of another
            bag of the same name; or no bag could be used, unless `plan.skip_broken`.
        SettingsError: Ray is not installed or cannot be reached, or its workers cannot work.
        OutputError: the folder cannot be written to, or another run uses it.
    """
    with hold_folder(report.ensure_folder(out)):
        return _evaluate_bags(jobs, plan, out, pool)


def _evaluate_bags(
    jobs: Sequence[BagJob], plan: BatchPlan, out: Path, pool: RayPool | None
) -> dict:
    """Evaluate several bags in a folder that no other run uses; see `evaluate_bags`."""
    check_or_write_plan(plan, jobs, out)
    remove_partial(out)
    for job in jobs:
        _check_same_bag(job, out)
    pending = [job for job in jobs if not job.is_done(out)]
    errors: dict[str, str] = {}
    results = (
        _run_here(pending, plan, out) if pool is None else run_on_ray(pending, plan, out, pool)
    )
    with contextlib.closing(results), tqdm(total=len(jobs), desc='bags', unit='bag') as bar:
        bar.update(len(jobs) - len(pending))
        for name, error in results:
            if error:
                errors[name] = error
            bar.update(1)
    remove_partial(out)
    done = [job.name for job in jobs if job.name not in errors]
    if not done and not plan.skip_broken:
        raise DataError(f'none of {len(jobs)} bags could be used: {next(iter(errors.values()))}')
    return _write_report_of_all(done, errors, plan, out)


def _run_here(jobs: Sequence[BagJob], plan: BatchPlan, out: Path) -> Iterator[tuple[str, str]]:
    """Yield the name and the error ('' for none) of each bag, one after another."""
    segmenter = plan.load_segmenter() if jobs else None
    for job in jobs:
        yield job.name, run_job(segmenter, job, plan, out)


def _check_same_bag(job: BagJob, out: Path) -> None:
    """Check that a finished report under a job's name is about its bag.

    Raises:
        DataError: it is about another one.
    """
    if job.is_done(out):
        bag = read_report(out / job.name)['settings'].get('bag')
        if bag != encodable(str(job.bag)):
            raise DataError(
                f'{out / job.name} is about {bag}, not {job.bag}: give another --out, or remove it'
            )


def _write_report_of_all(
    names: Sequence[str], errors: Mapping[str, str], plan: BatchPlan, out: Path
) -> dict:
    """Write the report of all bags from those of each bag."""
    cases: list[Case] = []
    by_bag, resources = {}, []
    broken = [f'{name}: {error}' for name, error in errors.items()]
    for name in names:
        bag_report = read_report(out / name)
        broken += [f'{name}: {error}' for error in bag_report['broken']]
        cases += read_cases(bag_report, out / name, f'{name}/')
        by_bag[name] = bag_report['figures']['all']
        resources.append(measured_resources(bag_report['timings']))
    run = report.Run(
        title=f'{plan.model} on {len(names)} bags',
        mode=Mode.OFFLINE,
        settings={
            **plan.settings,
            'bags': ', '.join(names),
            'ground truth': str(plan.ground_truth),
        },
        cases=cases,
        broken=broken,
        by_bag=by_bag,
        conditions=largest(resources),
    )
    return report.write(run, out)
