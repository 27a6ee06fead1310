# SPDX-License-Identifier: Apache-2.0
"""Find how many GPUs a fleet needs, and how many robots a server holds, by simulation.

    python benchmarks/fleet_sizing.py --profile lisa-7b --out docs

Prints a table for docs/fleet.md and what breaks first; draws OUT/fleet_PROFILE.png and writes
OUT/fleet_PROFILE.json. See fleet_simulation.py for the rules.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict, replace
from pathlib import Path

from fleet_plan import FleetPlan, ServerPlan, ServiceTimes, read_profile
from fleet_simulation import Result, add_fleet_arguments, first_break, holds, simulate

ROBOTS = (10, 40, 100, 400, 1000, 4000, 10_000)  # of the table
REPLICAS = (1, 4, 16)  # of the plot
_FULL = 0.8  # share of a server's capacity that a sizing uses


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
    """Make the table and the plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_fleet_arguments(parser)
    parser.add_argument('--out', type=Path, help='folder for fleet_PROFILE.png and .json')
    options = parser.parse_args()
    times = read_profile(options.profile)
    fleet = FleetPlan(1, options.commands_per_minute, options.standing_share)
    print(f'{times.name}: {times.source}')
    results = [
        smallest_server(replace(fleet, robots=count), ServerPlan(), times, options.target)
        for count in ROBOTS
    ]
    print(sizing_table(results))
    rows = {}
    for replicas in REPLICAS:
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
