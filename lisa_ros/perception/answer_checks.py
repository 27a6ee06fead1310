# SPDX-License-Identifier: Apache-2.0
"""Check every event of every backend: a numerical failure becomes FAILED, never NOT_FOUND.

`roi.stream_in_region` wraps each stream in `checked_events`, so that node, CLI and evaluation see
only events that passed. Any thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from lisa_ros.error_text import short_repr
from lisa_ros.errors import NON_FINITE_CAUSE, ModelError
from lisa_ros.files.text import is_encodable
from lisa_ros.perception.device_memory import memory_errors
from lisa_ros.results import Done, Event, MaskReady, Segmentation, Status, Token, unanswered

_SCORE_TOLERANCE = 1e-3  # a backend may round a score to a little more than 1


def checked_events(events: Iterable[Event], query: str, shape: tuple[int, int]) -> Iterator[Event]:
    """Yield a backend's events until the first one that is wrong; then a Done of status FAILED.

    The same happens if the backend raises a ModelError, or ends without Done. Other exceptions
    pass; one of the memory as a DeviceMemoryError.

    Args:
        events: of one answer.
        query: for the result of a failure.
        shape: (H, W) of the image that the backend got [px].
    """
    try:
        with memory_errors():
            for event in events:
                check_event(event, shape)
                yield event
                if isinstance(event, Done):
                    return
        raise ModelError('the backend ended its answer without a result: correct the backend')
    except ModelError as error:
        yield Done(unanswered(query, Status.FAILED, str(error), shape))


def check_event(event: Event, shape: tuple[int, int]) -> None:
    """Check an event of an answer about an image of (H, W) [px].

    Raises:
        ModelError: it has not the types and shapes of `results`, NaN or infinity, or half a
            character.
    """
    if isinstance(event, Done):
        check_result(event.result, shape)
    elif isinstance(event, MaskReady):
        _check_array(event.mask, 'b', shape, 'a mask (H, W)')
        _check_array(event.mask_logits, 'f', shape, 'mask logits (H, W)')
        _check_score(event.score)
        _check_names((event.name,), 1)
    elif not isinstance(event, Token) or not isinstance(event.text, str):
        raise ModelError(f'the backend sent {event!r:.80}; expected Token, MaskReady or Done')
    else:
        _check_texts(event.text)


def check_result(result: Segmentation, shape: tuple[int, int]) -> None:
    """Check the result of an image of (H, W) [px].

    Raises:
        ModelError: masks, logits, scores or names have another shape or type or are not finite,
            a text has half a character, or the status contradicts them.
    """
    if not isinstance(result, Segmentation):
        kind = type(result).__name__
        raise ModelError(f'the backend returned a {kind}; expected a Segmentation')
    count = _check_masks(result, shape)
    _check_array(result.scores, 'f', (count,), 'scores (N,)')
    for score in result.scores:
        _check_score(float(score))
    _check_names(result.names, count)
    _check_texts(result.answer, result.answer_raw, result.reason)
    if not isinstance(result.status, Status):
        raise ModelError(f'the status of the answer is {result.status!r}; expected a Status')
    if result.yes_probability is not None and not 0 <= result.yes_probability <= 1:
        raise ModelError(
            f'the probability of yes is {result.yes_probability!r}; expected a number of 0 to 1'
        )
    if result.status is Status.FOUND and not count:
        raise ModelError('the model returned FOUND without a mask: correct the backend')


def _check_masks(result: Segmentation, shape: tuple[int, int]) -> int:
    """Return the number of masks; raise a ModelError if they do not fit an image of (H, W)."""
    masks, logits = result.masks, result.mask_logits
    if isinstance(masks, np.ndarray) and masks.ndim == 3 and not len(masks):
        shape = masks.shape[1:]  # no masks: any size
    count = len(masks) if isinstance(masks, np.ndarray) and masks.ndim else 0
    _check_array(masks, 'b', (count, *shape), 'masks (N, H, W)')
    _check_array(logits, 'f', (count, *shape), 'mask logits (N, H, W)')
    return count


def _check_array(array: np.ndarray, kind: str, shape: tuple[int, ...], noun: str) -> None:
    """Raise a ModelError unless an array has this shape and kind of dtype, and is finite."""
    if not isinstance(array, np.ndarray):
        raise ModelError(f'the model returned {noun} as {type(array).__name__}; expected an array')
    if array.shape != shape or array.dtype.kind != kind:
        raise ModelError(
            f'the model returned {noun} of shape {array.shape} and type {array.dtype}; expected '
            f'{shape} and {"bool" if kind == "b" else "float32"}: correct the backend'
        )
    if kind == 'f' and not _all_finite(array):
        raise ModelError(f'the model returned NaN or infinity in {noun}: {NON_FINITE_CAUSE}')


def _check_score(score: float) -> None:
    """Raise a ModelError unless a score is a number of 0..1."""
    try:
        is_probability = -_SCORE_TOLERANCE <= score <= 1 + _SCORE_TOLERANCE
    except TypeError:
        is_probability = False
    if not is_probability:
        raise ModelError(
            f'the model returned the score {score!r}; expected 0 to 1: {NON_FINITE_CAUSE}'
        )


def _check_names(names: tuple[str, ...], count: int) -> None:
    """Raise a ModelError unless there is a name for each of `count` masks, or for none."""
    if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
        raise ModelError(
            f'the model returned the names {short_repr(names)}; expected a tuple of texts: '
            'correct the backend'
        )
    if names and len(names) != count:
        raise ModelError(
            f'the model returned {len(names)} names of {count} masks; expected one for each '
            'mask, or none at all: correct the backend'
        )
    _check_texts(*names)


def _check_texts(*texts: str) -> None:
    """Raise a ModelError if a text is none, or has half a character: no message can carry it."""
    for text in texts:
        if not isinstance(text, str):
            raise ModelError(f'the model returned {text!r:.80} as a text: correct the backend')
        if not is_encodable(text):
            raise ModelError(
                f'the model returned the text {short_repr(text)} with half a character (a lone '
                'surrogate); expected text that can be written as UTF-8'
            )


def _all_finite(array: np.ndarray) -> bool:
    """Return whether an array has neither NaN nor infinity; a finite sum proves it."""
    with np.errstate(all='ignore'):
        return bool(np.isfinite(array.sum()) or np.isfinite(array).all())
