# SPDX-License-Identifier: Apache-2.0
"""Measure what a model on a server costs over a local one: the same answers, over loopback.

    python benchmarks/server_cost.py [--answers N] [--out OUT]
    python benchmarks/server_cost.py --url http://127.0.0.1:8000 --model lisa-tabletop

The model answers from a script with one mask, so that its own time is small, in a server process
of test/segment_server.py. With --url, `lisa-ros serve` is asked, and --model is what it serves.
Both kinds of answers alternate in one run. The cost is the difference of the fastest answers, to
which other programs on the machine add nothing; the medians show what they add. "encode" is the
client's part of it that makes the JPEG, and does not count: the limit is 15 ms besides it for
640 x 480. Exit status 1 if the cost is above.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import endurance_report as report
import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'test')]

import scripted_backend  # noqa: E402  # registers "scripted:"
from segment_server import ServerProcess  # noqa: E402

from lisa_ros import native_settings  # noqa: E402
from lisa_ros.perception.backend import Backend, InferenceOptions, LoadOptions, Query  # noqa: E402
from lisa_ros.perception.registry import load_backend  # noqa: E402
from lisa_ros.results import Done, Segmentation  # noqa: E402

SIZES = ((320, 240), (640, 480), (1280, 720), (1920, 1080))  # width, height [px]
FORMATS = ('jpeg', 'png', 'raw')
LIMIT, LIMIT_CASE = 15.0, ('jpeg', (640, 480))  # [ms]
REPLIES = {'': {'masks': 'bright'}}
WARM_UP = 5  # answers that are not measured


def ask(backend: Backend, image: np.ndarray) -> tuple[float, Segmentation]:
    """Return how long an answer takes [s], and the answer."""
    start = time.perf_counter()
    options = InferenceOptions(answer_timeout=30.0)
    *_, done = backend.stream(image, Query('segment the mug'), options, threading.Event())
    assert isinstance(done, Done)  # a stream ends with it
    return time.perf_counter() - start, done.result


def sample(size: tuple[int, int]) -> np.ndarray:
    """Return an image with an object: a bright disc on a soft background."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    image = np.stack([x * 99 // width, y * 99 // height, (x + y) % 50], axis=-1).astype(np.uint8)
    image[(x - width // 2) ** 2 + (y - height // 2) ** 2 < (height // 5) ** 2] = 240
    return image


def measure(here: Backend, there: Backend, size: tuple[int, int], answers: int) -> np.ndarray:
    """Return the times of answers, (answers, 4) [ms].

    Here, there, of it for encoding, and processor time of this process for an answer there.
    """
    image, rows = sample(size), []
    for _ in range(WARM_UP + answers):
        own, _ = ask(here, image)
        start = time.process_time()
        other, result = ask(there, image)
        processor = time.process_time() - start
        rows.append([own, other, result.timings.get('encode', np.nan), processor])
    return 1000 * np.array(rows[WARM_UP:])


@contextlib.contextmanager
def scripted_server() -> Iterator[str]:
    """Run a server with the scripted model in a process of its own; yield its address."""
    with tempfile.TemporaryDirectory() as folder:
        server = ServerProcess.scripted(Path(folder), REPLIES)
        try:
            yield server.url
        finally:
            server.kill()


def main() -> int:
    """Measure and print; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--answers', type=int, default=100, help='of each kind (default: 100)')
    parser.add_argument('--url', help='of lisa-ros serve (default: a scripted server)')
    parser.add_argument('--model', default='lisa-tabletop', help='that --url serves')
    parser.add_argument('--out', type=Path, help='folder for server_cost.json')
    options = parser.parse_args()
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
    native_settings.apply()  # as the node does
    here: Backend = scripted_backend.ScriptedBackend(REPLIES)
    if options.url:
        here = load_backend(options.model, LoadOptions(device='cpu'))
    rows = {}
    with contextlib.nullcontext(options.url) if options.url else scripted_server() as url:
        print(f'{"[ms]":20}{"fastest":>30}{"of it":>10}{"cost":>10}{"client":>10}{"median":>20}')
        names = ('here', 'there', 'cost', 'encode', 'but JPEG', 'CPU', 'here', 'there')
        print(f'{"":20}' + ''.join(f'{name:>10}' for name in names))
        for image_format in FORMATS:
            there = load_backend(url, LoadOptions(server_image=image_format))
            for size in SIZES:
                times = measure(here, there, size, options.answers)
                own, other, encode, processor = times.min(axis=0)
                median = np.median(times, axis=0)
                besides = other - own - encode
                row = (own, other, other - own, encode, besides, processor, *median[:2])
                rows[image_format, size] = row
                name = f'{image_format} {size[0]} x {size[1]}'
                print(f'{name:20}' + ''.join(f'{value:10.2f}' for value in row))
            there.close()
    cost = rows[LIMIT_CASE][4]
    print(f'besides the JPEG: {cost:.1f} ms of {LIMIT:g} at 640 x 480')
    if options.out:
        figures = {
            'machine': report.machine(),
            'url': options.url,
            'columns': names,
            'rows': {f'{form} {w}x{h}': row for (form, (w, h)), row in rows.items()},
        }
        text = json.dumps(figures, indent=1)
        (options.out / 'server_cost.json').write_text(text + '\n', encoding='utf-8')
    return int(cost > LIMIT)


if __name__ == '__main__':
    raise SystemExit(main())
