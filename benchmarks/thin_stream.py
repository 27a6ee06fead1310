# SPDX-License-Identifier: Apache-2.0
"""Let a thin node watch a 30 Hz camera while its server goes away for 20 s and comes back.

    python benchmarks/thin_stream.py [--gone 20] [--model lisa-tabletop]

`lisa-ros serve`, the node, the camera (640 x 480) and this process have a process each. A standing
query asks the server again and again; the tracker moves each answer to the camera's newer images.
Then the server is ended, and started again at the same address. Exit status 1 if a limit does not
hold: the tracked images keep the camera's rate, the node says UNREACHABLE, and it answers again
without a restart.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import endurance_report as report
import node_processes as processes  # makes lisa_ros importable
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lisa_ros.msg import Segmentation
from node_peer import NodePeer
from rclpy.qos import qos_profile_sensor_data
from rgbd_camera import SPONGE
from serving import Server, free_port

RATE, FLUENT = 30.0, 0.95  # of the camera [Hz]; share of its images that are tracked
WITH_SERVER = 15.0  # [s]
MAX_BATCH, PLACES = 1, 16  # of the server
START = 120.0  # until the first answer on a busy machine [s]
REPORTED, AGAIN = 6.0, 10.0  # limits: until UNREACHABLE, until an answer [s]
_MODEL = '/lisa: model'


class Watcher:
    """Notes answers, tracked images and what the diagnostics say about the model; one thread."""

    def __init__(self) -> None:
        """Join the graph."""
        self.peer = NodePeer(self._note_answer, self._note_diagnostics, is_camera=False)
        self.answers: list[tuple[float, int]] = []  # arrival [s, monotonic], status
        self.errors: list[tuple[float, str]] = []  # arrival, message of the model's diagnostics
        self.tracked = 0
        self.peer.node.create_subscription(
            Segmentation, '/lisa/tracked/segmentation', self._note_tracked, qos_profile_sensor_data
        )

    def _note_answer(self, message: Segmentation) -> None:
        self.answers.append((time.monotonic(), message.status))

    def _note_tracked(self, _: Segmentation) -> None:
        self.tracked += 1

    def _note_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name == _MODEL and status.level == status.ERROR:
                self.errors.append((time.monotonic(), status.message))

    def first(self, status: int, since: float) -> float | None:
        """Return when the first answer of a status came after a moment [s, monotonic]."""
        return next((at for at, other in self.answers if at > since and other == status), None)

    def tracked_rate(self, seconds: float) -> float:
        """Return the rate of tracked images during the next seconds [Hz]."""
        before, start = self.tracked, time.monotonic()
        self.peer.spin(seconds)
        return (self.tracked - before) / (time.monotonic() - start)


@contextlib.contextmanager
def running_server(model: str, port: int) -> Iterator[Server]:
    """Run `lisa-ros serve`; it is ready when the block begins."""
    server = Server(model, MAX_BATCH, PLACES, port=port)
    try:
        server.wait()
        yield server
    finally:
        server.stop()


def measure(options: argparse.Namespace) -> list[report.Limit]:
    """Return the limits of a run."""
    port = free_port()
    parameters = {'answer_timeout': 10.0, 'watch_rate': 5.0, 'diagnostics_period': 0.2}
    url = f'http://127.0.0.1:{port}'
    command = processes.node_command(options.out, url, parameters)
    camera = [*processes.CAMERA, '--no-depth', '--width', '640', '--height', '480']
    watcher = Watcher()
    peer = watcher.peer
    with (
        contextlib.ExitStack() as stack,
        processes.started(command, options.out / 'thin_stream_node.log'),
        processes.started(camera, options.out / 'thin_stream_camera.log'),
    ):
        server = stack.enter_context(running_server(options.model, port))
        peer.wait_until_active()
        peer.command(f'watch: {SPONGE}')
        peer.wait(lambda: watcher.first(Segmentation.FOUND, 0.0), START, 'the first answer')
        peer.spin(2.0)
        answered, start = len(watcher.answers), time.monotonic()
        with_server = watcher.tracked_rate(WITH_SERVER)
        answer_rate = (len(watcher.answers) - answered) / (time.monotonic() - start)
        server.stop()
        gone = time.monotonic()
        without_server = watcher.tracked_rate(options.gone)
        unreachable = watcher.first(Segmentation.UNREACHABLE, gone)
        error = next((at for at, _ in watcher.errors if at > gone), None)
        stack.enter_context(running_server(options.model, port))
        back = time.monotonic()
        peer.wait(lambda: watcher.first(Segmentation.FOUND, back), START, 'an answer again')
        again = watcher.first(Segmentation.FOUND, back) - back
        after = watcher.tracked_rate(5.0)
    watcher.peer.close()
    never = float('inf')
    print(f'answers with a server: {answer_rate:.1f} Hz; diagnostics: {watcher.errors[-1][1]}')
    return [
        report.Limit(
            'camera images not tracked, with a server', share_missed(with_server), 1 - FLUENT
        ),
        report.Limit('the same, without', share_missed(without_server), 1 - FLUENT),
        report.Limit('the same, when it is back', share_missed(after), 1 - FLUENT),
        report.Limit(
            'until an answer is UNREACHABLE', (unreachable or never) - gone, REPORTED, 's'
        ),
        report.Limit('until /diagnostics has an error', (error or never) - gone, REPORTED, 's'),
        report.Limit('until an answer once it is back', again, AGAIN, 's'),
    ]


def share_missed(rate: float) -> float:
    """Return the share of the camera's images that were not tracked."""
    return max(0.0, 1 - rate / RATE)


def main() -> int:
    """Run, print the table and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--model', default='lisa-tabletop')
    parser.add_argument('--gone', type=float, default=20.0, help='[s] (default: 20)')
    parser.add_argument('--out', type=Path, default=Path('runs/thin_stream'), help='folder')
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    processes.Run()
    processes.join_graph()
    start = time.monotonic()
    limits = measure(options)
    rclpy.shutdown()
    settings = {name: str(value) for name, value in vars(options).items()}
    result = report.Report('thin_stream', settings, time.monotonic() - start, limits, {})
    print(f'figures: {result.write(options.out)}')
    result.print_table()
    return int(not result.holds)


if __name__ == '__main__':
    raise SystemExit(main())
