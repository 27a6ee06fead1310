# SPDX-License-Identifier: Apache-2.0
"""Kill replicas of `lisa-ros serve` under load: what becomes of the requests, and for how long.

    python benchmarks/serving_losses.py [--model M] [--replicas 2] [--kills 10] [--clients 4]

Clients send one image after the other. Again and again a replica is killed once all of them are
there. A request has to end with an answer, or with one error that says so.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass

import numpy as np
import psutil
from serving import DEADLINE, START, Client, Server

from lisa_ros.images.image_file import read_rgb
from lisa_ros.resources import SELF_TEST

LOOK = 1.5  # until the server has seen that a replica ended [s]
SETTLED = 2.0  # of load between two kills [s]


@dataclass(frozen=True)
class Request:
    """One request that ended."""

    sent: float  # [s, monotonic]
    ended: float  # [s, monotonic]
    status: int  # 0: no answer


class Load:
    """Clients that send one image after the other until the end of the block."""

    def __init__(self, port: int, clients: int):
        image = read_rgb(SELF_TEST / 'table.webp')
        self.requests: list[Request] = []
        self._has_ended = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(Client(port, image, number),))
            for number in range(clients)
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._has_ended.set()
        for thread in self._threads:
            thread.join(2 * DEADLINE)

    def answered_after(self, moment: float) -> float | None:
        """Return when the first request that was sent after a moment was answered [s]."""
        ends = (r.ended for r in list(self.requests) if r.sent > moment and r.status == 200)
        return min(ends, default=None)

    def _ask(self, client: Client) -> None:
        while not self._has_ended.is_set():
            sent = time.monotonic()
            status, _ = client.send(*client.upload())
            self.requests.append(Request(sent, time.monotonic(), status))


def wait_until(condition, what: str) -> None:
    """Wait for a condition.

    Raises:
        TimeoutError: it does not come true.
    """
    end = time.monotonic() + START
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(what)
        time.sleep(0.02)


def measure(options: argparse.Namespace) -> dict[str, object]:
    """Return the figures."""
    chance = random.Random(0)  # no secret
    server = Server(options.model, options.clients, 4 * options.clients, options.replicas)
    answered, complete = [], []
    try:
        server.wait()
        wait_until(lambda: len(server.replicas()) == options.replicas, 'the replicas')
        with Load(server.port, options.clients) as load:
            for _ in range(options.kills):
                time.sleep(SETTLED)
                killed = time.monotonic()
                with contextlib.suppress(psutil.NoSuchProcess):
                    chance.choice(server.replicas()).kill()
                wait_until(lambda at=killed: load.answered_after(at), 'an answer')
                answered.append(load.answered_after(killed) - killed)
                time.sleep(max(0.0, killed + LOOK - time.monotonic()))
                wait_until(lambda: server.running() == options.replicas, 'all replicas')
                complete.append(time.monotonic() - killed)
            time.sleep(SETTLED)
    finally:
        server.stop()
    seconds = [request.ended - request.sent for request in load.requests]
    return {
        'replicas': options.replicas,
        'kills': options.kills,
        'requests': len(load.requests),
        'statuses': dict(Counter(request.status for request in load.requests)),
        'longest_request': max(seconds),
        'median_request': float(np.median(seconds)),
        'answered_again': [round(each, 2) for each in answered],
        'all_replicas_again': [round(each, 2) for each in complete],
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n', maxsplit=1)[0])
    parser.add_argument('--model', default='lisa-tabletop')
    parser.add_argument('--replicas', type=int, default=2)
    parser.add_argument('--kills', type=int, default=10)
    parser.add_argument('--clients', type=int, default=4)
    print(json.dumps(measure(parser.parse_args()), indent=2))


if __name__ == '__main__':
    main()
