# SPDX-License-Identifier: Apache-2.0
"""What is asked about a bag: commands.yaml, a list of

    text: find the red bowl          # what is said
    kind: explicit                   # sort of query, for the report's table (default: command)
    at: 2.5                          # seconds from the first frame: the next frame from there on
    frame: 12                        # or a frame by its number, from 0; without both: every n-th
    dialogue: tidy                   # commands of one dialogue follow one another, frame by frame
    targets: [6]                     # instance ids of the truth that it means; [] for none
    label: red bowl                  # or the truth's own name for it
    absent: true                     # or: it is not there

of which `text` alone must be there. Without targets, label or absent there is no truth, and the
answer is shown but not counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from lisa_ros.errors import DataError

_KEYS = {
    'text': (str,),
    'kind': (str,),
    'at': (int, float),
    'frame': (int,),
    'dialogue': (str, int),
    'targets': (list,),
    'label': (str,),
    'absent': (bool,),
}


@dataclass(frozen=True)
class Command:
    """A command and what it means."""

    number: int  # its place in the file, from 0
    text: str
    kind: str = 'command'
    at: float | None = None  # [s] from the first frame
    frame: int | None = None
    dialogue: str | None = None
    targets: tuple[int, ...] | None = None  # (): it is not there; None: see label
    label: str | None = None

    @property
    def has_truth(self) -> bool:
        """Return whether anybody knows what it means."""
        return self.targets is not None or self.label is not None


def read_commands(path: Path) -> list[Command]:
    """Return the commands of a file.

    Raises:
        DataError: the file, or an entry of it, is not as it should be; the message says which.
    """
    try:
        plain = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f'{path}: no commands that can be read ({error})') from error
    if not isinstance(plain, list) or not plain:
        raise DataError(
            f'{path}: holds {"nothing" if plain is None else type(plain).__name__}; expected a '
            'list of commands, as `- {text: find the mug, label: mug}`'
        )
    return [_command(path, number, entry) for number, entry in enumerate(plain)]


def _command(path: Path, number: int, entry: object) -> Command:
    where = f'{path}, command {number + 1}'
    if isinstance(entry, str):
        entry = {'text': entry}
    if not isinstance(entry, dict):
        raise DataError(f'{where}: is {entry!r}; expected {{text: ...}}')
    unknown = sorted(str(key) for key in entry if key not in _KEYS)
    if unknown:
        raise DataError(f'{where}: has {", ".join(unknown)}; known are {", ".join(_KEYS)}')
    for key, value in entry.items():
        right = isinstance(value, _KEYS[key])
        if not right or (isinstance(value, bool) and bool not in _KEYS[key]):
            kinds = ' or '.join(kind.__name__ for kind in _KEYS[key])
            raise DataError(f'{where}: {key} is {value!r}; expected {kinds}')
    if not str(entry.get('text', '')).strip():
        raise DataError(f'{where}: has no text; expected what is said, as "find the mug"')
    if 'at' in entry and 'frame' in entry:
        raise DataError(f'{where}: has both at and frame; give one')
    if min(entry.get('at', 0), entry.get('frame', 0)) < 0:
        raise DataError(f'{where}: at and frame count from the first frame, from 0 on')
    told = [key for key in ('targets', 'label') if key in entry]
    told += ['absent'] if entry.get('absent') else []
    if len(told) > 1:
        raise DataError(f'{where}: has {" and ".join(told)}; give one')
    targets = entry.get('targets', [] if entry.get('absent') else None)
    if targets is not None and not all(type(one) is int and 0 < one < 255 for one in targets):
        raise DataError(f'{where}: targets are {targets!r}; expected ids of 1 to 254')
    dialogue = entry.get('dialogue')
    return Command(
        number,
        entry['text'],
        entry.get('kind', 'command'),
        entry.get('at'),
        entry.get('frame'),
        None if dialogue is None else str(dialogue),
        None if targets is None else tuple(targets),
        entry.get('label'),
    )
