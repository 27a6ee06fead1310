# SPDX-License-Identifier: Apache-2.0
"""Answer several queries at once with a backend that can, else one after the other. Any thread."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lisa_ros.errors import LisaError
from lisa_ros.perception.answer_checks import check_result
from lisa_ros.perception.backend import (
    AnswersBatches,
    Backend,
    Cancellation,
    InferenceOptions,
    Query,
)
from lisa_ros.perception.roi import stream_in_region
from lisa_ros.results import Done, Segmentation, Status, unanswered

Request = tuple[np.ndarray, Query]  # (H, W, 3) uint8 RGB, and a query about it


def answer_requests(
    backend: Backend,
    requests: Sequence[Request],
    options: InferenceOptions,
    cancel: Cancellation,
) -> list[Segmentation]:
    """Return the answers in the order of the requests; FAILED with the reason if one fails.

    Requests with a region and yes/no questions are answered one after the other. So are all of
    them if one is not valid, or if the model computes NaN for one: then only that one fails.
    """
    together = [
        number
        for number, (_, query) in enumerate(requests)
        if query.region is None and not query.yes_no
    ]
    results: dict[int, Segmentation] = {}
    if isinstance(backend, AnswersBatches) and len(together) > 1:
        try:
            answers = backend.answer_batch([requests[n] for n in together], options, cancel)
            for number, answer in zip(together, answers, strict=True):
                check_result(answer, requests[number][0].shape[:2])
        except LisaError:  # answered singly, the request at fault names its error
            pass
        else:
            results = dict(zip(together, answers, strict=True))
    return [
        results[number] if number in results else _answer(backend, request, options, cancel)
        for number, request in enumerate(requests)
    ]


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
