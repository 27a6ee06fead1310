# SPDX-License-Identifier: Apache-2.0
"""Ask a node where it saw things last, after a drive round three tables with twelve objects.

    python benchmarks/recall_drive.py --assets-cache CACHE                  # a drive of 60 s
    python benchmarks/recall_drive.py --assets-cache CACHE --seconds 180    # the long run

The drive is rendered (tabletop_drive.py) and played with TF from an odometry that drifts and a
localization that corrects it (drive_player.py) beside a real node. All the time the node is asked
for the twelve objects, one after the other, at every table. In the middle of the drive two objects
are put on other tables. Then ~/recall and "where did you last see the mug?" are asked for each
object; true places only judge the answers. The node is started again, and asked again.

CACHE is the folder `assets` that `lisa-ros scenes` writes. Needs MuJoCo and tf2_ros; set
MUJOCO_GL=egl on a machine without a display. Writes OUT/recall_drive.json, OUT/recall_drive.png,
the frames and the node's log. Exit status 1 if a limit does not hold:

- at least 10 of the 12 objects have their last place within 10 cm, the moved ones among them;
- one place for each object, none of another name;
- age and stamp are those of the last answer with a position of the object; the words agree;
- all places are the same after a restart.

Drives below 180 s are too short to look for all objects at all tables: their places are printed
and not judged.
"""

from __future__ import annotations

import argparse
import itertools
import math
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import drive_player
import endurance_report as report
import node_processes as processes  # makes lisa_ros importable
import numpy as np
import rclpy
import tabletop_drive
from lisa_ros.msg import Place, Segmentation
from lisa_ros.srv import Recall
from matplotlib import pyplot
from node_peer import START_TIMEOUT, NodePeer
from tabletop_drive import ITEMS, Drive, Layout
from tqdm import tqdm

from lisa_ros.messages.stamp import stamp_ns
from lisa_ros.results import ANSWERED
from lisa_ros.session.place_memory import is_same_name

NEAR, MISSED = 0.10, 2  # distance of a right place [m]; objects that may lack one
JUDGED_SECONDS = 180.0  # shorter drives do not show every object long enough
START_DELAY = 4.0  # of the drive, so that all have discovered each other [s]
RATES = (2.0, 4.0, 5.0, 10.0, 20.0)  # each frame has a pose of the odometry [Hz]
AGE_TOLERANCE = 0.01  # [s]
REQUESTS = ('segment the {}', 'show me the {}', 'hand me the {}', 'where is the {}?')
_TABLE_CORNERS = ((-0.65, -0.55), (0.65, -0.55), (0.65, 0.55), (-0.65, 0.55))  # [m]
_POSITION = re.compile(r'\((-?[\d.]+), (-?[\d.]+), (-?[\d.]+)\) m in map')


@dataclass(frozen=True)
class Answer:
    """An answer about an image of the drive."""

    query: str
    status: int
    names: tuple[str, ...]  # of its objects that have a position
    stamp: int  # of the image [ns]
    is_answered: bool
    without_position: tuple[str, ...] = ()  # its other objects: not enough depth


@dataclass(frozen=True)
class Recalled:
    """What the memory knows of an object."""

    name: str  # that was asked for
    places: list[Place]
    ages: list[float]  # [s]
    stamp: int  # of the response [ns]
    in_words: str  # answer to the command "where did you last see ...?"


def look_for_objects(peer: NodePeer, end: float) -> list[Answer]:
    """Ask for one object after the other until `end` [s, as time.time]."""
    answers: list[Answer] = []
    start = time.time()
    queries = itertools.cycle(request.format(item.name) for request in REQUESTS for item in ITEMS)
    with tqdm(total=round(end - start), desc='drive', unit='s') as bar:
        while time.time() < end:
            answers.append(ask(peer, next(queries)))
            bar.update(min(round(time.time() - start), bar.total) - bar.n)
    return answers


def ask(peer: NodePeer, query: str) -> Answer:
    """Ask and wait for the answer; without one it is not answered."""
    try:
        message = peer.ask(query)
    except TimeoutError:
        return Answer(query, -1, (), 0, False)
    names: dict[bool, list[str]] = {True: [], False: []}
    for instance in message.instances:
        names[math.isfinite(instance.centroid.z)].append(instance.name)
    is_answered, stamp = message.status in map(int, ANSWERED), stamp_ns(message.header)
    return Answer(
        query, message.status, tuple(names[True]), stamp, is_answered, tuple(names[False])
    )


def recall(peer: NodePeer, name: str) -> Recalled:
    """Ask the memory for an object, by the service and by a command."""
    response = peer.call(Recall, 'recall', query=f'the {name}')
    in_words = peer.ask(f'where did you last see the {name}?').answer
    stamp = stamp_ns(response.header)
    return Recalled(name, list(response.places), list(response.ages), stamp, in_words)


def position(place: Place) -> np.ndarray:
    """Return the position of a place, (3,) [m]."""
    return np.array([place.position.x, place.position.y, place.position.z])


def error(recalled: Recalled, layout: Layout) -> float:
    """Return how far the newest place is from the true one [m]; infinite without a place."""
    if not recalled.places:
        return math.inf
    return float(np.linalg.norm(position(recalled.places[0]) - layout.position(recalled.name)))


def has_right_age(recalled: Recalled, answers: Sequence[Answer]) -> bool:
    """Return whether stamp and age of a place are those of the last answer with its position."""
    shown = [
        answer.stamp
        for answer in answers
        if answer.status == Segmentation.FOUND
        and any(is_same_name(name, recalled.name) for name in answer.names)
    ]
    if not shown or not recalled.places:
        return not shown and not recalled.places
    seen_at = recalled.places[0].stamp
    stamp = seen_at.sec * 10**9 + seen_at.nanosec
    age = (recalled.stamp - stamp) / 1e9
    return stamp == max(shown) and abs(age - recalled.ages[0]) < AGE_TOLERANCE


def agrees_in_words(recalled: Recalled) -> bool:
    """Return whether the answer in words has the places of the service."""
    told = [tuple(map(float, match)) for match in _POSITION.findall(recalled.in_words)]
    expected = [position(place) for place in recalled.places]
    rounding = 0.0051  # [m]
    return len(told) == len(expected) and bool(np.allclose(told, expected, atol=rounding))


def limits(
    answers: Sequence[Answer],
    recalls: Sequence[Recalled],
    places: Sequence[Place],
    after_restart: Sequence[Place],
    layout: Layout,
    seconds: float,
) -> list[report.Limit]:
    """Return the limits of a drive.

    Args:
        answers: to the commands of the drive.
        recalls: of each object.
        places: all that the node remembers.
        after_restart: all that it remembers after a restart.
        layout: the true places at the end.
        seconds: duration of the drive.
    """
    is_long = seconds >= JUDGED_SECONDS
    names = [item.name for item in ITEMS]
    moved = {item.name for item in ITEMS if item.moved_to is not None}
    far = {item.name for item in recalls if error(item, layout) > NEAR}
    foreign = [place for place in places if not any(is_same_name(place.name, n) for n in names)]
    unlike = sum(before != after for before, after in zip(places, after_restart, strict=False))
    return [
        report.Limit(
            f'objects without a place within {100 * NEAR:g} cm', len(far), MISSED, '', is_long
        ),
        report.Limit('moved objects among them', len(far & moved), 0, '', is_long),
        report.Limit('duplicate places', sum(max(0, len(item.places) - 1) for item in recalls), 0),
        report.Limit('places of other names', len(foreign), 0),
        report.Limit(
            'places with a wrong stamp or age',
            sum(not has_right_age(item, answers) for item in recalls),
            0,
        ),
        report.Limit(
            'answers in words that disagree', sum(not agrees_in_words(i) for i in recalls), 0
        ),
        report.Limit(
            'places lost or changed by a restart',
            unlike + abs(len(places) - len(after_restart)),
            0,
        ),
        report.Limit('commands without an answer', sum(not a.is_answered for a in answers), 0),
    ]


def plot(recalls: Sequence[Recalled], layouts: Sequence[Layout], drive: Drive, path: Path) -> None:
    """Draw a map: the path, the tables, true places and remembered ones."""
    drawn, axes = pyplot.subplots(figsize=(7, 7), layout='constrained')
    way = tabletop_drive.DrivenPath(drive.seconds)
    times = np.linspace(0, drive.seconds, 600)
    xy = np.array([way.map_to_base(t)[:2, 3] for t in times])
    axes.plot(*xy.T, color='0.7', lw=1, label='path of the robot')
    for table in range(tabletop_drive.TABLE_COUNT):
        corners = np.array([(x, y, 0, 1) for x, y in _TABLE_CORNERS])
        axes.fill(*(corners @ tabletop_drive.map_to_table(table).T)[:, :2].T, color='0.93')
    for item in recalls:
        true = layouts[-1].position(item.name)[:2]
        before = layouts[0].position(item.name)[:2]
        if not np.array_equal(before, true):
            arrow = {'arrowstyle': '->', 'color': 'tab:blue', 'ls': '--', 'lw': 0.8}
            axes.annotate('', true, before, arrowprops=arrow)
        axes.add_patch(pyplot.Circle(true, NEAR, fill=False, color='tab:green', lw=0.8))
        others = [layouts[-1].position(other.name)[:2] - true for other in recalls]
        side = -1 if any(0 < x < 3 * NEAR and abs(y) < NEAR for x, y in others) else 1
        align = 'left' if side > 0 else 'right'  # where no other object stands
        axes.annotate(
            item.name, true, xytext=(6 * side, 6), textcoords='offset points', fontsize=7, ha=align
        )
        for place in item.places:
            axes.plot(*position(place)[:2], '.', color='tab:red', ms=5)
    axes.plot([], [], '.', color='tab:red', label='remembered place')
    axes.plot([], [], 'o', mfc='none', color='tab:green', label='10 cm round the true place')
    axes.plot([], [], '--', color='tab:blue', lw=0.8, label='moved meanwhile')
    axes.set(aspect='equal', xlabel='x in map [m]', ylabel='y in map [m]')
    axes.legend(loc='lower center', bbox_to_anchor=(0.5, 1), ncols=4, frameon=False, fontsize=8)
    axes.spines[['top', 'right']].set_visible(False)
    report.save(drawn, path)


def main() -> int:
    """Render, drive, ask, report and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--assets-cache', type=Path, required=True, help='meshes and textures')
    parser.add_argument('--seconds', type=float, default=60.0, help='of the drive (default: 60)')
    parser.add_argument(
        '--rate', type=float, choices=RATES, default=5.0, help='of the camera [Hz] (default: 5)'
    )
    parser.add_argument('--width', type=int, default=640, help='[px] (default: 640)')
    parser.add_argument('--height', type=int, default=480, help='[px] (default: 480)')
    parser.add_argument('--seed', type=int, default=0, help='of places and drift (default: 0)')
    parser.add_argument('--model', default='lisa-tabletop', help='(default: lisa-tabletop)')
    parser.add_argument('--out', type=Path, default=Path('runs/recall_drive'), help='folder')
    options = parser.parse_args()
    begin = time.monotonic()
    drive = Drive(options.seconds, options.rate, (options.width, options.height), options.seed)
    folder = options.out / 'frames'
    layouts = tabletop_drive.render(drive, options.assets_cache, folder)
    places_file, log = options.out / 'places.json', options.out / 'node.log'
    for path in (places_file, log):
        path.unlink(missing_ok=True)
    parameters = {'map_frame': 'map', 'places_file': str(places_file.resolve())}
    command = processes.node_command(options.out, options.model, parameters)
    processes.join_graph()
    peer = NodePeer(is_camera=False)
    with processes.started(command, log):
        peer.wait_until_active()
        start = time.time() + START_DELAY
        player = drive_player.command(folder, drive, round(start * 1e9))
        with processes.started(player, options.out / 'robot.log'):
            peer.wait(lambda: time.time() >= start, START_DELAY + 1)
            answers = look_for_objects(peer, start + drive.seconds)
            recalls = [recall(peer, item.name) for item in ITEMS]
        places = list(peer.call(Recall, 'recall', query='').places)
    with processes.started(command, log):
        peer.wait_until_active()
        peer.wait(peer.client(Recall, 'recall').service_is_ready, START_TIMEOUT, '~/recall')
        after_restart = list(peer.call(Recall, 'recall', query='').places)
    peer.close()
    rclpy.shutdown()
    errors = {item.name: round(error(item, layouts[-1]), 4) for item in recalls}
    result = report.Report(
        'recall_drive',
        {name: str(value) for name, value in vars(options).items() if name != 'assets_cache'},
        time.monotonic() - begin,
        limits(answers, recalls, places, after_restart, layouts[-1], drive.seconds),
        {
            'distance from the true place [m]': errors,
            'places': {item.name: [_figures(place) for place in item.places] for item in recalls},
            'answers in words': {item.name: item.in_words for item in recalls},
            'answers by status': Counter(answer.status for answer in answers),
            'objects without a position': sum(len(answer.without_position) for answer in answers),
            'answers': [asdict(answer) for answer in answers],
        },
    )
    plot(recalls, layouts, drive, options.out / 'recall_drive.png')
    print(f'figures: {result.write(options.out)}')
    result.print_table()
    print('  distance from the true place [cm]:')
    for name, metres in errors.items():
        print(f'    {name:14}{100 * metres:6.1f}')
    return int(not result.holds)


def _figures(place: Place) -> dict[str, object]:
    return {
        'name': place.name,
        'position': position(place).round(4).tolist(),
        'sightings': place.sightings,
        'confidence': round(place.confidence, 3),
    }


if __name__ == '__main__':
    raise SystemExit(main())
