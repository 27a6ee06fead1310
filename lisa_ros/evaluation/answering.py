# SPDX-License-Identifier: Apache-2.0
"""Ask a model one query; a model that fails gives an answer of status FAILED, not an exception."""

from __future__ import annotations

import dataclasses
import logging
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from lisa_ros.error_text import error_summary
from lisa_ros.errors import LisaError, ModelError, SettingsError
from lisa_ros.perception.answer_checks import check_result
from lisa_ros.perception.backend import InferenceOptions
from lisa_ros.perception.segmenter import Segmenter
from lisa_ros.results import (
    Dialogue,
    Done,
    Event,
    MaskReady,
    Segmentation,
    Status,
    unanswered,
)

_logger = logging.getLogger(__name__)
_logged_places: set[str] = set()  # stack of each error that was logged

WHOLE_ANSWER = 'answer'  # the only stage of a backend that does not time its stages


@runtime_checkable
class TeacherForcing(Protocol):
    """A backend that can predict the masks of an answer that it is given."""

    def teacher_forced(
        self, image: np.ndarray, text: str, answer_raw: str, options: InferenceOptions
    ) -> Segmentation:
        """Return one mask for each [SEG] of `answer_raw`; see `LisaBackend.teacher_forced`."""


def answer_query(
    segmenter: Segmenter, image: np.ndarray, text: str, dialogue: Dialogue | None = None
) -> Segmentation:
    """Answer a query about an (H, W, 3) uint8 RGB image; FAILED with a reason if that fails."""
    return _guarded(image, text, lambda: _timed(segmenter.stream(image, text, dialogue)))


def _timed(events: Iterator[Event]) -> Segmentation:
    """Return the result of a stream, with the time to the first mask if the backend has none."""
    start, first_mask = time.perf_counter(), None
    for event in events:
        if isinstance(event, MaskReady) and first_mask is None:
            first_mask = time.perf_counter() - start
        if isinstance(event, Done):
            result = event.result
            if result.time_to_first_mask is None and first_mask is not None:
                result = dataclasses.replace(result, time_to_first_mask=first_mask)
            return result
    raise ModelError('the model ended its answer without a result: its backend has a bug')


def encode_images(segmenter: Segmenter, images: Sequence[np.ndarray]) -> None:
    """Encode (H, W, 3) uint8 RGB images at once; if that fails, each query encodes its own."""
    try:
        segmenter.encode_images(images)
    except LisaError:
        pass  # each query has its own answer, and reason
    except Exception as error:  # noqa: BLE001  # out of memory, for example; the run goes on
        _log_once(error)


def answer_queries(
    segmenter: Segmenter, requests: Sequence[tuple[np.ndarray, str]]
) -> list[Segmentation]:
    """Answer queries about (H, W, 3) uint8 RGB images at once; see `answer_query`."""
    start = time.perf_counter()
    results = None
    try:
        results = segmenter.segment_batch(requests)
    except Exception as error:  # noqa: BLE001  # a backend may raise anything; the run goes on
        _log_once(error)
    if results is None:  # outside the handler: the error no longer holds memory of the batch
        return [answer_query(segmenter, image, text) for image, text in requests]
    share = (time.perf_counter() - start) / max(1, len(requests))
    return [
        result if result.status is Status.FAILED else _with_timings(result, share)
        for result in results
    ]


def teacher_forced_answer(
    segmenter: Segmenter, image: np.ndarray, text: str, answer_raw: str
) -> Segmentation:
    """Return the masks of a given answer; FAILED with a reason if that fails.

    Raises:
        SettingsError: the backend cannot do it.
    """
    backend, options = segmenter.backend, segmenter.options
    if not isinstance(backend, TeacherForcing):
        raise SettingsError(
            f'{type(backend).__name__} cannot be teacher forced: use --mode generate'
        )
    return _guarded(image, text, lambda: backend.teacher_forced(image, text, answer_raw, options))


def _guarded(image: np.ndarray, text: str, ask: Callable[[], Segmentation]) -> Segmentation:
    """Return what `ask` returns, checked and with timings, or a failure."""
    start = time.perf_counter()
    try:
        result = ask()
        check_result(result, image.shape[:2])
    except LisaError as error:
        return unanswered(text, Status.FAILED, str(error), image.shape[:2])
    except Exception as error:  # noqa: BLE001  # a backend may raise anything; the run goes on
        _log_once(error)
        return unanswered(text, Status.FAILED, error_summary(error), image.shape[:2])
    return _with_timings(result, time.perf_counter() - start)


def _with_timings(result: Segmentation, seconds: float) -> Segmentation:
    """Return a result with its duration [s] if its backend does not time its stages."""
    if result.timings:
        return result
    return dataclasses.replace(result, timings={WHOLE_ANSWER: seconds})


def _log_once(error: Exception) -> None:
    """Log the traceback of an error, unless one from the same lines is logged already."""
    place = ''.join(traceback.format_tb(error.__traceback__))
    if place not in _logged_places:
        _logged_places.add(place)
        _logger.error('the model failed', exc_info=error)
