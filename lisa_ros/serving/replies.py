# SPDX-License-Identifier: Apache-2.0
"""What passes between the HTTP server and the processes of the model. Any thread."""

from __future__ import annotations

from dataclasses import dataclass, field

from lisa_ros.perception.process_memory import GpuMemory
from lisa_ros.serving.multipart import ImageUpload
from lisa_ros.serving.problems import Problem, ProblemError


@dataclass(frozen=True)
class ModelRequest:
    """A question for a replica."""

    upload: ImageUpload
    seconds: float  # left until the deadline
    stream: str = ''  # the client's name and the stream's; '': a request by itself
    # whether it is answered in a batch of its own, because a replica ended while it answered this
    alone: bool = False
    number: int = 0  # of a stream's requests, the one with the largest is the newest


@dataclass(frozen=True)
class ReplyFigures:
    """What a replica measured, for the metrics."""

    batch_size: int = 0  # 0: no batch
    seconds: dict[str, float] = field(default_factory=dict)  # by stage
    waiting: int = 0  # requests in the replica's queue after this one
    gpu_memory: GpuMemory | None = None
    replica: str = ''  # its name among all replicas; '': unknown
    largest_batch: int = 0  # requests that a batch may have; 0: unknown


@dataclass(frozen=True)
class Answer:
    """The answer of a replica."""

    document: str  # JSON on one line
    figures: ReplyFigures


@dataclass(frozen=True)
class Refusal:
    """Why a replica gives no answer."""

    problem: Problem
    detail: str
    retry_after: float | None = None

    @classmethod
    def of(cls, error: ProblemError) -> Refusal:
        """Return an error as a value: Ray would log a raised one with its traceback."""
        return cls(error.problem, error.args[0], error.retry_after)

    def error(self) -> ProblemError:
        """Return it as an error."""
        return ProblemError(self.problem, self.detail, self.retry_after)


Reply = Answer | Refusal
