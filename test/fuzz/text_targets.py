# SPDX-License-Identifier: Apache-2.0
"""Targets: commands, queries, answers, what a model's server sends, and values of parameters."""

import contextlib
import dataclasses
import functools
import json
import struct
from pathlib import Path

from target import Target

from lisa_ros.errors import SettingsError
from lisa_ros.files.text import is_encodable
from lisa_ros.model.packing import IMAGE_TOKEN_INDEX
from lisa_ros.model.tokenizer import Tokenizer
from lisa_ros.perception.other_object import asks_for_other_object
from lisa_ros.perception.prompts import TEMPLATES, prompt_ids
from lisa_ros.results import answer_text
from lisa_ros.server_connection import retry_after
from lisa_ros.session.command_parser import parse_command, select_cameras
from lisa_ros.settings import Settings
from lisa_ros.settings_schema import converted, validate
from lisa_ros.vlm.answer_parsing import AnswerError, AnswerParser
from lisa_ros.vlm.chat_chunks import WholeCharacters, read_chunk
from lisa_ros.vlm.coordinate_check import check_coordinates
from lisa_ros.vlm.profiles import PROFILES
from lisa_ros.vlm.remote_vlm import word_tokens

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


def chunk_seeds():
    entry = {'token': '[', 'logprob': -0.5, 'top_logprobs': [{'token': '{', 'logprob': -1}]}
    choice = {'delta': {'content': '['}, 'finish_reason': None, 'logprobs': {'content': [entry]}}
    chunks = (
        {'choices': [choice]},
        {'choices': [{'delta': {'reasoning': 'It is'}, 'finish_reason': 'stop'}]},
        {'choices': [], 'usage': {'total_tokens': 7}},
    )
    return [json.dumps(chunk).encode() for chunk in chunks]


def read_served_chunk(content, folder):
    """Read what a server sends of an answer."""
    text = content.decode('utf-8', 'replace')
    retry_after(text)
    piece = read_chunk(text)
    piece = piece and WholeCharacters().join(piece)
    for word in word_tokens(piece) if piece is not None else ():
        assert is_encodable(word.text)
        assert word.probability is None or 0 <= word.probability <= 1


def answer_seeds():
    found = '{"bbox_2d": [588, 210, 714, 336], "point_2d": [650, 270], "label": "it"}'
    texts = (f'<think>It.</think><answer>[{found}]</answer>', f'```json\n[{found}]\n```', '[]')
    return [text.encode() for text in texts]


def read_pointing(content, folder):
    """Read a pointing model's answer: boxes are in the image."""
    text = content.decode('utf-8', 'replace')
    for profile in PROFILES.values():
        check_coordinates(text, profile, (840, 840))
        parser = AnswerParser(profile, (840, 840), (64, 48))
        with contextlib.suppress(AnswerError):  # of another profile
            for located in parser.push(text):
                x0, y0, x1, y1 = located.box or (0, 0, 64, 48)
                assert 0 <= x0 <= x1 <= 64
                assert 0 <= y0 <= y1 <= 48


TARGETS = {
    'chat_chunk': Target(read_served_chunk, chunk_seeds, is_json=True),
    'pointing': Target(read_pointing, answer_seeds),
    'command': Target(read_command, command_seeds),
    'reply': Target(read_reply, reply_seeds),
    'parameters': Target(read_parameters, parameter_seeds, is_json=True),
}
