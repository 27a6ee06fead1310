# SPDX-License-Identifier: Apache-2.0
"""Readers of other people's bytes raise LisaErrors of one line, and nothing else.

Each fuzz target gets its seeds, the inputs that failed once, and a fixed number of mutations of
its seeds. `make fuzz` runs the same targets with coverage guidance.
"""

import random
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / 'fuzz'))  # its modules import one another

from target import FINDINGS
from targets import TARGETS

COUNT = 100  # mutations of each target
SLOW = {
    **dict.fromkeys(('bag_mcap', 'bag_sqlite', 'bag_ros1', 'refer'), 40),
    'model_config': 8,  # loads the weights
}


def run(name, content):
    with tempfile.TemporaryDirectory() as folder:
        TARGETS[name].check(content, Path(folder))


@pytest.mark.parametrize('name', TARGETS)
def test_a_valid_input_is_read(name):
    target = TARGETS[name]
    for seed in target.seeds():
        with tempfile.TemporaryDirectory() as folder:
            target.run(seed, Path(folder))


@pytest.mark.parametrize('name', TARGETS)
def test_a_damaged_input_is_read_or_refused(name):
    target, rng = TARGETS[name], random.Random(name)
    seeds = target.seeds()
    for _ in range(SLOW.get(name, COUNT)):
        content = target.mutated(rng.choice(seeds), rng)
        try:
            run(name, content)
        except Exception as error:
            raise AssertionError(f'{name} fails with {content[:300]!r}') from error


@pytest.mark.parametrize(
    'path', sorted(FINDINGS.glob('*/*')), ids=lambda path: f'{path.parent.name}-{path.name}'
)
def test_an_input_that_failed_once_is_read_or_refused(path):
    run(path.parent.name, path.read_bytes())
