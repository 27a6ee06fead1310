# SPDX-License-Identifier: Apache-2.0
"""Read commands.yaml, the commands that an evaluation asks about a bag: a list of

    text: find the red bowl          # the query
    category: explicit               # kind of query, for the report's table (default: command)
    at: 2.5                          # seconds from the first frame: the first frame from then on
    frame: 12                        # or the index of a frame, from 0; with neither: every n-th;
                                     # images that cannot be read count
    dialogue: tidy                   # commands with the same name are turns of one dialogue
    targets: [6]                     # ground truth: instance ids of the objects; [] for none
    label: red bowl                  # or the name that the ground truth has for them
    absent: true                     # or: there is nothing to find

Only `text` is required. A command without targets, label or absent has no ground truth: its answer
is shown, but not counted. `kind` is an earlier name of `category`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lisa_ros.error_text import short_repr
from lisa_ros.errors import DataError
from lisa_ros.files.text import read_yaml

_KEYS = {
    'text': (str,),
    'category': (str,),
    'at': (int, float),
    'frame': (int,),
    'dialogue': (str, int),
    'targets': (list,),
    'label': (str,),
    'absent': (bool,),
}
_LARGEST_ID = 2**31 - 1  # of 32SC1, the largest type of ids


@dataclass(frozen=True)
class Command:
    """A query about the frames of a bag, and what it refers to."""

    number: int  # index in the file
    text: str
    category: str = 'command'
    at: float | None = None  # [s] from the first frame
    frame: int | None = None  # index
    dialogue: str | None = None
    targets: tuple[int, ...] | None = None  # instance ids; (): absent; None: see label
    label: str | None = None

    @property
    def has_ground_truth(self) -> bool:
        """Whether it is known what the command refers to."""
        return self.targets is not None or self.label is not None

    @property
    def has_time(self) -> bool:
        """Whether the command is for one frame or time, not for every n-th frame."""
        return self.at is not None or self.frame is not None


def read_commands(path: Path) -> list[Command]:
    """Return the commands of a file.

    Raises:
        DataError: the file cannot be read, or an entry is not valid; the message names it.
    """
    entries = read_yaml(path)
    if not isinstance(entries, list) or not entries:
        content = 'nothing' if entries is None else type(entries).__name__
        raise DataError(
            f'{path}: holds {content}; expected a list of commands, such as '
            '`- {text: find the mug, label: mug}`'
        )
    return [_command(path, number, entry) for number, entry in enumerate(entries)]


def _command(path: Path, number: int, entry: object) -> Command:
    location = f'{path}, command {number + 1}'
    entry = _checked_entry(location, entry)
    _check_time(location, entry)
    _check_ground_truth(location, entry)
    targets = entry.get('targets', [] if entry.get('absent') else None)
    dialogue = entry.get('dialogue')
    return Command(
        number,
        entry['text'],
        entry.get('category', 'command'),
        entry.get('at'),
        entry.get('frame'),
        None if dialogue is None else str(dialogue),
        None if targets is None else tuple(targets),
        entry.get('label'),
    )


def _checked_entry(location: str, entry: object) -> dict:
    """Return an entry as a dictionary with known keys, values of their types and a text."""
    if isinstance(entry, str):
        entry = {'text': entry}
    if not isinstance(entry, dict):
        raise DataError(f'{location}: is {short_repr(entry)}; expected {{text: ...}}')
    entry = {'category' if key == 'kind' else key: value for key, value in entry.items()}
    unknown = sorted(str(key) for key in entry if key not in _KEYS)
    if unknown:
        raise DataError(f'{location}: has {", ".join(unknown)}; known keys are {", ".join(_KEYS)}')
    for key, value in entry.items():
        is_bool = isinstance(value, bool)  # which Python counts as an int
        if not isinstance(value, _KEYS[key]) or (is_bool and bool not in _KEYS[key]):
            types = ' or '.join(kind.__name__ for kind in _KEYS[key])
            raise DataError(f'{location}: {key} is {short_repr(value)}; expected {types}')
    if not entry.get('text', '').strip():
        raise DataError(f'{location}: has no text; expected a query such as "find the mug"')
    return entry


def _check_time(location: str, entry: dict) -> None:
    if 'at' in entry and 'frame' in entry:
        raise DataError(f'{location}: has both at and frame; give one')
    if min(entry.get('at', 0), entry.get('frame', 0)) < 0:
        raise DataError(f'{location}: at or frame is negative; both count from the first frame, 0')


def _check_ground_truth(location: str, entry: dict) -> None:
    references = [key for key in ('targets', 'label') if key in entry]
    references += ['absent'] if entry.get('absent') else []
    if len(references) > 1:
        raise DataError(f'{location}: has {" and ".join(references)}; give one')
    targets = entry.get('targets', [])
    if not all(type(target) is int and 0 < target <= _LARGEST_ID for target in targets):
        raise DataError(
            f'{location}: targets are {short_repr(targets)}; expected ids of 1 to {_LARGEST_ID}'
        )
