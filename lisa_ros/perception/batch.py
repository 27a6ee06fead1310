# SPDX-License-Identifier: Apache-2.0
"""Answer several queries at once with a backend that can, else one after the other. Any thread."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TypeGuard, TypeVar

import numpy as np

from lisa_ros.errors import DeviceMemoryError, LisaError, ModelError
from lisa_ros.perception.answer_checks import check_event
from lisa_ros.perception.backend import (
    AnswersBatches,
    Backend,
    BatchRequest,
    Cancellation,
    InferenceOptions,
    Query,
)
from lisa_ros.perception.device_memory import memory_errors
from lisa_ros.perception.roi import checked_request, pasted_event, stream_in_region
from lisa_ros.results import Done, Event, Segmentation, Status, unanswered

Item = TypeVar('Item')
Request = tuple[np.ndarray, Query]  # (H, W, 3) uint8 RGB, and a query about it


def can_batch(backend: Backend) -> TypeGuard[AnswersBatches]:
    """Return whether a backend answers several queries at once."""
    return isinstance(backend, AnswersBatches) and backend.capabilities.batches


def stream_batch(
    backend: AnswersBatches, requests: Sequence[BatchRequest], options: InferenceOptions
) -> Iterator[tuple[int, Event]]:
    """Yield the events of all answers, each with the number of its request.

    As `roi.stream_in_region` for each: a query may have a region, and what a model computes
    wrongly ends its answer as FAILED. So does a request that is not valid. A request without Done
    is to be asked alone.

    Args:
        backend: the model.
        requests: images of any size.
        options: for all of them.

    Raises:
        DeviceMemoryError: the memory is not enough for the batch; requests without Done are to be
            asked in batches of half the size.
        Exception: what `AnswersBatches.stream_batch` raises else.
    """
    cropped: dict[int, BatchRequest] = {}
    for number, request in enumerate(requests):
        try:
            image, query = checked_request(backend, request.image, request.query)
        except LisaError as error:  # noqa: PERF203  # one fails, the others go on
            yield number, request.failed(error)
        else:
            cropped[number] = dataclasses.replace(request, image=image, query=query)
    if not cropped:
        return
    numbers, ended = list(cropped), set()
    with memory_errors():
        for place, event in backend.stream_batch(list(cropped.values()), options):
            number = numbers[place]
            if number in ended:  # the backend goes on after what was wrong
                continue
            checked = _checked(requests[number], cropped[number], event)
            if isinstance(checked, Done):
                ended.add(number)
            yield number, checked


def _checked(request: BatchRequest, cropped: BatchRequest, event: Event) -> Event:
    """Return an event of the backend for the whole image; FAILED if it is wrong."""
    try:
        check_event(event, cropped.image.shape[:2])
    except ModelError as error:
        return request.failed(error)
    return pasted_event(event, request.query.region, request.image.shape[:2])


def answer_requests(
    backend: Backend,
    requests: Sequence[Request],
    options: InferenceOptions,
    cancel: Cancellation,
) -> list[Segmentation]:
    """Return the answers in the order of the requests; FAILED with the reason if one fails.

    Requests that the backend leaves unanswered are asked one after the other; if the memory was
    not enough, those of each half at once.
    """
    results: dict[int, Segmentation] = {}
    if can_batch(backend) and len(requests) > 1:
        batch = [BatchRequest(image, query, cancel) for image, query in requests]
        is_too_large = False
        try:
            for number, event in stream_batch(backend, batch, options):
                if isinstance(event, Done):
                    results[number] = event.result
        except DeviceMemoryError:
            is_too_large = True
        except LisaError:  # asked singly, the request at fault names its error
            pass
        if is_too_large:  # behind the handler: the error holds memory of the model
            left = [number for number in range(len(requests)) if number not in results]
            for part in in_halves(left, len(requests)):
                asked = [requests[number] for number in part]
                results |= zip(part, answer_requests(backend, asked, options, cancel), strict=True)
    return [
        results[number] if number in results else _answer(backend, request, options, cancel)
        for number, request in enumerate(requests)
    ]


def in_halves(left: Sequence[Item], count: int) -> list[Sequence[Item]]:
    """Return what is left of `count` requests, which were too many at once, in smaller parts."""
    size = max(1, count // 2)
    return [left[start : start + size] for start in range(0, len(left), size)]


def _answer(
    backend: Backend, request: Request, options: InferenceOptions, cancel: Cancellation
) -> Segmentation:
    """Return one answer; FAILED with the reason if the request is not valid."""
    image, query = request
    try:
        *_, done = stream_in_region(backend, image, query, options, cancel)
    except LisaError as error:
        return unanswered(query.text, Status.FAILED, str(error), image.shape[:2])
    assert isinstance(done, Done)  # noqa: S101  # a stream ends with it
    return done.result
