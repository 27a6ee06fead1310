# SPDX-License-Identifier: Apache-2.0
"""The reason of an answer, where the model gives it only in a further turn of the dialogue."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import Protocol

from lisa_ros.errors import LisaError
from lisa_ros.perception.backend import InferenceOptions, Query
from lisa_ros.results import Done, Event, Segmentation, Status, Token

# Answers that point at an object and say nothing about it, see `results.answer_text`.
_POINTING = {
    *('sure', 'here', 'it is here', 'sure, it is here', 'sure, the segmentation result is here'),
}
_MIN_TIME = 0.1  # that the further turn has in any case [s]


class Asks(Protocol):
    """Asks the model a further question about the same image."""

    def __call__(self, query: Query, options: InferenceOptions) -> Segmentation:
        """Return the answer."""


def with_reason(
    events: Iterator[Event], query: Query, question: str, options: InferenceOptions, ask: Asks
) -> Iterator[Event]:
    """Yield the events of an answer; if it only points, the reason is asked for and appended.

    Args:
        events: of the answer to the query.
        query: the query.
        question: asks for the reason in the next turn, such as "what is it for?".
        options: of the query; both turns together have its `answer_timeout`.
        ask: asks the model.
    """
    start = time.monotonic()
    for event in events:
        if not (isinstance(event, Done) and _only_points(event.result)):
            yield event
            continue
        result = event.result
        if options.answer_timeout:
            left = max(_MIN_TIME, options.answer_timeout - (time.monotonic() - start))
            options = dataclasses.replace(options, answer_timeout=left)
        try:
            reason = ask(Query(question, query.dialogue.extended(result)), options)
        except LisaError:  # the answer is complete without it
            yield Done(result)
            continue
        # words and no mask; FAILED: they were cut off
        if reason.status in (Status.NOT_FOUND, Status.FAILED) and reason.answer:
            yield Token(f' {reason.answer}')
            result = _joined(result, reason)
        yield Done(result)


def _only_points(result: Segmentation) -> bool:
    return result.status is Status.FOUND and result.answer.strip(' .').lower() in _POINTING


def _joined(result: Segmentation, reason: Segmentation) -> Segmentation:
    """Return a result with the words of its reason, and the times of both turns."""
    stages = [*result.timings, *(stage for stage in reason.timings if stage not in result.timings)]
    return dataclasses.replace(
        result,
        answer=f'{result.answer} {reason.answer}',
        answer_raw=f'{result.answer_raw} {reason.answer_raw}',
        reason=result.reason or reason.reason,
        timings={
            stage: result.timings.get(stage, 0.0) + reason.timings.get(stage, 0.0)
            for stage in stages
        },
    )
