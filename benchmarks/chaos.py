# SPDX-License-Identifier: Apache-2.0
"""Kill the parts of a robot one after the other: the node must answer again, and soon.

    python benchmarks/chaos.py                             # 4 kills, one of each kind
    python benchmarks/chaos.py --kills 50 --minutes 10     # the long run

SIGKILL hits the camera, a client with continuous goals, the model process, or the node, which is
started again after 0.2 s as by the launch file. Writes OUT/chaos.json, OUT/chaos.png and logs.
Exit status 1 if a limit does not hold:

- a command that is sent after the kill is answered within 5 s of it (for the camera, which nobody
  starts again, within 5 s of its restart). For the node that includes the delay of the launch file
  and the loading of the weights;
- /diagnostics names the cause within 2 s. A dead node has no diagnostics: there the parent process
  must see its end within that time. DDS reports a dead client after its lease, 20 s: there the
  time counts from then;
- nobody works for a killed client longer than the DDS lease of 20 s and 4 s more;
- no process and no shared memory of the killed is left over, and the node ends with status 0.
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import endurance_report as report
import node_processes as processes  # makes lisa_ros importable
import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lisa_ros.msg import Segmentation
from node_peer import NODE, NodePeer
from rgbd_camera import SPONGE
from std_msgs.msg import Empty
from tqdm import tqdm

from lisa_ros.client import LisaClient
from lisa_ros.results import ANSWERED
from lisa_ros.ros import fastdds

RECOVERY, NAMING = 5.0, 2.0  # largest allowed [s]
LEASE, ENDING = 20.0, 4.0  # until DDS sees that a client is gone; and until its goals end [s]
FREEING = 16.0  # until the node has freed the shared memory of a killed process [s]
GOALS = 4  # continuous goals of a client
_EVER = 1000.0  # limit of durations that are not judged [s]
_PATIENCE = 30.0  # after which a recovery counts as failed [s]
_SETTLING = 10.0  # from the first answer to the first kill: the standby gets ready [s]
_PROBE_PERIOD = 0.25  # between two commands [s]
_GRAPH_PERIOD = 0.1  # between two looks at the ROS graph [s]
_ALIVE = '/chaos/alive'  # each client publishes on it
_ALIVE_PERIOD = 0.05  # [s]
_FEEDBACK = f'{NODE}/segment/_action/feedback'  # each action client subscribes to it


class Target(enum.Enum):
    """What is killed, and how /diagnostics must name it."""

    CLIENT = r'client'  # after it has left the ROS graph
    CAMERA = r'no message|nobody publishes|silent|stopped|camera'
    MODEL = r'model process (died|has ended)|loaded again'
    NODE = ''  # its parent sees the end


@dataclass(frozen=True)
class Kill:
    """A kill and what came of it; NaN: it did not come."""

    target: Target
    at: float  # since the beginning of the run [s]
    recovery: float  # until the first answer to a command that was sent afterwards [s]
    orphans: int  # processes without a use, after the recovery
    naming: float = math.nan  # until /diagnostics, or the parent, named the cause [s]
    words: str = ''  # of /diagnostics
    client: str = ''  # query of the client's goals
    departure: float = math.nan  # until the client had left the ROS graph [s]


@dataclass(frozen=True)
class Rest:
    """What is left when all processes of a run have been ended."""

    processes: list[str]  # command lines
    segments: dict[str, str]  # names of shared memory, and whose they were
    status: int  # exit status of the node

    @classmethod
    def of(cls, run: processes.Run, status: int) -> Rest:
        """Look at what is left of a run."""
        names = [' '.join(process.cmdline()) for process in run.processes()]
        return cls(names, run.abandoned_segments(), status)


class Observer:
    """Listens to the node: its answers and its diagnostics."""

    def __init__(self) -> None:
        self.peer = NodePeer(self._on_answer, self._on_diagnostics, is_camera=False)
        self._answered: dict[str, float] = {}  # when a command was answered, by its text
        self.worked_at: dict[str, float] = {}  # when a client's query was last answered, by query
        self._warnings: list[tuple[float, str]] = []  # time and text of each, newest last
        self._number = 0
        self._clients: set[str] = set()  # GIDs of the action clients in the graph
        self._gids: dict[str, str] = {}  # of the clients, by query
        self._left_at: dict[str, float] = {}  # when a client left the graph, by GID
        self.peer.node.create_timer(_GRAPH_PERIOD, self._watch_graph)
        # A lease begins with the last message from a client: this node gets as many as the other.
        self.peer.node.create_subscription(Empty, _ALIVE, lambda _: None, 10)

    def _watch_graph(self) -> None:
        readers = self.peer.node.get_subscriptions_info_by_topic(_FEEDBACK)
        present = {bytes(reader.endpoint_gid).hex() for reader in readers}
        self._left_at |= dict.fromkeys(self._clients - present, time.monotonic())
        self._clients = present

    def wait_for_client(self, name: str) -> None:
        """Wait until a client is in the graph and has an answer; `name` is its query."""
        earlier = {*self._gids.values()}
        self.peer.wait(lambda: name in self.worked_at and self._clients - earlier, _PATIENCE, name)
        (self._gids[name],) = self._clients - earlier

    def departure(self, name: str) -> float:
        """Return when a client left the graph [s, monotonic]; infinite if it did not."""
        return self._left_at.get(self._gids[name], math.inf)

    def _on_answer(self, message: Segmentation) -> None:
        if message.query.startswith('client'):
            self.worked_at[message.query] = time.monotonic()
        elif message.status in map(int, ANSWERED):
            self._answered[message.query] = time.monotonic()

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        now = time.monotonic()
        self._warnings += [
            (now, f'{status.name}: {status.message}')
            for status in message.status
            if status.level != DiagnosticStatus.OK
        ]

    def named(self, pattern: str, since: float) -> tuple[float, str]:
        """Return when and how a warning with a pattern came after a time; NaN and '' if none."""
        for at, words in self._warnings:
            if at > since and re.search(pattern, words):
                return at - since, words
        return math.nan, ''

    def recover(self, since: float) -> float:
        """Send commands until one of them is answered; return when [s after `since`].

        Args:
            since: time of the kill or of the restart [s, monotonic].
        """
        sent: list[str] = []
        while time.monotonic() < since + _PATIENCE:
            self._number += 1
            sent.append(f'{SPONGE} {self._number}')
            self.peer.command(sent[-1])
            self.peer.spin(_PROBE_PERIOD)
            times = [self._answered[text] for text in sent if text in self._answered]
            if times:
                return min(times) - since
        return math.nan

    def wait_until_unnamed(self, pattern: str) -> None:
        """Wait until the diagnostics do not report an earlier kill of this kind any more."""
        deadline = time.monotonic() + _PATIENCE
        self.peer.wait(
            lambda: (
                time.monotonic() > deadline
                or not pattern
                or not self.named(pattern, time.monotonic() - 1.5)[1]
            ),
            2 * _PATIENCE,
        )

    def wait_until_clients_left(self) -> None:
        """Wait until all clients have left the graph and the node had time to end their goals."""
        deadline = time.monotonic() + LEASE + 2 * ENDING

        def have_left() -> bool:
            ends = [self._left_at.get(gid, math.inf) for gid in self._gids.values()]
            return time.monotonic() > min(deadline, max(ends, default=0.0) + ENDING)

        self.peer.wait(have_left, 2 * _PATIENCE)


def work(name: str) -> None:
    """Send continuous goals, as a client, until it is killed."""
    fastdds.configure_shared_memory()
    rclpy.init()
    node = rclpy.create_node('client')
    publisher = node.create_publisher(Empty, _ALIVE, 10)
    node.create_timer(_ALIVE_PERIOD, lambda: publisher.publish(Empty()))
    client = LisaClient(node)
    for _ in range(GOALS):
        client.segment_async(name, continuous=True)
    rclpy.spin(node)


class Robot:
    """The processes of a run, and how each of them is killed."""

    def __init__(self, folder: Path, model: str, run: processes.Run, observer: Observer):
        """Start camera and node; outputs go to files of the folder."""
        self._folder, self._run, self._observer = folder, run, observer
        command = processes.node_command(folder, model, {})
        self.node = processes.RespawnedNode(command, folder / 'chaos_node.log')
        self._camera = self._start(processes.CAMERA, 'chaos_camera.log')
        self._client: subprocess.Popen | None = None  # the newest one
        self.clients: dict[str, float] = {}  # when a client was killed, by its query

    def _start(self, command: Sequence[str], log: str) -> subprocess.Popen:
        with (self._folder / log).open('a', encoding='utf-8') as output:
            return subprocess.Popen(  # noqa: S603  # our own programs
                command, stdout=output, stderr=subprocess.STDOUT, cwd=processes.ROOT
            )

    def kill(self, target: Target) -> Kill:
        """Kill something and wait until the node answers again; return what was seen."""
        strike = {
            Target.CLIENT: self._kill_client,
            Target.CAMERA: self._kill_camera,
            Target.MODEL: self._kill_model,
            Target.NODE: self.node.kill,
        }[target]
        name = f'client {len(self.clients)}' if target is Target.CLIENT else ''
        if name:
            self._start_client(name)
        self._run.note_segments()
        killed_at = since = strike()
        if target is Target.CAMERA:
            self._wait_until_named(target, killed_at)
            since = time.monotonic()
            self._camera = self._start(processes.CAMERA, 'chaos_camera.log')
        recovery = self._observer.recover(since)
        if name:  # DDS, and so the node, does not know yet
            self.clients[name] = killed_at
            return Kill(target, killed_at, recovery, self._orphans(), client=name)
        self._wait_until_named(target, killed_at)
        naming = self._naming(target, killed_at)
        return Kill(target, killed_at, recovery, self._orphans(), *naming)

    def _start_client(self, name: str) -> None:
        """Start a client and wait until it has an answer."""
        command = (sys.executable, __file__, '--work', name)
        self._client = self._start(command, 'chaos_client.log')
        self._observer.wait_for_client(name)

    def _kill_client(self) -> float:
        return processes.kill(self._client)

    def _kill_camera(self) -> float:
        return processes.kill(self._camera)

    def _kill_model(self) -> float:
        model = processes.model_process(self.node.pid)
        assert model is not None, 'the node has no model process'
        os.kill(model, signal.SIGKILL)
        return time.monotonic()

    def _naming(self, target: Target, since: float) -> tuple[float, str]:
        """Return how long it took until a cause was named, and how; NaN if it was not."""
        if target is not Target.NODE:
            return self._observer.named(target.value, since)
        ends = [(at - since, status) for at, status in self.node.exits if at >= since]
        return (ends[0][0], f'exit status {ends[0][1]}') if ends else (math.nan, '')

    def _wait_until_named(self, target: Target, since: float) -> None:
        """Wait until a cause is named; no longer than five times the limit."""
        deadline = since + 5 * NAMING
        self._observer.peer.wait(
            lambda: time.monotonic() > deadline or self._naming(target, since)[1], 6 * NAMING
        )

    def _orphans(self) -> int:
        """Return the number of processes of the run that belong to nobody."""
        pids = {process.pid for process in self._run.processes()}
        return len(pids - {self.node.pid, self._camera.pid, *processes.workers(self.node.pid)[:2]})

    def stop(self) -> int:
        """End everything; return the exit status of the node."""
        self._run.note_segments()
        status = self.node.stop()
        processes.end(self._camera)
        return status


def kill_all(
    robot: Robot, observer: Observer, targets: Sequence[Target], seconds: float
) -> list[Kill]:
    """Kill targets in turn; return what was seen.

    Args:
        robot: all its processes run.
        observer: of its node.
        targets: of the kills.
        seconds: how long all of them take, at least [s].
    """
    observer.peer.spin(_SETTLING)
    kills, start = [], time.monotonic()
    for number, target in enumerate(tqdm(targets, desc='chaos', unit='kill')):
        at = start + number * seconds / len(targets)
        observer.peer.spin(max(0.0, at - time.monotonic()))
        observer.wait_until_unnamed(target.value)
        kills.append(robot.kill(target))
    observer.wait_until_clients_left()
    last = max((kill.at for kill in kills if kill.target is not Target.MODEL), default=-math.inf)
    observer.peer.spin(max(0.0, last + FREEING - time.monotonic()))
    return [_completed(kill, observer, start) for kill in kills]


def _completed(kill: Kill, observer: Observer, start: float) -> Kill:
    """Return a kill with its time since the start, and with what came of a client's later."""
    at = kill.at - start
    if not kill.client:
        return dataclasses.replace(kill, at=at)
    left_at = observer.departure(kill.client)
    naming, words = observer.named(Target.CLIENT.value, left_at)
    departure = left_at - kill.at
    return dataclasses.replace(kill, at=at, naming=naming, words=words, departure=departure)


def work_for_nobody(clients: dict[str, float], worked_at: dict[str, float]) -> float:
    """Return how long after its death a client's goals were answered, at most [s]."""
    durations = [worked_at.get(name, killed_at) - killed_at for name, killed_at in clients.items()]
    return max([0.0, *durations])


def worst(values: Iterable[float]) -> float:
    """Return the largest value; NaN if one of them is, 0 if there are none."""
    return float(np.max([0.0, *values]))  # of numpy: NaN wins


def limits(kills: Sequence[Kill], nobody: float, rest: Rest, is_timed: bool) -> list[report.Limit]:
    """Return the limits of a run.

    Args:
        kills: what was seen of each.
        nobody: see `work_for_nobody` [s].
        rest: what is left at the end.
        is_timed: judge durations. What never came fails in any case.
    """
    rows = []
    for target in Target:
        hits = [kill for kill in kills if kill.target is target]
        if not hits:
            continue
        name = f'{target.name.lower()} ({len(hits)} kills)'
        recovery, naming = worst(k.recovery for k in hits), worst(k.naming for k in hits)
        rows += [
            report.Limit(f'{name}: first answer', recovery, RECOVERY if is_timed else _EVER, 's'),
            report.Limit(f'{name}: cause named', naming, NAMING if is_timed else _EVER, 's'),
        ]
    return [
        *rows,
        report.Limit('longest work for a killed client', nobody, LEASE + ENDING, 's'),
        report.Limit('processes left over after a kill', max(k.orphans for k in kills), 0),
        report.Limit('processes left over at the end', len(rest.processes), 0),
        report.Limit('segments of shared memory left over', len(rest.segments), 0),
        report.Limit('exit status of the node', abs(rest.status), 0),
    ]


def plot(kills: Sequence[Kill], path: Path, title: str) -> None:
    """Draw the time to the first answer and to the diagnosis of each kill."""
    drawn, axes = report.figure(2, title)
    rows = (('recovery', 'first answer [s]', RECOVERY), ('naming', 'cause named [s]', NAMING))
    for axis, (field, label, largest) in zip(axes, rows, strict=True):
        for target in Target:
            hits = [kill for kill in kills if kill.target is target]
            values = [getattr(kill, field) for kill in hits]
            axis.plot([k.at for k in hits], values, 'o', ms=5, label=target.name.lower())
        axis.axhline(largest, color=report.LIMIT_COLOUR, ls=':', lw=1)
        axis.set(ylabel=label, ylim=(0, None))
    report.add_legend(axes[0], 'dotted: limit; a missing point: never')
    axes[1].set(xlabel='time of the kill [s]')
    report.save(drawn, path)


def choose(kills: int, seed: int) -> list[Target]:
    """Return the targets of a run: each kind in turn, in a random order.

    A new node knows no clients of the old one, so the node is not killed within a client's lease.
    """
    rng, targets = random.Random(seed), []
    while len(targets) < kills:
        targets += [Target.NODE, Target.CLIENT, *rng.sample([Target.CAMERA, Target.MODEL], 2)]
    return targets[:kills]


def main() -> int:
    """Kill, report and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--kills', type=int, default=4, help='(default: 4)')
    parser.add_argument('--minutes', type=float, default=0.0, help='of the run (default: 0)')
    parser.add_argument(
        '--targets', default='', help='kill these instead, in this order: node,client,camera,model'
    )
    parser.add_argument(
        '--untimed', action='store_true', help='print durations, judge none: a busy machine'
    )
    parser.add_argument('--seed', type=int, default=0, help='of the order (default: 0)')
    parser.add_argument(
        '--model', default='lisa-tabletop', help=f'or {processes.CENTRE} (default: lisa-tabletop)'
    )
    parser.add_argument('--out', type=Path, default=Path('runs/endurance'), help='folder')
    parser.add_argument('--work', help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work)
    options.out.mkdir(parents=True, exist_ok=True)
    for log in options.out.glob('chaos_*.log'):
        log.unlink()
    run = processes.Run()
    processes.join_graph()
    start = time.monotonic()
    observer = Observer()
    robot = Robot(options.out, options.model, run, observer)
    try:
        observer.peer.wait_until_active()
        observer.recover(time.monotonic())
        targets = [Target[name.upper()] for name in filter(None, options.targets.split(','))]
        targets = targets or choose(options.kills, options.seed)
        kills = kill_all(robot, observer, targets, 60 * options.minutes)
    finally:
        status = robot.stop()
    rest = Rest.of(run, status)
    observer.peer.close()
    rclpy.shutdown()
    nobody = work_for_nobody(robot.clients, observer.worked_at)
    result = report.Report(
        'chaos',
        {name: str(value) for name, value in vars(options).items() if name != 'work'},
        time.monotonic() - start,
        limits(kills, nobody, rest, not options.untimed),
        {
            'kills': [{**dataclasses.asdict(kill), 'target': kill.target.name} for kill in kills],
            'left over': dataclasses.asdict(rest),
        },
    )
    plot(kills, options.out / 'chaos.png', f'{len(kills)} kills, {options.model}')
    print(f'figures: {result.write(options.out)}')
    result.print_table()
    return int(not result.holds)


if __name__ == '__main__':
    raise SystemExit(main())
