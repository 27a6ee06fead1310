# SPDX-License-Identifier: Apache-2.0
"""Errors that a user can fix. Each message says what came, what was expected and the cure.

A message quotes files and messages of other people. It is always one line of at most
1500 characters, so that nobody can forge lines of a log or fill it.

The node, the CLI and the session catch `LisaError` and report one line. Any other exception is a
bug and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Callable

from lisa_ros.error_text import printable, without_middle

# of a NaN in an answer
NON_FINITE_CAUSE = 'the weights are damaged, or precision fp16 overflowed: try bf16 or fp32'


class LisaError(Exception):
    """Base of all errors that a user can fix."""

    def __str__(self) -> str:
        """Return the message in one line; a long one without its middle."""
        return without_middle(printable(super().__str__()))


class ImageError(LisaError):
    """An image or depth image has another type, shape, encoding or size than expected."""


class QueryError(LisaError):
    """A command cannot become a prompt: it is empty, too long, or has an image placeholder."""


class CheckpointError(LisaError):
    """A folder or file is not the expected checkpoint, or is damaged."""


class ModelError(LisaError):
    """A model computed or returned values that are no answer: NaN, infinity or a wrong shape."""


class DeviceMemoryError(LisaError):
    """The memory of a model's device is not enough for a query, or for several at once."""


class UnreachableError(LisaError):
    """The server of a model cannot be reached, refuses work for now, or broke off its answer."""


class SettingsError(LisaError):
    """A setting is invalid, or names a device, precision or package that is not available."""


class DataError(LisaError):
    """A bag, data set, scene, asset or ground truth is missing or broken."""


class OutputError(LisaError):
    """A report or an answer cannot be written: no permission, or the disk is full.

    It is no DataError: what cannot be written is no broken item of the data.
    """


class TrackingError(LisaError):
    """An answer belongs to a frame that the tracker does not know, or no longer knows."""


class TransformError(LisaError):
    """TF does not know a transform between two frames, or tf2_ros is not installed."""


class WorkerError(LisaError):
    """The process of the model has died, or the model cannot be loaded again."""


# ---- what to do with a broken item of many

ErrorHandler = Callable[[DataError], None]  # returns: skip the broken item and go on


def raise_error(error: DataError) -> None:
    """Stop at the first broken item. `list.append` is an ErrorHandler that collects them."""
    raise error
