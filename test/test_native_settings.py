# SPDX-License-Identifier: Apache-2.0
"""Settings of native libraries: what they do, and that those of the user stay."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from lisa_ros import native_settings

MEASURE = """
import os, resource
from lisa_ros import native_settings
native_settings.apply()
import numpy as np
def faults():
    start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        np.ones(1 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start
faults()
print(faults(), os.environ.get('GOMP_SPINCOUNT'), os.environ.get('OMP_WAIT_POLICY'))
"""
NAMES = ('MALLOC_', 'GLIBC_TUNABLES', 'GOMP_', 'OMP_WAIT_POLICY')
PAGES = 50 * (8 << 20) // 4096  # of the arrays


def measure(**variables):
    """Return the page faults of 50 arrays in a new process, and its variables for OpenMP."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(NAMES)}
    run = subprocess.run(
        [sys.executable, '-c', MEASURE],
        env={**env, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    faults, *words = run.stdout.split()
    return int(faults), words


def test_freed_memory_is_used_again():
    faults, _ = measure()
    assert faults < PAGES / 100
    faults, _ = measure(MALLOC_MMAP_THRESHOLD_='65536')
    assert faults > PAGES / 2 or faults > 50 * 4  # pages may be huge: 2 MiB


def test_threads_of_openmp_wait_shortly():
    assert measure()[1] == ['1000', 'None']


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        ('GOMP_SPINCOUNT', ['infinite', 'None']),
        ('OMP_WAIT_POLICY', ['None', 'infinite']),
    ],
)
def test_settings_of_the_user_stay(name, expected):
    assert measure(**{name: 'infinite'})[1] == expected


@pytest.mark.skipif(sys.platform != 'linux', reason='elsewhere it is the priority of the process')
def test_a_thread_lowers_its_own_priority_and_that_of_its_threads():
    def nice():
        return os.getpriority(os.PRIO_PROCESS, 0)

    def lowered():
        native_settings.lower_thread_priority()
        with ThreadPoolExecutor(1) as below:
            return nice(), below.submit(nice).result()

    before = nice()
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(lowered).result() == (min(before + 5, 19),) * 2
    assert nice() == before
