# SPDX-License-Identifier: Apache-2.0
"""Answer a question with the probability of "yes" against "no"; no text is generated. Any thread.

The probability compares how the model would begin its answer. If it would rather say something
else, it has not decided, and the result is FAILED: a ratio of two small numbers says nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from lisa_ros.perception.stopping import EarlyEnd
from lisa_ros.results import Done, Event, Segmentation, Status, Token

MIN_DECIDED = 0.5  # probability of "yes" and "no" together; below it nothing is decided


@dataclass(frozen=True)
class YesNoWords:
    """How a model says yes and no, and what is added to a question so that it does."""

    yes: tuple[str, ...] = ('Yes', 'yes')  # beginnings of answers
    no: tuple[str, ...] = ('No', 'no')
    request: str = 'Answer with yes or no.'  # '': nothing


@dataclass(frozen=True)
class YesNo:
    """How probable it is that the answer begins with a "yes" and with a "no", each 0..1."""

    yes: float
    no: float


def yes_no_events(
    query: str,
    shape: tuple[int, int],
    answer: YesNo,
    timings: Mapping[str, float],
    early_end: EarlyEnd | None,
) -> Iterator[Event]:
    """Yield the answer as text, then Done.

    Args:
        query: as the user typed it.
        shape: (H, W) of the image [px].
        answer: of the model.
        timings: seconds by stage.
        early_end: how the request was stopped meanwhile; None: it was not.
    """
    result = _result(query, shape, answer, timings, early_end)
    if result.answer:
        yield Token(result.answer)
    yield Done(result)


def _result(
    query: str,
    shape: tuple[int, int],
    answer: YesNo,
    timings: Mapping[str, float],
    early_end: EarlyEnd | None,
) -> Segmentation:
    decided = answer.yes + answer.no
    status, reason, text, probability = Status.NOT_FOUND, '', '', None
    if early_end is not None:
        status, reason = early_end.status, early_end.reason
    elif decided < MIN_DECIDED:
        status = Status.FAILED
        reason = (
            f'the model answers this neither with yes nor with no (together {decided:.0%} of its '
            'answers): ask what can be answered so, as in "is the door open?", or ask for words'
        )
    else:
        probability = answer.yes / decided
        text = 'Yes.' if probability >= 0.5 else 'No.'
    logits = np.zeros((0, *shape), np.float32)
    return Segmentation(
        query=query,
        answer=text,
        answer_raw=text,
        masks=logits > 0,
        mask_logits=logits,
        scores=np.zeros(0, np.float32),
        status=status,
        reason=reason,
        timings=dict(timings),
        yes_probability=probability,
    )
