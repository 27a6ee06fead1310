# SPDX-License-Identifier: Apache-2.0
"""The simulation of a fleet equals theory where there is one; the driver counts every request."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip('simpy', reason='needs pip install simpy')
sys.path.append(str(Path(__file__).parents[1] / 'benchmarks'))

from fleet_plan import FleetPlan, ServerPlan, ServiceTimes, read_profile, write_profile
from fleet_simulation import first_break, holds, simulate
from fleet_sizing import breaking_point, sizing_table, smallest_server
from scripted_backend import ScriptedBackend
from segment_server import running

BENCHMARKS = Path(__file__).parents[1] / 'benchmarks'
TIMES = ServiceTimes(
    name='test',
    source='made up',
    per_batch=0.0,
    per_request=0.1,
    spread=0.0,
    http=0.0,
    client=0.0,
    image_bytes=50_000,
)
ONE_BY_ONE = ServerPlan(largest=1, places=10_000, wait=0.0)
QUIET = FleetPlan(robots=1, commands_per_minute=0.6, standing_share=0.0, deadline=1000.0)


@pytest.mark.parametrize('load', [0.3, 0.7])
def test_the_wait_is_that_of_theory(load):
    """Many robots are a Poisson process, and service times are constant: an M/D/1 queue."""
    robots = round(load / 0.1 / 0.01)  # each asks 0.01 times a second
    fleet = replace(QUIET, robots=robots)
    result = simulate(fleet, ONE_BY_ONE, TIMES, 6000.0)
    expected = 0.1 + load * 0.1 / (2 * (1 - load))
    assert result.mean == pytest.approx(expected, rel=0.05)
    assert result.gpu_load == pytest.approx(load, rel=0.03)


def test_one_robot_never_waits():
    result = simulate(QUIET, ServerPlan(), replace(TIMES, client=0.02, http=0.005), 5000.0)
    assert (result.p50, result.p99) == (pytest.approx(0.125), pytest.approx(0.125))
    assert result.lost == 0.0


def test_batches_raise_what_a_server_holds():
    times = replace(TIMES, per_batch=0.09, per_request=0.01)
    fleet = FleetPlan(robots=240, commands_per_minute=6.0, standing_share=0.0)
    alone = simulate(fleet, ServerPlan(largest=1), times, 120.0)
    together = simulate(fleet, ServerPlan(largest=8), times, 120.0)
    assert alone.lost > 0.4
    assert together.lost < 0.01
    assert together.batch > 2


def test_a_full_server_refuses_instead_of_being_late():
    fleet = FleetPlan(robots=100, commands_per_minute=12.0, standing_share=0.0, deadline=10.0)
    result = simulate(fleet, ServerPlan(largest=1), TIMES, 200.0)  # twice of what it can
    assert result.refused > 0.2
    assert result.lost == pytest.approx(result.refused, abs=0.01)
    assert result.p99 < 16 * 0.1 + 3.5  # the queue, and two pauses
    assert 'refused' in first_break(result, fleet, 2.0)


def test_a_command_ends_the_standing_query_of_its_robot():
    fleet = FleetPlan(robots=1, commands_per_minute=30.0, standing_share=1.0, standing_rate=20.0)
    result = simulate(fleet, ServerPlan(largest=1), TIMES, 500.0)
    assert result.p99 <= 0.2 + 1e-9  # at most behind its own query, which runs on
    assert result.standing_rate == pytest.approx(10 * (1 - 0.5 * 0.15), rel=0.05)


def test_clients_that_leave_take_no_answer():
    fleet = replace(QUIET, robots=50, leaving_share=1.0)
    result = simulate(fleet, ONE_BY_ONE, replace(TIMES, spread=0.3), 1000.0)
    assert result.lost == 0.0


def test_the_smallest_server_holds_and_has_room():
    fleet = FleetPlan(robots=300, commands_per_minute=6.0)
    times = replace(TIMES, per_batch=0.07, per_request=0.03)
    best = smallest_server(fleet, ServerPlan(), times, 1.0)
    assert holds(best, fleet, 1.0)
    assert best.capacity <= 0.8
    rate, in_batches = fleet.largest_rate, times.throughput(8)
    assert best.replicas - 1 < rate / in_batches / 0.8  # one less has no room
    assert f'| 300 | {best.replicas} |' in sizing_table([best])
    robots, cause = breaking_point(fleet, ServerPlan(best.replicas), times, 1.0)
    assert robots >= 270
    assert cause


def test_the_profiles_name_their_source(tmp_path):
    for name in json.loads((BENCHMARKS / 'fleet_times.json').read_text()):
        assert len(read_profile(name).source) > 20
    write_profile(TIMES, tmp_path / 'times.json')
    assert read_profile('test', tmp_path / 'times.json') == TIMES
    with pytest.raises(SystemExit, match='expected one of test'):
        read_profile('other', tmp_path / 'times.json')


@pytest.mark.ros
def test_the_driver_counts_every_request(tmp_path):
    replies = {'': {'masks': 'all', 'delay': 0.05}}
    with running(ScriptedBackend(replies)) as server:
        command = [sys.executable, str(BENCHMARKS / 'fleet.py'), '--url', server.url]
        asked = ['--robots', '4', '--commands-per-minute', '120', '--seconds', '2']
        ran = subprocess.run(
            [*command, *asked, '--warm-up', '0.2', '--leaving-share', '0.3', '--out', tmp_path],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        figures = json.loads((tmp_path / 'fleet.json').read_text())
        assert figures['commands'] == sum(figures['ends'].values()) > 0
        assert set(figures['ends']) <= {'FOUND'}
        assert figures['command_seconds']['p50'] >= 0.05
        assert len(server.seen) >= figures['commands']
