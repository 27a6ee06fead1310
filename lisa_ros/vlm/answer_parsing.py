# SPDX-License-Identifier: Apache-2.0
"""Read the objects in a vision-language model's answer, each as soon as its JSON is complete.

An answer is a list of objects, `[{"bbox_2d": [x, y, x, y], "point_2d": [x, y]}, ...]`, or one
object, bare, in a ```json block, or in <answer> tags. An empty list says that nothing is there.
What a model thinks, up to </think>, is no part of it. Everything else is an error: guessing what a
broken answer means would move a robot to a wrong place, and calling it "not found" would hide the
fault. Pure Python, any thread.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from lisa_ros.error_text import one_line, short_repr
from lisa_ros.errors import LisaError
from lisa_ros.files.text import unique_keys
from lisa_ros.vlm.profiles import Coordinates, Profile, without_thoughts

_BOX_KEYS = ('bbox_2d', 'bbox')
_POINT_KEYS = ('point_2d', 'point', 'points_1', 'points_2')
_OVERSHOOT = 0.05  # how far outside of the image a coordinate may be [of the image's side]
_MAX_LABEL = 200  # length of a label [characters]
_LARGEST = 1e6  # a coordinate; infinity and larger integers than a float holds are above
_TAGS = re.compile(r'</?(?:think|look|answer)>')
_OPEN, _CLOSE = '<think>', '</think>'
_CURE = (
    'let the server take the thoughts out (a reasoning parser; if it does, serve the model by a '
    'name without "thinking"), or use an Instruct model'
)
_SPACE = re.compile(r'\s*')


class AnswerError(LisaError):
    """An answer of a vision-language model is not what its profile asks for."""


@dataclass(frozen=True)
class LocatedObject:
    """An object of an answer, in pixels of the original image: a box, points or both."""

    box: tuple[float, float, float, float] | None  # left, top, right, bottom
    points: tuple[tuple[float, float], ...]  # (x, y), each on the object
    label: str = ''  # as the model calls it, on one line of limited length; '': it does not


class AnswerParser:
    """The parser of one answer."""

    def __init__(
        self, profile: Profile, resized: tuple[int, int], original: tuple[int, int]
    ) -> None:
        """Begin.

        Args:
            profile: of the model.
            resized: width and height of the image that the model got [px].
            original: width and height of the image [px].
        """
        in_pixels = profile.coordinates is Coordinates.PIXELS
        self._sides = resized if in_pixels else (1000, 1000)  # largest coordinates
        self._original, self._tags = original, profile.tags
        self.text = ''  # so far
        self._has_ended = False
        self._begin: int | None = None  # of the JSON in the text; None: not yet
        self._at = 0  # end of what is read
        self._objects = self._read()
        self.objects: list[LocatedObject] = []
        self.is_complete = False

    @property
    def has_begun(self) -> bool:
        """Whether the list of objects has begun."""
        return self._begin is not None

    @property
    def rest(self) -> str:
        """The text after what is read of the list of objects."""
        return self.text[self._at :]

    @property
    def explanation(self) -> str:
        """What the model says before its list, without tags; '' if that is nothing.

        Thoughts are part of it only if the profile asks for them.
        """
        prefix = self.text if self._begin is None else self.text[: self._begin]
        if not self._tags:
            prefix = without_thoughts(prefix).replace('```json', '').replace('```', '')
        return ' '.join(_TAGS.sub(' ', prefix).split())

    def push(self, text: str, *, is_end: bool = False) -> list[LocatedObject]:
        """Add text; return the objects that it completes.

        Args:
            text: to append.
            is_end: the model ends its answer here.

        Raises:
            AnswerError: the answer cannot become right any more.
        """
        self.text += text
        self._has_ended = self._has_ended or is_end
        completed = []
        while not self.is_complete and (located := next(self._objects, None)) is not None:
            completed.append(located)
        return completed

    def finish(self) -> None:
        """End the text.

        Raises:
            AnswerError: the answer is not complete, or there is another one behind it.
        """
        if self._begin is None:
            expected = '<answer> tag' if self._tags else 'JSON list'
            if self.text.rfind(_OPEN) > self.text.rfind(_CLOSE):
                cure = 'raise max_new_tokens' if self._tags else f'raise max_new_tokens, {_CURE}'
                expected += f' behind its thoughts, which do not end: {cure}'
            raise AnswerError(f'the answer has no {expected}')
        if not self.is_complete:
            raise AnswerError('the answer is not whole JSON: it breaks off, or is malformed')
        rest = self.rest
        if self._tags and not rest.lstrip().startswith('</answer>'):
            raise AnswerError(f'after its JSON the answer has {short_repr(rest)}, not </answer>')
        if _CLOSE in rest and not self._tags:
            raise AnswerError(f'the JSON list is in the thoughts of the model: {_CURE}')
        if '<answer>' in rest if self._tags else re.search(r'[\[{]', rest):
            raise AnswerError('the model gave two answers')

    # ---- reading

    def _read(self) -> Iterator[LocatedObject | None]:
        """Yield each object, and None whenever more text is needed."""
        while (begin := self._find_begin()) is None:
            yield None
        self._begin = self._at = begin
        while (first := self._next_character()) == '':
            yield None
        if first == '{':
            yield from self._read_object()
        elif first == '[':
            yield from self._read_list()
        else:
            raise AnswerError(f'the answer begins with {first!r}; expected a JSON list')
        self.is_complete = True

    def _read_list(self) -> Iterator[LocatedObject | None]:
        self._at += 1
        expected = '{]'
        while True:
            while (character := self._next_character()) == '':
                yield None
            if character not in expected:
                raise AnswerError(
                    f'the list of objects has {character!r}; expected {" or ".join(expected)}'
                )
            if character == '{':
                yield from self._read_object()
                expected = ',]'
                continue
            self._at += 1
            if character == ']':
                return
            expected = '{'

    def _read_object(self) -> Iterator[LocatedObject | None]:
        tried_braces = -1  # number of "}" at the last try
        while True:
            braces = self.text.count('}', self._at)
            if braces > max(tried_braces, 0):
                tried_braces = braces
                values = self._decode()
                if values is not None:
                    self.objects.append(self._located(values))
                    yield self.objects[-1]
                    return
            yield None

    def _find_begin(self) -> int | None:
        """Return where the JSON begins; None if it has not begun, or is in open thoughts.

        A model that forgets </think> may still answer in the tags of its profile: what these
        have is read at the end of its answer.
        """
        mark = re.compile('(?<=<answer>)' if self._tags else r'(?=[\[{])')
        while True:
            thoughts = self.text.find(_OPEN, self._at)
            begin = mark.search(self.text, self._at, len(self.text) if thoughts < 0 else thoughts)
            if begin is not None:
                return begin.start()
            if thoughts < 0:  # only a mark that has begun at the end is searched again
                self._at = max(self._at, len(self.text) - len('<answer>'))
                return None
            closed = self.text.find(_CLOSE, thoughts)
            if closed < 0:
                is_forgotten = self._tags and self._has_ended
                begin = mark.search(self.text, thoughts) if is_forgotten else None
                return begin and begin.start()
            self._at = closed + len(_CLOSE)

    def _next_character(self) -> str:
        """Return the next character that is no space; '' if there is none yet."""
        self._at = _SPACE.match(self.text, self._at).end()
        return self.text[self._at : self._at + 1]

    def _decode(self) -> dict | None:
        """Return the JSON object at the present place; None if it is not whole.

        Raises:
            AnswerError: it has a key twice, or a number that is none.
        """
        decoder = json.JSONDecoder(object_pairs_hook=unique_keys, parse_constant=_refuse)
        try:
            values, self._at = decoder.raw_decode(self.text, self._at)
        except json.JSONDecodeError:
            return None
        except (ValueError, RecursionError) as error:
            raise AnswerError(f'the answer is no JSON: {error}') from error
        return values

    def _located(self, values: dict) -> LocatedObject:
        box = next((values[key] for key in _BOX_KEYS if key in values), None)
        points = [values[key] for key in _POINT_KEYS if key in values]
        number = len(self.objects) + 1
        if box is None and not points:
            raise AnswerError(
                f'object {number} has neither {" nor ".join((_BOX_KEYS[0], _POINT_KEYS[0]))}'
            )
        return LocatedObject(
            None if box is None else self._box(box, number),
            tuple(self._point(point, 2, number) for point in points),
            _readable_label(values.get('label')),
        )

    def _box(self, value: object, number: int) -> tuple[float, float, float, float]:
        x0, y0, x1, y1 = self._point(value, 4, number)
        x_min, x_max, y_min, y_max = min(x0, x1), max(x0, x1), min(y0, y1), max(y0, y1)
        if x_min == x_max or y_min == y_max:
            raise AnswerError(f'the box of object {number}, {short_repr(value)}, is empty')
        return x_min, y_min, x_max, y_max

    def _point(self, value: object, count: int, number: int) -> tuple[float, ...]:
        """Return coordinates x, y, ... in pixels of the original image.

        Raises:
            AnswerError: they are not `count` numbers, or outside of the image.
        """
        is_list = isinstance(value, list) and len(value) == count
        if not is_list or not all(type(n) in (int, float) and abs(n) < _LARGEST for n in value):
            raise AnswerError(
                f'object {number} has the coordinates {short_repr(value)}; expected {count} '
                'numbers'
            )
        pixels = []
        for i, coordinate in enumerate(value):
            side, length = self._sides[i % 2], self._original[i % 2]
            if not -_OVERSHOOT * side <= coordinate <= (1 + _OVERSHOOT) * side:
                raise AnswerError(
                    f'object {number} has the coordinates {short_repr(value)}; expected 0 to '
                    f'{self._sides[0]} and 0 to {self._sides[1]}: another profile (template) may '
                    'fit this model'
                )
            pixels.append(min(max(coordinate / side, 0.0), 1.0) * length)
        return tuple(pixels)


def _readable_label(value: object) -> str:
    """Return a label without control characters and halves of characters; '' if it is no text."""
    text = value if isinstance(value, str) else ''
    return one_line(''.join(c if c.isprintable() else ' ' for c in text), _MAX_LABEL)


def _refuse(name: str) -> object:
    raise ValueError(f'{name} is not a number in JSON')
