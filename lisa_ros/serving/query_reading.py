# SPDX-License-Identifier: Apache-2.0
"""Read the part `query` of POST /v1/segment strictly. Any thread.

An unknown key, a wrong type and a value out of range are errors that name the key.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass

from lisa_ros.error_text import short_repr
from lisa_ros.perception.backend import AnswerStyle, InferenceOptions
from lisa_ros.results import Region, Turn
from lisa_ros.serving.problems import Problem, ProblemError
from lisa_ros.serving.query_format import (
    RAW_CHANNELS,
    MaskFormat,
    RawImage,
    SegmentQuery,
    ShownMask,
    invalid,
)


@dataclass(frozen=True)
class QueryLimits:
    """The largest values of a query."""

    json_bytes: int = 1_000_000
    command_chars: int = 1000
    stream_chars: int = 100
    turns: int = 16
    answer_chars: int = 4000  # of one turn
    shown_masks: int = 32  # of the last turn that had masks
    shown_pixels: int = 100_000_000  # of all of them
    deadline: float = 300.0  # [s]
    new_tokens: int = 2048  # as the node's max_new_tokens


@dataclass(frozen=True)
class _Fields:
    """The values of a JSON object, each checked when it is read."""

    values: dict[str, object]
    place: str = ''  # of the object, with a dot behind it

    @classmethod
    def of(cls, value: object, place: str, keys: tuple[str, ...]) -> _Fields:
        if not isinstance(value, dict):
            raise _wrong(place or 'the query', value, 'an object')
        fields = cls(value, f'{place}.' if place else '')
        if unknown := sorted(value.keys() - set(keys)):
            raise invalid(
                f'{fields.place}{short_repr(unknown[0])} is unknown; expected {", ".join(keys)}'
            )
        return fields

    def text(self, name: str, limit: int, default: str | None = None) -> str:
        value = self.values.get(name, default)
        if not isinstance(value, str):
            raise self._wrong(name, value, f'a text of at most {limit} characters')
        if len(value) > limit:
            raise invalid(
                f'{self.place}{name} has {len(value)} characters; expected at most {limit}: '
                'shorten it'
            )
        try:
            value.encode('utf-8')
        except UnicodeEncodeError as error:
            raise self._wrong(name, value, 'text without half characters') from error
        return value

    def truth(self, name: str, default: bool | None) -> bool | None:
        value = self.values.get(name, default)
        if not (isinstance(value, bool) or (value is None and default is None)):
            raise self._wrong(name, value, 'true or false')
        return value

    def number(self, name: str, low: float, high: float) -> float | None:
        value = self.values.get(name)
        if value is None:
            return None
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not low <= value <= high:
            raise self._wrong(name, value, f'a number of {low:g} to {high:g}')
        return float(value)

    def integer(self, name: str, low: int, high: int) -> int:
        return _integer(self.values.get(name), f'{self.place}{name}', low, high)

    def items(self, name: str, limit: int) -> list:
        value = self.values.get(name, [])
        if not isinstance(value, list) or len(value) > limit:
            raise self._wrong(name, value, f'a list of at most {limit} items')
        return value

    def choice(self, name: str, choices: tuple[str, ...], default: str | None = None) -> str:
        value = self.values.get(name, default)
        if not isinstance(value, str) or value not in choices:
            raise self._wrong(name, value, f'one of {", ".join(choices)}')
        return value

    def _wrong(self, name: str, value: object, expected: str) -> ProblemError:
        return _wrong(f'{self.place}{name}', value, expected)


def parse_query(text: bytes, limits: QueryLimits) -> SegmentQuery:
    """Return the query of a request.

    Raises:
        ProblemError: TOO_LARGE: it has too many bytes. INVALID_QUERY: it is not JSON, or a key or
            value is not as expected.
    """
    if len(text) > limits.json_bytes:
        raise ProblemError(
            Problem.TOO_LARGE,
            f'the part "query" has {len(text)} bytes; expected at most {limits.json_bytes}: send '
            'fewer turns',
        )
    fields = _Fields.of(_strict_json(text), '', _KEYS)
    command = fields.text('command', limits.command_chars)
    if not command.strip():
        raise invalid('command is empty; expected what to look for, as in "segment the red mug"')
    raw = fields.values.get('raw')
    return SegmentQuery(
        command=command,
        stream=fields.text('stream', limits.stream_chars, ''),
        turns=_turns(fields, limits),
        shown=_shown(fields, limits),
        explain=bool(fields.truth('explain', default=False)),
        yes_no=bool(fields.truth('yes_no', default=False)),
        region=_region(fields.values.get('region')),
        deadline=fields.number('deadline', 0.001, limits.deadline),
        options=_options(fields.values.get('options', {}), limits),
        masks=MaskFormat(fields.choice('masks', _MASK_FORMATS, MaskFormat.RLE.value)),
        confidence=bool(fields.truth('confidence', default=False)),
        raw=None if raw is None else _raw(raw),
    )


_KEYS = (
    *('command', 'stream', 'dialogue', 'shown', 'explain', 'yes_no', 'region'),
    *('deadline', 'options'),
    *('masks', 'confidence', 'raw'),
)
_TURN_KEYS = ('command', 'answer', 'boxes', 'yes_no')
_MASK_FORMATS = tuple(item.value for item in MaskFormat)
_STYLES = tuple(item.value for item in AnswerStyle)
_MAX_SIDE = 1_000_000  # of a number of pixels in a query; the image has its own limit
OPTION_NAMES = tuple(item.name for item in dataclasses.fields(InferenceOptions))


def _turns(fields: _Fields, limits: QueryLimits) -> tuple[Turn, ...]:
    turns = []
    for index, value in enumerate(fields.items('dialogue', limits.turns)):
        turn = _Fields.of(value, f'dialogue[{index}]', _TURN_KEYS)
        boxes = turn.items('boxes', limits.shown_masks)
        turns.append(
            Turn(
                turn.text('command', limits.command_chars),
                turn.text('answer', limits.answer_chars),
                tuple(_integers(box, f'{turn.place}boxes', 4, 100) for box in boxes),
                bool(turn.truth('yes_no', default=False)),
            )
        )
    return tuple(turns)


def _shown(fields: _Fields, limits: QueryLimits) -> tuple[ShownMask, ...]:
    masks = []
    for index, value in enumerate(fields.items('shown', limits.shown_masks)):
        mask = _Fields.of(value, f'shown[{index}]', ('size', 'counts'))
        height, width = _integers(mask.values.get('size'), f'{mask.place}size', 2, _MAX_SIDE)
        masks.append(ShownMask((height, width), mask.text('counts', limits.json_bytes)))
    if sum(math.prod(mask.size) for mask in masks) > limits.shown_pixels:
        raise invalid(f'shown has more than {limits.shown_pixels} pixels in all; send fewer masks')
    return tuple(masks)


def _region(value: object) -> Region | None:
    if value is None:
        return None
    x, y, width, height = _integers(value, 'region', 4, _MAX_SIDE)
    return x, y, width, height


def _raw(value: object) -> RawImage:
    fields = _Fields.of(value, 'raw', ('width', 'height', 'encoding'))
    return RawImage(
        fields.integer('width', 1, _MAX_SIDE),
        fields.integer('height', 1, _MAX_SIDE),
        fields.choice('encoding', tuple(RAW_CHANNELS)),
    )


def _options(value: object, limits: QueryLimits) -> dict[str, object]:
    """Return the given fields of InferenceOptions, each checked."""
    fields = _Fields.of(value, 'options', OPTION_NAMES)
    options: dict[str, object] = {}
    for name in fields.values:
        if name == 'max_new_tokens':
            options[name] = fields.integer(name, 1, limits.new_tokens)
        elif name == 'answer_style':
            options[name] = AnswerStyle(fields.choice(name, _STYLES))
        elif name == 'confidence_threshold':
            options[name] = fields.number(name, 0, 1)
        elif name == 'answer_timeout':
            options[name] = fields.number(name, 0.001, limits.deadline)
        else:  # refine, similarity_points: null is the model's own
            is_optional = name in ('refine', 'similarity_points')
            options[name] = fields.truth(name, None if is_optional else False)
    return options


def _strict_json(text: bytes) -> object:
    """Return the value of a JSON text; keys must not repeat, numbers must be finite."""
    try:
        return json.loads(
            text.decode('utf-8'), object_pairs_hook=_unique_keys, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as error:
        reason = 'nested too deeply' if isinstance(error, RecursionError) else str(error)
        raise invalid(f'the part "query" is no JSON of UTF-8: {reason}') from error


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError('an object has a key twice')
    return values


def _no_constant(name: str) -> float:
    raise ValueError(f'{name} is no number of JSON')


def _integers(value: object, place: str, count: int, high: int) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) != count:
        raise _wrong(place, value, f'a list of {count} integers')
    return tuple(_integer(item, place, 0, high) for item in value)


def _integer(value: object, place: str, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise _wrong(place, value, f'an integer of {low} to {high}')
    return value


def _wrong(place: str, value: object, expected: str) -> ProblemError:
    came = 'missing' if value is None else short_repr(value)
    return invalid(f'{place} is {came}; expected {expected}')
