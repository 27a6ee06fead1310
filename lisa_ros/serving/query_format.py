# SPDX-License-Identifier: Apache-2.0
"""The part `query` of POST /v1/segment: JSON to `SegmentQuery` and back. Any thread.

The server reads strictly: an unknown key, a wrong type and a value out of range are errors that
name the key. Neither torch nor Ray nor a web framework is imported.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from lisa_ros.error_text import short_repr
from lisa_ros.errors import ImageError
from lisa_ros.perception.backend import AnswerStyle, InferenceOptions, Query
from lisa_ros.results import Dialogue, Region, Turn
from lisa_ros.serving.mask_coding import decode_rle_text, encode_rle_text
from lisa_ros.serving.problems import Problem, ProblemError

RAW_CHANNELS = {'rgb8': 3, 'bgr8': 3, 'mono8': 1}  # encodings of raw images, as sensor_msgs


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
    new_tokens: int = 1024


class MaskFormat(enum.Enum):
    """How masks are written in an answer."""

    RLE = 'rle'  # COCO's compressed counts
    PNG = 'png'  # in base64


@dataclass(frozen=True)
class RawImage:
    """What raw pixels mean; the rows have no padding."""

    width: int  # [px]
    height: int  # [px]
    encoding: str  # a key of RAW_CHANNELS

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the pixels, uint8."""
        return self.height, self.width, RAW_CHANNELS[self.encoding]


@dataclass(frozen=True)
class ShownMask:
    """A mask of an earlier turn, as it travels: decoded once the size of the image is known."""

    size: tuple[int, int]  # (H, W) [px]
    counts: str

    def decode(self) -> np.ndarray:
        """Return the (H, W) bool mask.

        Raises:
            ImageError: the counts are damaged.
        """
        return decode_rle_text(self.counts, self.size)


@dataclass(frozen=True)
class SegmentQuery:
    """A question about an image, as a client sends it."""

    command: str
    # newest waiting request of a stream replaces an older waiting one; '': a request by itself
    stream: str = ''
    turns: tuple[Turn, ...] = ()  # earlier ones, oldest first
    shown: tuple[ShownMask, ...] = ()  # masks of the last turn that had any
    explain: bool = False
    region: Region | None = None  # x, y, width, height [px]
    deadline: float | None = None  # from arrival [s]; None: the server's
    options: Mapping[str, object] = field(default_factory=dict)  # fields of InferenceOptions
    masks: MaskFormat = MaskFormat.RLE
    confidence: bool = False  # whether masks come with their 8-bit confidence
    raw: RawImage | None = None  # None: the image is a JPEG or PNG file

    @classmethod
    def of(
        cls, query: Query, options: InferenceOptions | None = None, **fields: object
    ) -> SegmentQuery:
        """Return a backend's query as one to send.

        Args:
            query: with its dialogue.
            options: all of them are sent; None: those of the server.
            fields: further fields.
        """
        shown = query.dialogue.shown
        return cls(
            command=query.text,
            turns=query.dialogue.turns,
            shown=tuple(
                ShownMask((mask.shape[0], mask.shape[1]), encode_rle_text(mask))
                for mask in (() if shown is None else shown)
            ),
            explain=query.explain,
            region=query.region,
            options={} if options is None else option_values(options),
            **fields,
        )

    def inference_options(self, defaults: InferenceOptions) -> InferenceOptions:
        """Return how the query is answered: the given options over the server's."""
        return dataclasses.replace(defaults, **self.options)

    def backend_query(self, shape: tuple[int, int]) -> Query:
        """Return the query for a backend; masks of earlier turns are decoded.

        Args:
            shape: (H, W) of the image.

        Raises:
            ProblemError: INVALID_QUERY: a mask is damaged, or of an image of another size.
        """
        try:
            masks = [mask.decode() for mask in self.shown if _check_shape(mask, shape)]
        except ImageError as error:
            raise invalid(f'shown: {error}') from error
        dialogue = Dialogue(self.turns, np.stack(masks) if masks else None)
        return Query(self.command, dialogue, self.explain, self.region)


def _check_shape(mask: ShownMask, shape: tuple[int, int]) -> bool:
    if mask.size != tuple(shape):
        raise invalid(
            f'shown: a mask has the size {list(mask.size)}, the image has {list(shape)}; send '
            'masks of the size of the image'
        )
    return True


def option_values(options: InferenceOptions) -> dict[str, object]:
    """Return options as `SegmentQuery.options`."""
    return {item.name: getattr(options, item.name) for item in dataclasses.fields(options)}


def query_json(query: SegmentQuery) -> str:
    """Return the part `query` of a request; what has its default is left out."""
    document: dict[str, object] = {'command': query.command, 'masks': query.masks.value}
    if query.stream:
        document['stream'] = query.stream
    if query.turns:
        document['dialogue'] = list(map(_turn_json, query.turns))
    if query.shown:
        document['shown'] = [
            {'size': list(mask.size), 'counts': mask.counts} for mask in query.shown
        ]
    if query.explain:
        document['explain'] = True
    if query.region is not None:
        document['region'] = list(query.region)
    if query.deadline is not None:
        document['deadline'] = query.deadline
    if query.options:
        document['options'] = {
            name: value.value if isinstance(value, AnswerStyle) else value
            for name, value in query.options.items()
        }
    if query.confidence:
        document['confidence'] = True
    if query.raw is not None:
        document['raw'] = dataclasses.asdict(query.raw)
    return json.dumps(document)


def _turn_json(turn: Turn) -> dict[str, object]:
    return {
        'command': turn.query,
        'answer': turn.answer_raw,
        'boxes': [list(box) for box in turn.boxes],
    }


# ---- reading


def invalid(detail: str) -> ProblemError:
    """Return the error of a query that cannot be used."""
    return ProblemError(Problem.INVALID_QUERY, detail)


@dataclass(frozen=True)
class _Fields:
    """The values of a JSON object, each checked when it is read."""

    values: dict[str, object]
    place: str = ''  # of the object, with a dot behind it

    @classmethod
    def of(cls, value: object, place: str, known: tuple[str, ...]) -> _Fields:
        if not isinstance(value, dict):
            raise _wrong(place or 'the query', value, 'an object')
        fields = cls(value, f'{place}.' if place else '')
        if unknown := sorted(value.keys() - set(known)):
            raise invalid(
                f'{fields.place}{short_repr(unknown[0])} is unknown; expected {", ".join(known)}'
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
        region=_region(fields.values.get('region')),
        deadline=fields.number('deadline', 0.001, limits.deadline),
        options=_options(fields.values.get('options', {}), limits),
        masks=MaskFormat(fields.choice('masks', _MASK_FORMATS, MaskFormat.RLE.value)),
        confidence=bool(fields.truth('confidence', default=False)),
        raw=None if raw is None else _raw(raw),
    )


_KEYS = (
    *('command', 'stream', 'dialogue', 'shown', 'explain', 'region', 'deadline', 'options'),
    *('masks', 'confidence', 'raw'),
)
_MASK_FORMATS = tuple(item.value for item in MaskFormat)
_STYLES = tuple(item.value for item in AnswerStyle)
_MAX_SIDE = 1_000_000  # of a number of pixels in a query; the image has its own limit
OPTION_NAMES = tuple(item.name for item in dataclasses.fields(InferenceOptions))


def _turns(fields: _Fields, limits: QueryLimits) -> tuple[Turn, ...]:
    turns = []
    for index, value in enumerate(fields.items('dialogue', limits.turns)):
        turn = _Fields.of(value, f'dialogue[{index}]', ('command', 'answer', 'boxes'))
        boxes = turn.items('boxes', limits.shown_masks)
        turns.append(
            Turn(
                turn.text('command', limits.command_chars),
                turn.text('answer', limits.answer_chars),
                tuple(_integers(box, f'{turn.place}boxes', 4, 100) for box in boxes),
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
