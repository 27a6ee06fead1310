# SPDX-License-Identifier: Apache-2.0
"""LLaVA's dialogues about images (llava_instruct_150k.json), without masks.

[{"image": "000000033471.jpg", "conversations": [{"from": "human", "value": "<image> What ...?"},
                                                {"from": "gpt", "value": "..."}, ...]}]
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lisa_ros.datasets.json_io import (
    ErrorHandler,
    image_path,
    raise_error,
    read_json,
    read_or_skip,
    validated_entries,
)
from lisa_ros.error_text import short_repr
from lisa_ros.errors import DataError
from lisa_ros.files.access import readable_folder
from lisa_ros.results import Turn

_IMAGE_PLACEHOLDER = '<image>'
_MESSAGE_KEYS = {'from': str, 'value': str}


@dataclass(frozen=True)
class TextDialogue:
    """An image and a dialogue about it, in text only."""

    path: Path
    turns: tuple[Turn, ...]


def read_llava(
    file: str | Path, image_folder: str | Path, *, on_error: ErrorHandler = raise_error
) -> list[TextDialogue]:
    """Return the dialogues of a file.

    Args:
        file: dialogues in LLaVA's format.
        image_folder: the folder that image names in `file` are relative to; they may not lead out
            of it.
        on_error: called for each dialogue that cannot be used; if it returns, the dialogue is left
            out.

    Raises:
        DataError: the file cannot be read or is not in this format; the message says where.
    """
    file, image_folder = Path(file), readable_folder(image_folder, 'images')
    content = read_json(file)
    entries = validated_entries(file, content, None, on_error, image=str, conversations=list)
    index_of = {id(entry): index for index, entry in enumerate(content)}
    dialogues = [
        read_or_skip(partial(_dialogue, file, index_of[id(entry)], entry, image_folder), on_error)
        for entry in entries
    ]
    dialogues = [dialogue for dialogue in dialogues if dialogue is not None]
    if not dialogues:
        raise DataError(f'{file}: no dialogues')
    return dialogues


def _dialogue(file: Path, index: int, entry: dict, image_folder: Path) -> TextDialogue:
    """Return the dialogue of an entry, number `index` of the file."""
    path = image_path(file, f'entry {index}', image_folder, entry['image'])
    return TextDialogue(path, _turns(file, index, entry))


def _turns(file: Path, index: int, entry: dict) -> tuple[Turn, ...]:
    """Return the turns of an entry; skip a first message that is not a human's, as LLaVA does."""
    messages = validated_entries(file, entry, 'conversations', **_MESSAGE_KEYS)
    if messages and messages[0]['from'] != 'human':
        messages = messages[1:]
    speakers = [message['from'] for message in messages]
    if not messages or speakers != ['human', 'gpt'] * (len(messages) // 2):
        raise DataError(
            f'{file}: entry {index} has the speakers {short_repr(speakers)}; '
            'expected human and gpt in turns'
        )
    texts = [message['value'].replace(_IMAGE_PLACEHOLDER, '').strip() for message in messages]
    if not all(texts):
        raise DataError(
            f'{file}: entry {index} has an empty message, number {texts.index("") + 1}; write it, '
            'or remove the entry'
        )
    return tuple(Turn(*pair) for pair in zip(texts[::2], texts[1::2], strict=True))
