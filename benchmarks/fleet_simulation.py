# SPDX-License-Identifier: Apache-2.0
"""Simulate a fleet and its server: percentiles, GPUs for a target, and what breaks first.

    pip install simpy
    python benchmarks/fleet_simulation.py --profile lisa-7b --robots 40 --replicas 4
    python benchmarks/fleet_sizing.py --profile lisa-7b --out docs      # how many GPUs

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
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import simpy
from fleet_plan import FleetPlan, ServerPlan, ServiceTimes, read_profile

TARGET = 2.0  # 95th percentile of a command [s]
LINK = 1e9  # of the server [bit/s]
_MAX_LOST = 0.01  # share of commands without an answer that a target allows
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


def main() -> None:
    """Simulate one server and print its figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--replicas', type=int, default=1)
    parser.add_argument('--http-processes', type=int, default=1)
    parser.add_argument('--robots', type=int, default=40)
    parser.add_argument('--seconds', type=float, help='of the run (default: 2000 commands)')
    add_fleet_arguments(parser)
    options = parser.parse_args()
    fleet = FleetPlan(options.robots, options.commands_per_minute, options.standing_share)
    server = ServerPlan(options.replicas, options.http_processes)
    result = simulate(fleet, server, read_profile(options.profile), options.seconds)
    print(json.dumps(asdict(result), indent=1))
    print(first_break(result, fleet, options.target))


def add_fleet_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what robots ask, and what is expected."""
    parser.add_argument('--profile', default='lisa-7b', help='of fleet_times.json')
    parser.add_argument('--commands-per-minute', type=float, default=2.0, metavar='N')
    parser.add_argument('--standing-share', type=float, default=0.1, metavar='SHARE')
    parser.add_argument('--target', type=float, default=TARGET, metavar='SECONDS', help='p95')


if __name__ == '__main__':
    main()
