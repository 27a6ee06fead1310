# SPDX-License-Identifier: Apache-2.0
"""Run the model on jobs: decode their images, ask the backend, yield the events of each job.

Threads: the inference thread. Nothing here knows the queues, and nothing is kept between calls.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lisa_ros.errors import DeviceMemoryError, LisaError
from lisa_ros.perception.backend import Backend, BatchRequest, InferenceOptions, Query
from lisa_ros.perception.batch import stream_batch
from lisa_ros.perception.roi import stream_in_region
from lisa_ros.results import Dialogue, Done, Event, Status, unanswered
from lisa_ros.session.frame_buffer import SyncedMessages
from lisa_ros.session.request import Request


@dataclass(frozen=True)
class InferenceJob:
    """A request with its frame and dialogue, frozen when the model begins."""

    request: Request
    frame: SyncedMessages
    dialogue: Dialogue
    dialogue_ticket: int  # for `DialogueStore.append`


class FrameDecoder(Protocol):
    """Decodes the messages of a frame."""

    def rgb_image(self, frame: SyncedMessages) -> np.ndarray:
        """Return a frame's colour image, (H, W, 3) uint8 RGB.

        Raises:
            ImageError: the encoding or the size is not supported.
        """


def answer_jobs(
    backend: Backend,
    decoder: FrameDecoder,
    jobs: Sequence[InferenceJob],
    options: InferenceOptions,
) -> Iterator[tuple[int, Event]]:
    """Yield the events of each job, each with the job's place; its last one is a Done.

    What a user can correct ends a job as FAILED.

    Args:
        backend: the model; for several jobs one that `can_batch`.
        decoder: of the frames; jobs about one image share the result.
        jobs: one, or several that are answered together.
        options: for all of them.

    Raises:
        DeviceMemoryError: the memory is not enough.
        BaseException: what a decoder or a backend raises else. Jobs without a Done, of which there
            may be some without an exception, too, are to be asked alone.
    """
    requests: dict[int, BatchRequest] = {}
    seconds: dict[int, float] = {}
    images: dict[int, np.ndarray] = {}  # by the identity of the message
    for place, job in enumerate(jobs):
        start, message = time.monotonic(), id(job.frame.image)
        try:
            if message not in images:
                images[message] = decoder.rgb_image(job.frame)
        except LisaError as error:
            yield place, Done(unanswered(job.request.text, Status.FAILED, str(error)))
            continue
        seconds[place] = time.monotonic() - start
        request = job.request
        query = Query(request.text, job.dialogue, request.explain, request.region, request.yes_no)
        requests[place] = BatchRequest(images[message], query, request.cancellation)
    places = list(requests)
    for number, event in _events(backend, list(requests.values()), options):
        place = places[number]
        yield place, _with_decoding(event, seconds[place])


def _events(
    backend: Backend, requests: Sequence[BatchRequest], options: InferenceOptions
) -> Iterator[tuple[int, Event]]:
    if len(requests) > 1:
        yield from stream_batch(backend, requests, options)
        return
    for request in requests:  # one, or none
        try:
            image, query, cancel = request.image, request.query, request.cancel
            for event in stream_in_region(backend, image, query, options, cancel):
                yield 0, event
        except DeviceMemoryError:  # noqa: PERF203  # more than the fault of a query
            raise
        except LisaError as error:  # of the only one
            yield 0, Done(unanswered(request.query.text, Status.FAILED, str(error)))


def _with_decoding(event: Event, seconds: float) -> Event:
    """Return an event; a result with the time that its image took [s]."""
    if not isinstance(event, Done):
        return event
    timings = {'convert': seconds, **event.result.timings}
    return Done(dataclasses.replace(event.result, timings=timings))
