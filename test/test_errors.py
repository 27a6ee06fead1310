# SPDX-License-Identifier: Apache-2.0
"""Messages of errors are one line of bounded length, whatever they quote."""

import pytest

from lisa_ros.error_text import MAX_CHARS
from lisa_ros.errors import CheckpointError, DataError, LisaError, QueryError
from lisa_ros.files.text import parse_yaml, read_json, read_yaml
from lisa_ros.model.json_file import parse_json


@pytest.mark.parametrize(
    ('quoted', 'shown'),
    [
        ('a\nERROR: forged', r'a\nERROR: forged'),
        ('\x1b[2Jgone', r'\x1b[2Jgone'),
        ('\u202egnp.exe', r'\u202egnp.exe'),
        ('\u2028next', r'\u2028next'),
        ('\ud800', r'\ud800'),
        ('杯子\u3000é', '杯子\u3000é'),
    ],
)
def test_what_a_message_quotes_stays_in_its_line(quoted, shown):
    assert str(DataError(f'{quoted}: no such file')) == f'{shown}: no such file'


def test_a_long_message_keeps_its_beginning_and_its_cure():
    text = str(QueryError(f'bad.json: holds {"x" * 100_000}; expected a list: correct the file'))
    assert len(text) == MAX_CHARS
    assert text.startswith('bad.json: holds xxx')
    assert text.endswith('xxx; expected a list: correct the file')


def test_a_usual_message_is_unchanged():
    text = 'labels.json: annotation 17: not a region; correct or remove it'
    assert str(LisaError(text)) == text


@pytest.mark.parametrize('text', [r'{"name": "\ud83d"}', r'["a", {"\udc00": 1}]'])
def test_half_a_character_in_a_file_is_refused(text, tmp_path):
    path = tmp_path / 'labels.json'
    path.write_text(text)
    for read in (read_json, read_yaml):
        with pytest.raises(DataError, match='half a character'):
            read(path)
    with pytest.raises(CheckpointError, match='half a character'):
        parse_json(path.read_bytes(), path)


def test_a_whole_character_in_two_escapes_is_read(tmp_path):
    path = tmp_path / 'labels.json'
    path.write_text(r'{"name": "\ud83c\udf75"}')
    assert read_json(path) == {'name': '\U0001f375'}
    assert parse_json(path.read_bytes(), path) == {'name': '\U0001f375'}


def test_a_yaml_document_that_contains_itself_is_checked_once():
    with pytest.raises(DataError, match='half a character'):
        parse_yaml(r'&a [*a, "\ud83d"]', 'x')
