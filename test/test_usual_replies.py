# SPDX-License-Identifier: Apache-2.0
"""replies.txt of a model's folder: read, refused, and that of lisa-tabletop."""

import pytest

from lisa_ros.errors import CheckpointError
from lisa_ros.model.tokenizer import Tokenizer
from lisa_ros.model.usual_replies import read_usual_replies
from lisa_ros.resources import DEFAULT_MODEL, WEIGHTS
from lisa_ros.tabletop.usual_replies import usual_replies


def test_a_line_is_a_reply(tmp_path):
    assert read_usual_replies(tmp_path) == ()
    (tmp_path / 'replies.txt').write_text('\ufeffSure, [SEG].\n\n  It is [SEG].  \n')
    assert read_usual_replies(tmp_path) == ('Sure, [SEG].', 'It is [SEG].')


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'\xff\xfe', 'is not UTF-8; save it as UTF-8, or remove it'),
        (b'a' * 70_000, 'has 70000 bytes; expected at most 65536'),
        (b'a\n' * 501, 'has 501 replies; expected at most 500'),
    ],
)
def test_a_file_that_cannot_be_it_is_refused(content, message, tmp_path):
    (tmp_path / 'replies.txt').write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_usual_replies(tmp_path)


def test_a_folder_of_this_name_is_refused(tmp_path):
    (tmp_path / 'replies.txt').mkdir()
    with pytest.raises(CheckpointError, match=r'replies\.txt'):
        read_usual_replies(tmp_path)


def test_those_of_the_bundled_model_are_its_words():
    folder = WEIGHTS / DEFAULT_MODEL
    assert list(read_usual_replies(folder)) == usual_replies()
    tokenizer = Tokenizer.load(folder)
    ids = [tokenizer.encode(reply, parse_special=True) for reply in usual_replies()]
    assert all(tokenizer.decode(reply).strip() for reply in ids)
    assert max(map(len, ids)) < 30
