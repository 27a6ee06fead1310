# SPDX-License-Identifier: Apache-2.0
"""Ask a vision-language model whether what it pointed at is what was asked for.

A model that was trained to point at the best match points at something even if the object is not
there. Shown its own masks, numbered, it can still say "none". The probability of that first token
decides; no text is generated. SAM 3's paper (arxiv.org/abs/2511.16719) gains more by such a check
than by a better segmenter. Any thread.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from lisa_ros.errors import UnreachableError
from lisa_ros.perception.overlay import overlay
from lisa_ros.perception.stopping import EarlyEnd, StopCondition
from lisa_ros.results import Done, Event, MaskReady, Segmentation, Status, Token
from lisa_ros.vlm.pointing_model import StopSignal

# How probable each choice is as the first token of the answer to a request about an image
Choose = Callable[[np.ndarray, str, Sequence[str], StopSignal], Sequence[float]]

_MAX_NUMBERED = 9  # objects: a number must be one token; further ones are confirmed with them
_MIN_NUMBER = 0.5  # probability that the model answers with a number; below it nothing is decided
_REQUEST = (
    'Objects in the image are outlined and numbered. Which number is on "{query}"? Answer with '
    'one number, or with 0 if none of them is right.'
)


def verified_events(
    events: Iterator[Event],
    image: np.ndarray,
    query: str,
    choose: Choose,
    threshold: float,
    stop: StopCondition,
) -> Iterator[Event]:
    """Yield the events of an answer; its masks only after the model has confirmed them.

    If the model says "none" with a probability of at least one half, the status is NOT_FOUND and
    there are no masks. Otherwise each score is multiplied by the probability of the contrary, and
    the status is NOT_FOUND if each is below the threshold then; the reason says which it was. A
    model that does not answer with a number has decided nothing. An answer that is not complete
    has no confirmed masks.

    Args:
        events: of the answer.
        image: (H, W, 3) uint8 RGB.
        query: as the user typed it.
        choose: asks the model.
        threshold: masks with a lower score are dropped, 0..1.
        stop: if it is set, nothing is confirmed.
    """
    for event in events:
        if isinstance(event, Token):
            yield event
        elif isinstance(event, Done):
            result = event.result
            if result.status is Status.FOUND:
                result = _confirmed(result, image, query, choose, threshold, stop)
            elif len(result.masks):
                result = _without_masks(result)
            names = result.names or ('',) * len(result.masks)
            ready = zip(result.masks, result.mask_logits, result.scores, names, strict=True)
            for index, (mask, logits, score, name) in enumerate(ready):
                yield MaskReady(index, mask, logits, float(score), name)
            yield Done(result)


def _confirmed(
    result: Segmentation,
    image: np.ndarray,
    query: str,
    choose: Choose,
    threshold: float,
    stop: StopCondition,
) -> Segmentation:
    """Return a result that the model has confirmed, or why it could not, without masks."""
    end = stop.early_end
    if end is None:
        try:
            verified = _verified(result, image, query, choose, threshold, stop)
        except UnreachableError as error:
            end = EarlyEnd(Status.UNREACHABLE, str(error))
        else:
            end = stop.early_end
            if end is None:
                return verified
    return dataclasses.replace(_without_masks(result), status=end.status, reason=end.reason)


def _verified(
    result: Segmentation,
    image: np.ndarray,
    query: str,
    choose: Choose,
    threshold: float,
    stop: StopCondition,
) -> Segmentation:
    start = time.perf_counter()
    numbers = [str(number) for number in range(1 + min(len(result.masks), _MAX_NUMBERED))]
    shown = overlay(image, result.masks[:_MAX_NUMBERED], numbers[1:], opacity=0.2)
    probabilities = choose(shown, _REQUEST.replace('{query}', query), numbers, stop)
    number = sum(probabilities)
    none = probabilities[0] / number if number >= _MIN_NUMBER else 0.0
    seconds = time.perf_counter() - start
    scores = result.scores * (1 - none)
    kept = scores >= threshold
    result = dataclasses.replace(
        result,
        timings={**result.timings, 'verify': seconds},
        time_to_first_mask=(result.time_to_first_mask or 0.0) + seconds,
        masks=result.masks[kept],
        mask_logits=result.mask_logits[kept],
        scores=scores[kept],
        names=tuple(itertools.compress(result.names, kept)),
    )
    if none < 0.5 and kept.any():
        return result
    if none < 0.5:
        reason = (
            f'after the model was asked again (none is right: {none:.0%}), every score is below '
            f'confidence_threshold ({threshold:g})'
        )
    else:
        reason = f'asked again, the model says that none of its objects is right ({none:.0%})'
    return dataclasses.replace(_without_masks(result), status=Status.NOT_FOUND, reason=reason)


def _without_masks(result: Segmentation) -> Segmentation:
    return dataclasses.replace(
        result,
        masks=result.masks[:0],
        mask_logits=result.mask_logits[:0],
        scores=result.scores[:0],
        names=(),
        time_to_first_mask=None,
    )
