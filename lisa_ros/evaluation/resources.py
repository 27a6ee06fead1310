# SPDX-License-Identifier: Apache-2.0
"""What a model costs beside time to answer: its load time and its memory.

The figures are those of the process that runs the model, with its libraries and the image at
hand. They tell models apart only if each has a process of its own (`isolated_run`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lisa_ros.files.json_schema import NUMBER
from lisa_ros.perception.process_memory import peak_gpu_memory, process_memory
from lisa_ros.perception.segmenter import Segmenter

# keys of `report.Run.conditions`
LOAD_TIME = 'load time [s]'
PEAK_MEMORY = 'peak memory [MiB]'
PEAK_GPU_MEMORY = 'peak GPU memory [MiB]'
# of a live run; the model is in a process of its own, or in the node
NODE_PEAK_MEMORY = "node's peak memory [MiB]"
MODEL_PEAK_MEMORY = "model process's peak memory [MiB]"

_MIB = 2**20


def used_resources(segmenter: Segmenter) -> dict[str, float]:
    """Return load time and peak memory so far of the model in this process; unknown ones lack."""
    measured = {
        LOAD_TIME: segmenter.load_seconds,
        PEAK_MEMORY: process_memory().peak / _MIB or None,
        PEAK_GPU_MEMORY: (peak_gpu_memory() or 0) / _MIB or None,
    }
    return {name: value for name, value in measured.items() if value is not None}


def measured_resources(timings: Mapping) -> dict[str, float]:
    """Return the resources in a report.

    Args:
        timings: content of its timings.json, as `report_files.read_report` returns it.
    """
    conditions = timings.get('conditions', {})
    found = {
        LOAD_TIME: conditions.get(LOAD_TIME),
        PEAK_MEMORY: next(
            (
                conditions[name]
                for name in (PEAK_MEMORY, MODEL_PEAK_MEMORY, NODE_PEAK_MEMORY)
                if name in conditions
            ),
            None,
        ),
        PEAK_GPU_MEMORY: conditions.get(PEAK_GPU_MEMORY),
    }
    return {name: float(value) for name, value in found.items() if NUMBER.accepts(value)}


def largest(resources: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the largest value of each resource: several processes ran the same model."""
    result: dict[str, float] = {}
    for measured in resources:
        for name, value in measured.items():
            result[name] = max(value, result.get(name, value))
    return result
