# SPDX-License-Identifier: Apache-2.0
"""Parse commands: kind (query, standing query, "stop"), query text and addressed cameras.

"find the red mug" is a query and is answered once. "watch: the red mug" is a standing query: it
is answered again for every new image until "stop". "stop", "cancel", "halt" and "abort" end
running and waiting commands at once. "please" changes nothing before "watch:" and beside "stop".
"""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass

STOP = {
    'stop', 'stop it', 'stop that', 'stop this', 'stop watching', 'cancel', 'cancel it',
    'cancel that', 'cancel this', 'never mind',
}  # of a vocabulary  # fmt: skip
POLITE_WORDS = ('please',)
# Texts that mean one of STOP: "okay, stop now", "no, cancel everything", "stop watching the mug".
# "stop sign" and "the stop button" are things to find, and "stop searching, find the bowl" asks.
_BEFORE_STOP = 'please|ok|okay|no|hey|now|oh|wait|just|robot|lisa'
_STOP = r'(?:stop|cancel|halt|abort)(?: (?:it|that|this|them|all|everything))?|never ?mind'
_AMONG_STOPS = f'{_STOP}|{_BEFORE_STOP}|immediately'  # no word twice: it is matched in one way
_STOPS = re.compile(
    rf'(?:(?:{_BEFORE_STOP}) )*'
    rf'(?:(?:{_STOP})(?: (?:{_AMONG_STOPS}))*'
    rf'|(?:(?:{_STOP}) (?:(?:{_AMONG_STOPS}) )*)?'
    r'stop (?:watching|tracking|following|searching|looking)'
    r'(?: (?!.*\b(?:find|look|show|hand|give|watch|then|instead)\b).+)?)'
)
_WATCH = 'watch:'
_POLITE_WATCH = re.compile(rf'(?:(?:{"|".join(POLITE_WORDS)})[\s,]+)*watch\s*:', re.IGNORECASE)


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
    if _is_stop(stripped):
        return ParsedCommand(CommandKind.STOP, stripped)
    if watch := _POLITE_WATCH.match(stripped):
        return ParsedCommand(CommandKind.WATCH, stripped[watch.end() :].strip())
    return ParsedCommand(CommandKind.ASK, command)


def _is_stop(text: str) -> bool:
    """Return whether a text means one of `STOP`, and asks for nothing else."""
    words = re.sub(r"[^\w':]+", ' ', text.lower()).split()
    return _STOPS.fullmatch(' '.join(words)) is not None


def select_cameras(command: str, cameras: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """Return the names of the addressed cameras and the command without its address.

    "front: the mug" addresses the camera front. "all: the mug" and "the mug" address every camera.
    "front: watch: the mug" and "watch: front: the mug" mean the same. "rear: the mug" addresses
    no camera if there is none of that name.
    """
    if watch := _POLITE_WATCH.match(command.strip()):
        addressed, text = select_cameras(command.strip()[watch.end() :].strip(), cameras)
        return addressed, f'{_WATCH} {text}'
    prefix, colon, rest = command.partition(':')
    address = prefix.strip().lower()
    if not colon or not re.fullmatch(r'\w+', address):
        return tuple(cameras), command
    addressed = tuple(camera for camera in cameras if address in (camera.lower(), 'all'))
    return addressed, rest.strip()
