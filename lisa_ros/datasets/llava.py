# SPDX-License-Identifier: Apache-2.0
"""Dialogues about pictures as LLaVA has them (llava_instruct_150k.json).

[{"image": "000000033471.jpg", "conversations": [{"from": "human", "value": "<image> What ...?"},
                                                {"from": "gpt", "value": "..."}, ...]}]
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lisa_ros.datasets.json_io import folder, read_json, validated_entries
from lisa_ros.errors import DataError
from lisa_ros.results import Turn

_IMAGE = '<image>'
_SAID = {'from': str, 'value': str}


@dataclass(frozen=True)
class TextDialogue:
    """A picture and a dialogue about it in words alone."""

    path: Path
    turns: tuple[Turn, ...]


def read_llava(file: str | Path, pictures: str | Path) -> list[TextDialogue]:
    """Return the dialogues of a file.

    Args:
        file: of dialogues.
        pictures: the folder that pictures' names are relative to.

    Raises:
        DataError: it is no such file; the message says what of it.
    """
    file, pictures = Path(file), folder(pictures, 'pictures')
    talks, plain = [], read_json(file)
    for place, one in enumerate(
        validated_entries(file, plain, None, image=str, conversations=list)
    ):
        said = validated_entries(file, one, 'conversations', **_SAID)
        if said and said[0]['from'] != 'human':
            said = said[1:]  # as the original does
        speakers = [line['from'] for line in said]
        if not said or speakers != ['human', 'gpt'] * (len(said) // 2):
            raise DataError(
                f'{file}: in entry {place} speak {", ".join(map(str, speakers)) or "none"}; '
                'expected human and gpt in turns'
            )
        values = [line['value'].replace(_IMAGE, '').strip() for line in said]
        turns = tuple(Turn(*pair) for pair in zip(values[::2], values[1::2], strict=True))
        talks.append(TextDialogue(pictures / one['image'], turns))
    if not talks:
        raise DataError(f'{file}: no dialogues')
    return talks
