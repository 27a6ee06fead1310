# SPDX-License-Identifier: Apache-2.0
"""Measure what the node adds to the time of its model, and what each frame of a camera costs it.

    python benchmarks/node_latency.py [--width 1280 --height 720] [--isolation process]
    python benchmarks/node_latency.py --width 640 --height 480 --isolation server    # thin node

A camera (30 Hz, without depth, another process) sends images; this process sends a command and
waits for ~/segmentation, ~/mask and ~/confidence. The model answers at once and says how long it
took; the rest is the node, DDS and the way to the model and back: none, to its process (with
--isolation process), or to a server (test/segment_server.py, JPEG over loopback). Then nobody
asks, and the CPU time of the thread that runs the node's callbacks is divided by the number of
frames: an upper bound of how long a frame holds the interpreter's lock.

The same is measured of a node in Python that does nothing but publish ready messages
(ready_node.py), in the same run: what rclpy and DDS cost on this machine.

Writes OUT/node_latency.json and OUT/node_latency.png. Exit status 1 if a limit does not hold.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import endurance_report as report
import node_processes as processes  # makes lisa_ros importable
import numpy as np
import rclpy
from lisa_ros.msg import Segmentation
from node_peer import NODE, NodePeer
from sensor_msgs.msg import Image
from tqdm import tqdm

sys.path.append(str(processes.ROOT / 'test'))
import segment_server

MEDIAN, PERCENTILE_95, CALLBACKS = 4.0, 12.0, 1.5  # limits [ms]
WARM_UP = 20  # questions that are not measured
RATE = 30.0  # of the camera [Hz]
ISOLATIONS = ('process', 'thread')
READY = 'ready'  # the node of ready_node.py
SERVER, SERVER_COST = 'server', 15.0  # how much more a model on a server may cost [ms]
# between two questions [s]; at random, so that questions come at any time between two images
PAUSES = 0.03, 0.1
DISCOVERY = 4.0  # until a node that is no lifecycle node has been found [s]
COUNTED = 10.0  # time in which the cost of frames is measured [s]


class Asker:
    """Asks questions and notes when the messages of an answer arrive; one thread."""

    def __init__(self) -> None:
        """Join the graph; images arrive as bytes: their conversion is not the node's time."""
        self.peer = NodePeer(on_answer=self._note_answer, is_camera=False)
        self._answer: Segmentation | None = None
        self._images = 0
        for topic in ('mask', 'confidence'):
            self.peer.node.create_subscription(
                Image, f'{NODE}/{topic}', self._note_image, 10, raw=True
            )

    def _note_answer(self, message: Segmentation) -> None:
        self._answer = message

    def _note_image(self, message: bytes) -> None:
        self._images += 1

    def ask(self, text: str) -> tuple[float, float]:
        """Return the time until an answer is complete here, and that of its model [ms].

        Raises:
            TimeoutError: it did not come.
        """
        self._answer, self._images = None, 0
        start = time.perf_counter()
        self.peer.command(text)
        self.peer.wait(lambda: self._answer is not None and self._images == 2, 10, 'an answer')
        seconds = time.perf_counter() - start
        assert self._answer.status == Segmentation.FOUND, self._answer
        model = next(t.seconds for t in self._answer.timings if t.stage == 'model')
        return 1000 * seconds, 1000 * model


def callback_time(node: int) -> float:
    """Return the CPU time of the main thread of the node, which runs its callbacks [s]."""
    path = Path(f'/proc/{node}/task/{node}/schedstat')
    return int(path.read_text(encoding='ascii').split()[0]) / 1e9


def frame_cost(peer: NodePeer, node: int) -> float:
    """Return the CPU time of the callbacks for each frame [ms]."""
    peer.spin(1)
    start, before = time.monotonic(), callback_time(node)
    peer.spin(COUNTED)
    seconds, after = time.monotonic() - start, callback_time(node)
    return 1000 * (after - before) / (RATE * seconds)


def measure(options: argparse.Namespace, isolation: str) -> tuple[np.ndarray, float]:
    """Return the times of the answers, (questions, 2) [ms], and the cost of a frame [ms]."""
    if isolation == READY:
        return ask_ready_node(options)
    if isolation == SERVER:
        with running_server() as url:
            return ask_node(options, isolation, url, {'tracker': 'off'})
    parameters = {'isolation': isolation, 'tracker': 'off'}
    return ask_node(options, isolation, processes.CENTRE, parameters)


@contextlib.contextmanager
def running_server() -> Iterator[str]:
    """Run a server with the model in a process of its own; yield its address."""
    server = segment_server.ServerProcess(processes.CENTRE)
    try:
        yield server.url
    finally:
        server.kill()


def ask_node(
    options: argparse.Namespace, isolation: str, model: str, parameters: dict[str, str]
) -> tuple[np.ndarray, float]:
    """Return the times of the answers and the cost of a frame, as `measure`, of a node."""
    command = processes.node_command(options.out, model, parameters)
    return ask_command(options, isolation, command, NodePeer.wait_until_active)


def ask_ready_node(options: argparse.Namespace) -> tuple[np.ndarray, float]:
    """Return the times of the answers and the cost of a frame, as `measure`, of ready_node.py."""
    command = [sys.executable, str(Path(__file__).with_name('ready_node.py')), *size_of(options)]
    return ask_command(options, READY, command, lambda peer: peer.spin(DISCOVERY))


def size_of(options: argparse.Namespace) -> list[str]:
    """Return the size of the images as arguments of the camera and of ready_node.py."""
    return ['--width', str(options.width), '--height', str(options.height)]


def ask_command(
    options: argparse.Namespace,
    name: str,
    command: Sequence[str],
    wait: Callable[[NodePeer], object],
) -> tuple[np.ndarray, float]:
    """Return the times of the answers and the cost of a frame, as `measure`.

    Args:
        options: of the command line.
        name: of what is measured.
        command: that starts the node.
        wait: returns when the node can be asked.
    """
    camera = [*processes.CAMERA, '--rate', str(RATE), '--no-depth', *size_of(options)]
    asker = Asker()
    with (
        processes.started(command, options.out / 'node_latency_node.log') as node,
        processes.started(camera, options.out / 'node_latency_camera.log'),
    ):
        wait(asker.peer)
        asker.peer.spin(2)
        rows, random = [], np.random.default_rng(0)
        for number in tqdm(range(WARM_UP + options.questions), desc=name, unit='question'):
            rows.append(asker.ask(f'the mug {number}'))
            asker.peer.spin(random.uniform(*PAUSES))
        cost = frame_cost(asker.peer, node.pid)
    asker.peer.close()
    return np.array(rows[WARM_UP:]), cost


def limits(added: np.ndarray, cost: float, isolation: str) -> list[report.Limit]:
    """Return the limits of one kind of isolation."""
    median, high = np.percentile(added, (50, 95))
    more = SERVER_COST if isolation == SERVER else 0.0
    return [
        report.Limit(
            f'{isolation}: added to the model, median', float(median), MEDIAN + more, 'ms'
        ),
        report.Limit(
            f'{isolation}: added to the model, p95', float(high), PERCENTILE_95 + more, 'ms'
        ),
        report.Limit(f'{isolation}: callbacks for a frame', cost, CALLBACKS, 'ms'),
    ]


def plot(added: dict[str, np.ndarray], path: Path, title: str) -> None:
    """Draw what the node added to each answer, sorted."""
    drawn, (axis,) = report.figure(1, title)
    colours = (report.NODE_COLOUR, report.MODEL_COLOUR)[: len(added) - 1]
    for (isolation, values), colour in zip(
        added.items(), (*colours, report.OTHER_COLOUR), strict=True
    ):
        shares = np.linspace(0, 100, len(values))
        label = 'a node with ready messages' if isolation == READY else f'model in a {isolation}'
        axis.plot(shares, np.sort(values), color=colour, label=label)
    for value, share in ((MEDIAN, 50), (PERCENTILE_95, 95)):
        axis.plot(share, value, 'v', color=report.LIMIT_COLOUR, ms=6)
    axis.set(xlabel='percentile of the answers', ylabel='added time [ms]', ylim=(0, None))
    report.add_legend(axis, 'red: limits')
    report.save(drawn, path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, report and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--width', type=int, default=1280, help='[px] (default: 1280)')
    parser.add_argument('--height', type=int, default=720, help='[px] (default: 720)')
    parser.add_argument('--questions', type=int, default=300, help='(default: 300)')
    parser.add_argument(
        '--isolation', choices=(*ISOLATIONS, SERVER), help='(default: both, in turns)'
    )
    parser.add_argument('--out', type=Path, default=Path('runs/endurance'), help='folder')
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    processes.Run()
    processes.join_graph()
    start = time.monotonic()
    rows, added, all_limits = {}, {}, []
    kinds = (options.isolation,) if options.isolation else ISOLATIONS
    for isolation in (*kinds, READY):
        times, cost = measure(options, isolation)
        added[isolation] = times[:, 0] - times[:, 1]
        if isolation != READY:
            all_limits += limits(added[isolation], cost, isolation)
        rows[isolation] = {
            'whole [ms]': float(np.median(times[:, 0])),
            'model [ms]': float(np.median(times[:, 1])),
            'callbacks for a frame [ms]': cost,
            'added [ms]': [round(float(value), 3) for value in added[isolation]],
        }
    rclpy.shutdown()
    named = {name: str(value) for name, value in vars(options).items()}
    result = report.Report(
        'node_latency',
        {**named, 'model': processes.CENTRE},
        time.monotonic() - start,
        all_limits,
        rows,
    )
    title = f'What the node adds at {options.width} x {options.height}'
    plot(added, options.out / 'node_latency.png', title)
    print(f'figures: {result.write(options.out)}')
    result.print_table()
    median, high = np.percentile(added[READY], (50, 95))
    cost = rows[READY]['callbacks for a frame [ms]']
    print(
        f'  a node that publishes ready messages: median {median:.1f} ms, p95 {high:.1f} ms, '
        f'callbacks for a frame {cost:.1f} ms'
    )
    return int(not result.holds)


if __name__ == '__main__':
    raise SystemExit(main())
