# SPDX-License-Identifier: Apache-2.0
"""The memory of a device that is not enough, as an error that a user can fix. Any thread.

PyTorch is not imported: a process without it has no such errors.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from lisa_ros.error_text import error_summary
from lisa_ros.errors import DeviceMemoryError


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Raise a DeviceMemoryError where the block raises that of PyTorch or of Python.

    No variable may hold the error: with its frames it holds the tensors of the model, and what is
    tried next needs their memory.

    Raises:
        DeviceMemoryError: the memory is not enough.
    """
    try:
        yield
    except Exception as error:
        if not is_memory_error(error):
            raise
        raise DeviceMemoryError(shortage_text(error)) from error


def is_memory_error(error: BaseException) -> bool:
    """Return whether an error says that the memory is not enough."""
    torch = sys.modules.get('torch')
    kinds = (MemoryError, *([] if torch is None else [torch.OutOfMemoryError]))
    return isinstance(error, kinds)


def shortage_text(error: BaseException) -> str:
    """Return what such an error says, with the cure."""
    return (
        f'the memory of the device is not enough ({error_summary(error)}): end other programs '
        'that use it, lower max_batch or cache_memory, or load the model with a smaller precision'
    )
