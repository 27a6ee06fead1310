# SPDX-License-Identifier: Apache-2.0
"""The state of a model, for the diagnostics: does it answer, and if not, why."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class HealthState(enum.Enum):
    """What a model is doing."""

    OK = enum.auto()  # idle
    BUSY = enum.auto()  # it answers a request
    RELOADING = enum.auto()  # its process was ended and is starting again
    HUNG = enum.auto()  # it has not returned in time, and its thread cannot be ended
    DEAD = enum.auto()  # it does not run: it could not be loaded again
    UNREACHABLE = enum.auto()  # its server cannot be reached, or has no capacity


@dataclass(frozen=True)
class ModelFailure:
    """Why a request could not be answered, or why the model's process was ended."""

    cause: str  # in words, with the cure
    at: float  # [s, monotonic]


@dataclass(frozen=True)
class ModelHealth:
    """The state of a model at one moment."""

    state: HealthState
    since: float  # when the state began [s, monotonic]
    cause: str = ''  # of RELOADING, HUNG, DEAD and UNREACHABLE, in words, with the cure
    reloads: int = 0  # how often the model's process was loaded again, or its server came back
    failure: ModelFailure | None = None  # the last one, also if the model has recovered


def newest_failure(first: ModelFailure | None, second: ModelFailure | None) -> ModelFailure | None:
    """Return the later one of two failures; None if there are none."""
    failures = [failure for failure in (first, second) if failure is not None]
    return max(failures, key=lambda failure: failure.at, default=None)
