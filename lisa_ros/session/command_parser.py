# SPDX-License-Identifier: Apache-2.0
"""What kind of thing was said: a question, a standing one, or that all shall stop.

"find the red mug" is a question, answered once. "watch: the red mug" is answered anew about every
newest picture until "stop". "stop" and "cancel" end what runs and what waits, at once. And "the
other one" is a question about something else than what was shown.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass

STOP = {'stop', 'cancel', 'stop it', 'stop watching', 'cancel that', 'never mind'}
_WATCH = 'watch:'


class CommandKind(enum.Enum):
    """Of what was said."""

    ASK = enum.auto()
    WATCH = enum.auto()
    STOP = enum.auto()


@dataclass(frozen=True)
class ParsedCommand:
    """A kind, and the question without the word that says it."""

    kind: CommandKind
    text: str


def parse_command(said: str) -> ParsedCommand:
    """Return what kind of order was said; "watch:" alone has an empty text."""
    words = said.strip()
    if words.lower().rstrip('.! ') in STOP:
        return ParsedCommand(CommandKind.STOP, words)
    if words.lower().startswith(_WATCH):
        return ParsedCommand(CommandKind.WATCH, words[len(_WATCH) :].strip())
    return ParsedCommand(CommandKind.ASK, said)


def select_cameras(said: str, cameras: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """Return which of several cameras are meant, and what is said to them.

    "front: the mug" is said to front, "all: the mug" and "the mug" to all of them, and so are
    "front: watch: the mug" and "watch: front: the mug". "rear: the mug" is said to none where
    there is no such camera.
    """
    name, colon, rest = said.partition(':')
    named = name.strip().lower()
    if not colon or not re.fullmatch(r'\w+', named):
        return tuple(cameras), said
    if named + colon == _WATCH:
        meant, text = select_cameras(rest.strip(), cameras)
        return meant, f'{_WATCH} {text}'
    meant = tuple(camera for camera in cameras if named in (camera.lower(), 'all'))
    return meant, rest.strip()
