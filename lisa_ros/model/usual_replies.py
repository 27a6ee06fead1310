# SPDX-License-Identifier: Apache-2.0
"""Read `replies.txt` of a model's folder: what the model usually answers, one reply a line.

The replies are drafts (drafts.py): they make answers faster and never change them. The most usual
reply comes first. A folder without the file has no usual replies.
"""

from __future__ import annotations

from pathlib import Path

from lisa_ros.errors import CheckpointError
from lisa_ros.model.file_checks import check_file

FILE_NAME = 'replies.txt'
_MAX_BYTES = 64 * 2**10
_MAX_REPLIES = 500


def read_usual_replies(folder: Path) -> tuple[str, ...]:
    """Return the lines of a folder's replies.txt, without empty ones; none without the file.

    Raises:
        CheckpointError: the file is not UTF-8, or larger than 64 KiB or 500 lines.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return ()
    size = check_file(path)
    if size > _MAX_BYTES:
        raise CheckpointError(
            f'{path}: has {size} bytes; expected at most {_MAX_BYTES} of usual replies'
        )
    try:
        text = path.read_bytes().decode('utf-8-sig')
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f'{path}: is not UTF-8; save it as UTF-8, or remove it: answers do not depend on it'
        ) from error
    replies = [line.strip() for line in text.splitlines() if line.strip()]
    if len(replies) > _MAX_REPLIES:
        raise CheckpointError(
            f'{path}: has {len(replies)} replies; expected at most {_MAX_REPLIES}, the most usual '
            'ones'
        )
    return tuple(replies)
