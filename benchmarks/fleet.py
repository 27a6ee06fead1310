# SPDX-License-Identifier: Apache-2.0
"""Drive a real server with simulated robots, and compare it with the simulation.

    lisa-ros serve --model lisa-tabletop --device cpu &
    python benchmarks/fleet.py --url http://127.0.0.1:8000 --robots 8 --seconds 60 --out OUT
    python benchmarks/fleet.py --measure two-cores       # the server's times into fleet_times.json
    python benchmarks/fleet.py --robots 8 --compare two-cores

Robots send JPEGs of the bundled samples: commands at random times, standing queries as fast as
they are answered, and some clients leave before their answer. Each has one request under way, and
a connection of its own. All of them run in this process, so that they take processor time from a
server on the same machine, too.

Prints percentiles and how each request ended; writes OUT/fleet.json. Exit status 1 if a request
has no end of its own: neither an answer nor a problem.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import endurance_report as report
import numpy as np
from fleet_plan import FleetPlan, ServerPlan, ServiceTimes, read_profile, write_profile
from fleet_requests import Outcome, RobotClient, percentiles, sample_commands, sample_images

from lisa_ros.serving.image_transfer import SentImage

ANSWERED = ('FOUND', 'NOT_FOUND')
MEASURED = (1, 2, 4, 8)  # requests at a time
ROUNDS = 20  # of each
PAUSE = 0.5  # before each: a server that has rested answers later than one that has not [s]


@dataclass
class Counts:
    """What robots have seen after the warm-up."""

    commands: list[Outcome] = field(default_factory=list)
    standing: list[Outcome] = field(default_factory=list)
    left: int = 0  # clients that did not wait

    def summary(self, seconds: float, fleet: FleetPlan) -> dict[str, object]:
        """Return all figures."""
        answered = [o.seconds for o in self.commands if o.status in ANSWERED]
        standing = [o.seconds for o in self.standing if o.status in ANSWERED]
        stages = Counter()
        for outcome in (*self.commands, *self.standing):
            stages.update(outcome.times)
        count = max(1, len(answered) + len(standing))
        return {
            'commands': len(self.commands),
            'ends': dict(Counter(o.status for o in self.commands)),
            'left': self.left,
            'command_seconds': percentiles(answered),
            'standing_seconds': percentiles(standing),
            'standing_ends': dict(Counter(o.status for o in self.standing)),
            'standing_rate': len(standing) / seconds / max(1, fleet.standing),
            'throughput': count / seconds,
            'mean_stage_seconds': {name: total / count for name, total in stages.items()},
        }


class Robot:
    """Asks commands at random times, and its standing query between them."""

    def __init__(
        self,
        client: RobotClient,
        fleet: FleetPlan,
        counts: Counts,
        material: tuple[list[SentImage], list[str]],
        seed: int,
    ):
        self._client, self._fleet, self._counts = client, fleet, counts
        images, self._texts = material
        self._random = random.Random(seed)
        first = self._random.randrange(len(images))
        self._images = itertools.cycle([*images[first:], *images[:first]])
        self._turn = asyncio.Lock()  # one request at a time
        self._standing: asyncio.Task | None = None

    async def run(self, has_standing: bool, counted_from: float) -> None:
        """Ask until it is cancelled; `counted_from` [s, monotonic]."""
        tasks = [self._ask_commands(counted_from)]
        if has_standing:
            tasks.append(self._ask_standing(counted_from))
        try:
            await asyncio.gather(*tasks)
        finally:
            await self._client.close()

    async def _ask(self, text: str) -> Outcome:
        return await self._client.ask(next(self._images), text, self._fleet.deadline)

    async def _ask_commands(self, counted_from: float) -> None:
        rate = self._fleet.commands_per_minute / 60
        while rate:
            await asyncio.sleep(self._random.expovariate(rate))
            if self._standing is not None:
                self._standing.cancel()  # closes its connection
            start = time.monotonic()
            async with self._turn:
                asked = asyncio.create_task(self._ask(self._random.choice(self._texts)))
                leaves = self._random.random() < self._fleet.leaving_share
                patience = self._random.expovariate(10.0) if leaves else None
                await _ended(asked, patience)
            if start < counted_from:
                continue
            if asked.cancelled():
                self._counts.left += 1
            else:
                self._counts.commands.append(asked.result())

    async def _ask_standing(self, counted_from: float) -> None:
        period, text = 1 / self._fleet.standing_rate, self._random.choice(self._texts)
        await asyncio.sleep(self._random.uniform(0, period))
        while True:
            async with self._turn:
                start = time.monotonic()
                self._standing = asyncio.create_task(self._ask(text))
                await _ended(self._standing, None)
                asked, self._standing = self._standing, None
            if not asked.cancelled() and start >= counted_from:
                self._counts.standing.append(asked.result())
            await asyncio.sleep(max(0.0, start + period - time.monotonic()))


async def _ended(asked: asyncio.Task, patience: float | None) -> None:
    """Wait for a request; cancel it after `patience` [s], or if the caller is cancelled."""
    try:
        await asyncio.wait({asked}, timeout=patience)
    finally:
        asked.cancel()  # closes its connection; no effect after the end
    await asyncio.wait({asked})


async def drive(
    url: str, fleet: FleetPlan, seconds: float, warm_up: float, token: str, seed: int = 1
) -> Counts:
    """Let a fleet ask for `seconds` after the warm-up [s]."""
    counts, material = Counts(), (sample_images(), sample_commands())
    counted_from = time.monotonic() + warm_up
    robots = [
        asyncio.create_task(
            Robot(
                RobotClient(url, f'robot-{number}', token), fleet, counts, material, seed + number
            ).run(number < fleet.standing, counted_from)
        )
        for number in range(fleet.robots)
    ]
    done, _ = await asyncio.wait(
        robots, timeout=warm_up + seconds, return_when=asyncio.FIRST_EXCEPTION
    )
    for robot in robots:
        robot.cancel()
    await asyncio.gather(*robots, return_exceptions=True)
    for robot in done:
        robot.result()  # raises what ended a robot
    return counts


async def measure(url: str, token: str) -> dict[int, list[float]]:
    """Return how long requests take that are sent together, by their number [s]."""
    images, texts = sample_images(), sample_commands()
    clients = [RobotClient(url, f'measure-{n}', token) for n in range(max(MEASURED))]
    seconds: dict[int, list[float]] = {size: [] for size in MEASURED}
    unused = itertools.cycle(images)  # the server keeps what it knows of an image
    chance = random.Random(0)  # commands and images meet as robots let them: some find nothing
    for size in reversed(MEASURED):  # the first answers of a new server take longer
        for number in range(2 + ROUNDS):  # two rounds are the warm-up
            await asyncio.sleep(PAUSE)
            start = time.perf_counter()
            outcomes = await asyncio.gather(
                *(
                    client.ask(next(unused), chance.choice(texts), 60.0)
                    for client in clients[:size]
                )
            )
            bad = [o.status for o in outcomes if o.status not in ANSWERED]
            if bad:
                raise SystemExit(f'{url} gave no answer: {bad}')
            if number >= 2:
                seconds[size].append(time.perf_counter() - start)
    for client in clients:
        await client.close()
    return seconds


def fitted(name: str, url: str, seconds: dict[int, list[float]]) -> ServiceTimes:
    """Return service times: a line through the medians, over the number of requests."""
    sizes = np.array(sorted(seconds))
    medians = np.array([np.median(seconds[size]) for size in sizes])
    per_request, per_batch = np.polyfit(sizes, medians, 1)
    spread = np.mean([np.std(np.log(seconds[size])) for size in sizes])
    measured = ', '.join(f'{n}: {t:.3f} s' for n, t in zip(sizes, medians, strict=True))
    return ServiceTimes(
        name=name,
        source=f'measured with fleet.py --measure at {url} on {report.machine()}; requests sent '
        f'together, client included: {measured}',
        per_batch=max(0.0, float(per_batch)),
        per_request=float(per_request),
        spread=float(spread),
        http=0.0,  # part of what was measured
        client=0.0,
        image_bytes=int(np.mean([len(image.content) for image in sample_images()])),
    )


def compared(
    figures: dict[str, object], fleet: FleetPlan, server: ServerPlan, profile: str
) -> dict[str, float]:
    """Return the simulated percentiles, and measured over simulated ones."""
    from fleet_simulation import simulate

    simulated = asdict(simulate(fleet, server, read_profile(profile)))
    own = figures['command_seconds']
    ratios = {f'{name}_over_simulated': own[name] / simulated[name] for name in own}
    return {**{name: simulated[name] for name in own}, **ratios}


def main(arguments: Sequence[str] | None = None) -> int:
    """Drive a server; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--url', default='http://127.0.0.1:8000')
    parser.add_argument('--token', default='', help='bearer token (default: none)')
    parser.add_argument('--robots', type=int, default=8)
    parser.add_argument('--commands-per-minute', type=float, default=6.0, metavar='N')
    parser.add_argument('--standing-share', type=float, default=0.25, metavar='SHARE')
    parser.add_argument('--standing-rate', type=float, default=1.0, metavar='HZ')
    parser.add_argument('--leaving-share', type=float, default=0.05, metavar='SHARE')
    parser.add_argument('--deadline', type=float, default=10.0, metavar='SECONDS')
    parser.add_argument('--seconds', type=float, default=60.0)
    parser.add_argument('--warm-up', type=float, default=5.0, metavar='SECONDS')
    parser.add_argument('--replicas', type=int, default=1, help='of the server, for --compare')
    parser.add_argument('--measure', metavar='NAME', help='write service times under this name')
    parser.add_argument('--compare', metavar='NAME', help='of service times')
    parser.add_argument('--out', type=Path, help='folder for fleet.json')
    options = parser.parse_args(arguments)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
    if options.measure:
        times = fitted(
            options.measure, options.url, asyncio.run(measure(options.url, options.token))
        )
        write_profile(times)
        print(json.dumps(asdict(times), indent=1))
        return 0
    fleet = FleetPlan(
        options.robots,
        options.commands_per_minute,
        options.standing_share,
        options.standing_rate,
        options.deadline,
        options.leaving_share,
    )
    counts = asyncio.run(
        drive(options.url, fleet, options.seconds, options.warm_up, options.token)
    )
    figures = {
        'machine': report.machine(),
        'fleet': asdict(fleet),
        **counts.summary(options.seconds, fleet),
    }
    if options.compare and figures['command_seconds']:
        server = ServerPlan(options.replicas)
        figures['simulated'] = compared(figures, fleet, server, options.compare)
    text = json.dumps(figures, indent=1)
    print(text)
    if options.out:
        (options.out / 'fleet.json').write_text(text + '\n', encoding='utf-8')
    outcomes = (*counts.commands, *counts.standing)
    return int(any(outcome.status.startswith('broken') for outcome in outcomes))


if __name__ == '__main__':
    raise SystemExit(main())
