# SPDX-License-Identifier: Apache-2.0
"""Bearer tokens from a file, and how many requests a second each of them may send.

A line of the file is `NAME TOKEN`, or `NAME TOKEN RATE` with a rate in requests of /v1/segment per
second; a word with "#" at its start begins a comment. The file holds secrets: only its owner
should be able to read it. One thread.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lisa_ros.errors import LisaError, SettingsError
from lisa_ros.files.text import read_text
from lisa_ros.serving.problems import Problem, ProblemError

_log = logging.getLogger(__name__)
MIN_TOKEN_CHARS = 16
_COMMENT = re.compile(r'(?:^|\s)#')
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
            words = _COMMENT.split(line, maxsplit=1)[0].split()
            if words:
                digest, client = _entry(words, f'{path}, line {number}')
                if client.name in clients:
                    raise SettingsError(f'{path}, line {number}: this name is given twice')
                if any(hmac.compare_digest(digest, entry[0]) for entry in clients.values()):
                    raise SettingsError(f'{path}, line {number}: this token has another name, too')
                clients[client.name] = digest, client
        if not clients:
            raise SettingsError(f'{path}: has no token; {_FORMAT} in each line')
        return cls(tuple(clients.values()))

    def reloaded(self, path: Path) -> TokenTable:
        """Return the tokens of a file that has changed; these ones if it cannot be read."""
        try:
            table = TokenTable.read(path)
        except LisaError as error:
            _log.error('the tokens stay as they were: %s', error)
            return self
        _log.info('read the tokens again')
        return table

    def client(self, authorizations: Sequence[str]) -> Client:
        """Return the client of a request; all tokens are compared, always.

        Args:
            authorizations: its Authorization headers; of several, none counts.

        Raises:
            ProblemError: UNAUTHORIZED.
        """
        authorization = authorizations[0] if len(authorizations) == 1 else ''
        scheme, _, token = authorization.partition(' ')
        digest = _digest(token.strip())
        matches = [client for entry, client in self.clients if hmac.compare_digest(entry, digest)]
        if scheme.lower() != 'bearer' or not matches:
            raise ProblemError(
                Problem.UNAUTHORIZED,
                'the Authorization header is missing, comes twice or has no valid token; expected '
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
        allowed, counted_at = self._buckets.get(client.name, (largest, now))
        allowed = min(largest, allowed + (now - counted_at) * client.rate)
        if allowed < 1:
            self._buckets[client.name] = allowed, now
            raise ProblemError(
                Problem.RATE_LIMITED,
                f'the token {client.name} may send {client.rate:g} requests per second: send '
                'fewer, or raise its rate in the token file',
                (1 - allowed) / client.rate,
            )
        self._buckets[client.name] = allowed - 1, now


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
