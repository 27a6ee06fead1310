# SPDX-License-Identifier: Apache-2.0
"""The topic ~/state: what the node does now, for panels and dashboards.

The message is latched and published when it changes, so that a panel that starts late has it.

Threads: the executor's. Nothing here waits.
"""

from __future__ import annotations

from lisa_ros.health.node import Lifecycle
from lisa_ros.msg import CameraState, NodeState
from lisa_ros.perception.backend import precision_of
from lisa_ros.ros.camera_pipeline import CameraPipeline
from lisa_ros.ros.cameras import Cameras
from lisa_ros.ros.context import NodeContext
from lisa_ros.ros.diagnostics import ModelParts
from lisa_ros.ros.qos import latched_qos


class StatePublisher:
    """Publishes the state of a node."""

    def __init__(self, context: NodeContext, cameras: Cameras):
        """Make the publisher; call `publish_if_changed` periodically."""
        self._context, self._cameras = context, cameras
        self._publisher = context.node.create_publisher(NodeState, '~/state', latched_qos())
        self._last: NodeState | None = None

    def publish_if_changed(self, model: ModelParts, lifecycle: Lifecycle) -> None:
        """Publish the state if it is another one than at the last call."""
        state = self._state(model, lifecycle)
        if state == self._last:
            return
        message = NodeState(**{name: getattr(state, name) for name in _FIELDS})
        message.header.stamp = self._context.node.get_clock().now().to_msg()
        self._publisher.publish(message)
        self._last = state

    def _state(self, model: ModelParts, lifecycle: Lifecycle) -> NodeState:
        """Return the state with an empty header."""
        state = NodeState(
            lifecycle=lifecycle.state, cameras=[_camera_state(camera) for camera in self._cameras]
        )
        if model.backend is not None:
            state.model = self._context.settings.value.model
            state.device = str(model.backend.device)
            state.precision = precision_of(model.backend)
        return state


_FIELDS = [name for name in NodeState.get_fields_and_field_types() if name != 'header']


def _camera_state(camera: CameraPipeline) -> CameraState:
    state = CameraState(name=camera.name)
    scheduler, inputs = camera.scheduler, camera.inputs  # another thread may remove them
    if scheduler is not None:
        activity = scheduler.activity()
        state.active_query = activity.active_query
        state.standing_query = activity.standing_query
        state.waiting = activity.waiting
    if inputs:
        state.has_images = bool(inputs[0].arrivals) and not inputs[0].has_stopped()
    return state
