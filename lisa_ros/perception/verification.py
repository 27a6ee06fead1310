# SPDX-License-Identifier: Apache-2.0
"""Ask a vision-language model whether what it pointed at is what was asked for.

A model that was trained to point at the best match points at something even if the object is not
there. Shown its own masks, numbered, it can still say "none". The probability of that first token
decides; no text is generated. SAM 3's paper (arxiv.org/abs/2511.16719) gains more by such a check
than by a better segmenter. Any thread.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from lisa_ros.perception.overlay import overlay
from lisa_ros.results import Done, Event, MaskReady, Segmentation, Status, Token

# gets an image, (H, W, 3) uint8 RGB, a request and choices; returns their probabilities, sum 1
Choose = Callable[[np.ndarray, str, Sequence[str]], list[float]]

_MAX_NUMBERED = 9  # objects: a number must be one token
_REQUEST = (
    'Objects in the image are outlined and numbered. Which number is on "{query}"? Answer with '
    'one number, or with 0 if none of them is right.'
)


def verified_events(
    events: Iterator[Event], image: np.ndarray, query: str, choose: Choose
) -> Iterator[Event]:
    """Yield the events of an answer; its masks only after the model has confirmed them.

    If the model says "none" with a probability of at least one half, the status is NOT_FOUND and
    there are no masks. Otherwise each score is multiplied by the probability of the contrary. An
    answer that is not complete has no confirmed masks.

    Args:
        events: of the answer.
        image: (H, W, 3) uint8 RGB.
        query: as the user typed it.
        choose: asks the model.
    """
    for event in events:
        if isinstance(event, Token):
            yield event
        elif isinstance(event, Done):
            result = event.result
            if result.status is Status.FOUND:
                result = _verified(result, image, query, choose)
            elif len(result.masks):
                result = _without_masks(result)
            ready = zip(result.masks, result.mask_logits, result.scores, strict=True)
            for index, (mask, logits, score) in enumerate(ready):
                yield MaskReady(index, mask, logits, float(score))
            yield Done(result)


def _verified(result: Segmentation, image: np.ndarray, query: str, choose: Choose) -> Segmentation:
    start = time.perf_counter()
    numbers = [str(number) for number in range(1 + min(len(result.masks), _MAX_NUMBERED))]
    shown = overlay(image, result.masks[:_MAX_NUMBERED], numbers[1:], opacity=0.2)
    none = choose(shown, _REQUEST.replace('{query}', query), numbers)[0]
    timings = {**result.timings, 'verify': time.perf_counter() - start}
    result = dataclasses.replace(result, timings=timings, scores=result.scores * (1 - none))
    if none < 0.5:
        return result
    reason = f'asked again, the model says that none of its objects is right ({none:.0%})'
    return dataclasses.replace(_without_masks(result), status=Status.NOT_FOUND, reason=reason)


def _without_masks(result: Segmentation) -> Segmentation:
    return dataclasses.replace(
        result,
        masks=result.masks[:0],
        mask_logits=result.mask_logits[:0],
        scores=result.scores[:0],
        time_to_first_mask=None,
    )
