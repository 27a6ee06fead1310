# SPDX-License-Identifier: Apache-2.0
"""The part `query` of POST /v1/segment: `SegmentQuery` and its JSON. Any thread.

`query_reading` reads the JSON. Neither torch nor Ray nor a web framework is imported.
"""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from lisa_ros.errors import ImageError
from lisa_ros.perception.backend import AnswerStyle, InferenceOptions, Query
from lisa_ros.results import Dialogue, Region, Turn
from lisa_ros.serving.mask_coding import decode_rle_text, encode_rle_text
from lisa_ros.serving.problems import Problem, ProblemError

_DEFAULTS = InferenceOptions()
RAW_CHANNELS = {'rgb8': 3, 'bgr8': 3, 'mono8': 1}  # encodings of raw images, as sensor_msgs


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
    yes_no: bool = False  # a question of yes or no, see `Query.yes_no`
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
            options: those that are not the defaults are sent; of the others, and with None of
                all, the server decides.
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
            yes_no=query.yes_no,
            region=query.region,
            options={} if options is None else chosen_options(options),
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
        return Query(self.command, dialogue, self.explain, self.region, self.yes_no)


def _check_shape(mask: ShownMask, shape: tuple[int, int]) -> bool:
    if mask.size != tuple(shape):
        raise invalid(
            f'shown: a mask has the size {list(mask.size)}, the image has {list(shape)}; send '
            'masks of the size of the image'
        )
    return True


def chosen_options(options: InferenceOptions) -> dict[str, object]:
    """Return the options that are not the defaults, as `SegmentQuery.options`."""
    values = {item.name: getattr(options, item.name) for item in dataclasses.fields(options)}
    return {name: value for name, value in values.items() if value != getattr(_DEFAULTS, name)}


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
    if query.yes_no:
        document['yes_no'] = True
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
    document: dict[str, object] = {
        'command': turn.query,
        'answer': turn.answer_raw,
        'boxes': [list(box) for box in turn.boxes],
    }
    if turn.yes_no:
        document['yes_no'] = True
    return document


def invalid(detail: str) -> ProblemError:
    """Return the error of a query that cannot be used."""
    return ProblemError(Problem.INVALID_QUERY, detail)
