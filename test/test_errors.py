# SPDX-License-Identifier: Apache-2.0
"""Messages of errors are one line of bounded length, whatever they quote."""

import pytest

from lisa_ros.errors import MAX_CHARS, DataError, LisaError, QueryError


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
