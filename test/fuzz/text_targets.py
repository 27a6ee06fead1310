# SPDX-License-Identifier: Apache-2.0
"""Targets: commands, queries, the tokens of an answer, and values of parameters."""

import contextlib
import dataclasses
import functools
import json
import struct
from pathlib import Path

from target import Target

from lisa_ros.errors import SettingsError
from lisa_ros.model.packing import IMAGE_TOKEN_INDEX
from lisa_ros.model.tokenizer import Tokenizer
from lisa_ros.perception.other_object import asks_for_other_object
from lisa_ros.perception.prompts import TEMPLATES, prompt_ids
from lisa_ros.results import answer_text
from lisa_ros.session.command_parser import parse_command, select_cameras
from lisa_ros.settings import Settings
from lisa_ros.settings_schema import converted, validate

FOLDER = Path(__file__).parents[1] / 'data' / 'reference' / 'ckpt_256'
CAMERAS = ('front', 'rear')


@functools.cache
def tokenizer():
    return Tokenizer.load(FOLDER)


def command_seeds():
    texts = (
        'the mug',
        'watch: front: the mug',
        'all: watch: x',
        'STOP!',
        'rear: it',
        '<image> [SEG]',
    )
    return [text.encode() for text in texts]


def read_command(content, folder):
    text = content.decode('utf-8', 'replace')
    cameras, rest = select_cameras(text, CAMERAS)
    assert set(cameras) <= set(CAMERAS)
    command = parse_command(rest)
    asks_for_other_object(command.text)
    for template in TEMPLATES:
        ids = prompt_ids(tokenizer(), template, command.text, max_length=500)
        assert ids.count(IMAGE_TOKEN_INDEX) == 1
        assert len(ids) <= 500


def reply_seeds():
    texts = ('Sure, [SEG] .', 'It is [SEG] (12, 40, 30, 66) and [SEG]', '<s> a </s>')
    ids = [tokenizer().encode(text, parse_special=True) for text in texts]
    return [struct.pack(f'<{len(each)}H', *each) for each in ids]


def read_reply(content, folder):
    """Decode the tokens of an answer one by one: the pieces are the whole."""
    ids = [
        number % len(tokenizer())
        for (number,) in struct.iter_unpack('<H', content[: len(content) // 2 * 2])
    ]
    stream = tokenizer().stream()
    text = ''.join(stream.push(index) for index in ids)
    assert isinstance(answer_text(text), str)
    answer_text(content.decode('utf-8', 'replace'))


def parameter_seeds():
    values = {'max_image_age': 0.5, 'tracker': 'off', 'cameras': ['a'], 'threads': 2}
    return [json.dumps(values).encode()]


def read_parameters(content, folder):
    """Convert and validate each value of a document as each parameter."""
    try:
        values = json.loads(content)
    except (ValueError, RecursionError):  # YAML's errors are rcl's
        return
    for value in values.values() if isinstance(values, dict) else [values]:
        for field in dataclasses.fields(Settings):
            with contextlib.suppress(SettingsError):
                validate(field, converted(field, value))


TARGETS = {
    'command': Target(read_command, command_seeds),
    'reply': Target(read_reply, reply_seeds),
    'parameters': Target(read_parameters, parameter_seeds, is_json=True),
}
