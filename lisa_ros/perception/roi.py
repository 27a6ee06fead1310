# SPDX-License-Identifier: Apache-2.0
"""Segment a region of an image and paste the masks back into the whole image.

A region is (x, y, width, height) [px], as in sensor_msgs/RegionOfInterest. Any thread.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from lisa_ros.errors import ImageError, QueryError
from lisa_ros.model.image_processing import check_rgb
from lisa_ros.perception.answer_checks import checked_events
from lisa_ros.perception.backend import (
    AnswersBatches,
    Backend,
    Cancellation,
    InferenceOptions,
    Query,
    check_query,
)
from lisa_ros.perception.device_memory import memory_errors
from lisa_ros.results import Dialogue, Done, Event, MaskReady, Region, Segmentation

_Box = tuple[int, int, int, int]  # left, top, right, bottom in hundredths, as in `Turn.boxes`

OUTSIDE_LOGIT = -100.0  # mask logit of the pixels outside the region


def stream_in_region(
    backend: Backend,
    image: np.ndarray,
    query: Query,
    options: InferenceOptions,
    cancel: Cancellation,
) -> Iterator[Event]:
    """Answer a query about its region; without a region, about the whole image.

    The backend gets the cropped image and dialogue. Masks come back as (H, W) of the whole image.
    Errors are raised by this call, not by the iteration; what a model computes wrongly (NaN, masks
    of another size) ends the stream with a result of status FAILED.

    Args:
        backend: the model.
        image: (H, W, 3) uint8 RGB, the whole image.
        query: its `region` is in pixels of the whole image.
        options: how to answer.
        cancel: checked before each token.

    Raises:
        ImageError: the image is not (H, W, 3) uint8, or the region is not within it.
        QueryError: the text is empty, or the backend finds it too long; or it is a yes/no question
            and the model cannot answer those.
        DeviceMemoryError: the memory of the device is not enough; also by the iteration.
    """
    cropped, cropped_query = checked_request(backend, image, query)
    with memory_errors():
        events = backend.stream(cropped, cropped_query, options, cancel)
    return _pasted_events(
        checked_events(events, query.text, cropped.shape[:2]), query.region, image.shape[:2]
    )


def checked_request(
    backend: Backend | AnswersBatches, image: np.ndarray, query: Query
) -> tuple[np.ndarray, Query]:
    """Return what a backend gets: the pixels of the query's region, and the query without it.

    Raises:
        ImageError, QueryError: as `stream_in_region`.
    """
    check_rgb(image)  # here as well, for backends of other packages
    check_query(query.text)
    if query.yes_no and not backend.capabilities.yes_no:
        raise QueryError(
            'this model gives no probability of yes and no: ask for words, or load a model of the '
            'LISA family or a vision-language model'
        )
    if query.region is None:
        return image, query
    dialogue = crop_dialogue(query.dialogue, query.region, image.shape[:2])
    return crop(image, query.region), dataclasses.replace(query, region=None, dialogue=dialogue)


def pasted_event(event: Event, region: Region | None, shape: tuple[int, int]) -> Event:
    """Return an event about a region with masks of the whole image; shape: (H, W) of that."""
    if region is None:
        return event
    if isinstance(event, MaskReady):
        return paste_mask(event, region, shape)
    if isinstance(event, Done):
        return Done(paste_result(event.result, region, shape))
    return event


def _pasted_events(
    events: Iterator[Event], region: Region | None, shape: tuple[int, int]
) -> Iterator[Event]:
    for event in events:
        yield pasted_event(event, region, shape)


def crop(image: np.ndarray, region: Region) -> np.ndarray:
    """Return the pixels of a region, (height, width, 3).

    Raises:
        ImageError: the region is not within the image.
    """
    x, y, width, height = region
    rows, columns = image.shape[:2]
    if min(x, y) < 0 or min(width, height) < 1 or x + width > columns or y + height > rows:
        raise ImageError(
            f'the region of {width} x {height} pixels at ({x}, {y}) is not within the image of '
            f'{columns} x {rows}'
        )
    return image[y : y + height, x : x + width]


def crop_dialogue(dialogue: Dialogue, region: Region, shape: tuple[int, int]) -> Dialogue:
    """Return the dialogue with its masks and boxes in a region; shape: (H, W) of the whole image.

    Masks of an image of another size are left out: the region lies elsewhere in them. So are the
    boxes of a turn one of which lies outside. Positions that an answer names stay.
    """
    turns = tuple(
        dataclasses.replace(turn, boxes=_boxes_in(turn.boxes, region, shape))
        for turn in dialogue.turns
    )
    dialogue = dataclasses.replace(dialogue, turns=turns)
    if dialogue.shown is None:
        return dialogue
    if dialogue.shown.shape[1:] != shape:
        return dataclasses.replace(dialogue, shown=None)
    x, y, width, height = region
    shown = dialogue.shown[:, y : y + height, x : x + width]
    return dataclasses.replace(dialogue, shown=shown)


def _boxes_in(boxes: Sequence[_Box], region: Region, shape: tuple[int, int]) -> tuple[_Box, ...]:
    """Return boxes in hundredths of a region; given in hundredths of an image of shape (H, W)."""
    corner = np.tile(region[:2], 2)
    size = np.tile(region[2:], 2)
    given = np.reshape(boxes, (-1, 4))
    pixels = given * np.tile(shape[::-1], 2) / 100
    inside = np.clip(np.rint(100 * (pixels - corner) / size).astype(int), 0, 100)
    has_mask = given.any(axis=1)
    if ((inside[:, :2] >= inside[:, 2:]).any(axis=1) & has_mask).any():
        return ()
    inside[~has_mask] = 0
    return tuple(tuple(box) for box in inside.tolist())


def paste_mask(event: MaskReady, region: Region, shape: tuple[int, int]) -> MaskReady:
    """Return the mask of a region as a mask of the whole image; shape: (H, W) of that."""
    logits = _paste_logits(event.mask_logits[None], region, shape)[0]
    return dataclasses.replace(event, mask=logits > 0, mask_logits=logits)


def paste_result(result: Segmentation, region: Region, shape: tuple[int, int]) -> Segmentation:
    """Return the result of a region with masks (N, H, W) of the whole image; shape: (H, W)."""
    logits = _paste_logits(result.mask_logits, region, shape)
    return dataclasses.replace(result, masks=logits > 0, mask_logits=logits)


def _paste_logits(logits: np.ndarray, region: Region, shape: tuple[int, int]) -> np.ndarray:
    """Paste (N, height, width) logits into (N, H, W) of OUTSIDE_LOGIT."""
    x, y, width, height = region
    whole = np.full((len(logits), *shape), OUTSIDE_LOGIT, np.float32)
    if len(logits):  # no masks may have any size
        whole[:, y : y + height, x : x + width] = logits
    return whole
