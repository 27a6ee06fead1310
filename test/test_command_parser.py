# SPDX-License-Identifier: Apache-2.0
"""The parser of commands."""

import pytest

from lisa_ros.perception.other_object import asks_for_other_object
from lisa_ros.session.command_parser import (
    CommandKind,
    ParsedCommand,
    parse_command,
    select_cameras,
)


@pytest.mark.parametrize(
    ('command', 'kind', 'text'),
    [
        ('find the red mug', CommandKind.ASK, 'find the red mug'),
        ('find the stop sign', CommandKind.ASK, 'find the stop sign'),
        ('watch the mug', CommandKind.ASK, 'watch the mug'),
        ('', CommandKind.ASK, ''),
        ('watch: the red mug', CommandKind.WATCH, 'the red mug'),
        (' Watch:find it ', CommandKind.WATCH, 'find it'),
        ('watch:', CommandKind.WATCH, ''),
        ('stop', CommandKind.STOP, 'stop'),
        (' Stop. ', CommandKind.STOP, 'Stop.'),
        ('CANCEL!', CommandKind.STOP, 'CANCEL!'),
        ('never mind', CommandKind.STOP, 'never mind'),
        ('please stop', CommandKind.STOP, 'please stop'),
        ('Stop, please!', CommandKind.STOP, 'Stop, please!'),
        ('Stop this.', CommandKind.STOP, 'Stop this.'),
        ('please cancel that', CommandKind.STOP, 'please cancel that'),
        ('Never mind, please.', CommandKind.STOP, 'Never mind, please.'),
        ('Stop! Stop it!', CommandKind.STOP, 'Stop! Stop it!'),
        ('Okay, stop!', CommandKind.STOP, 'Okay, stop!'),
        ('No, no, stop now.', CommandKind.STOP, 'No, no, stop now.'),
        ('robot, halt', CommandKind.STOP, 'robot, halt'),
        ('Wait, cancel everything, please', CommandKind.STOP, 'Wait, cancel everything, please'),
        ('stop, stop, never mind', CommandKind.STOP, 'stop, stop, never mind'),
        ('nevermind', CommandKind.STOP, 'nevermind'),
        ('abort', CommandKind.STOP, 'abort'),
        ('please stop watching the mug', CommandKind.STOP, 'please stop watching the mug'),
        ('stop looking for it', CommandKind.STOP, 'stop looking for it'),
        ('Stop, stop watching!', CommandKind.STOP, 'Stop, stop watching!'),
        ('Stop! Please stop watching.', CommandKind.STOP, 'Stop! Please stop watching.'),
        ('stop now, stop watching the mug', CommandKind.STOP, 'stop now, stop watching the mug'),
        ('never mind, stop watching', CommandKind.STOP, 'never mind, stop watching'),
        ('stop, please stop', CommandKind.STOP, 'stop, please stop'),
        ('stop searching, find the mug', CommandKind.ASK, 'stop searching, find the mug'),
        ('stop, find the mug', CommandKind.ASK, 'stop, find the mug'),
        ('no, the mug', CommandKind.ASK, 'no, the mug'),
        ('now the other one', CommandKind.ASK, 'now the other one'),
        ('wait', CommandKind.ASK, 'wait'),
        ('robot', CommandKind.ASK, 'robot'),
        ('stop button', CommandKind.ASK, 'stop button'),
        ('cancel key now', CommandKind.ASK, 'cancel key now'),
        ('the bus stop', CommandKind.ASK, 'the bus stop'),
        ('stopwatch', CommandKind.ASK, 'stopwatch'),
        ('where does the bus stop', CommandKind.ASK, 'where does the bus stop'),
        ('please watch: the red mug', CommandKind.WATCH, 'the red mug'),
        ('watch: stop', CommandKind.WATCH, 'stop'),
        ('please find the stop sign', CommandKind.ASK, 'please find the stop sign'),
        ('stop sign', CommandKind.ASK, 'stop sign'),
        ('find stop', CommandKind.ASK, 'find stop'),
        ('stop 標誌', CommandKind.ASK, 'stop 標誌'),
        ('please', CommandKind.ASK, 'please'),
    ],
)
def test_the_kind_of_a_command(command, kind, text):
    assert parse_command(command) == ParsedCommand(kind, text)


@pytest.mark.parametrize(
    ('query', 'another'),
    [
        ('now the other one', True),
        ('No, the other mug.', True),
        ('another', True),
        ('The others, please', True),
        ('something else to drink from', True),
        ('the mug', False),
        ('the mug on the other side of the table', False),
        ('my mother', False),
    ],
)
def test_whether_another_object_is_asked_for(query, another):
    assert asks_for_other_object(query) is another


@pytest.mark.parametrize(
    ('command', 'cameras', 'text'),
    [
        ('the mug', ('front', 'Wrist'), 'the mug'),
        ('all: the mug', ('front', 'Wrist'), 'the mug'),
        ('front: the mug', ('front',), 'the mug'),
        (' WRIST : the mug', ('Wrist',), 'the mug'),
        ('front: watch: the mug', ('front',), 'watch: the mug'),
        ('watch: front: the mug', ('front',), 'watch: the mug'),
        ('watch: the mug', ('front', 'Wrist'), 'watch: the mug'),
        ('please watch: front: the mug', ('front',), 'watch: the mug'),
        ('watch : front: the mug', ('front',), 'watch: the mug'),
        ('front: stop', ('front',), 'stop'),
        ('rear: the mug', (), 'the mug'),
        ('what is this: a mug?', ('front', 'Wrist'), 'what is this: a mug?'),
    ],
)
def test_which_cameras_are_addressed(command, cameras, text):
    assert select_cameras(command, ('front', 'Wrist')) == (cameras, text)
