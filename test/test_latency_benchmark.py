# SPDX-License-Identifier: Apache-2.0
"""The benchmarks of `gpu.sh` run on a CPU with a tiny model, and say what gpu.sh reads."""

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / 'benchmarks'
FIGURES = {
    'mask_over_floor',
    'same_frame_over_fresh',
    'sam_encoder_speedup',
    'peak_memory',
    'seconds',
}


def run(name, *arguments):
    command = [sys.executable, str(BENCHMARKS / name), '--size', 'tiny', '--device', 'cpu']
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, check=True, timeout=300
    ).stdout


def test_latency_writes_its_figures(tmp_path):
    arguments = ['--rounds', '1', '--no-upstream', '--json', '--out', str(tmp_path)]
    figures = json.loads(run('latency.py', *arguments))
    assert figures.keys() >= FIGURES, figures
    assert all(value > 0 for value in figures['seconds'].values())
    assert {path.suffix for path in tmp_path.iterdir()} >= {'.json', '.png'}


def test_throughput_names_each_size_of_a_batch(tmp_path):
    table = run('throughput.py', '--rounds', '1', '--out', str(tmp_path))
    for count in (1, 2, 4, 8, 16):
        assert f' {count} at once' in table, table
