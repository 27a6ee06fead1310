# SPDX-License-Identifier: Apache-2.0
"""The errors of the HTTP API as application/problem+json (RFC 9457), for server and client.

Standard library only; any thread.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from lisa_ros.errors import LisaError

PROBLEM_TYPE = 'application/problem+json'


@dataclass(frozen=True)
class ProblemKind:
    """What is the same in all errors of a kind."""

    name: str  # `type` of the document
    status: int  # of HTTP
    title: str


class Problem(enum.Enum):
    """Why a request has no answer."""

    MALFORMED = ProblemKind('malformed', 400, 'The request cannot be read')
    WRONG_HOST = ProblemKind('wrong_host', 400, 'The request came from a foreign web page')
    UNAUTHORIZED = ProblemKind('unauthorized', 401, 'A token is missing or wrong')
    NOT_FOUND = ProblemKind('not_found', 404, 'There is no such path')
    METHOD_NOT_ALLOWED = ProblemKind('method_not_allowed', 405, 'The path has other methods')
    TOO_SLOW = ProblemKind('too_slow', 408, 'The request did not arrive in time')
    SUPERSEDED = ProblemKind('superseded', 409, 'A newer request of the stream replaced this one')
    LENGTH_REQUIRED = ProblemKind('length_required', 411, 'The length of the body is not given')
    TOO_LARGE = ProblemKind('too_large', 413, 'The request is too large')
    UNSUPPORTED_MEDIA = ProblemKind('unsupported_media', 415, 'The media type is not supported')
    INVALID_IMAGE = ProblemKind('invalid_image', 422, 'The image cannot be used')
    INVALID_QUERY = ProblemKind('invalid_query', 422, 'The query cannot be used')
    OVERLOADED = ProblemKind('overloaded', 429, 'All places of the queue are taken')
    RATE_LIMITED = ProblemKind('rate_limited', 429, 'The token has used its rate')
    INTERNAL = ProblemKind('internal', 500, 'The server has a bug')
    NOT_READY = ProblemKind('not_ready', 503, 'No model is ready')
    REPLICA_LOST = ProblemKind('replica_lost', 503, 'The model ended while it answered')
    DEADLINE = ProblemKind('deadline', 504, 'The deadline of the request has passed')

    @property
    def status(self) -> int:
        """The status of HTTP."""
        return self.value.status


class ProblemError(LisaError):
    """A request that has no answer; the message is `detail`."""

    def __init__(self, problem: Problem, detail: str, retry_after: float | None = None):
        """Describe a failed request.

        Args:
            problem: what kind it is.
            detail: what came, what was expected and the cure.
            retry_after: when a new try makes sense [s]; None: not without a change.
        """
        super().__init__(detail)
        self.problem, self.retry_after = problem, retry_after

    def __reduce__(self) -> tuple[type, tuple]:
        """Let the error cross a process border."""
        return type(self), (self.problem, self.args[0], self.retry_after)

    def document(self) -> dict[str, str | int]:
        """Return the body of the answer."""
        kind = self.problem.value
        return {
            'type': kind.name,
            'title': kind.title,
            'status': kind.status,
            'detail': str(self),
        }


def problem_named(name: str) -> Problem | None:
    """Return the problem of a document's `type`; None if it is unknown."""
    return next((problem for problem in Problem if problem.value.name == name), None)
