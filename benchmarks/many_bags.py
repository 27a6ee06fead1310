# SPDX-License-Identifier: Apache-2.0
"""How much faster two workers ask about many bags than one, and whether a killed one costs any.

    python benchmarks/many_bags.py [--bags N] [--every N] [--kill]

N copies of the sample bag on a Ray cluster begun here, a thread each, first with one worker,
then with two; with --kill one of the two is killed half-way. Seconds are from the first bag that
is done to the last, and from the command on, with the start of Ray and of the models. Needs the
extra `ray`.
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


def run(bags: list[Path], out: Path, workers: int, every: int) -> subprocess.Popen:
    """Start an evaluation of the bags."""
    given = ['--commands', SAMPLE / 'commands.yaml', '--truth', SAMPLE / 'truth', '--out', out]
    given += ['--topic', '/camera/color/image_raw', '--every', every]
    command = ['lisa-ros', 'evaluate', 'bag', *bags, *given, '--ray', '--workers', workers]
    return subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL)  # noqa: S603


def timed(bags: list[Path], out: Path, workers: int, every: int, kill: bool = False) -> float:
    """Return the seconds from the first bag that is done to the last; print them and the whole."""
    began = time.perf_counter()
    started = run(bags, out, workers, every)
    done: list[float] = []

    def watch() -> None:
        killed = not kill
        while started.poll() is None:
            count = len(list(out.glob('bag*/report.json')))
            done.extend([time.perf_counter()] * (count - len(done)))
            if not killed and count >= len(bags) // 2:
                victim = next(
                    p
                    for p in psutil.process_iter(['cmdline'])
                    if (p.info['cmdline'] or [''])[0].startswith('ray::MapWorker')
                )
                victim.kill()
                killed = True
                print(f'killed process {victim.pid} after {count} bags')
            time.sleep(0.25)

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = started.wait()
    watcher.join()
    whole = time.perf_counter() - began
    if code:
        sys.exit(f'the evaluation ended with {code}')
    plain = json.loads((out / 'report.json').read_text())
    names = [case['name'] for case in plain['cases']]
    per_bag = {bag.name: sum(name.startswith(f'{bag.name}/') for name in names) for bag in bags}
    if len(set(names)) != len(names) or len(set(per_bag.values())) != 1:
        sys.exit(f'answers are missing, or there twice: {per_bag}')
    spent = done[-1] - done[0]
    print(
        f'{workers} workers: {len(bags)} bags, {len(names)} answers, each once; '
        f'{spent:.1f} s from the first bag to the last, {whole:.1f} s from the command on'
    )
    return spent


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--bags', type=int, default=100)
    parser.add_argument('--every', type=int, default=40)
    parser.add_argument('--kill', action='store_true', help='only this: two workers, one killed')
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bags = [Path(folder, f'bag{number:03d}') for number in range(options.bags)]
        for bag in bags:
            shutil.copytree(SAMPLE / 'bag', bag, copy_function=os.link)
        if options.kill:
            timed(bags, Path(folder, 'killed'), 2, options.every, kill=True)
            return
        one = timed(bags, Path(folder, 'one'), 1, options.every)
        two = timed(bags, Path(folder, 'two'), 2, options.every)
        print(f'two workers are {one / two:.2f} times as fast as one')


if __name__ == '__main__':
    main()
