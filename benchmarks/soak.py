# SPDX-License-Identifier: Apache-2.0
"""Ask a node again and again beside a 30 Hz RGB-D stream: it must not grow, nor become slower.

    python benchmarks/soak.py                                    # 100 queries, a minute
    python benchmarks/soak.py --queries 20000                    # the long run
    python benchmarks/soak.py --queries 20000 --model centre:    # the node alone: a model at once

The camera (640 x 480), the node and a subscriber of all its topics have a process each. Every
query is a command that waits for its answer; after every tenth one the masks are only tracked for
a while. Writes OUT/soak.json, OUT/soak.png and the node's
log. Exit status 1 if a limit does not hold:

- every query is answered, and each topic of the node has messages;
- no thread and no open file more than in the beginning;
- memory of node and model process grows by less than 1 % over the second half;
- the 95th percentile of the latency of the last tenth is at most 10 % above that of the first.

The last two need at least 2000 queries: in shorter runs they are printed and not judged.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import endurance_report as report
import node_processes as processes  # makes lisa_ros importable
import numpy as np
import rclpy
import rgbd_camera
from node_peer import NODE, NodePeer
from node_processes import Sample, sample
from rclpy.executors import ExternalShutdownException
from tqdm import tqdm

from lisa_ros.results import ANSWERED
from lisa_ros.ros import fastdds
from lisa_ros.ros.qos import is_latched, latched_qos

MEMORY_GROWTH, SLOWDOWN = 0.01, 0.10  # largest allowed, as shares
JUDGED_QUERIES = 2000  # fewer do not tell a leak, or a slowdown, from noise
WARM_UP = 20  # queries that are not measured
TRACKED_EVERY, TRACKED_FOR = 10, 0.5  # queries; time in which the masks are only tracked [s]
SAMPLES = 200  # of memory
# Without queries nothing is published there: /rosout of a node that logs nothing, events of goals.
_SILENT = ('/rosout', '/_action/', '_event')
QUERIES = (
    'show me the sponge', 'the thing made of metal', 'What can make coffee?',
    'hand me the lowest thing', 'what soaks up water in this image?', 'hand me the cream cheese',
    'where is the handle of the coffee pot?', 'where is the coffee pot and the sponge?',
)  # fmt: skip


def listen(counts: Path) -> None:
    """Subscribe to all topics of the node until a signal; write how many messages came."""
    fastdds.configure_shared_memory()
    rclpy.init()
    node = rclpy.create_node('listener')
    while not (topics := _published(node)):
        rclpy.spin_once(node, timeout_sec=0.1)
    received = dict.fromkeys(topics, 0)

    def subscribe(topic: str, type_name: str) -> None:
        def count(message: bytes) -> None:
            received[topic] += 1

        package, _, name = type_name.split('/')
        message_type = getattr(importlib.import_module(f'{package}.msg'), name)
        is_state = any(map(is_latched, node.get_publishers_info_by_topic(topic)))
        qos = latched_qos() if is_state else 10  # a state may not change again
        node.create_subscription(message_type, topic, count, qos, raw=True)

    for topic, type_name in topics.items():
        subscribe(topic, type_name)
    with contextlib.suppress(KeyboardInterrupt, ExternalShutdownException):
        rclpy.spin(node)  # it may also return: the signal ends the context
    counts.write_text(json.dumps(received), encoding='utf-8')


def _published(node: rclpy.node.Node) -> dict[str, str]:
    """Return the topics of the node and their types; empty until the node is configured."""
    try:
        topics = node.get_publisher_names_and_types_by_node(NODE.strip('/'), '/')
    except rclpy.node.NodeNameNonExistentError:
        return {}
    names = {topic: types[0] for topic, types in topics if not any(s in topic for s in _SILENT)}
    return names if f'{NODE}/tracked/scene_points' in names else {}


@dataclass(frozen=True)
class Answers:
    """What the queries gave."""

    latencies: list[float]  # from the command to its answer [s]
    unanswered: int  # without an answer, or with a status that is none
    samples: list[Sample]


def ask(peer: NodePeer, queries: int, node: int) -> Answers:
    """Ask and measure; the first WARM_UP queries are left out."""
    latencies, unanswered, samples = [], 0, []
    every = max(1, queries // SAMPLES)
    warm_up = min(WARM_UP, queries)
    for number in tqdm(range(-warm_up, queries), desc='soak', unit='query'):
        text = f'{QUERIES[number % len(QUERIES)]} {number}'
        start = time.monotonic()
        try:
            is_answered = peer.ask(text).status in map(int, ANSWERED)
        except TimeoutError as error:
            print(error, file=sys.stderr)
            is_answered = False
        seconds = time.monotonic() - start
        if number % TRACKED_EVERY == 0:
            peer.spin(TRACKED_FOR)
        if number >= 0:
            latencies.append(seconds)
            unanswered += not is_answered
            if number % every == 0 or number == queries - 1:
                samples.append(sample(number, node))
    samples.append(processes.resting_sample(queries, node))
    return Answers(latencies, unanswered, samples)


def slowdown(latencies: Sequence[float]) -> float:
    """Return how far the 95th percentile of the last tenth is above the first's, as a share."""
    tenth = max(1, len(latencies) // 10)
    first, last = np.percentile(latencies[:tenth], 95), np.percentile(latencies[-tenth:], 95)
    return float(last / first - 1)


def limits(answers: Answers, received: dict[str, int]) -> list[report.Limit]:
    """Return the limits of a soak.

    Args:
        answers: to the queries.
        received: number of messages by topic.
    """
    silent = sorted(topic for topic, count in received.items() if not count)
    is_long = len(answers.latencies) >= JUDGED_QUERIES
    rows = [
        report.Limit('queries without an answer', answers.unanswered, 0),
        report.Limit(f'topics without a message {" ".join(silent)}', len(silent), 0),
        report.Limit(
            'p95 latency of the last tenth above the first',
            100 * slowdown(answers.latencies),
            100 * SLOWDOWN,
            '%',
            is_long,
        ),
    ]
    for process in ('node', 'model'):
        before, after = (getattr(answers.samples[index], process) for index in (0, -1))
        rows += [
            report.Limit(f'threads lost by the {process}', after.threads - before.threads, 0),
            report.Limit(f'handles lost by the {process}', after.handles - before.handles, 0),
            report.Limit(
                f'memory growth of the {process} over the second half',
                100 * processes.memory_growth(answers.samples, process),
                100 * MEMORY_GROWTH,
                '%',
                is_long,
            ),
        ]
    return rows


def plot(answers: Answers, path: Path, title: str) -> None:
    """Draw latency and memory over the queries."""
    drawn, (latency, memory) = report.figure(2, title)
    count = len(answers.latencies)
    numbers = np.arange(count)
    latency.plot(numbers, answers.latencies, ',' if count > 2000 else '.', color='0.6', ms=3)
    tenth = max(1, count // 10)
    starts = range(0, count - tenth + 1, tenth)
    for share, style in ((50, '--'), (95, '-')):
        values = [np.percentile(answers.latencies[start:][:tenth], share) for start in starts]
        middles = [start + tenth / 2 for start in starts]
        latency.plot(middles, values, style, marker='.', label=f'{share}th percentile')
    latency.set(ylabel='latency [s]', ylim=(0, 1.5 * np.percentile(answers.latencies, 99)))
    report.add_legend(latency, 'lines: of each tenth')
    for process, colour in (('node', report.NODE_COLOUR), ('model', report.MODEL_COLOUR)):
        values = [getattr(item, process).memory for item in answers.samples]
        queries = [item.count for item in answers.samples]
        memory.plot(queries, values, color=colour, label=f'{process} process')
    memory.axvspan(count / 2, count, color='0.92')
    memory.set(xlabel='answered queries', ylabel='memory [MiB]', ylim=(0, None))
    report.add_legend(memory, 'grey: judged half')
    report.save(drawn, path)


def main() -> int:
    """Soak, report and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--queries', type=int, default=100, help='(default: 100)')
    parser.add_argument(
        '--model', default='lisa-tabletop', help=f'or {processes.CENTRE} (default: lisa-tabletop)'
    )
    parser.add_argument(
        '--threads',
        type=int,
        default=1,
        help='parameter threads of the node (default: 1: camera and topics need the other cores)',
    )
    parser.add_argument('--out', type=Path, default=Path('runs/endurance'), help='folder')
    parser.add_argument('--listen', type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.listen:
        listen(options.listen)
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    log, counts = options.out / 'soak_node.log', options.out / 'soak_topics.json'
    for path in (log, counts):
        path.unlink(missing_ok=True)
    processes.Run()
    processes.join_graph()
    start = time.monotonic()
    peer = NodePeer()
    parameters = {'threads': options.threads, 'map_frame': rgbd_camera.FRAME_ID}  # for ~/places
    command = processes.node_command(options.out, options.model, parameters)
    listener = [sys.executable, __file__, '--listen', str(counts.resolve())]
    with (
        processes.started(command, log) as node,
        processes.started(processes.CAMERA, options.out / 'soak_camera.log'),
        processes.started(listener, options.out / 'soak_listener.log'),
    ):
        peer.wait_until_active()
        peer.wait_for_listeners()
        answers = ask(peer, options.queries, node.pid)
    peer.close()
    rclpy.shutdown()
    received = json.loads(counts.read_text(encoding='utf-8'))
    latencies = answers.latencies
    result = report.Report(
        'soak',
        {name: str(value) for name, value in vars(options).items() if name != 'listen'},
        time.monotonic() - start,
        limits(answers, received),
        {
            'latency [s]': {
                'median': statistics.median(latencies),
                'p95': float(np.percentile(latencies, 95)),
                'longest': max(latencies),
            },
            'messages by topic': received,
            'exit status': node.returncode,
            'samples': [dataclasses.asdict(item) for item in answers.samples],
        },
    )
    plot(answers, options.out / 'soak.png', f'{len(latencies)} queries, {options.model}')
    print(f'figures: {result.write(options.out)}')
    result.print_table()
    return int(not result.holds)


if __name__ == '__main__':
    raise SystemExit(main())
