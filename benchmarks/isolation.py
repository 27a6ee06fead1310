# SPDX-License-Identifier: Apache-2.0
"""Measure what a process for the model costs: the same answers in this process and in another.

    python benchmarks/isolation.py [--answers N]

The model answers from a script with one mask, so that its own time is small. Both kinds of answers
alternate in one run. Prints milliseconds for each size of the image: the image goes there and the
mask comes back twice, as an event and in the result. The cost is the difference of the fastest
answers, to which other programs on the machine add nothing; the medians show what they add. The
limit is 2 ms for 640 x 480; exit status 1 if the cost is above it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'test')]

import scripted_backend  # noqa: E402  # registers "scripted:"

from lisa_ros import native_settings  # noqa: E402
from lisa_ros.perception.backend import (  # noqa: E402
    Backend,
    InferenceOptions,
    LoadOptions,
    Query,
)
from lisa_ros.perception.process_backend import ProcessBackend  # noqa: E402

SIZES = ((320, 240), (640, 480), (1280, 720), (1920, 1080))  # width, height [px]
LIMIT = 2.0  # for LIMIT_SIZE [ms]
LIMIT_SIZE = (640, 480)
REPLIES = {'': {'masks': 'all'}}
WARM_UP = 5  # answers that are not measured


def seconds(backend: Backend, image: np.ndarray) -> float:
    """Return how long an answer takes [s]."""
    start = time.perf_counter()
    events = backend.stream(image, Query('the mug'), InferenceOptions(), threading.Event())
    for _ in events:
        pass
    return time.perf_counter() - start


def measure(here: Backend, there: Backend, size: tuple[int, int], answers: int) -> np.ndarray:
    """Return the durations of answers, (answers, 2) [ms]: in this process, in another."""
    width, height = size
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    rows = [[seconds(here, image), seconds(there, image)] for _ in range(WARM_UP + answers)]
    return 1000 * np.array(rows[WARM_UP:])


def main() -> int:
    """Measure and print; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--answers', type=int, default=200, help='of each kind (default: 200)')
    options = parser.parse_args()
    native_settings.apply()  # as the node does
    here, cost = scripted_backend.ScriptedBackend(REPLIES), {}
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / 'script.json'
        script.write_text(json.dumps(REPLIES))
        there = ProcessBackend(f'scripted:{script}', LoadOptions())
        print(f'{"[ms]":15}{"fastest answer":^30}{"":10}{"median":^20}')
        print(
            f'{"":15}{"here":>10}{"there":>10}{"cost":>10}{"ratio":>10}{"here":>10}{"there":>10}'
        )
        for size in SIZES:
            times = measure(here, there, size, options.answers)
            own, other = times.min(axis=0)
            cost[size] = other - own
            row = (own, other, cost[size], other / own, *np.median(times, axis=0))
            name = f'{size[0]} x {size[1]}'
            print(f'{name:15}' + ''.join(f'{value:10.2f}' for value in row))
        there.close()
    return int(cost[LIMIT_SIZE] > LIMIT)


if __name__ == '__main__':
    raise SystemExit(main())
