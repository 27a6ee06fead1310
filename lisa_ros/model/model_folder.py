# SPDX-License-Identifier: Apache-2.0
"""Find the local folder of a model, or download it by hub id; read its JSON files."""

from __future__ import annotations

import json
import re
from pathlib import Path

from lisa_ros.errors import CheckpointError


def resolve_model_folder(name: str | Path, noun: str) -> Path:
    """Return the local folder `name`, or download the hub repository of this id.

    Args:
        name: a folder or a hub id such as xinlai/LISA-7B-v1.
        noun: for error messages, such as "model".

    Raises:
        CheckpointError: there is no such folder, and the hub has no such repository or cannot be
            reached.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise CheckpointError(f'{noun} {name} is a file; expected a folder or a hub id')
    if not re.fullmatch(r'[\w.-]+/[\w.-]+', str(name)):
        raise CheckpointError(
            f'{noun} {name}: no such folder, and not a hub id; expected a folder or an id such as '
            'xinlai/LISA-7B-v1'
        )
    from huggingface_hub import snapshot_download  # only here: it uses the network

    texts = ['*.json', '*.model']
    try:
        folder = Path(snapshot_download(str(name), allow_patterns=[*texts, 'model*.safetensors']))
        if not list(folder.glob('*.safetensors')):
            folder = Path(snapshot_download(str(name), allow_patterns=[*texts, 'pytorch_model*']))
    except Exception as error:  # errors of httpx, xet and the hub have no other common base class
        first_line = (str(error).splitlines() or [''])[0]
        raise CheckpointError(
            f'{noun} {name}: no such folder, and the download from the hub failed '
            f'({type(error).__name__}: {first_line}); check the name and the network, or give a '
            'local folder'
        ) from error
    return folder


def describe_folder(folder: Path) -> str:
    """Return the file names in a folder, at most 12, for error messages."""
    if not folder.is_dir():
        return 'no such folder'
    names = sorted(path.name for path in folder.iterdir())
    if not names:
        return 'an empty folder'
    return ', '.join(names[:12]) + (f' and {len(names) - 12} more' if len(names) > 12 else '')


def read_json(path: Path) -> dict:
    """Return the object in a JSON file.

    Raises:
        CheckpointError: the file cannot be read, or does not hold an object.
    """
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise CheckpointError(f'{path}: cannot be read as JSON ({error})') from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f'{path}: holds a {type(content).__name__}; expected an object, {{"name": value}}'
        )
    return content


def error_summary(error: BaseException) -> str:
    """Return the type and message of an error on one line; library messages may have several."""
    message = ' '.join(str(error).split())
    return f'{type(error).__name__}: {message}' if message else type(error).__name__
