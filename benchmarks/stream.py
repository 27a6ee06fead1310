# SPDX-License-Identifier: Apache-2.0
"""Let a standing query run beside a 30 Hz stream: answers stay fresh, queue and memory flat.

    python benchmarks/stream.py                     # a minute
    python benchmarks/stream.py --minutes 10        # the long run

Camera (1280 x 720 RGB-D), node and this process have a process each. "watch: ..." is answered
for newer and newer images. When an answer arrives, its image is as old as the answer took to make,
plus what it waited for: in the node's buffer, for the thread of the model, and in DDS. The limit
is for that rest. Writes OUT/stream.json and OUT/stream.png. Exit status 1 if a limit does not
hold.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

import endurance_report as report
import node_processes as processes  # makes lisa_ros importable
import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lisa_ros.msg import Segmentation
from node_peer import NodePeer
from node_processes import Sample, sample
from rgbd_camera import SPONGE
from tqdm import tqdm

from lisa_ros.results import ANSWERED

WAIT, MEMORY_GROWTH = 50.0, 0.01  # limits: [ms], as a share
JUDGED_MINUTES = 5.0  # shorter runs do not tell a leak from noise
WARM_UP = 5.0  # that is not measured [s]
SAMPLES = 120  # of memory
_WAITING = ('waiting goals', 'waiting for [s]')  # keys of /diagnostics


class Watcher:
    """Notes the answers of a standing query and the queue; one thread."""

    def __init__(self) -> None:
        """Join the graph."""
        self.peer = NodePeer(self._note_answer, self._note_diagnostics, is_camera=False)
        self.answers: list[tuple[float, float, float]] = []  # arrival, age, duration [s]
        self.waiting: list[tuple[float, ...]] = []  # values of _WAITING
        self.unanswered = 0

    def _note_answer(self, message: Segmentation) -> None:
        now = self.peer.node.get_clock().now().nanoseconds / 1e9
        stamp = message.header.stamp.sec + message.header.stamp.nanosec / 1e9
        duration = sum(stage.seconds for stage in message.timings)
        self.unanswered += message.status not in map(int, ANSWERED)
        self.answers.append((time.monotonic(), now - stamp, duration))

    def _note_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            values = {item.key: item.value for item in status.values}
            if all(key in values for key in _WAITING):
                self.waiting.append(tuple(float(values[key]) for key in _WAITING))

    def forget(self) -> None:
        """Begin to measure."""
        self.answers.clear()
        self.waiting.clear()
        self.unanswered = 0


def watch(watcher: Watcher, minutes: float, node: int) -> list[Sample]:
    """Let the query run; return samples of memory, with the seconds since the start."""
    peer, samples = watcher.peer, []
    peer.command(f'watch: {SPONGE}')
    peer.wait(lambda: watcher.answers, 60, 'the first answer')
    peer.spin(WARM_UP)
    watcher.forget()
    start = time.monotonic()
    for _ in tqdm(range(SAMPLES), desc='stream', unit='sample'):
        peer.spin(60 * minutes / SAMPLES)
        samples.append(sample(round(time.monotonic() - start), node))
    peer.command('stop')
    peer.spin(1)
    return samples


def limits(watcher: Watcher, samples: list[Sample], minutes: float) -> list[report.Limit]:
    """Return the limits of a run."""
    _, ages, durations = np.array(watcher.answers).T
    goals, seconds = np.array(watcher.waiting).T
    is_long = minutes >= JUDGED_MINUTES
    rows = [
        report.Limit('answers that are none', watcher.unanswered, 0),
        report.Limit(
            'age of the image beyond the duration, p99',
            1000 * float(np.percentile(ages - durations, 99)),
            WAIT,
            'ms',
        ),
        report.Limit(
            'age of the image beyond the duration, largest',
            1000 * float((ages - durations).max()),
            WAIT,
            'ms',
        ),
        report.Limit('goals that wait', float(goals.max()), 0),
        report.Limit('longest wait of a request', float(seconds.max()), 1, 's'),
    ]
    rows += [
        report.Limit(
            f'memory growth of the {process} over the second half',
            100 * processes.memory_growth(samples, process),
            100 * MEMORY_GROWTH,
            '%',
            is_long,
        )
        for process in ('node', 'model')
    ]
    return rows


def plot(watcher: Watcher, samples: list[Sample], path: Path, title: str) -> None:
    """Draw ages, durations, the queue and memory over time."""
    drawn, (age, queue, memory) = report.figure(3, title)
    arrivals, ages, durations = np.array(watcher.answers).T
    minutes = (arrivals - arrivals[0]) / 60
    age.plot(minutes, 1000 * ages, '.', ms=2, color='0.4', label='age of the image')
    age.plot(minutes, 1000 * durations, '.', ms=2, color='tab:blue', label='duration')
    waits = 1000 * (ages - durations)
    age.plot(minutes, waits, '.', ms=2, color='tab:orange', label='the rest')
    age.axhline(WAIT, color=report.LIMIT_COLOUR, lw=1)
    age.set(ylabel='when it arrives [ms]', ylim=(0, 1.3 * np.percentile(1000 * ages, 99.5)))
    report.add_legend(age, 'red: limit of the rest')
    goals, seconds = np.array(watcher.waiting).T
    times = np.linspace(0, minutes[-1], len(goals))
    queue.plot(times, goals, color='tab:blue', label='goals that wait')
    queue.plot(times, seconds, color='tab:orange', label='wait of the next request [s]')
    queue.set(ylabel='queue', ylim=(-0.1, max(2, 1.2 * goals.max(), 1.2 * seconds.max())))
    report.add_legend(queue, 'from /diagnostics')
    for process, colour in (('node', report.NODE_COLOUR), ('model', report.MODEL_COLOUR)):
        values = [getattr(item, process).memory for item in samples]
        memory.plot(
            [item.count / 60 for item in samples], values, color=colour, label=f'{process} process'
        )
    memory.set(xlabel='time [minutes]', ylabel='memory [MiB]', ylim=(0, None))
    report.add_legend(memory, 'without the pages of files')
    report.save(drawn, path)


def main() -> int:
    """Run, report and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--minutes', type=float, default=1.0, help='(default: 1)')
    parser.add_argument(
        '--model', default='lisa-tabletop', help=f'or {processes.CENTRE} (default: lisa-tabletop)'
    )
    parser.add_argument('--threads', type=int, default=1, help='parameter of the node')
    parser.add_argument('--width', type=int, default=1280, help='[px] (default: 1280)')
    parser.add_argument('--height', type=int, default=720, help='[px] (default: 720)')
    parser.add_argument('--out', type=Path, default=Path('runs/endurance'), help='folder')
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    processes.Run()
    processes.join_graph()
    start, watcher = time.monotonic(), Watcher()
    parameters = {'threads': options.threads, 'watch_rate': 30.0}
    command = processes.node_command(options.out, options.model, parameters)
    size = ['--width', str(options.width), '--height', str(options.height)]
    with (
        processes.started(command, options.out / 'stream_node.log') as node,
        processes.started([*processes.CAMERA, *size], options.out / 'stream_camera.log'),
    ):
        watcher.peer.wait_until_active()
        samples = watch(watcher, options.minutes, node.pid)
    watcher.peer.close()
    rclpy.shutdown()
    _, ages, durations = np.array(watcher.answers).T
    result = report.Report(
        'stream',
        {name: str(value) for name, value in vars(options).items()},
        time.monotonic() - start,
        limits(watcher, samples, options.minutes),
        {
            'answers': len(watcher.answers),
            'age of the image [ms]': float(np.median(1000 * ages)),
            'duration [ms]': float(np.median(1000 * durations)),
            'samples': [dataclasses.asdict(item) for item in samples],
        },
    )
    title = f'A standing query beside {options.width} x {options.height} at 30 Hz, {options.model}'
    plot(watcher, samples, options.out / 'stream.png', title)
    print(f'figures: {result.write(options.out)}')
    result.print_table()
    return int(not result.holds)


if __name__ == '__main__':
    raise SystemExit(main())
