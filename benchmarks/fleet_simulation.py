# SPDX-License-Identifier: Apache-2.0
"""Simulate a fleet and its server: percentiles, GPUs for a target, and what breaks first.

    pip install simpy
    python benchmarks/fleet_simulation.py --profile lisa-7b --robots 40 --replicas 4
    python benchmarks/fleet_simulation.py --profile lisa-7b --sizing --out docs

A discrete-event simulation (SimPy). Robots ask commands at random times, and standing queries as
fast as they are answered, at most at their rate. A robot has one request under way: a command ends
the standing one. The server does as `lisa_ros/serving` does: a robot belongs to a replica, whose
queue is bounded; batches go by deadline and size; a newer request of a robot replaces one that
waits; a full server refuses, and the robot tries again within its deadline, three times at most.

Service times come from fleet_times.json, each with its source; fleet_service_times.py measures
them. The links between robots and server are not simulated: their load is computed.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Generator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import simpy
from fleet_plan import FleetPlan, ServerPlan, ServiceTimes, read_profile

ROBOTS = (10, 40, 100, 400, 1000, 4000, 10_000)  # of the sizing table
TARGET = 2.0  # 95th percentile of a command [s]
LINK = 1e9  # of the server [bit/s]
_MAX_LOST = 0.01  # share of commands without an answer that a target allows
_FULL = 0.8  # share of a server's capacity that a sizing uses
_STANDING_SHARE = 0.9  # of the rate of standing queries that a target wants
_TRIES = 3  # of a request, as serving/http_client.py has it
_MIN_COMMANDS = 2000  # that a run should have
_LONGEST, _SHORTEST = 1800.0, 60.0  # runs [s]
_WARM_UP = 10.0  # at the beginning of a run, which is not counted [s]

Process = Generator[simpy.Event, Any, Any]


@dataclass(eq=False)
class Request:
    """A question under way."""

    robot: int
    deadline: float  # [s]
    done: simpy.Event
    has_left: bool = False  # nobody waits for the answer

    def is_unwanted(self, now: float) -> bool:
        """Return whether the server drops it."""
        return self.has_left or now > self.deadline

    def end(self, how: str) -> None:
        """Tell its robot how it ended; the first call counts."""
        if not self.done.triggered:
            self.done.succeed(how)

    def leave(self) -> None:
        """Close the connection."""
        self.has_left = True
        self.end('left')


@dataclass
class Outcomes:
    """How commands and standing queries ended; times from the question to the answer [s]."""

    commands: list[float] = field(default_factory=list)
    standing: list[float] = field(default_factory=list)
    refused: int = 0  # commands that had no place in three tries
    late: int = 0  # commands without an answer within their deadline
    left: int = 0  # commands whose client has left
    batches: list[int] = field(default_factory=list)  # sizes
    busy: float = 0.0  # of all replicas [s]


class Replica:
    """One model: its queue, and the process that answers batches."""

    def __init__(self, fleet: FleetSimulation):
        self._fleet, self._env, self._plan = fleet, fleet.env, fleet.server
        self.waiting: list[Request] = []
        self._arrival = self._env.event()
        self._last_seconds, self._last_size = 0.0, 0
        self._env.process(self._run())

    def put(self, request: Request) -> bool:
        """Let a request wait; False if all places are taken."""
        for older in [own for own in self.waiting if own.robot == request.robot]:
            self.waiting.remove(older)
            older.end('superseded')
        self._drop_unwanted()
        if len(self.waiting) >= self._plan.places:
            return False
        self.waiting.append(request)
        if not self._arrival.triggered:
            self._arrival.succeed()
        return True

    def _drop_unwanted(self) -> None:
        for request in [own for own in self.waiting if own.is_unwanted(self._env.now)]:
            self.waiting.remove(request)
            request.end('late')

    def _run(self) -> Process:
        rng, outcomes = self._fleet.rng, self._fleet.outcomes
        while True:
            if not self.waiting:
                self._arrival = self._env.event()
                yield self._arrival
            yield from self._wait_for_more()
            self._drop_unwanted()
            self.waiting.sort(key=lambda request: request.deadline)
            batch, self.waiting = (
                self.waiting[: self._plan.largest],
                self.waiting[self._plan.largest :],
            )
            if not batch:
                continue
            spread = self._fleet.times.spread
            seconds = self._fleet.times.seconds(len(batch))
            seconds *= rng.lognormal(-(spread**2) / 2, spread)
            yield self._env.timeout(seconds)
            self._last_seconds, self._last_size = seconds, len(batch)
            if self._env.now > _WARM_UP:
                outcomes.batches.append(len(batch))
                outcomes.busy += seconds
            for request in batch:
                request.end('answered')

    def _wait_for_more(self) -> Process:
        """Wait for others if the batch before had some, for a small share of its time."""
        wait = min(self._plan.wait, self._plan.wait_share * self._last_seconds)
        end = self._env.now + wait
        while len(self.waiting) < self._plan.largest and self._env.now < end:
            if self._last_size <= max(1, len(self.waiting)):
                return
            self._arrival = self._env.event()
            yield self._arrival | self._env.timeout(end - self._env.now)


class FleetSimulation:
    """Robots and a server for some time."""

    def __init__(self, fleet: FleetPlan, server: ServerPlan, times: ServiceTimes, seed: int = 1):
        self.fleet, self.server, self.times = fleet, server, times
        self.env, self.rng, self.outcomes = simpy.Environment(), np.random.default_rng(seed), None
        self.outcomes = Outcomes()
        self._http = simpy.Resource(self.env, server.http_processes)
        self._replicas = [Replica(self) for _ in range(server.replicas)]
        for number in range(fleet.robots):
            self.env.process(Robot(self, number, number < fleet.standing).run())

    def run(self, seconds: float) -> Outcomes:
        """Simulate `seconds` after the warm-up."""
        self.env.run(_WARM_UP + seconds)
        return self.outcomes

    def ask(self, request: Request) -> Process:
        """Send a request, again if it is refused; return how it ended."""
        # a hash of the robot's name: neighbours are not at one replica
        replica = self._replicas[(request.robot * 2654435761 >> 7) % len(self._replicas)]
        for number in range(1, _TRIES + 1):
            with self._http.request() as turn:
                yield turn
                yield self.env.timeout(self.times.http)
            if request.has_left:
                return 'left'
            if replica.put(request):
                yield request.done
                return request.done.value
            pause = self.server.retry_after
            if number < _TRIES and self.env.now + pause < request.deadline:
                yield self.env.timeout(pause)
        return 'refused'


class Robot:
    """Asks commands at random times, and its standing query between them."""

    def __init__(self, fleet: FleetSimulation, number: int, has_standing: bool):
        self._fleet, self._env, self._number = fleet, fleet.env, number
        self._has_standing = has_standing
        self._standing: Request | None = None  # under way
        self._turn = simpy.PriorityResource(self._env)  # one request at a time

    def run(self) -> Process:
        """Ask until the end."""
        rate = self._fleet.fleet.commands_per_minute / 60
        if self._has_standing:
            self._env.process(self._ask_standing())
        while rate:
            yield self._env.timeout(self._fleet.rng.exponential(1 / rate))
            if self._standing is not None:
                self._standing.leave()
            with self._turn.request(priority=0) as turn:
                yield turn
                yield from self._command()

    def _request(self) -> Request:
        deadline = self._env.now + self._fleet.fleet.deadline
        return Request(self._number, deadline, self._env.event())

    def _command(self) -> Process:
        fleet, outcomes, start = self._fleet, self._fleet.outcomes, self._env.now
        request = self._request()
        if fleet.rng.random() < fleet.fleet.leaving_share:
            self._env.process(self._leave(request))
        yield self._env.timeout(fleet.times.client / 2)
        end = yield from fleet.ask(request)
        yield self._env.timeout(fleet.times.client / 2)
        seconds = self._env.now - start
        if start < _WARM_UP:
            return
        if end == 'answered' and seconds <= fleet.fleet.deadline:
            outcomes.commands.append(seconds)
        elif end == 'left':
            outcomes.left += 1
        elif end == 'refused':
            outcomes.refused += 1
        else:
            outcomes.late += 1

    def _leave(self, request: Request) -> Process:
        yield self._env.timeout(self._fleet.rng.exponential(self._fleet.times.seconds(1)))
        request.leave()

    def _ask_standing(self) -> Process:
        period = 1 / self._fleet.fleet.standing_rate
        yield self._env.timeout(self._fleet.rng.uniform(0, period))
        while True:
            with self._turn.request(priority=1) as turn:
                yield turn
                start, self._standing = self._env.now, self._request()
                yield self._env.timeout(self._fleet.times.client / 2)
                end = yield from self._fleet.ask(self._standing)
                self._standing = None
            yield self._env.timeout(self._fleet.times.client / 2)
            if end == 'answered' and start >= _WARM_UP:
                self._fleet.outcomes.standing.append(self._env.now - start)
            yield self._env.timeout(max(0.001, start + period - self._env.now))


@dataclass(frozen=True)
class Result:
    """One run in figures; times in seconds."""

    robots: int
    replicas: int
    http_processes: int
    mean: float
    p50: float
    p95: float
    p99: float
    standing_p95: float
    standing_rate: float  # answers of a standing query [1/s]
    lost: float  # share of commands that were refused or late
    refused: float
    batch: float  # mean size
    gpu_load: float  # share of the time that replicas work
    capacity: float  # share of what replicas answer in full batches
    http_load: float
    megabits: float  # to the server [Mbit/s]


def simulate(
    fleet: FleetPlan, server: ServerPlan, times: ServiceTimes, seconds: float | None = None
) -> Result:
    """Return the figures of a run; seconds None: as long as percentiles need."""
    if seconds is None:
        needed = _MIN_COMMANDS / max(fleet.robots * fleet.commands_per_minute / 60, 1e-9)
        seconds = min(max(needed, _SHORTEST), _LONGEST)
    outcomes = FleetSimulation(fleet, server, times).run(seconds)
    commands = outcomes.commands or [math.inf]
    p50, p95, p99 = (float(np.percentile(commands, share)) for share in (50, 95, 99))
    count = len(outcomes.commands) + outcomes.refused + outcomes.late
    rate = sum(outcomes.batches) / seconds
    standing = outcomes.standing or [math.nan]
    return Result(
        fleet.robots,
        server.replicas,
        server.http_processes,
        float(np.mean(commands)),
        *(p50, p95, p99),
        float(np.percentile(standing, 95)),
        len(outcomes.standing) / seconds / max(1, fleet.standing),
        (outcomes.refused + outcomes.late) / max(1, count),
        outcomes.refused / max(1, count),
        float(np.mean(outcomes.batches or [0])),
        outcomes.busy / seconds / server.replicas,
        rate / server.replicas / times.throughput(server.largest),
        rate * times.http / server.http_processes,
        rate * times.image_bytes * 8 / 1e6,
    )


def holds(result: Result, fleet: FleetPlan, target: float) -> bool:
    """Return whether a server is enough.

    95 % of the commands have an answer within the target, 1 % at most have none, and standing
    queries come to nine tenths of their rate.
    """
    wanted = _STANDING_SHARE * fleet.standing_rate if fleet.standing else 0.0
    return result.p95 <= target and result.lost <= _MAX_LOST and result.standing_rate >= wanted


def smallest_server(
    fleet: FleetPlan, server: ServerPlan, times: ServiceTimes, target: float
) -> Result:
    """Return the run with the fewest replicas that holds a target [s], with room for more."""
    http = math.ceil(fleet.largest_rate * times.http / 0.7)  # a busier process makes others wait
    server = replace(server, http_processes=max(1, http))
    high = math.ceil(fleet.largest_rate / times.throughput(server.largest) / _FULL)
    low = high - 1  # has no room for more
    while not holds(
        result := simulate(fleet, replace(server, replicas=high), times), fleet, target
    ):
        low, high = high, math.ceil(high * 1.5)
    best = result
    while high - low > max(1, high // 50):  # within 2 %
        middle = (low + high) // 2
        result = simulate(fleet, replace(server, replicas=middle), times)
        if holds(result, fleet, target):
            high, best = middle, result
        else:
            low = middle
    return best


def first_break(result: Result, fleet: FleetPlan, target: float) -> str:
    """Return what keeps a server of this size from more robots, in words."""
    loads = {
        'the GPUs': result.capacity,
        'the HTTP processes': result.http_load,
        'a link of 1 Gbit/s': result.megabits * 1e6 / LINK,
    }
    name = max(loads, key=loads.get)
    busiest = f'{name}: {loads[name]:.0%} in use'
    if holds(result, fleet, target):
        return f'it holds; next: {busiest}'
    if result.refused > _MAX_LOST:
        return f'queues are full, commands are refused ({busiest})'
    if result.lost > _MAX_LOST:
        return f'answers come after the deadline ({busiest})'
    if result.p95 > target:
        return f'p95 is over {target:g} s ({busiest})'
    return f'standing queries come to {result.standing_rate:.2f} answers a second ({busiest})'


def breaking_point(
    fleet: FleetPlan, server: ServerPlan, times: ServiceTimes, target: float
) -> tuple[int, str]:
    """Return how many robots a server holds, and what breaks beyond them."""
    low, high = 0, 1
    while True:
        larger = replace(fleet, robots=high)
        broken = simulate(larger, server, times)
        if not holds(broken, larger, target):
            break
        low, high = high, high * 2
    while high - low > max(1, high // 20):
        larger = replace(fleet, robots=(low + high) // 2)
        result = simulate(larger, server, times)
        if holds(result, larger, target):
            low = larger.robots
        else:
            high, broken = larger.robots, result
    return low, first_break(broken, replace(fleet, robots=high), target)


def sizing_table(results: list[Result]) -> str:
    """Return the sizing table in Markdown."""
    lines = [
        '| robots | GPUs | HTTP processes | p50 | p95 | p99 | batch | capacity | network |',
        '| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |',
    ]
    lines += [
        f'| {r.robots:,} | {r.replicas} | {r.http_processes} | {r.p50:.2f} s | {r.p95:.2f} s '
        f'| {r.p99:.2f} s | {r.batch:.1f} | {r.capacity:.0%} | {r.megabits:,.0f} Mbit/s |'
        for r in results
    ]
    return '\n'.join(lines)


def draw(results: dict[int, list[Result]], times: ServiceTimes, target: float, path: Path) -> None:
    """Draw the percentiles over the number of robots, for several numbers of GPUs."""
    import endurance_report as report

    drawn, (upper, lower) = report.figure(2, f'{times.name}: what a server holds (simulated)')
    for replicas, row in results.items():
        robots = [r.robots for r in row]
        (line,) = upper.plot(
            robots,
            [r.p95 for r in row],
            marker='o',
            label=f'{replicas} GPU' + 's' * (replicas > 1),
        )
        upper.plot(robots, [r.p50 for r in row], ls=':', color=line.get_color())
        lower.plot(robots, [100 * r.lost for r in row], marker='o', color=line.get_color())
    upper.axhline(target, color=report.LIMIT_COLOUR, lw=1)
    upper.set(ylabel='seconds to an answer', yscale='log')
    lower.set(ylabel='commands without\nan answer [%]', xlabel='robots', xscale='log')
    report.add_legend(upper, f'p95, dotted: median; red: {target:g} s')
    report.save(drawn, path)


def main() -> None:
    """Simulate one server, or make the sizing table and the plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--profile', default='lisa-7b', help='of fleet_times.json')
    parser.add_argument('--robots', type=int, default=40)
    parser.add_argument('--replicas', type=int, default=1)
    parser.add_argument('--http-processes', type=int, default=1)
    parser.add_argument('--commands-per-minute', type=float, default=2.0, metavar='N')
    parser.add_argument('--standing-share', type=float, default=0.1, metavar='SHARE')
    parser.add_argument('--target', type=float, default=TARGET, metavar='SECONDS', help='p95')
    parser.add_argument('--seconds', type=float, help='of the run (default: 2000 commands)')
    parser.add_argument('--sizing', action='store_true', help='print the sizing table')
    parser.add_argument('--out', type=Path, help='folder for fleet_PROFILE.png and .json')
    options = parser.parse_args()
    times = read_profile(options.profile)
    fleet = FleetPlan(options.robots, options.commands_per_minute, options.standing_share)
    if not options.sizing:
        server = ServerPlan(options.replicas, options.http_processes)
        result = simulate(fleet, server, times, options.seconds)
        print(json.dumps(asdict(result), indent=1))
        print(first_break(result, fleet, options.target))
        return
    print(f'{times.name}: {times.source}')
    results = [
        smallest_server(replace(fleet, robots=count), ServerPlan(), times, options.target)
        for count in ROBOTS
    ]
    print(sizing_table(results))
    rows = {}
    for replicas in (1, 4, 16):
        robots, cause = breaking_point(fleet, ServerPlan(replicas), times, options.target)
        print(f'{replicas} GPUs, one HTTP process: {robots} robots; then {cause}')
        counts = sorted({max(1, round(robots * share)) for share in (0.1, 0.3, 0.6, 0.9, 1.2, 2)})
        rows[replicas] = [
            simulate(replace(fleet, robots=count), ServerPlan(replicas), times) for count in counts
        ]
    if options.out:
        draw(rows, times, options.target, options.out / f'fleet_{times.name}.png')
        table = {'source': times.source, 'results': [asdict(result) for result in results]}
        path = options.out / f'fleet_{times.name}.json'
        path.write_text(json.dumps(table, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
