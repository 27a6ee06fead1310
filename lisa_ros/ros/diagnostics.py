# SPDX-License-Identifier: Apache-2.0
"""What /diagnostics says: model and memory, each input topic, the requests.

Built by hand, since diagnostic_updater is not there in every install. `TopicWatch.heard` is called
for every message, the rest once a period, on other threads. `node` is the fully qualified name:
all nodes of a graph share /diagnostics, and viewers sort it by these names.
"""

from __future__ import annotations

import resource
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from lisa_ros.session.request import RequestCounters
from lisa_ros.session.scheduler import RequestScheduler
from lisa_ros.settings import Settings

OK, WARN, ERROR, STALE = (
    DiagnosticStatus.OK,
    DiagnosticStatus.WARN,
    DiagnosticStatus.ERROR,
    DiagnosticStatus.STALE,
)
_SILENT = 2.0  # an input that says nothing for so long is called silent [s]


@dataclass
class TopicWatch:
    """One input: how often it comes, whether anyone publishes it, what its QoS collides with."""

    topic: str  # full name
    needed: bool  # without it nothing is answered
    incompatible: str = ''  # QoS policy that publisher and node disagree on
    arrivals: deque[float] = field(default_factory=lambda: deque(maxlen=60))

    def heard(self) -> None:
        """Note that a message came now."""
        self.arrivals.append(time.monotonic())

    def rate(self) -> float:
        """Return the messages a second over the last sixty of them [Hz]."""
        if len(self.arrivals) < 2:
            return 0.0
        return (len(self.arrivals) - 1) / max(self.arrivals[-1] - self.arrivals[0], 1e-9)

    def silence(self) -> float:
        """Return the time since the last message [s], infinite before the first."""
        return time.monotonic() - self.arrivals[-1] if self.arrivals else float('inf')


def model_status(node: str, settings: Settings, device: str) -> DiagnosticStatus:
    """Return the state of the memory and of the model, on this device ('': not loaded)."""
    values = {
        'model': settings.model,
        'device': device or settings.device,
        'precision': settings.precision,
        **_memory(loaded=bool(device)),
    }
    if device:
        return _status(node, OK, 'model', f'{settings.model} is loaded', values)
    return _status(node, WARN, 'model', 'no model: the node is not configured', values)


def topic_status(node: str, watch: TopicWatch, publishers: int) -> DiagnosticStatus:
    """Return the state of one input that `publishers` nodes publish now."""
    silence = watch.silence()
    values = {
        'rate [Hz]': f'{watch.rate() if silence < _SILENT else 0:.1f}',
        'publishers': publishers,
        'last message [s ago]': f'{silence:.1f}' if watch.arrivals else 'never',
    }
    missing = ERROR if watch.needed else OK  # depth and camera info are optional
    name = f'input {watch.topic}'
    if watch.incompatible and silence > _SILENT:
        cure = f'set qos_overrides.{watch.topic}.subscription'
        message = f'QoS of the publisher is incompatible ({watch.incompatible}): {cure}'
        return _status(node, ERROR, name, message, values)
    if publishers == 0:
        message = 'nobody publishes it' + ('' if watch.needed else ' (optional)')
        return _status(node, missing, name, message, values)
    if silence > _SILENT:
        return _status(node, WARN, name, 'there is a publisher, but no message comes', values)
    return _status(node, OK, name, f'{watch.rate():.1f} Hz', values)


def request_status(node: str, session: RequestScheduler, last_seconds: float) -> DiagnosticStatus:
    """Return the state of the requests; `last_seconds` is how long the last answer took."""
    counts: RequestCounters = session.counts
    values = {
        'commands': counts.commands,
        'answered': counts.answered,
        'failed': counts.failed,
        'cancelled': counts.cancelled,
        'superseded (dropped)': counts.superseded,
        'without depth': counts.without_depth,
        'images': counts.images,
        'running for [s]': f'{session.seconds_running:.1f}',
        'waiting for [s]': f'{session.seconds_waiting:.1f}',
        'last answer took [s]': f'{last_seconds:.2f}',
    }
    if session.seconds_waiting > _SILENT and not counts.images:
        return _status(node, WARN, 'requests', 'a command waits for the first image', values)
    if session.seconds_running:
        return _status(node, OK, 'requests', 'answering', values)
    return _status(node, OK, 'requests', 'ready', values)


def _status(
    node: str, level: bytes, name: str, message: str, values: dict[str, Any]
) -> DiagnosticStatus:
    return DiagnosticStatus(
        level=level,
        name=f'{node}: {name}',
        message=message,
        hardware_id=node,
        values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
    )


def _memory(loaded: bool) -> dict[str, str]:
    """Return the memory of the process and, where the model uses a GPU, of that [MiB]."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    values = {'peak memory [MiB]': f'{peak:.0f}'}
    if loaded:  # before that, another thread may be in the middle of importing torch
        import torch

        if torch.cuda.is_available() and torch.cuda.is_initialized():
            values['GPU memory [MiB]'] = f'{torch.cuda.memory_allocated() / 2**20:.0f}'
            values['GPU memory reserved [MiB]'] = f'{torch.cuda.memory_reserved() / 2**20:.0f}'
    return values
