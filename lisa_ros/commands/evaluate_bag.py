# SPDX-License-Identifier: Apache-2.0
"""`lisa-ros evaluate bag`: evaluate one or more models on one or more bags, offline or live."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lisa_ros.commands.arguments import (
    MODEL_SETTINGS,
    SOURCE_SETTINGS,
    model_arguments,
    segmenter_arguments,
)
from lisa_ros.commands.evaluate_models import (
    evaluate_models,
    is_several,
    model_of,
    unique_names,
    with_model,
)
from lisa_ros.errors import DataError, SettingsError
from lisa_ros.number_arguments import positive_float, positive_int

if TYPE_CHECKING:  # not at run time: `lisa-ros --help` must not import numpy and rosbags
    from lisa_ros.evaluation.bag_job import BatchPlan
    from lisa_ros.evaluation.broken_items import BrokenItems
    from lisa_ros.evaluation.command_file import Command
    from lisa_ros.evaluation.ground_truth import GroundTruth
    from lisa_ros.evaluation.live import LiveRun


def add(kinds: argparse._SubParsersAction) -> None:
    """Add the command to those of `lisa-ros evaluate`."""
    parser = kinds.add_parser('bag', help='on the frames of bags, with your own commands')
    parser.add_argument(
        'bags', type=Path, nargs='+', metavar='BAG', help='bags of ROS 2 (mcap, sqlite3) or ROS 1'
    )
    parser.add_argument(
        '--commands',
        type=Path,
        required=True,
        metavar='YAML',
        help='file of the queries, see docs/evaluation.md',
    )
    parser.add_argument(
        '--ground-truth',
        help='folder of <stamp>.png, topic of instance ids, or labelled images; {} is replaced '
        "by the bag's name (default: none; answers are written, but not scored)",
    )
    parser.add_argument(
        '--topic', help='topic of Image or CompressedImage (default: the only one of the bag)'
    )
    parser.add_argument(
        '--every',
        type=positive_int,
        default=10,
        metavar='N',
        help='run the commands that give no time on every N-th frame (default: 10)',
    )
    parser.add_argument(
        '--out', type=Path, required=True, metavar='DIR', help='folder for the report'
    )
    parser.add_argument(
        '--skip-broken',
        action='store_true',
        help='exit with 0 even if bags, parts of them or images could not be read, or queries '
        'failed; the report names all of them',
    )
    parser.add_argument('--json', action='store_true', help='print one JSON object')
    model_arguments(parser, several=True)
    _add_offline_arguments(parser.add_argument_group('offline'))
    _add_live_arguments(parser.add_argument_group('live'))
    parser.set_defaults(run=evaluate_bag)


def _add_offline_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        '--batch',
        type=positive_int,
        metavar='N',
        help='frames that CLIP and SAM encode at once (default: 4 on a GPU, 1 on a CPU)',
    )
    group.add_argument(
        '--ray',
        nargs='?',
        const='',
        metavar='ADDRESS',
        help='run the bags in parallel on a Ray cluster; without ADDRESS on this machine '
        "(needs the extra 'ray')",
    )
    group.add_argument(
        '--workers',
        type=positive_int,
        help='number of Ray workers; each loads the model (default: as many as fit on the '
        'cluster)',
    )
    group.add_argument(
        '--threads', type=positive_int, help='CPU threads of each Ray worker (default: 1)'
    )


def _add_live_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        '--live',
        action='store_true',
        help='start the node, play the bag to it and send it the queries over DDS (needs ROS 2; '
        'default: offline)',
    )
    group.add_argument(
        '--rate',
        type=positive_float,
        default=1.0,
        help='playback speed, 1 is real time (default: 1)',
    )
    group.add_argument(
        '--laps', type=positive_int, default=1, help='how often the bag is played (default: 1)'
    )
    group.add_argument(
        '--sim-time', action='store_true', help='let the node use bag time (/clock)'
    )


def evaluate_bag(options: argparse.Namespace) -> None:
    """Evaluate models on the frames of bags; print the figures and write reports."""
    from lisa_ros.evaluation import report
    from lisa_ros.evaluation.bag_job import bag_name
    from lisa_ros.evaluation.broken_items import BrokenItems
    from lisa_ros.evaluation.command_file import read_commands
    from lisa_ros.evaluation.ground_truth import open_ground_truth

    _check_options(options)
    broken = BrokenItems()
    commands, ground_truth = read_commands(options.commands), None
    if len(options.bags) == 1 and options.ground_truth:  # fail before a model is loaded
        path = options.ground_truth.replace('{}', bag_name(options.bags[0]))
        options = argparse.Namespace(**{**vars(options), 'ground_truth': path})
        ground_truth = open_ground_truth(path, options.bags[0], broken.add)
    if is_several(options):
        evaluate_models(options, evaluate_one)
        return
    report.ensure_folder(options.out)
    content = _evaluate(
        with_model(options, model_of(options), options.out), commands, ground_truth, broken
    )
    report.print_summary(content, options.out, options.json)
    not_used = [*content['broken'], *content['failed']]
    if not_used and not options.skip_broken:
        raise DataError(
            'some bags could not be used, or not all of them, or queries failed: '
            f'{not_used[0]}; --skip-broken ignores them'
        )


def evaluate_one(options: argparse.Namespace) -> dict:
    """Evaluate one of several models; write its report and return the content of report.json."""
    from lisa_ros.evaluation.broken_items import BrokenItems
    from lisa_ros.evaluation.command_file import read_commands
    from lisa_ros.evaluation.ground_truth import open_ground_truth

    broken = BrokenItems()
    commands, ground_truth = read_commands(options.commands), None
    if len(options.bags) == 1 and options.ground_truth:
        ground_truth = open_ground_truth(options.ground_truth, options.bags[0], broken.add)
    return _evaluate(options, commands, ground_truth, broken)


def _evaluate(
    options: argparse.Namespace,
    commands: Sequence[Command],
    ground_truth: GroundTruth | None,
    broken: BrokenItems,
) -> dict:
    """Evaluate one model; `broken` has the errors of the ground truth."""
    if options.live:
        return _evaluate_live(options, commands, ground_truth, broken)
    if len(options.bags) > 1 or options.ray is not None:
        return _evaluate_several(options, commands)
    return _evaluate_offline(options, commands, ground_truth, broken)


def _check_options(options: argparse.Namespace) -> None:
    """Check that the options can be combined.

    Raises:
        SettingsError: they cannot.
    """
    if options.live and options.typed_specials:
        raise SettingsError('--typed-specials does not work with --live: the node ignores it')
    if not options.live and (options.sim_time or options.laps != 1 or options.rate != 1):
        raise SettingsError('--rate, --laps and --sim-time need --live')
    if options.live and (len(options.bags) > 1 or options.ray is not None or options.batch):
        raise SettingsError(
            '--live plays one bag, without --ray and --batch: it runs in real time'
        )
    if options.ray is None and (options.workers or options.threads):
        raise SettingsError('--workers and --threads need --ray')


# ---- offline


def _evaluate_offline(
    options: argparse.Namespace,
    commands: Sequence[Command],
    ground_truth: GroundTruth | None,
    broken: BrokenItems,
) -> dict:
    """Evaluate one bag in this process; `broken` has the errors of the ground truth."""
    from lisa_ros.evaluation import report
    from lisa_ros.evaluation.bag_job import evaluate_bag
    from lisa_ros.evaluation.result_bag import remove_answers

    plan, bag = _plan(options, commands), options.bags[0]
    segmenter = plan.load_segmenter()
    remove_answers(options.out)  # while its report.json shows whose they are
    if options.skip_broken or _has_images(bag, options.topic):  # else there is no new report
        report.remove(options.out)
    return evaluate_bag(segmenter, bag, plan, ground_truth, options.out, broken)


def _has_images(bag: Path, topic: str | None) -> bool:
    """Return whether an image of a bag can be read."""
    from lisa_ros.messages.bag import read_images

    try:
        with contextlib.closing(read_images(bag, topic, on_error=lambda _: None)) as images:
            return next(images, None) is not None
    except DataError:
        return False


def _evaluate_several(options: argparse.Namespace, commands: Sequence[Command]) -> dict:
    """Evaluate several bags, in this process or on Ray."""
    from lisa_ros.evaluation.bag_job import BagJob, bag_name
    from lisa_ros.evaluation.batch import evaluate_bags
    from lisa_ros.evaluation.ray_pool import RayPool

    names = unique_names([bag_name(bag) for bag in options.bags])
    jobs = [BagJob(name, bag) for name, bag in zip(names, options.bags, strict=True)]
    pool = None
    if options.ray is not None:
        pool = RayPool(options.ray or None, options.workers, options.threads or 1)
    return evaluate_bags(jobs, _plan(options, commands), options.out, pool)


def _plan(options: argparse.Namespace, commands: Sequence[Command]) -> BatchPlan:
    """Return the plan of the evaluation: model, queries and options, the same for every bag."""
    from lisa_ros.evaluation.bag_job import BatchPlan
    from lisa_ros.model.device import resolve_device
    from lisa_ros.perception.backend import LoadOptions

    arguments = segmenter_arguments(options)
    model, inference_options = arguments.pop('name'), arguments.pop('options')
    batch_size = options.batch or (4 if resolve_device(options.device).type == 'cuda' else 1)
    return BatchPlan(
        model=model,
        commands=tuple(commands),
        load_options=LoadOptions(**arguments),
        inference_options=inference_options,
        ground_truth=options.ground_truth,
        topic=options.topic,
        every=options.every,
        batch_size=batch_size,
        skip_broken=options.skip_broken,
        settings={**_settings(options, 'commands', 'topic', 'every'), 'batch': batch_size},
    )


def _settings(options: argparse.Namespace, *names: str) -> dict[str, object]:
    """Return the settings of the model and these options, for the report."""
    model = {name: getattr(options, name) for name in MODEL_SETTINGS}
    return {**model, **{name.replace('_', ' '): str(getattr(options, name)) for name in names}}


# ---- live


def _evaluate_live(
    options: argparse.Namespace,
    commands: Sequence[Command],
    ground_truth: GroundTruth | None,
    broken: BrokenItems,
) -> dict:
    """Play one bag to the node and compare its answers with the ground truth."""
    from lisa_ros.evaluation import report
    from lisa_ros.evaluation.cases import Mode
    from lisa_ros.evaluation.frame_judge import FrameJudge
    from lisa_ros.evaluation.live import evaluate_live_answers
    from lisa_ros.evaluation.result_bag import ResultBag, answers_path, remove_answers

    (bag,) = options.bags
    run_bag, topic = _live_run(options, commands, broken)
    remove_answers(options.out)  # while its report.json shows whose they are
    report.remove(options.out)
    with ResultBag(answers_path(options.out)) as results:
        live_run = run_bag()
        judge = FrameJudge(ground_truth, options.out / 'images', results, broken.add)
        cases = list(
            evaluate_live_answers(
                live_run.answers, bag, commands, judge, topic=topic, on_error=broken.add
            )
        )
    names = ('commands', 'topic', 'ground_truth', 'every', 'rate', 'laps', 'sim_time')
    run = report.Run(
        title=f'{options.model} on {bag.name}',
        mode=Mode.LIVE,
        settings={**_settings(options, *names), 'bag': str(bag)},
        cases=cases,
        broken=broken.messages,
        conditions=live_run.conditions(),
    )
    return report.write(run, options.out)


def _live_run(
    options: argparse.Namespace, commands: Sequence[Command], broken: BrokenItems
) -> tuple[Callable[[], LiveRun], str]:
    """Return what plays a bag to the node and returns its answers, and the image topic."""
    try:
        from lisa_ros.ros.bag_player import camera_topics
        from lisa_ros.ros.live_evaluation import Playback, run_live
    except ImportError as error:
        raise SettingsError(
            f'--live needs ROS 2 and the built package ({error}): `make setup`, or source '
            'install/setup.bash; without --live no ROS is needed'
        ) from error
    topics = camera_topics(options.bags[0], options.topic, broken.add)
    playback = Playback(topics, options.every, options.rate, options.laps, options.sim_time)
    settings = {name: getattr(options, name) for name in (*MODEL_SETTINGS, *SOURCE_SETTINGS)}
    settings = {name: value for name, value in settings.items() if value not in (None, '')}
    log = options.out / 'node.log'
    run = partial(run_live, options.bags[0], commands, playback, settings, log, broken.add)
    return run, topics['image']
