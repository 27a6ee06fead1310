# SPDX-License-Identifier: Apache-2.0
"""Measure the speed-up of a second worker on many bags, and whether a killed one loses answers.

    python benchmarks/many_bags.py [--bags N] [--every N] [--kill]

N copies of the sample bag on a Ray cluster on this machine, one CPU thread per worker, first with
one worker, then with two; with --kill two workers, of which one is killed half-way. Prints the
seconds from the first finished bag to the last, and those from the start of the command, which
include the start of Ray and of the models. Needs the extra `ray`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

from lisa_ros.resources import SAMPLE


def start_evaluation(bags: list[Path], out: Path, workers: int, every: int) -> subprocess.Popen:
    """Start an evaluation of the bags."""
    inputs = ['--commands', SAMPLE / 'commands.yaml', '--ground-truth', SAMPLE / 'truth']
    options = ['--topic', '/camera/color/image_raw', '--every', every, '--out', out]
    ray = ['--ray', '--workers', workers]
    command = ['lisa-ros', 'evaluate', 'bag', *bags, *inputs, *options, *ray]
    return subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL)  # noqa: S603


def measure(bags: list[Path], out: Path, workers: int, every: int, kill: bool = False) -> float:
    """Return the seconds from the first finished bag to the last, and print them.

    Args:
        bags: copies of one bag.
        out: folder for the reports.
        workers: of Ray.
        every: commands run on every n-th frame.
        kill: kill one worker when half of the bags are finished.
    """
    start = time.perf_counter()
    process = start_evaluation(bags, out, workers, every)
    finished: list[float] = []

    def watch() -> None:
        is_pending = kill
        while process.poll() is None:
            count = len(list(out.glob('bag*/report.json')))
            finished.extend([time.perf_counter()] * (count - len(finished)))
            if is_pending and count >= len(bags) // 2:
                print(f'killed process {_kill_worker()} after {count} bags')
                is_pending = False
            time.sleep(0.25)

    watcher = threading.Thread(target=watch)
    watcher.start()
    returncode = process.wait()
    watcher.join()
    total = time.perf_counter() - start
    if returncode:
        sys.exit(f'the evaluation ended with {returncode}')
    answers = _count_answers(bags, out)
    seconds = finished[-1] - finished[0]
    print(
        f'{workers} workers: {len(bags)} bags, {answers} answers, each once; {seconds:.1f} s from '
        f'the first bag to the last, {total:.1f} s from the start of the command'
    )
    return seconds


def _kill_worker() -> int:
    """Kill one Ray worker; return its process id."""
    worker = next(
        process
        for process in psutil.process_iter(['cmdline'])
        if (process.info['cmdline'] or [''])[0].startswith('ray::MapWorker')
    )
    worker.kill()
    return worker.pid


def _count_answers(bags: list[Path], out: Path) -> int:
    """Return the number of answers; exit if one is missing or there twice."""
    report = json.loads((out / 'report.json').read_text())
    names = [case['name'] for case in report['cases']]
    per_bag = {bag.name: sum(name.startswith(f'{bag.name}/') for name in names) for bag in bags}
    if len(set(names)) != len(names) or len(set(per_bag.values())) != 1:
        sys.exit(f'answers are missing, or there twice: {per_bag}')
    return len(names)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--bags', type=int, default=100, help='copies of the sample bag (default: 100)'
    )
    parser.add_argument(
        '--every', type=int, default=40, help='commands run on every N-th frame (default: 40)'
    )
    parser.add_argument(
        '--kill', action='store_true', help='measure only two workers, of which one is killed'
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bags = [Path(folder, f'bag{number:03d}') for number in range(options.bags)]
        for bag in bags:
            shutil.copytree(SAMPLE / 'bag', bag, copy_function=os.link)
        if options.kill:
            measure(bags, Path(folder, 'killed'), 2, options.every, kill=True)
            return
        one_worker = measure(bags, Path(folder, 'one'), 1, options.every)
        two_workers = measure(bags, Path(folder, 'two'), 2, options.every)
        print(f'two workers are {one_worker / two_workers:.2f} times as fast as one')


if __name__ == '__main__':
    main()
