# SPDX-License-Identifier: Apache-2.0
"""Parse commands: kind (query, standing query, "stop"), query text and addressed cameras.

"find the red mug" is a query and is answered once. "watch: the red mug" is a standing query: it
is answered again for every new image until "stop". "stop" and "cancel" end running and waiting
commands at once.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass

STOP = {'stop', 'cancel', 'stop it', 'stop watching', 'cancel that', 'never mind'}
_WATCH = 'watch:'


class CommandKind(enum.Enum):
    """What a command asks for."""

    ASK = enum.auto()  # one answer
    WATCH = enum.auto()  # an answer for every new image
    STOP = enum.auto()  # end of all commands


@dataclass(frozen=True)
class ParsedCommand:
    """A command's kind and its query text, without the prefix "watch:"."""

    kind: CommandKind
    text: str


def parse_command(command: str) -> ParsedCommand:
    """Return the kind and the query of a command; the text of a bare "watch:" is empty."""
    stripped = command.strip()
    if stripped.lower().rstrip('.! ') in STOP:
        return ParsedCommand(CommandKind.STOP, stripped)
    if stripped.lower().startswith(_WATCH):
        return ParsedCommand(CommandKind.WATCH, stripped[len(_WATCH) :].strip())
    return ParsedCommand(CommandKind.ASK, command)


def select_cameras(command: str, cameras: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """Return the names of the addressed cameras and the command without its address.

    "front: the mug" addresses the camera front. "all: the mug" and "the mug" address every camera.
    "front: watch: the mug" and "watch: front: the mug" mean the same. "rear: the mug" addresses
    no camera if there is none of that name.
    """
    prefix, colon, rest = command.partition(':')
    address = prefix.strip().lower()
    if not colon or not re.fullmatch(r'\w+', address):
        return tuple(cameras), command
    if address + colon == _WATCH:
        addressed, text = select_cameras(rest.strip(), cameras)
        return addressed, f'{_WATCH} {text}'
    addressed = tuple(camera for camera in cameras if address in (camera.lower(), 'all'))
    return addressed, rest.strip()
