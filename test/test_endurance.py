# SPDX-License-Identifier: Apache-2.0
"""The endurance runs in their shortest form, with a model that answers at once."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('rclpy', reason='needs ROS 2: make setup')
pytest.importorskip('lisa_ros.action', reason='needs the built interfaces: make setup')
pytest.importorskip('matplotlib', reason="needs the extra 'train'")
pytest.importorskip('psutil', reason='watches processes: make setup')

pytestmark = [
    pytest.mark.ros,
    pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc and /dev/shm'),
]
BENCHMARKS = Path(__file__).parents[1] / 'benchmarks'
MODEL = ('--model', 'centre:', '--out')
RUNS = {
    'flood': ['--messages', '100'],
    'soak': ['--queries', '10'],
    'chaos': ['--targets', 'model', '--untimed'],
}


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """All runs at the same time: each has a ROS domain of its own and waits most of the time."""
    folders = {name: tmp_path_factory.mktemp(name) for name in RUNS}
    processes = {}
    for name, arguments in RUNS.items():
        with (folders[name] / 'output').open('w') as output:
            processes[name] = subprocess.Popen(
                [sys.executable, BENCHMARKS / f'{name}.py', *arguments, *MODEL, folders[name]],
                stdout=output,
                stderr=subprocess.STDOUT,
            )
    try:
        return {name: (process.wait(120), folders[name]) for name, process in processes.items()}
    finally:
        for process in processes.values():
            process.kill()


def describe(folder):
    return (
        ''.join(f'--- {path}\n{path.read_text()[-3000:]}' for path in folder.glob('*.log'))
        + (folder / 'output').read_text()
    )


@pytest.mark.parametrize('name', RUNS)
def test_a_run_holds_its_limits_and_writes_figures_and_a_plot(name, runs):
    status, folder = runs[name]
    assert status == 0, describe(folder)
    figures = json.loads((folder / f'{name}.json').read_text())
    assert figures['holds']
    assert figures['arguments']['model'] == 'centre:'
    assert all(limit['holds'] for limit in figures['limits'])
    assert (folder / f'{name}.png').read_bytes().startswith(b'\x89PNG')


def test_a_flood_is_answered_command_by_command_and_goal_by_goal(runs):
    _, folder = runs['flood']
    figures = json.loads((folder / 'flood.json').read_text())
    assert sum(figures['sent'].values()) > 100  # also those to the inactive node
    assert sum(figures['answers by status'].values()) == figures['sent']['command'] > 0
    answered_goals = figures['goals accepted'] + figures['goals rejected']
    assert answered_goals == figures['sent']['goal'] > 0
    assert figures['state'] == 'active'


def test_chaos_sees_the_cause_and_the_recovery(runs):
    _, folder = runs['chaos']
    (kill,) = json.loads((folder / 'chaos.json').read_text())['kills']
    assert 'signal 9' in kill['words']
    assert 0 < kill['recovery'] < math.inf


@pytest.mark.parametrize(
    ('changes', 'name'),
    [
        ({'value': 2.0}, 'above'),
        ({'value': math.nan}, 'not measured'),
    ],
)
def test_a_limit_that_does_not_hold_fails_the_run(changes, name, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    report = __import__('endurance_report')
    limit = report.Limit('memory growth', **{'largest': 1.0, **changes})
    assert not limit.holds, name
    assert not report.Report('soak', {}, 1.0, [limit], {}).holds
    assert report.Limit('memory growth', 0.5, 1.0).holds
    assert report.Limit('memory growth', math.nan, 1.0, is_judged=False).holds


def test_a_flood_is_the_same_for_a_seed(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import random

    hostile = __import__('hostile_messages')

    def flood(seed):
        rng = random.Random(seed)
        makers = (hostile.image, hostile.camera_info, hostile.control_command)
        return [repr(make(rng)) for make in makers for _ in range(5)] + [
            repr(hostile.goal(rng, 'g0000001')),
            repr(hostile.parameter_request(rng, ('model',))),
            repr(hostile.lifecycle_request(rng)),
        ]

    assert flood(3) == flood(3)
    assert flood(3) != flood(4)
