# SPDX-License-Identifier: Apache-2.0
"""The messages on /diagnostics: one status for each part of the node.

`lisa_ros/health` judges the parts; health_reports.py tells it their state. Built by hand, since
diagnostic_updater is not in every install.

Threads: the executor's. Nothing here waits.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from lisa_ros.health.depth import judge_depth
from lisa_ros.health.goals import judge_goals
from lisa_ros.health.inputs import judge_input
from lisa_ros.health.memory import judge_memory
from lisa_ros.health.model import judge_model
from lisa_ros.health.node import Lifecycle, judge_node
from lisa_ros.health.requests import judge_requests
from lisa_ros.health.transforms import judge_transforms
from lisa_ros.health.verdict import Verdict
from lisa_ros.perception.backend import Backend
from lisa_ros.ros import health_reports
from lisa_ros.ros.action_server import SegmentActionServer
from lisa_ros.ros.cameras import Cameras
from lisa_ros.ros.context import NodeContext
from lisa_ros.session.inference_thread import InferenceThread

_LEVELS = (DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR)


@dataclass(frozen=True)
class ModelParts:
    """What a node has of its model at one moment."""

    backend: Backend | None  # None: not configured
    inference: InferenceThread | None
    loading_since: float | None  # [s, monotonic]; None: it is not being loaded


class Diagnostics:
    """Publishes the state of a node."""

    def __init__(self, context: NodeContext, cameras: Cameras, actions: SegmentActionServer):
        """Make the publisher; call `publish` periodically."""
        self._context, self._cameras, self._actions = context, cameras, actions
        self._publisher = context.node.create_publisher(DiagnosticArray, '/diagnostics', 10)
        self._same_name = health_reports.SameName(context.node)
        self._stopped: set[str] = set()  # topics of inputs that have stopped

    def publish(self, model: ModelParts, lifecycle: Lifecycle) -> None:
        """Publish the state of all parts."""
        node, settings = self._context.node, self._context.settings.value
        device = str(model.backend.device) if model.backend else settings.device
        statuses = [
            _status(f'{node.get_fully_qualified_name()}{part}', device, verdict)
            for part, verdict in self._verdicts(model, lifecycle)
        ]
        message = DiagnosticArray(status=statuses)
        message.header.stamp = node.get_clock().now().to_msg()
        self._publisher.publish(message)

    def publish_if_input_stopped(self, model: ModelParts, lifecycle: Lifecycle) -> None:
        """Publish the state of all parts if an input has stopped since the last call."""
        stopped = {watch.topic for watch in self._cameras.inputs if watch.has_stopped()}
        has_changed, self._stopped = bool(stopped - self._stopped), stopped
        if has_changed:
            self.publish(model, lifecycle)

    def _verdicts(self, model: ModelParts, lifecycle: Lifecycle) -> Iterator[tuple[str, Verdict]]:
        """Yield the rest of each status's name, and its verdict."""
        context, cameras, now = self._context, self._cameras, time.monotonic()
        yield ': node', judge_node(self._same_name.report(now, lifecycle))
        yield (
            ': model',
            judge_model(
                health_reports.model_report(
                    now, context, cameras, model.backend, model.inference, model.loading_since
                )
            ),
        )
        yield ': memory', judge_memory(health_reports.memory_report(context, model.backend))
        if context.transforms.is_used:
            report = health_reports.transform_report(now, context, cameras)
            yield ': transforms', judge_transforms(report)
        yield ': goals', judge_goals(health_reports.goal_report(context, self._actions))
        for watch in cameras.inputs:
            report = health_reports.input_report(context.node, watch)
            yield f': input {watch.topic}', judge_input(report)
        for camera in cameras:
            scheduler = camera.scheduler  # another thread may remove it
            if scheduler is None:
                continue
            part = f' {camera.name}'.rstrip()
            report = health_reports.request_report(now, scheduler)
            yield f'{part}: requests', judge_requests(report)
            newest, position = scheduler.newest_messages(), camera.newest_position
            report = health_reports.depth_report(now, context, newest, position)
            yield f'{part}: depth', judge_depth(report)


def _status(name: str, device: str, verdict: Verdict) -> DiagnosticStatus:
    """Return a verdict as a message; viewers sort /diagnostics by name."""
    return DiagnosticStatus(
        level=_LEVELS[verdict.level],
        name=name,
        message=verdict.message,
        hardware_id=f'{platform.node()} {device}',
        values=[KeyValue(key=key, value=str(value)) for key, value in verdict.values.items()],
    )
