# SPDX-License-Identifier: Apache-2.0
"""The memory of a device that is not enough, as an error that a user can fix. Any thread.

PyTorch is not imported: a process without it has no such errors.
"""

from __future__ import annotations

import contextlib
import errno
import re
import sys
from collections.abc import Iterator

from lisa_ros.error_text import error_summary
from lisa_ros.errors import DeviceMemoryError

# A shortage as a RuntimeError: the allocator of the CPU, mmap, malloc and oneDNN; CUDA, HIP and
# their libraries; the allocator of a Jetson, which asks NVML for the rest (pytorch issue 185240).
_SHORTAGE = re.compile(
    r"can't allocate memory|cannot allocate memory(?! in static TLS)|not enough memory|bad_alloc"
    r'|could not (?:create|execute) a primitive$'
    r'|\b(?:CUDA|HIP|XPU|MPS)\b.*out of memory|[A-Z]+_STATUS_ALLOC_FAILED'
    r'|NVML_SUCCESS == r INTERNAL ASSERT FAILED.*CUDACachingAllocator',
    re.IGNORECASE | re.DOTALL,
)


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
    """Return whether an error of Python, numpy or PyTorch says that the memory is not enough."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    torch = sys.modules.get('torch')
    kinds = (MemoryError, *([] if torch is None else [torch.OutOfMemoryError]))
    if isinstance(error, kinds):
        return True
    return isinstance(error, RuntimeError) and _SHORTAGE.search(str(error)) is not None


def shortage_text(error: BaseException) -> str:
    """Return what such an error says, with the cure."""
    return (
        f'the memory of the device is not enough ({error_summary(error)}): end other programs '
        'that use it, lower max_batch or cache_memory, or load the model with a smaller precision'
    )
