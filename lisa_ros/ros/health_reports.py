# SPDX-License-Identifier: Apache-2.0
"""Read the state of the parts of a node, for `lisa_ros/health` to judge.

Threads: the executor's. Nothing here waits; counters of other threads are read without a lock.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rclpy.lifecycle import LifecycleNode

from lisa_ros.errors import ImageError
from lisa_ros.health.depth import DepthReport, ImageReport
from lisa_ros.health.goals import GoalReport
from lisa_ros.health.inputs import InputReport, other_type_fault
from lisa_ros.health.memory import MemoryReport
from lisa_ros.health.model import ModelReport
from lisa_ros.health.node import Lifecycle, NodeReport
from lisa_ros.health.outcomes import Outcome
from lisa_ros.health.requests import RequestReport
from lisa_ros.health.transforms import TransformReport
from lisa_ros.messages.camera_info import camera_from_info, image_size_fault
from lisa_ros.messages.image import depth_unit_doubt
from lisa_ros.optional_packages import is_served
from lisa_ros.perception.backend import (
    Backend,
    ReportsCache,
    ReportsPeakMemory,
    SupervisedBackend,
    precision_of,
)
from lisa_ros.perception.process_memory import (
    ProcessMemory,
    gpu_memory,
    process_memory,
    system_memory,
)
from lisa_ros.ros.action_server import SegmentActionServer
from lisa_ros.ros.cameras import Cameras
from lisa_ros.ros.context import NodeClock, NodeContext
from lisa_ros.ros.graph_names import full_name
from lisa_ros.ros.inputs import TopicWatch
from lisa_ros.ros.qos import are_all_latched
from lisa_ros.session.frame_buffer import NewestMessages
from lisa_ros.session.inference_batch import BatchUse
from lisa_ros.session.inference_thread import InferenceThread
from lisa_ros.session.scheduler import MAX_UNDELIVERED, RequestScheduler


class SameName:
    """Looks for other nodes with the name of a node."""

    def __init__(self, node: LifecycleNode):
        self._node = node
        self._since: float | None = None  # when one was first seen [s, monotonic]

    def report(self, now: float, lifecycle: Lifecycle) -> NodeReport:
        """Return the state of the node; `now` [s, monotonic]."""
        name = self._node.get_fully_qualified_name()
        names = self._node.get_node_names_and_namespaces()
        count = sum(full_name(node, namespace) == name for node, namespace in names)
        if count < 2:
            self._since = None
        elif self._since is None:
            self._since = now
        return NodeReport(now, name, lifecycle, max(1, count), self._since)


def model_report(
    now: float,
    context: NodeContext,
    cameras: Cameras,
    backend: Backend | None,
    inference: InferenceThread | None,
    loading_since: float | None,
) -> ModelReport:
    """Return the state of the model; times in seconds on the monotonic clock."""
    settings = context.settings.value
    ends = [end for scheduler in cameras.schedulers for end in scheduler.history.ends]
    return ModelReport(
        now,
        settings.model,
        str(backend.device) if backend else settings.device,
        precision_of(backend) if backend else '',
        'server' if is_served(settings.model) else settings.isolation,
        settings.fallback_model,
        inference.health if inference and backend else None,
        loading_since,
        sorted(ends, key=lambda end: end.at),
        settings.answer_timeout,
        inference.batch_use if inference else BatchUse(1),
    )


def memory_report(context: NodeContext, backend: Backend | None) -> MemoryReport:
    """Return the memory of the processes and of the GPU."""
    model, gpu = None, gpu_memory() if backend else None
    if isinstance(backend, SupervisedBackend):
        has_peak = isinstance(backend, ReportsPeakMemory)
        model = ProcessMemory(backend.memory, backend.peak_memory if has_peak else 0)
        gpu = backend.gpu_memory
    limit = context.settings.value.worker_memory_limit * 2**20
    cache = backend.cache_use if isinstance(backend, ReportsCache) else None
    return MemoryReport(process_memory(), model, limit, gpu, system_memory(), cache)


def goal_report(context: NodeContext, actions: SegmentActionServer) -> GoalReport:
    """Return the goals that have not ended."""
    return GoalReport(
        time.monotonic(),
        actions.open_goals(),
        context.settings.value.goals_per_client,
        actions.departures,
    )


def input_report(node: LifecycleNode, watch: TopicWatch) -> InputReport:
    """Return the state of an input topic."""
    found = node.get_publishers_info_by_topic(watch.topic)
    publishers = [info for info in found if info.topic_type == watch.type_name]
    others = {
        full_name(info.node_name, info.node_namespace): info.topic_type
        for info in found
        if info not in publishers
    }
    return InputReport(
        watch.topic,
        watch.is_required,
        [full_name(info.node_name, info.node_namespace) for info in publishers],
        are_all_latched(publishers),
        watch.silence(),
        watch.rate(),
        watch.stamp_age,
        watch.incompatible_qos,
        watch.stamp_fault(NodeClock(node)),
        other_type_fault(watch.type_name, others),
    )


def request_report(now: float, scheduler: RequestScheduler) -> RequestReport:
    """Return the requests of a camera; `now` [s, monotonic]."""
    return RequestReport(
        now,
        scheduler.counters,
        scheduler.history.ends,
        scheduler.history.rejections,
        scheduler.waiting_goals,
        scheduler.goals_kept,
        scheduler.seconds_waiting,
        scheduler.seconds_running,
        scheduler.undelivered,
        MAX_UNDELIVERED,
        scheduler.awaits_first_image,
    )


def depth_report(
    now: float, context: NodeContext, newest: NewestMessages, position: Outcome | None
) -> DepthReport:
    """Return whether the depth and the camera info of a camera fit its images."""
    settings = context.settings.value
    info, image = newest.camera_info, _image_report(newest.image)
    info_size, info_fault = _calibration(info, settings.image_is_rectified)
    if info_size and image and image.size:
        info_fault = image_size_fault(info, image.size)
    return DepthReport(
        now,
        image,
        _image_report(newest.depth),
        info is not None,
        info_size,
        '' if info is None else info.header.frame_id,
        info_fault,
        newest.stamp_gap,
        settings.depth_tolerance,
        position,
        _depth_doubt(newest.depth),
    )


def _image_report(message: Any) -> ImageReport | None:
    if message is None:
        return None
    has_size = hasattr(message, 'width')  # a CompressedImage has none
    return ImageReport(
        message.header.frame_id, (message.width, message.height) if has_size else None
    )


def _calibration(message: Any, is_rectified: bool) -> tuple[tuple[int, int] | None, str]:
    """Return the size of a camera info's images, and why it cannot be used."""
    if message is None:
        return None, ''
    try:
        size = camera_from_info(message, is_rectified).size
    except ImageError as error:
        return None, str(error)
    return (None if 0 in size else tuple(size)), ''


def _depth_doubt(message: Any) -> str:
    """Return why the depth may be in another unit, or why it cannot be read."""
    try:
        return '' if message is None else depth_unit_doubt(message)
    except ImageError as error:
        return str(error)


def transform_report(now: float, context: NodeContext, cameras: Cameras) -> TransformReport:
    """Return whether TF knows the transforms that the parameters ask for."""
    settings = context.settings.value
    frames = (settings.target_frame, settings.gravity_frame, settings.map_frame)
    targets = [frame for frame in frames if frame]
    level_frames = [frame for frame in (settings.gravity_frame, settings.map_frame) if frame]
    frame_ids = _frame_ids(cameras)
    return TransformReport(
        now,
        settings.target_frame,
        settings.gravity_frame,
        settings.map_frame,
        context.transforms.lookups.newest,
        context.transforms.missing(frame_ids, targets),
        context.transforms.axis_doubt(frame_ids, level_frames),
    )


def _frame_ids(cameras: Cameras) -> Sequence[str]:
    """Return the frames of the newest images."""
    images = [scheduler.newest_messages().image for scheduler in cameras.schedulers]
    return list(dict.fromkeys(image.header.frame_id for image in images if image is not None))
