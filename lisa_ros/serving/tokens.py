# SPDX-License-Identifier: Apache-2.0
"""Bearer tokens from a file, and how many requests a second each of them may send.

A line of the file is `NAME TOKEN`, or `NAME TOKEN RATE` with a rate in requests per second; "#"
begins a comment. The file holds secrets: only its owner should be able to read it. One thread.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lisa_ros.errors import SettingsError
from lisa_ros.files.text import read_text
from lisa_ros.serving.problems import Problem, ProblemError

MIN_TOKEN_CHARS = 16
_FORMAT = 'expected NAME TOKEN, or NAME TOKEN RATE'


@dataclass(frozen=True)
class Client:
    """Who has sent a request."""

    name: str
    rate: float | None = None  # requests per second; None: as many as are answered


ANYBODY = Client('')  # of a server without tokens


@dataclass(frozen=True)
class TokenTable:
    """The clients by the SHA-256 of their tokens."""

    clients: tuple[tuple[bytes, Client], ...]

    @classmethod
    def read(cls, path: Path) -> TokenTable:
        """Return the tokens of a file.

        Raises:
            SettingsError: a line is not as expected, or there is none.
            DataError: the file cannot be read.
        """
        clients: dict[str, tuple[bytes, Client]] = {}
        for number, line in enumerate(read_text(path).splitlines(), 1):
            words = line.partition('#')[0].split()
            if words:
                digest, client = _entry(words, f'{path}, line {number}')
                if client.name in clients:
                    raise SettingsError(f'{path}, line {number}: this name is given twice')
                clients[client.name] = digest, client
        if not clients:
            raise SettingsError(f'{path}: has no token; {_FORMAT} in each line')
        return cls(tuple(clients.values()))

    def client(self, authorization: str) -> Client:
        """Return the client of an Authorization header; all tokens are compared, always.

        Raises:
            ProblemError: UNAUTHORIZED.
        """
        scheme, _, token = authorization.partition(' ')
        digest = _digest(token.strip())
        matches = [client for own, client in self.clients if hmac.compare_digest(own, digest)]
        if scheme.lower() != 'bearer' or not matches:
            raise ProblemError(
                Problem.UNAUTHORIZED,
                'the Authorization header is missing or has no known token; expected '
                '"Bearer TOKEN" with a token of the server\'s --token-file',
            )
        return matches[0]


class RateLimiter:
    """Lets each client send its rate; what it did not use in a second is lost."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}  # name: requests left, at a time

    def take(self, client: Client) -> None:
        """Count a request.

        Raises:
            ProblemError: RATE_LIMITED.
        """
        if client.rate is None:
            return
        now, largest = self._clock(), max(1.0, client.rate)
        left, then = self._buckets.get(client.name, (largest, now))
        left = min(largest, left + (now - then) * client.rate)
        if left < 1:
            self._buckets[client.name] = left, now
            raise ProblemError(
                Problem.RATE_LIMITED,
                f'the token {client.name} may send {client.rate:g} requests per second: send '
                'fewer, or raise its rate in the token file',
                (1 - left) / client.rate,
            )
        self._buckets[client.name] = left - 1, now


def _entry(words: list[str], place: str) -> tuple[bytes, Client]:
    if len(words) not in (2, 3):
        raise SettingsError(f'{place}: has {len(words)} words; {_FORMAT}')
    name, token, *rates = words
    if len(token) < MIN_TOKEN_CHARS or not token.isascii():
        raise SettingsError(
            f'{place}: the token of {name} has {len(token)} characters; expected at least '
            f'{MIN_TOKEN_CHARS} of ASCII, as `openssl rand -hex 32` prints them'
        )
    return _digest(token), Client(name, _rate(rates[0], place) if rates else None)


def _rate(text: str, place: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < float('inf'):
        raise SettingsError(f'{place}: the rate is {text!r}; expected requests per second above 0')
    return rate


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode('utf-8', 'surrogateescape')).digest()
