# SPDX-License-Identifier: Apache-2.0
"""Measure `lisa-ros serve`: what batches gain, and what happens in an overload.

    python benchmarks/serving.py [--model M] [--clients 8] [--seconds 60] [--json] [--out F]

Two servers of one replica run at the same time, one with batches of --clients and one without;
rounds of load take turns between them, so that both see the same machine. Each client sends one
new image after the other. Then requests arrive at --overload times the batched throughput.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
import itertools
import json
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from lisa_ros.images.image_file import read_rgb
from lisa_ros.resources import SELF_TEST
from lisa_ros.serving.query_format import SegmentQuery
from lisa_ros.serving.wire_format import SEGMENT_PATH, encode_request

ROUND = 5.0  # of load, before the other server's turn [s]
START = 600  # [s]
DEADLINE = 30.0  # of a request [s]


@dataclass
class Outcome:
    """What clients saw."""

    seconds: float = 0.0  # of load
    answers: list[float] = field(default_factory=list)  # time of each 200 [s]
    refusals: list[float] = field(default_factory=list)  # time of each 429 [s]
    failures: list[int] = field(default_factory=list)  # other statuses; 0: no answer

    def add(self, status: int, seconds: float) -> None:
        """Add one request."""
        if status == 200:
            self.answers.append(seconds)
        elif status == 429:
            self.refusals.append(seconds)
        else:
            self.failures.append(status)

    @property
    def throughput(self) -> float:
        """Answers per second."""
        return len(self.answers) / self.seconds


def free_port() -> int:
    """Return a port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


class Server:
    """A `lisa-ros serve`."""

    def __init__(
        self, model: str, max_batch: int, queue: int, replicas: int = 1, port: int | None = None
    ):
        self.port = port or free_port()
        self.log = tempfile.NamedTemporaryFile()  # noqa: SIM115  # open while the server runs
        command = [sys.executable, '-m', 'lisa_ros', 'serve', '--model', model]
        arguments = ['--max-batch', str(max_batch), '--queue', str(queue)]
        arguments += ['--replicas', str(replicas)]
        self.process = subprocess.Popen(  # noqa: S603  # our own command
            [*command, *arguments, '--port', str(self.port)], stdout=self.log, stderr=self.log
        )

    def wait(self) -> None:
        """Wait until it is ready."""
        end = time.monotonic() + START
        while time.monotonic() < end:
            assert self.process.poll() is None, Path(self.log.name).read_text()
            with contextlib.suppress(OSError):
                connection = http.client.HTTPConnection('127.0.0.1', self.port)
                connection.request('GET', '/readyz')
                if connection.getresponse().status == 200:
                    return
            time.sleep(0.5)
        raise TimeoutError(Path(self.log.name).read_text())

    def memory(self) -> int:
        """Return the resident memory of the server and its replica [bytes]."""
        own = psutil.Process(self.process.pid)
        return sum(process.memory_info().rss for process in (own, *self.replicas()))

    def replicas(self) -> list[psutil.Process]:
        """Return the processes of the replicas."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if _name(child).startswith('ray::ServeReplica')]

    def running(self) -> int:
        """Return how many replicas answer, as the server says."""
        connection = http.client.HTTPConnection('127.0.0.1', self.port, timeout=DEADLINE)
        connection.request('GET', '/v1/models')
        return json.loads(connection.getresponse().read())['replicas']

    def stop(self) -> None:
        """End it."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


def _name(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):  # it has ended
        return ' '.join(process.cmdline()[:1])
    return ''


def upload(image: np.ndarray, shift: int) -> tuple[str, bytes]:
    """Return content type and body of a request about an image, moved by some pixels."""
    jpeg = io.BytesIO()
    Image.fromarray(np.roll(image, shift, axis=1)).save(jpeg, 'JPEG', quality=90)
    query = SegmentQuery('segment the mug', deadline=DEADLINE)
    return encode_request(jpeg.getvalue(), 'image/jpeg', query)


class Client:
    """Sends new images over one connection."""

    def __init__(self, port: int, image: np.ndarray, seed: int):
        self._port, self._image = port, image
        self._random = np.random.default_rng(seed)
        self._connection = http.client.HTTPConnection('127.0.0.1', port, timeout=2 * DEADLINE)

    def ask(self, outcome: Outcome) -> None:
        """Send one request about a new image and note the result."""
        outcome.add(*self.send(*self.upload()))

    def upload(self) -> tuple[str, bytes]:
        """Return content type and body of a request about a new image."""
        return upload(self._image, int(self._random.integers(self._image.shape[1])))

    def send(self, kind: str, body: bytes) -> tuple[int, float]:
        """Send one request; return its status, 0 without an answer, and how long it took [s]."""
        start = time.perf_counter()
        try:
            self._connection.request('POST', SEGMENT_PATH, body, {'Content-Type': kind})
            response = self._connection.getresponse()
            response.read()
            status = response.status
        except (OSError, http.client.HTTPException):
            status = 0
            self._connection.close()
        return status, time.perf_counter() - start


def closed_load(clients: list[Client], seconds: float, outcome: Outcome) -> None:
    """Let each client send one request after the other for some time."""
    end = time.monotonic() + seconds

    def work(client: Client) -> None:
        while time.monotonic() < end:
            client.ask(outcome)

    start = time.monotonic()
    threads = [threading.Thread(target=work, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    outcome.seconds += time.monotonic() - start


def open_load(server: Server, image: np.ndarray, rate: float, seconds: float) -> Outcome:
    """Let requests arrive at a rate [1/s], as a Poisson process.

    The uploads are made before, since clients of a real server have processors of their own. An
    image comes back after so many others that the server does not know it any more.
    """
    outcome, threads = Outcome(seconds=seconds), []
    uploads = itertools.cycle([upload(image, shift) for shift in range(image.shape[1])])
    random = np.random.default_rng(0)
    idle = [Client(server.port, image, number) for number in range(64)]
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        client, request = idle.pop() if idle else None, next(uploads)

        def work(client: Client = client, request: tuple[str, bytes] = request) -> None:
            outcome.add(*client.send(*request))
            idle.append(client)

        if client is not None:
            threads.append(threading.Thread(target=work))
            threads[-1].start()
        time.sleep(random.exponential(1 / rate))
    for thread in threads:
        thread.join()
    return outcome


def percentile(values: list[float], percent: float) -> float:
    """Return a percentile; NaN of nothing."""
    return float(np.percentile(values, percent)) if values else float('nan')


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Return the figures."""
    image = read_rgb(SELF_TEST / 'table.webp')
    servers = {
        'batched': Server(options.model, options.clients, 2 * options.clients),
        'single': Server(options.model, 1, 2 * options.clients),
    }
    try:
        for server in servers.values():
            server.wait()
        clients = {
            name: [Client(server.port, image, number) for number in range(options.clients)]
            for name, server in servers.items()
        }
        outcomes = {name: Outcome() for name in servers}
        alone = Outcome()
        for name in servers:
            closed_load(clients[name], 3.0, Outcome())  # warm-up
        while outcomes['batched'].seconds < options.seconds:
            closed_load(clients['batched'][:1], 1.0, alone)
            for name, outcome in outcomes.items():
                closed_load(clients[name], min(ROUND, options.seconds), outcome)
        batched, single = outcomes['batched'], outcomes['single']
        before = servers['batched'].memory()
        rate = options.overload * batched.throughput
        overload = open_load(servers['batched'], image, rate, options.seconds)
        after = servers['batched'].memory()
    finally:
        for server in servers.values():
            server.stop()
    answered = len(overload.answers) + len(overload.failures)
    return {
        'clients': options.clients,
        'batched_per_second': batched.throughput,
        'single_per_second': single.throughput,
        'throughput_ratio': batched.throughput / single.throughput,
        'alone_median': percentile(alone.answers, 50),
        'batched_p95': percentile(batched.answers, 95),
        'p95_over_alone': percentile(batched.answers, 95) / percentile(alone.answers, 50),
        'failures': len(batched.failures) + len(single.failures),
        'overload_per_second': rate,
        'overload_refused': len(overload.refusals),
        'overload_refusal_p99': percentile(overload.refusals, 99),
        'overload_in_time': len(overload.answers) / max(1, answered),
        'overload_memory_ratio': after / before,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n', maxsplit=1)[0])
    parser.add_argument('--model', default='lisa-tabletop')
    parser.add_argument('--clients', type=int, default=8)
    parser.add_argument('--seconds', type=float, default=60.0)
    parser.add_argument('--overload', type=float, default=5.0, help='times the throughput')
    parser.add_argument('--json', action='store_true')
    parser.add_argument('--out', type=Path)
    options = parser.parse_args()
    figures = measure(options)
    text = json.dumps(figures, indent=None if options.json else 2)
    print(text)
    if options.out:
        options.out.write_text(text + '\n')


if __name__ == '__main__':
    main()
