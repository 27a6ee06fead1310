# SPDX-License-Identifier: Apache-2.0
"""LLaVA's dialogues about images (llava_instruct_150k.json), without masks.

[{"image": "000000033471.jpg", "conversations": [{"from": "human", "value": "<image> What ...?"},
                                                {"from": "gpt", "value": "..."}, ...]}]
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lisa_ros.datasets.json_io import existing_folder, read_json, validated_entries
from lisa_ros.errors import DataError
from lisa_ros.results import Turn

_IMAGE_PLACEHOLDER = '<image>'
_MESSAGE_KEYS = {'from': str, 'value': str}


@dataclass(frozen=True)
class TextDialogue:
    """An image and a dialogue about it, in text only."""

    path: Path
    turns: tuple[Turn, ...]


def read_llava(file: str | Path, image_folder: str | Path) -> list[TextDialogue]:
    """Return the dialogues of a file.

    Args:
        file: dialogues in LLaVA's format.
        image_folder: the folder that image names in `file` are relative to.

    Raises:
        DataError: the file cannot be read or is not in this format; the message says where.
    """
    file, image_folder = Path(file), existing_folder(image_folder, 'images')
    entries = validated_entries(file, read_json(file), None, image=str, conversations=list)
    dialogues = [
        TextDialogue(image_folder / entry['image'], _turns(file, index, entry))
        for index, entry in enumerate(entries)
    ]
    if not dialogues:
        raise DataError(f'{file}: no dialogues')
    return dialogues


def _turns(file: Path, index: int, entry: dict) -> tuple[Turn, ...]:
    """Return the turns of an entry; skip a first message that is not a human's, as LLaVA does."""
    messages = validated_entries(file, entry, 'conversations', **_MESSAGE_KEYS)
    if messages and messages[0]['from'] != 'human':
        messages = messages[1:]
    speakers = [message['from'] for message in messages]
    if not messages or speakers != ['human', 'gpt'] * (len(messages) // 2):
        raise DataError(
            f'{file}: entry {index} has the speakers {", ".join(map(str, speakers)) or "none"}; '
            'expected human and gpt in turns'
        )
    texts = [message['value'].replace(_IMAGE_PLACEHOLDER, '').strip() for message in messages]
    return tuple(Turn(*pair) for pair in zip(texts[::2], texts[1::2], strict=True))
