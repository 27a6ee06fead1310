# SPDX-License-Identifier: Apache-2.0
"""The messages on /diagnostics: the model and its memory, each input topic, the requests.

Built by hand, since diagnostic_updater is not in every install.

Threads: any; counters of other threads are read without a lock.
"""

from __future__ import annotations

import platform
import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from lisa_ros.perception.backend import Backend, SupervisedBackend
from lisa_ros.perception.health import HealthState, ModelHealth
from lisa_ros.ros.inputs import TopicWatch
from lisa_ros.session.image_age import Clock
from lisa_ros.session.scheduler import RequestScheduler
from lisa_ros.settings import Settings

OK, WARN, ERROR, STALE = (
    DiagnosticStatus.OK,
    DiagnosticStatus.WARN,
    DiagnosticStatus.ERROR,
    DiagnosticStatus.STALE,
)
_RECENT_FAILURE = 10.0  # how long a model's failure is a warning after it answers again [s]
_SLOW_ANSWER = 30.0  # an answer that takes longer is a warning [s]
_SILENT_AFTER = 2.0  # an input without a message for this time is called silent [s]


@dataclass(frozen=True)
class StatusSource:
    """Which part of which node reports, and on which hardware."""

    name: str  # fully qualified node name, with the camera: viewers sort /diagnostics by it
    hardware_id: str

    def status(
        self, level: bytes, part: str, message: str, values: dict[str, Any]
    ) -> DiagnosticStatus:
        """Return a status of one part of the node."""
        return DiagnosticStatus(
            level=level,
            name=f'{self.name}: {part}',
            message=message,
            hardware_id=self.hardware_id,
            values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
        )


def hardware_id(device: str) -> str:
    """Return the name of the hardware: the host and the device of the model on it."""
    return f'{platform.node()} {device}'


def model_status(
    source: StatusSource,
    settings: Settings,
    device: str,
    health: ModelHealth | None = None,
    memory: Mapping[str, str] = MappingProxyType({}),
) -> DiagnosticStatus:
    """Return the state of the model and of the memory.

    Args:
        source: the node.
        settings: of the node.
        device: of the model; empty: no model is loaded.
        health: of the model; None: no model is loaded.
        memory: of the model's process, from `model_memory`.
    """
    values = {
        'model': settings.model,
        'device': device or settings.device,
        'precision': settings.precision,
        'isolation': settings.isolation,
        **_memory(is_loaded=bool(device)),
        **memory,
    }
    if not device or health is None:
        return source.status(WARN, 'model', 'no model: the node is not configured', values)
    values['reloads'] = health.reloads
    if health.failure is not None:
        values['last failure'] = health.failure.cause
        values['last failure [s ago]'] = f'{time.monotonic() - health.failure.at:.1f}'
    level, message = _judge_model(settings.model, health)
    return source.status(level, 'model', message, values)


def _judge_model(model: str, health: ModelHealth) -> tuple[bytes, str]:
    """Return the level and the message of a loaded model."""
    seconds = time.monotonic() - health.since
    if health.state in (HealthState.HUNG, HealthState.DEAD):
        return ERROR, health.cause
    if health.state is HealthState.RELOADING:
        return WARN, f'{health.cause} (for {seconds:.1f} s)'
    if health.failure is not None and time.monotonic() - health.failure.at < _RECENT_FAILURE:
        return WARN, f'{model} is loaded; a moment ago: {health.failure.cause}'
    if health.state is HealthState.BUSY:
        level = OK if seconds < _SLOW_ANSWER else WARN
        return level, f'{model} has been answering for {seconds:.1f} s'
    return OK, f'{model} is loaded'


def model_memory(backend: Backend | None) -> dict[str, str]:
    """Return the memory of the process that a model has for itself [MiB]; else nothing."""
    if not isinstance(backend, SupervisedBackend):
        return {}
    values = {'model process memory [MiB]': f'{backend.memory / 2**20:.0f}'}
    if backend.gpu_memory is not None:
        values['GPU memory [MiB]'] = f'{backend.gpu_memory.allocated / 2**20:.0f}'
        values['GPU memory reserved [MiB]'] = f'{backend.gpu_memory.reserved / 2**20:.0f}'
    return values


def topic_status(
    source: StatusSource, watch: TopicWatch, publishers: int, clock: Clock
) -> DiagnosticStatus:
    """Return the state of an input topic that has this number of publishers now."""
    silence = watch.silence()
    values = {
        'rate [Hz]': f'{watch.rate() if silence < _SILENT_AFTER else 0:.1f}',
        'publishers': publishers,
        'last message [s ago]': f'{silence:.1f}' if watch.arrivals else 'never',
        'age at arrival [s]': f'{watch.stamp_age:.3f}' if watch.arrivals else 'unknown',
    }
    part = f'input {watch.topic}'
    if watch.incompatible_qos and silence > _SILENT_AFTER:
        cure = f'set qos_overrides.{watch.topic}.subscription'
        message = f'QoS of the publisher is incompatible ({watch.incompatible_qos}): {cure}'
        return source.status(ERROR, part, message, values)
    if publishers == 0:
        level = ERROR if watch.is_required else OK  # depth and camera info are optional
        message = 'nobody publishes it' + ('' if watch.is_required else ' (optional)')
        return source.status(level, part, message, values)
    if silence > _SILENT_AFTER:
        message = 'there is a publisher, but no message comes'
        return source.status(WARN, part, message, values)
    fault = watch.stamp_fault(clock) if watch.is_required else ''
    if fault:
        return source.status(WARN, part, fault, values)
    return source.status(OK, part, f'{watch.rate():.1f} Hz', values)


def request_status(source: StatusSource, scheduler: RequestScheduler) -> DiagnosticStatus:
    """Return the state of a camera's requests."""
    counters = scheduler.counters
    values = {
        'commands': counters.commands,
        'answered': counters.answered,
        'failed': counters.failed,
        'timed out': counters.timed_out,
        'stale image': counters.stale,
        'cancelled': counters.cancelled,
        'repeated (cut off)': counters.repeated,
        'superseded (dropped)': counters.superseded,
        'preempted (asked again)': counters.preempted,
        'rejected goals': counters.rejected,
        'without depth': counters.without_depth,
        'images': counters.images,
        'running for [s]': f'{scheduler.seconds_running:.1f}',
        'waiting for [s]': f'{scheduler.seconds_waiting:.1f}',
        'last answer took [s]': f'{counters.last_seconds:.2f}',
    }
    if scheduler.seconds_waiting > _SILENT_AFTER and not counters.images:
        return source.status(WARN, 'requests', 'a command waits for the first image', values)
    if scheduler.seconds_running:
        return source.status(OK, 'requests', 'answering', values)
    return source.status(OK, 'requests', 'ready', values)


def _memory(is_loaded: bool) -> dict[str, str]:
    """Return the memory of the process and, if the model uses a GPU, of that [MiB]."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    values = {'peak memory [MiB]': f'{peak:.0f}'}
    # Before that, another thread may be in the middle of importing torch.
    torch = sys.modules.get('torch') if is_loaded else None
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        values['GPU memory [MiB]'] = f'{torch.cuda.memory_allocated() / 2**20:.0f}'
        values['GPU memory reserved [MiB]'] = f'{torch.cuda.memory_reserved() / 2**20:.0f}'
    return values
