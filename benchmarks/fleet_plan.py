# SPDX-License-Identifier: Apache-2.0
"""What a fleet asks, and how long a server works for it: for the simulation and the driver."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

PROFILES = Path(__file__).with_name('fleet_times.json')


@dataclass(frozen=True)
class ServiceTimes:
    """How long a replica and the way to it take."""

    name: str
    source: str  # where the figures come from, in words
    per_batch: float  # of a batch, whatever its size [s]
    per_request: float  # more for each request of a batch [s]
    spread: float  # standard deviation of the logarithm of a batch's time
    http: float  # of the HTTP process for a request, which answers one at a time [s]
    client: float  # of the robot: encoding, network and decoding [s]
    image_bytes: int  # of one image as it is sent

    def seconds(self, size: int) -> float:
        """Return the mean time of a batch [s]."""
        return self.per_batch + self.per_request * size

    def throughput(self, size: int) -> float:
        """Return how many requests a second a replica answers in batches of a size."""
        return size / self.seconds(size)


@dataclass(frozen=True)
class FleetPlan:
    """What robots ask. Each has one request under way, as a node does."""

    robots: int
    commands_per_minute: float = 2.0  # of each robot, at random times
    standing_share: float = 0.1  # of the robots with a standing query
    standing_rate: float = 1.0  # at most, of a standing query [Hz]
    deadline: float = 10.0  # `answer_timeout` of the nodes [s]
    leaving_share: float = 0.0  # of the requests whose client leaves before the answer

    @property
    def standing(self) -> int:
        """The number of robots with a standing query."""
        return round(self.robots * self.standing_share)

    @property
    def largest_rate(self) -> float:
        """Requests of all robots if each is answered at once [1/s]."""
        return self.robots * self.commands_per_minute / 60 + self.standing * self.standing_rate


@dataclass(frozen=True)
class ServerPlan:
    """The server: the fields of `BatchQueue`'s limits, and how many of everything."""

    replicas: int = 1  # a GPU each
    http_processes: int = 1
    places: int = 16  # of a replica's queue
    largest: int = 8  # requests of a batch
    wait: float = 0.02  # longest wait for others [s]
    wait_share: float = 0.1  # of the batch before, the most that a wait may cost
    retry_after: float = 1.0  # that a full server asks for [s]


def read_profile(name: str, path: Path = PROFILES) -> ServiceTimes:
    """Return the service times of a name."""
    profiles = json.loads(path.read_text(encoding='utf-8'))
    if name not in profiles:
        raise SystemExit(f'{name} is not in {path}; expected one of {", ".join(profiles)}')
    return ServiceTimes(name=name, **profiles[name])


def write_profile(times: ServiceTimes, path: Path = PROFILES) -> None:
    """Add service times to a file, or replace those of the same name."""
    profiles = json.loads(path.read_text(encoding='utf-8')) if path.exists() else {}
    values = asdict(times)
    profiles[values.pop('name')] = values
    path.write_text(json.dumps(profiles, indent=1) + '\n', encoding='utf-8')
