# SPDX-License-Identifier: Apache-2.0
"""`lisa-ros evaluate bag`: one bag or many, offline or live, of one model or several."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from lisa_ros.commands.arguments import (
    MODEL_SETTINGS,
    load,
    model_arguments,
    positive_float,
    positive_int,
    segmenter_arguments,
)
from lisa_ros.errors import DataError, SettingsError
from lisa_ros.evaluation.report import print_summary
from lisa_ros.settings import Settings


def add(kinds: argparse._SubParsersAction) -> None:
    """Add the command to those of `lisa-ros evaluate`."""
    replayed = kinds.add_parser('bag', help='on the frames of bags, with commands of your own')
    replayed.add_argument(
        'bags', type=Path, nargs='+', metavar='BAG', help='of ROS 2 (mcap, sqlite3) or 1'
    )
    replayed.add_argument(
        '--commands', type=Path, required=True, metavar='YAML', help='see docs/evaluation.md'
    )
    replayed.add_argument(
        '--truth',
        help="a folder of <stamp>.png, a topic, or labelled pictures; {} stands for a bag's name",
    )
    replayed.add_argument('--topic', help='of Image or CompressedImage (default: the only one)')
    replayed.add_argument(
        '--every',
        type=positive_int,
        default=10,
        help='frames between questions without a time (10)',
    )
    replayed.add_argument('--out', type=Path, required=True, metavar='DIR', help='for the report')
    replayed.add_argument(
        '--skip-broken', action='store_true', help='bags that cannot be used are only told of'
    )
    replayed.add_argument('--json', action='store_true', help='print one JSON object')
    model_arguments(replayed, several=True)

    fast = replayed.add_argument_group('offline, faster')
    fast.add_argument(
        '--batch',
        type=positive_int,
        help='frames that go through CLIP and SAM at once (default: 4 on a GPU, 1 on a CPU)',
    )
    fast.add_argument(
        '--ray',
        nargs='?',
        const='',
        metavar='ADDRESS',
        help='many bags on a cluster; without an address on one begun here (needs Ray)',
    )
    fast.add_argument(
        '--workers', type=positive_int, help='of --ray, each with a model (default: all)'
    )
    fast.add_argument(
        '--threads', type=positive_int, help='of a worker of --ray, on a CPU (default: 1)'
    )

    live = replayed.add_argument_group('live')
    live.add_argument(
        '--live',
        action='store_true',
        help="through the node, on the bag's clock (needs ROS 2; default: offline)",
    )
    live.add_argument('--rate', type=positive_float, default=1.0, help='times real time')
    live.add_argument('--laps', type=positive_int, default=1, help='plays of the bag')
    live.add_argument('--sim-time', action='store_true', help="the node runs on the bag's time")
    replayed.set_defaults(run=evaluate_bag)


def evaluate_bag(options: argparse.Namespace) -> None:
    """Ask models about frames of bags; print their figures and leave reports."""
    from lisa_ros.evaluation import report
    from lisa_ros.evaluation.command_file import read_commands
    from lisa_ros.evaluation.ground_truth import open_ground_truth

    _check(options)
    commands = read_commands(options.commands)
    if len(options.bags) == 1:  # what is wrong with it is said before a model is loaded
        options.truth = options.truth and options.truth.replace('{}', options.bags[0].stem)
        truth = open_ground_truth(options.truth, options.bags[0]) if options.truth else None
    models, out = options.model or [Settings.model], report.ensure_folder(options.out)
    folders = [out] if len(models) == 1 else [out / name for name in _short(models)]
    broken = False
    for model, folder in zip(models, folders, strict=True):
        one = argparse.Namespace(
            **{**vars(options), 'model': model, 'out': report.ensure_folder(folder)}
        )
        if options.live:
            told = _live(one, commands, truth)
        elif len(options.bags) > 1 or options.ray is not None:
            told = _many(one, commands)
        else:
            told = _offline(one, commands, truth)
        print_summary(told, one)
        broken = broken or bool(told['broken'])
    for folder in folders[1:]:
        against = out / f'{folders[0].name}_{folder.name}'
        try:
            report.compare(folders[0], folder, against)
        except DataError as error:  # no truth; or live, and never about one frame
            print(f'{folder.name} is not compared: {error}', file=sys.stderr)
        else:
            print(f'compared: {against}/report.html', file=sys.stderr)
    if broken and not options.skip_broken:
        raise DataError('not every bag could be used; --skip-broken takes that as it is')


def _check(options: argparse.Namespace) -> None:
    """Refuse options that do not go together."""
    if options.live and options.typed_specials:
        raise SettingsError('--typed-specials is for offline: the node takes them as letters')
    if not options.live and (options.sim_time or options.laps != 1 or options.rate != 1):
        raise SettingsError('--rate, --laps and --sim-time are of a live evaluation: give --live')
    if options.live and (len(options.bags) > 1 or options.ray is not None or options.batch):
        raise SettingsError('--live plays one bag, in real time: leave --ray and --batch out')
    if options.ray is None and (options.workers or options.threads):
        raise SettingsError('--workers and --threads are of --ray: give it, too')


def _short(names: list[str]) -> list[str]:
    """Return names for folders, no two alike: the last parts of what names models or bags."""
    last = [Path(name).name or 'model' for name in names]
    return [
        name if last.count(name) == 1 else f'{name}_{number}'
        for number, name in enumerate(last, 1)
    ]


# ---- offline


def _offline(options: argparse.Namespace, commands, truth) -> dict:
    """Ask about one bag, here."""
    from lisa_ros.evaluation import batch as many

    _make_room(options.out)
    plan = _plan(options, commands)
    return many.evaluate_bag(load(options), options.bags[0], plan, truth, options.out)


def _many(options: argparse.Namespace, commands) -> dict:
    """Ask about several bags, here or on a cluster."""
    from lisa_ros.evaluation import batch as many

    names = _short([str(bag) for bag in options.bags])
    tasks = [many.BagJob(name, bag) for name, bag in zip(names, options.bags, strict=True)]
    pool = None
    if options.ray is not None:
        pool = many.RayPool(options.ray or None, options.workers, options.threads or 1)
    return many.evaluate_bags(tasks, _plan(options, commands), options.out, pool)


def _plan(options: argparse.Namespace, commands):
    """Return what every bag is asked."""
    from lisa_ros.evaluation.batch import BatchPlan
    from lisa_ros.model.device import resolve_device

    batch = options.batch or (4 if resolve_device(options.device).type == 'cuda' else 1)
    return BatchPlan(
        model=segmenter_arguments(options),
        commands=tuple(commands),
        truth=options.truth,
        topic=options.topic,
        every=options.every,
        batch=batch,
        settings={**_settings(options, 'commands', 'topic', 'every'), 'batch': batch},
    )


def _settings(options: argparse.Namespace, *more: str) -> dict:
    """Return settings as a report tells them."""
    model = {name: getattr(options, name) for name in MODEL_SETTINGS}
    return {**model, **{name: str(getattr(options, name)) for name in more}}


def _make_room(out: Path) -> None:
    """Remove the answers of an earlier run; what else is called so stays, and is told."""
    results = out / 'answers_bag'
    if results.exists() and (out / 'report.json').is_file():
        shutil.rmtree(results)


# ---- live


def _live(options: argparse.Namespace, commands, truth) -> dict:
    """Ask a node about one bag, while it is played."""
    from lisa_ros.evaluation import bag as replay
    from lisa_ros.evaluation import report
    from lisa_ros.evaluation.result_bag import ResultBag

    (bag,) = options.bags
    _make_room(options.out)
    with ResultBag(options.out / 'answers_bag') as answers:
        heard, topic = _played(options, commands)
        cases = list(
            replay.evaluate_live_answers(
                heard.answers,
                bag,
                commands,
                topic=topic,
                truth=truth,
                out=options.out / 'pictures',
                results=answers,
            )
        )
    asked = ('commands', 'topic', 'truth', 'every', 'rate', 'laps', 'sim_time')
    run = report.Run(
        title=f'{options.model} on {bag.name}',
        mode='live',
        settings={**_settings(options, *asked), 'bag': str(bag)},
        cases=cases,
        conditions=_conditions(heard),
    )
    return report.write(run, options.out)


def _played(options: argparse.Namespace, commands):
    """Return what a node said while a bag was played to it, and the topic of its pictures."""
    try:
        from lisa_ros.ros.bag_player import camera_topics
        from lisa_ros.ros.live_evaluation import live
    except ImportError as error:
        raise SettingsError(
            f'--live needs ROS 2 and the built package ({error}): `make setup`, or source '
            'install/setup.bash; without --live no ROS is needed'
        ) from error
    topics = camera_topics(options.bags[0], options.topic)
    settings = {name: getattr(options, name) for name in MODEL_SETTINGS}
    heard = live(
        options.bags[0],
        commands,
        topics,
        {name: value for name, value in settings.items() if value not in (None, '')},
        options.out / 'node.log',
        every=options.every,
        rate=options.rate,
        laps=options.laps,
        sim_time=options.sim_time,
    )
    return heard, topics['image']


def _conditions(heard) -> dict:
    """Return what a node met, for the report."""
    from lisa_ros.evaluation.cases import percentiles

    ages = [one.age for one in heard.answers if one.age == one.age]
    return {
        'frames played': heard.frames_played,
        'frames that the node heard': heard.frames_heard,
        'commands': len(heard.answers),
        'not asked, for they were due again': heard.not_asked,
        'from command to answer [s]': percentiles([one.latency for one in heard.answers]) or {},
        "age of the frame at the answer [s of the bag's time]": percentiles(ages) or {},
        "node's peak memory [MiB]": heard.peak_memory,
    }
