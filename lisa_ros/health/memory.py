# SPDX-License-Identifier: Apache-2.0
"""Judge the memory of the node, of the model's process and of the computer."""

from __future__ import annotations

from dataclasses import dataclass

from lisa_ros.health.verdict import Level, Problem, Verdict, verdict
from lisa_ros.model.cache_use import CacheUse
from lisa_ros.perception.process_memory import GpuMemory, ProcessMemory, SystemMemory

_MIB = 2**20
_NEAR_LIMIT = 0.9  # share of `worker_memory_limit`
_LITTLE = 0.05  # share of the computer's memory that should be free


@dataclass(frozen=True)
class MemoryReport:
    """Memory at one moment."""

    node: ProcessMemory
    model: ProcessMemory | None  # None: the model has no process of its own
    model_limit: int  # `worker_memory_limit` [bytes]; 0: none
    gpu: GpuMemory | None  # None: no GPU
    system: SystemMemory
    cache: CacheUse | None = None  # None: the model keeps no prompts


def judge_memory(report: MemoryReport) -> Verdict:
    """Return the state of the memory."""
    available = report.system.available / _MIB
    total = (report.node.now + (report.model.now if report.model else 0)) / _MIB
    healthy = f'{total:.0f} MiB are used, {available:.0f} MiB are free'
    return verdict([_near_limit(report), _little_left(report)], healthy, _values(report))


def _near_limit(report: MemoryReport) -> Problem | None:
    if not report.model or not report.model_limit:
        return None
    used, limit = report.model.now, report.model_limit
    if used < _NEAR_LIMIT * limit:
        return None
    text = f"the model's process uses {used // _MIB} MiB and is ended above {limit // _MIB} MiB"
    return Problem(
        Level.WARN, f'{text}: raise worker_memory_limit, or use a smaller model or image'
    )


def _little_left(report: MemoryReport) -> Problem | None:
    system = report.system
    if system.available >= _LITTLE * system.total:
        return None
    victim = "the model's process" if report.model else 'this node'
    return Problem(
        Level.WARN,
        f'{system.available // _MIB} MiB of the memory of this computer are free; when they are '
        f'used, the kernel ends {victim}: close programs, or use a smaller model or precision '
        'bf16',
    )


def _values(report: MemoryReport) -> dict[str, object]:
    values = {
        'memory [MiB]': f'{report.node.now / _MIB:.0f}',
        'peak memory [MiB]': f'{report.node.peak / _MIB:.0f}',
        'free memory [MiB]': f'{report.system.available / _MIB:.0f}',
    }
    if report.model is not None and report.model.now:  # a model on a server has none here
        values['model process memory [MiB]'] = f'{report.model.now / _MIB:.0f}'
    if report.model is not None and report.model.peak:
        values['model process peak memory [MiB]'] = f'{report.model.peak / _MIB:.0f}'
    if report.model_limit:
        values['worker_memory_limit [MiB]'] = report.model_limit // _MIB
    if report.gpu is not None:
        values['GPU memory [MiB]'] = f'{report.gpu.allocated / _MIB:.0f}'
        values['GPU memory reserved [MiB]'] = f'{report.gpu.reserved / _MIB:.0f}'
    if report.cache is not None:
        values['prompts in cache'] = report.cache.prompts
        values['cache [MiB]'] = f'{report.cache.bytes / _MIB:.0f}'
        values['cache_memory [MiB]'] = report.cache.limit // _MIB
    return values
