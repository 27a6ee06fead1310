# SPDX-License-Identifier: Apache-2.0
"""The messages between a process and the child process that runs its model.

The child gets one `Load`, maybe after a `Prepare`, then requests. A request has a number, and so
has each query of an `AskBatch`. The child answers one request after the other; the parent ignores
messages about requests that it has given up.
"""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lisa_ros.model.cache_use import CacheUse
from lisa_ros.perception.backend import (
    Capabilities,
    InferenceOptions,
    LoadOptions,
    Query,
)
from lisa_ros.perception.process_memory import GpuMemory
from lisa_ros.results import Done, Event, MaskReady, Segmentation

# ---- from the parent


@dataclass(frozen=True)
class Prepare:
    """Be a standby: import a module, with the libraries that a later `Load` needs; no reply."""

    module: str  # `Loaded.module` of another child
    fingerprint: str  # of the parent, see `standby_handover`


@dataclass(frozen=True)
class Load:
    """Load a model; the reply is `Loaded` or `Raised`."""

    loader: bytes  # a pickled `BackendLoader`: its import may fail, which is an error of the load
    model: str  # without the scheme
    options: LoadOptions


@dataclass(frozen=True)
class Ask:
    """Answer a query; the replies are `Begun`, an `Answered` for each event, or `Raised`."""

    number: int
    image: np.ndarray  # (H, W, 3) uint8 RGB
    query: Query
    options: InferenceOptions


@dataclass(frozen=True)
class AskBatch:
    """Answer queries together; the replies are an `Answered` for each event, then `Ended`.

    `Answered` has the number of its `Ask`; `Ended` and `Raised` have that of the batch.
    """

    number: int
    asks: Sequence[Ask]


@dataclass(frozen=True)
class EncodeImages:
    """Encode images; the reply is `Ended` or `Raised`."""

    number: int
    images: Sequence[np.ndarray]  # (H, W, 3) uint8 RGB each


@dataclass(frozen=True)
class ClearCache:
    """Drop the features of earlier images; the reply is `Ended` or `Raised`."""

    number: int


@dataclass(frozen=True)
class Cancel:
    """Stop the answer to an `Ask`; no reply of its own."""

    number: int


Request = Ask | AskBatch | EncodeImages | ClearCache

# ---- from the child


@dataclass(frozen=True)
class Loaded:
    """The model is loaded."""

    device: str
    capabilities: Capabilities
    precision: str = ''  # of the weights; empty: unknown
    gpu_memory: GpuMemory | None = None  # None: no GPU
    module: str = ''  # of the backend's class
    notices: tuple[str, ...] = ()  # see `ReportsNotices`


@dataclass(frozen=True)
class Begun:
    """The backend has accepted the query."""

    number: int


@dataclass(frozen=True)
class Answered:
    """An event of the answer; `Done` is the last reply.

    The masks are sent once: a `Done` whose masks are those of the `MaskReady` events before it
    comes without them.
    """

    number: int
    event: Event
    gpu_memory: GpuMemory | None = None  # with `Done`; None: no GPU
    cache_use: CacheUse | None = None  # with `Done`; None: the model keeps no prompts
    has_earlier_masks: bool = False  # `Done` without the masks of the events before


@dataclass(frozen=True)
class Ended:
    """The request is complete; for one `Ask`: without `Done`, which is a bug of the backend."""

    number: int


@dataclass(frozen=True)
class Raised:
    """The request, or the load (number 0), has raised an exception."""

    number: int
    error: bytes  # the exception, pickled; empty if it cannot be
    description: str  # "RuntimeError: broken"
    traceback: str  # of the child; empty for errors that a user can fix


Reply = Loaded | Begun | Answered | Ended | Raised


class RemoteTracebackError(Exception):
    """The traceback of the child, shown as the cause of the exception in the parent."""

    def __str__(self) -> str:
        """Return the traceback, on lines of its own."""
        return f'in the model process:\n{self.args[0]}'


def exception_of(raised: Raised) -> Exception:
    """Return the exception of the child; one that cannot be pickled as a RuntimeError."""
    try:
        error = pickle.loads(raised.error)  # noqa: S301  # from our own child
    except Exception:  # noqa: BLE001  # its class is not known here, or it cannot be pickled
        error = RuntimeError(raised.description)
    if raised.traceback:
        error.__cause__ = RemoteTracebackError(raised.traceback)
    return error


# ---- the masks of an answer are sent once


def without_masks(done: Done, sent: Sequence[MaskReady]) -> Done | None:
    """Return a `Done` without its masks; None if they are not those of `sent`, bit for bit.

    Of a broken model they may be anything: the parent checks the answer.
    """
    result = done.result
    if not (
        isinstance(result, Segmentation)
        and _is_stack(result.masks, [event.mask for event in sent])
        and _is_stack(result.mask_logits, [event.mask_logits for event in sent])
    ):
        return None
    none, no_logits = result.masks[:0], result.mask_logits[:0]
    return Done(dataclasses.replace(result, masks=none, mask_logits=no_logits))


def with_masks(done: Done, sent: Sequence[MaskReady]) -> Done:
    """Return a `Done` with the masks of the events before it."""
    masks = _stack([event.mask for event in sent])
    logits = _stack([event.mask_logits for event in sent])
    return Done(dataclasses.replace(done.result, masks=masks, mask_logits=logits))


def _stack(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Return (N, H, W) of N arrays (H, W); a view if there is one."""
    return rows[0][None] if len(rows) == 1 else np.stack(rows)


def _is_stack(array: np.ndarray, rows: Sequence[np.ndarray]) -> bool:
    """Return whether an array consists of these arrays, with their types and bits."""
    if not all(isinstance(item, np.ndarray) and item.ndim for item in (array, *rows)):
        return False
    return 0 < len(rows) == len(array) and all(
        own.dtype == row.dtype
        and own.dtype.kind in 'bf'
        and own.shape == row.shape
        and np.array_equal(_bits(own), _bits(row))
        for own, row in zip(array, rows, strict=True)
    )


def _bits(array: np.ndarray) -> np.ndarray:
    """Return the bytes of an array, in as few numbers as possible: they are compared faster."""
    number = np.uint64 if array.nbytes % 8 == 0 else np.uint8
    return np.ascontiguousarray(array).reshape(-1).view(number)
