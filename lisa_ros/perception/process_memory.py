# SPDX-License-Identifier: Apache-2.0
"""Memory of a process, of its GPU and of the computer. Any thread.

Process and computer are read from /proc; without it, all is zero.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ProcessMemory:
    """Resident memory of a process."""

    now: int = 0  # [bytes]
    peak: int = 0  # since its start [bytes]


@dataclass(frozen=True)
class SystemMemory:
    """Memory of the computer."""

    total: int = 0  # [bytes]
    available: int = 0  # [bytes]


@dataclass(frozen=True)
class GpuMemory:
    """Memory that PyTorch has on the GPUs."""

    allocated: int  # [bytes]
    reserved: int  # [bytes]


def gpu_memory() -> GpuMemory | None:
    """Return the memory that this process has on GPUs; None if it uses none."""
    torch = sys.modules.get('torch')  # not imported for this
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return None
    devices = range(torch.cuda.device_count())  # the model may be on another one than the first
    return GpuMemory(
        sum(map(torch.cuda.memory_allocated, devices)),
        sum(map(torch.cuda.memory_reserved, devices)),
    )


def peak_gpu_memory() -> int | None:
    """Return the most memory that PyTorch has taken from GPUs in this process [bytes].

    The CUDA libraries take some hundred megabytes more. None if this process uses no GPU.
    """
    if gpu_memory() is None:
        return None
    cuda = sys.modules['torch'].cuda
    return sum(cuda.max_memory_reserved(index) for index in range(cuda.device_count()))


def process_memory(pid: int | None = None) -> ProcessMemory:
    """Return the memory of a process; None: of this one. Zeros if it has ended."""
    sizes = _sizes(Path(f'/proc/{pid or os.getpid()}/status'))
    return ProcessMemory(sizes.get('VmRSS', 0), sizes.get('VmHWM', 0))


def system_memory() -> SystemMemory:
    """Return the memory of the computer."""
    sizes = _sizes(Path('/proc/meminfo'))
    return SystemMemory(sizes.get('MemTotal', 0), sizes.get('MemAvailable', 0))


def _sizes(path: Path) -> Mapping[str, int]:
    """Return the sizes in a file of lines such as "VmRSS:  1234 kB" [bytes]."""
    sizes = {}
    with contextlib.suppress(OSError):
        for line in path.read_text(encoding='utf-8', errors='replace').splitlines():
            name, _, value = line.partition(':')
            words = value.split()
            if len(words) == 2 and words[1] == 'kB' and words[0].isdecimal():
                sizes[name] = 1024 * int(words[0])
    return sizes
