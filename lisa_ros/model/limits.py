# SPDX-License-Identifier: Apache-2.0
"""Limits of what a model may claim where no bytes in its files prove it.

Imports no torch before a limit is checked: the node's settings show the defaults.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lisa_ros.errors import CheckpointError

GB = 10**9
_RELEASED_PATCH = 16  # of SAM ViT-H [px], with 16 heads
_RELEASED_HEADS = 16


@dataclass(frozen=True)
class Limits:
    """The largest model that is loaded; a hostile config.json claims more to fill the memory."""

    # largest side of the images that CLIP and SAM get [px]; released models have 224 and 1024
    input_side: int = 1024
    memory: float | None = None  # largest size of the weights [GB]; None: the free memory

    @property
    def attention(self) -> int:
        """Largest number of attention weights in a vision layer: heads times tokens squared.

        SAM ViT-H with an input of `input_side` pixels has as many.
        """
        return _RELEASED_HEADS * (self.input_side // _RELEASED_PATCH) ** 4

    def check_memory(self, size: int, device: str, source: Path) -> None:
        """Check that weights fit into the memory before it is allocated.

        Args:
            size: of the weights on the device [bytes].
            device: of the weights, as torch names it.
            source: the model's folder, for the message.

        Raises:
            CheckpointError: they do not fit.
        """
        if self.memory is not None:
            if size > self.memory * GB:
                raise CheckpointError(
                    f'{source}: its weights take {size / GB:.1f} GB, more than the limit '
                    f'max_model_size of {self.memory:g} GB'
                )
            return
        free = free_memory(device)
        if free is not None and size > free:
            raise CheckpointError(
                f'{source}: its weights take {size / GB:.1f} GB, and {free / GB:.1f} GB are free '
                f'on {device}: close other programs, choose another device or a smaller precision '
                '(bf16, int8, nf4), or set max_model_size [GB] to load it anyway'
            )


def free_memory(device: str) -> int | None:
    """Return the free memory of a torch device [bytes]; None if it is unknown.

    That of the CPU is with swap. A GPU that shares the memory of the computer, as that of a Jetson
    does, can have what the page cache takes, too; CUDA does not count it as free.
    """
    if device.startswith('cuda'):
        from torch import cuda

        cached = cuda.memory_reserved(device) - cuda.memory_allocated(device)  # of earlier models
        free = cuda.mem_get_info(device)[0]
        if getattr(cuda.get_device_properties(device), 'is_integrated', False):
            free = max(free, _system_memory('MemAvailable') or 0)
        return free + cached
    return _system_memory('MemAvailable', 'SwapFree') if device == 'cpu' else None


def _system_memory(*kinds: str) -> int | None:
    """Return the sum of these kinds of memory [bytes], at most the limit of this container.

    Args:
        kinds: as /proc/meminfo names them.

    Returns:
        None if it is unknown.
    """
    try:
        lines = Path('/proc/meminfo').read_text(encoding='ascii').splitlines()
        kilobytes = {line.split(':')[0]: int(line.split()[1]) for line in lines}
        free = 1024 * sum(kilobytes[kind] for kind in kinds)
    except (OSError, ValueError, KeyError, IndexError):  # not Linux
        return None
    limit = _container_limit()
    return free if limit is None else min(free, limit)


def _container_limit() -> int | None:
    """Return the memory limit of this container [bytes]; None without one."""
    try:
        return int(Path('/sys/fs/cgroup/memory.max').read_text(encoding='ascii'))
    except (OSError, ValueError):  # no cgroup version 2, or "max"
        return None
