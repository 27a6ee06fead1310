# SPDX-License-Identifier: Apache-2.0
"""Make the body of a request from an image and a backend's query. Any thread.

Letters: H x W the image [px].
"""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass

import numpy as np

from lisa_ros.perception.backend import InferenceOptions, Query
from lisa_ros.perception.stopping import Deadline
from lisa_ros.results import Dialogue
from lisa_ros.serving.http_client import RequestBody
from lisa_ros.serving.image_transfer import (
    ImageCoding,
    SentImage,
    encode_image,
    fitted_dialogue,
    fitted_image,
)
from lisa_ros.serving.query_format import SegmentQuery
from lisa_ros.serving.query_reading import QueryLimits
from lisa_ros.serving.wire_format import encode_request

_LIMITS = QueryLimits()  # of the server
_SHORTEST_DEADLINE = 0.001  # that it accepts [s]


@dataclass(frozen=True)
class QuerySending:
    """How queries are sent."""

    coding: ImageCoding
    input_side: int | None  # longest side of what the model sees [px]; None: any
    stream: str  # of whose waiting requests the newest counts; '': a request by itself


@dataclass(frozen=True)
class SentQuery:
    """A query on its way."""

    query: Query
    shape: tuple[int, int]  # (H, W) of the image, before it was made smaller
    sent_shape: tuple[int, int]  # (H, W) of the image that is sent
    image: SentImage
    segment_query: SegmentQuery  # without a deadline
    deadline: Deadline  # of the answer
    seconds: float  # that it took to encode the image

    def body(self) -> RequestBody:
        """Return what is sent now: the server gets what is left of the deadline.

        Without a limit it gets the longest deadline: with none, its own would count.
        """
        seconds_left = self.deadline.seconds_left
        if seconds_left is None:
            seconds_left = _LIMITS.deadline
        seconds_left = min(max(seconds_left, _SHORTEST_DEADLINE), _LIMITS.deadline)
        query = dataclasses.replace(self.segment_query, deadline=seconds_left)
        return RequestBody(*encode_request(self.image.content, self.image.media_type, query))


def encode_query(
    image: np.ndarray,
    query: Query,
    options: InferenceOptions,
    sending: QuerySending,
    deadline: Deadline,
) -> SentQuery:
    """Return a query as it is sent.

    Args:
        image: (H, W, 3) uint8 RGB.
        query: about it.
        options: those that are not the defaults are sent; of `answer_timeout`, `deadline` takes
            the place.
        sending: how.
        deadline: of the answer; with each try the server gets what is left of it.
    """
    start = time.perf_counter()
    keeps_pixels = sending.coding.is_lossless or options.refine  # which needs the image's edges
    side = None if keeps_pixels else sending.input_side
    fitted = fitted_image(image, side)
    encoded = encode_image(fitted, sending.coding)
    dialogue = _bounded(fitted_dialogue(query.dialogue, image.shape[:2], fitted.shape[:2]))
    segment_query = SegmentQuery.of(
        dataclasses.replace(query, dialogue=dialogue),
        dataclasses.replace(options, answer_timeout=None),
        stream=sending.stream,
        confidence=True,
        raw=encoded.raw,
    )
    shapes = image.shape[:2], fitted.shape[:2]
    seconds = time.perf_counter() - start
    return SentQuery(query, *shapes, encoded, segment_query, deadline, seconds)


def _bounded(dialogue: Dialogue) -> Dialogue:
    """Return a dialogue that the server accepts: the newest turns, and not too many masks."""
    turns = tuple(
        dataclasses.replace(
            turn,
            query=turn.query[: _LIMITS.command_chars],
            answer_raw=turn.answer_raw[: _LIMITS.answer_chars],
            boxes=turn.boxes[: _LIMITS.shown_masks],
        )
        for turn in dialogue.turns[-_LIMITS.turns :]
    )
    shown = dialogue.shown
    if shown is not None:
        pixels = max(1, math.prod(shown.shape[1:]))
        shown = shown[: min(_LIMITS.shown_masks, _LIMITS.shown_pixels // pixels)]
    return Dialogue(turns, shown)
