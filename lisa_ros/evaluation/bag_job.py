# SPDX-License-Identifier: Apache-2.0
"""Evaluate one bag of several into a folder of its own: whole or not at all, and once.

The folder gets its name when everything is in it. A second worker on the same bag (the first died
after its work was done) keeps the first answers.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from lisa_ros.errors import DataError, OutputError
from lisa_ros.evaluation import report
from lisa_ros.evaluation.bag import evaluate_offline
from lisa_ros.evaluation.broken_items import BrokenItems
from lisa_ros.evaluation.cases import Case, Mode
from lisa_ros.evaluation.command_file import Command
from lisa_ros.evaluation.frame_judge import FrameJudge
from lisa_ros.evaluation.ground_truth import GroundTruth, open_ground_truth
from lisa_ros.evaluation.resources import used_resources
from lisa_ros.evaluation.result_bag import ResultBag, answers_path
from lisa_ros.perception.backend import InferenceOptions, LoadOptions
from lisa_ros.perception.segmenter import Segmenter

_PARTIAL = '.part-'  # prefix of the folders of unfinished bags
_MAX_DEATHS = 3  # workers that may die over one bag; Ray alone would retry for ever


@dataclass(frozen=True)
class BatchPlan:
    """What every bag is asked, and with which model. It travels to the workers."""

    model: str
    commands: tuple[Command, ...]
    load_options: LoadOptions = field(default_factory=LoadOptions)
    inference_options: InferenceOptions = field(default_factory=InferenceOptions)
    ground_truth: str | None = None  # as in `open_ground_truth`; {} is the bag's name
    topic: str | None = None
    every: int = 10  # commands without a time run on every n-th frame
    batch_size: int = 1  # frames that CLIP and SAM encode at once
    skip_broken: bool = False  # write a report also about a bag of which nothing can be read
    settings: Mapping[str, object] = field(default_factory=dict)  # for the report

    def load_segmenter(self) -> Segmenter:
        """Load the model.

        Raises:
            CheckpointError: the files are not a whole model.
            SettingsError: the device or precision is not available.
        """
        return Segmenter.load_with(self.model, self.load_options, self.inference_options)


def bag_name(bag: Path) -> str:
    """Return the name of a bag, without the suffix of a bag file: "run.2" of run.2.mcap."""
    return bag.stem if bag.suffix in ('.bag', '.mcap', '.db3') else bag.name


@dataclass(frozen=True)
class BagJob:
    """A bag to evaluate."""

    name: str  # of its folder; unique
    bag: Path

    def is_done(self, out: Path) -> bool:
        """Return whether the folder of all bags has the report of this one."""
        return (out / self.name / 'report.json').is_file()

    def ground_truth(self, plan: BatchPlan) -> str | None:
        """Return the plan's ground truth of this bag."""
        return plan.ground_truth and plan.ground_truth.replace('{}', bag_name(self.bag))


def evaluate_bag(
    segmenter: Segmenter,
    bag: Path,
    plan: BatchPlan,
    ground_truth: GroundTruth | None,
    out: Path,
    broken: BrokenItems | None = None,
    progress: bool = True,
) -> dict:
    """Evaluate one bag; write its report and its answers.

    Parts, images and ground truth that cannot be read are left out, and named in the report.

    Args:
        segmenter: the plan's model.
        bag: as in `messages.bag.open_bag`.
        plan: what to ask.
        ground_truth: the plan's, opened for this bag.
        out: folder for the report.
        broken: what could not be used of the ground truth; gets what cannot be used of the bag.
        progress: show a progress bar.

    Returns:
        The content of report.json.

    Raises:
        DataError: nothing of the bag can be read, unless `plan.skip_broken`.
        OutputError: a file cannot be written.
    """
    report.ensure_folder(out)
    broken = broken or BrokenItems()
    with ResultBag(answers_path(out)) as results:
        judge = FrameJudge(ground_truth, out / 'images', results, broken.add)
        cases = _evaluate_all(segmenter, bag, plan, judge, broken, progress)
    run = report.Run(
        title=f'{plan.model} on {bag.name}',
        mode=Mode.OFFLINE,
        settings={**plan.settings, 'bag': str(bag), 'ground truth': str(plan.ground_truth)},
        cases=cases,
        broken=broken.messages,
        conditions=used_resources(segmenter),
    )
    return report.write(run, out)


def _evaluate_all(
    segmenter: Segmenter,
    bag: Path,
    plan: BatchPlan,
    judge: FrameJudge,
    broken: BrokenItems,
    progress: bool,
) -> list[Case]:
    """Return the cases of a bag, none if nothing of it can be read and the plan allows that."""
    cases: list[Case] = []
    unread: list[DataError] = []

    def add(error: DataError) -> None:
        unread.append(error)
        broken.add(error)

    try:
        cases += evaluate_offline(
            segmenter,
            bag,
            plan.commands,
            judge,
            topic=plan.topic,
            every=plan.every,
            batch_size=plan.batch_size,
            progress=progress,
            on_error=add,
        )
    except DataError as error:
        if not plan.skip_broken:
            cause = unread[0] if unread and not cases else error  # why nothing was read
            raise DataError(str(cause)) from error
        broken.add(error)
    return cases


def run_job(segmenter: Segmenter, job: BagJob, plan: BatchPlan, out: Path) -> str:
    """Evaluate one bag into its own folder in `out`, unless that is done already.

    Returns:
        Why the bag could not be evaluated; '' if it was. A bag of which all queries failed is not
        evaluated: the next run tries it again.

    Raises:
        OutputError: a file cannot be written.
    """
    if job.is_done(out):  # its worker died before it could report so
        return ''
    deaths = sum(path.name.rpartition('-')[0] == _PARTIAL + job.name for path in _partial(out))
    if deaths >= _MAX_DEATHS:
        return f'{job.bag}: {deaths} workers died over it: it may need more memory'
    partial = report.ensure_folder(out / f'{_PARTIAL}{job.name}-{uuid.uuid4().hex}')
    source = job.ground_truth(plan)
    try:
        broken = BrokenItems()
        ground_truth = open_ground_truth(source, job.bag, broken.add) if source else None
        own_plan = replace(plan, ground_truth=source)
        content = evaluate_bag(
            segmenter, job.bag, own_plan, ground_truth, partial, broken, progress=False
        )
        _check_any_answered(job.bag, content)
    except DataError as error:
        shutil.rmtree(partial, ignore_errors=True)
        return str(error)
    except OutputError:  # of this folder, and so of all bags
        shutil.rmtree(partial, ignore_errors=True)
        raise
    try:
        partial.rename(out / job.name)
    except OSError as error:
        shutil.rmtree(partial)
        if not job.is_done(out):
            raise OutputError(
                f'{out / job.name}: cannot be written ({error.strerror}); give another --out'
            ) from error
    return ''


def _check_any_answered(bag: Path, content: Mapping) -> None:
    """Check that the report of a bag has at least one answer.

    Raises:
        DataError: all queries failed.
    """
    failed = content['failed']
    if failed and len(failed) == len(content['cases']):
        raise DataError(f'{bag}: all {len(failed)} queries failed; the first is {failed[0]}')


def remove_partial(out: Path) -> None:
    """Remove the folders of bags whose evaluation was stopped."""
    for path in _partial(out):
        shutil.rmtree(path, ignore_errors=True)


def _partial(out: Path) -> list[Path]:
    """Return the folders of bags whose evaluation runs, or whose worker died."""
    return [path for path in out.iterdir() if path.name.startswith(_PARTIAL)]
