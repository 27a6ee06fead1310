# SPDX-License-Identifier: Apache-2.0
"""A running node as the tools of an agent see it; see agents/node_access.py.

Threads: an executor spins in a thread of its own. Every method may be called from any thread.
"""

from __future__ import annotations

import contextlib
import math
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

import numpy as np
import rclpy
from geometry_msgs.msg import Point as PointMessage
from rclpy.exceptions import NameValidationException
from rclpy.expand_topic_name import expand_topic_name
from rclpy.node import Node
from rclpy.subscription import Subscription
from rclpy.task import Future as RosFuture
from rclpy.validate_full_topic_name import validate_full_topic_name
from rclpy.validate_topic_name import validate_topic_name
from sensor_msgs.msg import CompressedImage

from lisa_ros.action import Segment
from lisa_ros.agents.node_access import (
    Camera,
    FoundObject,
    Goal,
    Memory,
    NodeAnswer,
    NodeState,
    ObjectPlace,
    OverlayWatch,
    Point,
    Progress,
    SeenPlace,
)
from lisa_ros.error_text import error_summary, one_line
from lisa_ros.errors import ImageError, LisaError, SettingsError
from lisa_ros.messages.image import message_to_rgb
from lisa_ros.messages.stamp import stamp_ns
from lisa_ros.msg import Instance
from lisa_ros.msg import NodeState as NodeStateMessage
from lisa_ros.ros import fastdds
from lisa_ros.ros.action_client import Answer, GoalFuture, LisaClient
from lisa_ros.ros.executor import GuardedExecutor
from lisa_ros.ros.initialization import initialize
from lisa_ros.ros.qos import latched_qos
from lisa_ros.ros.service_guard import guard_services
from lisa_ros.srv import Recall

_DISCOVERY_DELAY = 0.3  # for a publisher to discover a new subscription, too [s]
_POLL_PERIOD = 0.02  # at which a publisher or an overlay is looked for [s]
_KEPT_OVERLAYS = 8  # of each camera
_RECALL_PERIOD = 3.0  # at which a request is repeated [s]
_CLOSE_TIMEOUT = 1.0  # for goals to end that are cancelled at the end [s]


class RosNodeAccess:
    """A `NodeAccess` over ROS 2."""

    def __init__(self, name: str):
        """Join the ROS graph; the node need not be there yet.

        Args:
            name: of the node, such as lisa or /arm/lisa.

        Raises:
            SettingsError: it is not a name, or ROS cannot be initialized.
        """
        try:
            validate_topic_name(name)
            validate_full_topic_name(expand_topic_name(name, 'agent', '/'))
        except NameValidationException as error:
            raise SettingsError(
                f'{name!r} is not the name of a node: {one_line(error)}; expected one such as '
                'lisa or /arm/lisa'
            ) from error
        fastdds.configure_shared_memory()
        initialize(['lisa-ros'])  # without signal handlers: the server has its own
        node_name = f'lisa_mcp_{secrets.token_hex(4)}'  # processes of containers have equal ids
        self._node = Node(node_name, start_parameter_services=False)
        self._executor = GuardedExecutor(self._node.get_logger())
        guard_services(self._node, self._executor.errors)
        self._state: NodeState | None = None
        self._pending: set[_PendingGoal] = set()
        self._overlays = _Overlays(self._node, name)
        self.name = self._node.resolve_topic_name(name)
        self._client = LisaClient(self._node, name)
        self._recall = self._node.create_client(Recall, f'{name}/recall')
        self._node.create_subscription(
            NodeStateMessage, f'{name}/state', self._on_state, latched_qos()
        )
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._executor.spin, name='mcp-ros', daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Cancel all goals, wait a moment for their end, and leave the ROS graph."""
        pending = list(self._pending)
        for goal in pending:
            goal.cancel()
        end = time.monotonic() + _CLOSE_TIMEOUT
        for goal in pending:
            goal.wait(max(0.0, end - time.monotonic()))
        self._executor.stop()
        self._thread.join(_CLOSE_TIMEOUT)
        self._client.destroy()
        self._node.destroy_node()
        rclpy.try_shutdown()

    # ---- NodeAccess

    def find(self, timeout: float) -> None:
        """See NodeAccess."""
        self._client.find(timeout)

    def state(self) -> NodeState | None:
        """See NodeAccess."""
        return self._state

    def send(self, goal: Goal, on_change: Callable[[], None]) -> _PendingGoal:
        """See NodeAccess."""
        pending = _PendingGoal(on_change)
        sent = self._client.segment_async(
            goal.query,
            timeout=0.0,
            on_feedback=pending.note,
            camera=goal.camera,
            dialogue=goal.dialogue,
            answer_probability=goal.yes_no,
        )
        self._pending.add(pending)
        pending.future.add_done_callback(lambda _: self._pending.discard(pending))
        pending.follow(sent)
        return pending

    def recall(self, query: str, timeout: float) -> Memory:
        """See NodeAccess.

        Fast DDS may lose the response to a client that the node has just discovered: the node is
        asked again then.
        """
        end = time.monotonic() + timeout
        self._recall.wait_for_service(timeout)
        while (left := end - time.monotonic()) > 0:
            called: Future[Recall.Response] = Future()
            call = self._recall.call_async(Recall.Request(query=query))
            call.add_done_callback(lambda source, target=called: _copy_result(source, target))
            with contextlib.suppress(FutureTimeoutError):
                return _memory(called.result(min(left, _RECALL_PERIOD)))
        raise LisaError(
            f'no response of {self.name}/recall within {timeout:g} s: check that the node runs'
        )

    def watch_overlay(self, camera: str, timeout: float) -> OverlayWatch:
        """See NodeAccess."""
        end = time.monotonic() + timeout
        while self._state is None and time.monotonic() < end:
            time.sleep(_POLL_PERIOD)
        cameras = self._state.cameras if self._state else ()
        if len(cameras) == 1:  # a goal need not name it
            camera = cameras[0].name
        return self._overlays.watch(camera, max(0.0, end - time.monotonic()))

    def overlay(self, watch: OverlayWatch, stamp: int, timeout: float) -> np.ndarray | None:
        """See NodeAccess."""
        return self._overlays.wait_for(watch, stamp, timeout)

    def _on_state(self, message: NodeStateMessage) -> None:
        self._state = NodeState(
            message.lifecycle,
            message.model,
            message.device,
            message.precision,
            tuple(
                Camera(c.name, c.has_images, c.active_query, c.standing_query, c.waiting)
                for c in message.cameras
            ),
        )


class _PendingGoal:
    """A `PendingAnswer` of a goal."""

    def __init__(self, on_change: Callable[[], None]):
        self.future: Future[NodeAnswer] = Future()
        self.progress = Progress()
        self._on_change = on_change
        self._goal: GoalFuture | None = None
        self._ended = threading.Event()

    def follow(self, goal: GoalFuture) -> None:
        """End when this goal ends."""
        self._goal = goal
        goal.future.add_done_callback(self._on_end)

    def is_lost(self) -> bool:
        """See PendingAnswer."""
        return self._goal is not None and self._goal.is_lost()

    def cancel(self) -> None:
        """See PendingAnswer."""
        if self._goal is not None:
            self._goal.cancel()

    def wait(self, timeout: float) -> None:
        """Wait for the end, up to a time [s]."""
        self._ended.wait(timeout)

    def note(self, feedback: Segment.Feedback) -> None:
        """Note progress, on the executor's thread."""
        self.progress = Progress(feedback.stage, feedback.text, self.progress.updates + 1)
        self._on_change()

    def _on_end(self, goal: RosFuture) -> None:
        _copy_result(goal, self.future, _node_answer)
        self._ended.set()
        self._on_change()


class _Overlays:
    """The newest overlay images of the cameras that are watched."""

    def __init__(self, node: Node, name: str):
        self._node, self._name = node, name
        self._lock = threading.Lock()
        self._cameras: dict[str, _CameraOverlays] = {}

    def watch(self, camera: str, timeout: float) -> OverlayWatch:
        """Subscribe, and wait for the publisher, up to `timeout` [s]; again: no effect.

        Without a publisher the subscription ends: an agent may name any number of cameras.
        """
        with self._lock:
            is_new = camera not in self._cameras
            if is_new:
                overlays = _CameraOverlays()
                try:
                    overlays.subscription = self._node.create_subscription(
                        CompressedImage, self._topic(camera), overlays.add, 10
                    )
                except NameValidationException:  # there is no such camera, as the node will say
                    return OverlayWatch(camera, time.monotonic())
                self._cameras[camera] = overlays
        if is_new and not self._wait_for_publisher(camera, timeout):
            with self._lock:
                del self._cameras[camera]
            self._node.destroy_subscription(overlays.subscription)
        return OverlayWatch(camera, time.monotonic())

    def wait_for(self, watch: OverlayWatch, stamp: int, timeout: float) -> np.ndarray | None:
        """Return the image with a stamp [ns]; None if it does not come in time or is broken."""
        end = time.monotonic() + timeout
        while True:
            with self._lock:
                overlays = self._cameras.get(watch.camera)
            image = overlays and overlays.newest(stamp, watch.since)
            if image is not None:
                try:
                    return message_to_rgb(image)
                except ImageError:
                    return None
            if overlays is None or time.monotonic() > end:
                return None
            time.sleep(_POLL_PERIOD)

    def _wait_for_publisher(self, camera: str, timeout: float) -> bool:
        """Return whether there is one within `timeout` [s]."""
        topic = self._node.resolve_topic_name(self._topic(camera))
        end = time.monotonic() + timeout
        while not self._node.count_publishers(topic):
            if time.monotonic() > end:
                return False
            time.sleep(_POLL_PERIOD)
        time.sleep(_DISCOVERY_DELAY)
        return True

    def _topic(self, camera: str) -> str:
        return '/'.join(filter(None, (self._name, camera, 'overlay/compressed')))


class _CameraOverlays:
    """The newest overlay images of a camera. Any thread."""

    def __init__(self) -> None:
        self.subscription: Subscription | None = None
        self._images: deque[tuple[float, CompressedImage]] = deque(maxlen=_KEPT_OVERLAYS)

    def add(self, image: CompressedImage) -> None:
        """Keep an image that arrives now."""
        self._images.append((time.monotonic(), image))

    def newest(self, stamp: int, since: float) -> CompressedImage | None:
        """Return the newest image with a stamp [ns] that came since a time [s, monotonic]."""
        for arrival, image in reversed(self._images.copy()):
            if arrival >= since and stamp_ns(image.header) == stamp:
                return image
        return None


def _copy_result(
    source: RosFuture, target: Future, convert: Callable[[Any], Any] = lambda result: result
) -> None:
    """Give a future of Python the result of one of rclpy, or its error as a LisaError."""
    try:
        try:
            target.set_result(convert(source.result()))
        except LisaError as error:
            target.set_exception(error)
        except Exception as error:  # noqa: BLE001  # any error must reach the caller that waits
            target.set_exception(LisaError(error_summary(error)))
    except InvalidStateError:  # nobody waits any more
        pass


def _node_answer(answer: Answer) -> NodeAnswer:
    message = answer.message
    masks = answer.masks
    probability = answer.yes_probability
    return NodeAnswer(
        status=answer.status,
        reason=answer.reason,
        answer=answer.answer,
        frame=answer.header.frame_id,
        stamp=stamp_ns(answer.header),
        image_size=(masks.shape[2], masks.shape[1]) if len(masks) else None,
        objects=tuple(map(_found_object, message.instances, masks)),
        place_reason=message.place_reason,
        yes_probability=None if math.isnan(probability) else probability,
    )


def _found_object(instance: Instance, mask: np.ndarray) -> FoundObject:
    rows, columns = np.nonzero(mask)
    box = instance.box
    return FoundObject(
        name=instance.name,
        score=instance.score,
        box=(box.x_offset, box.y_offset, box.width, box.height),
        centre=(float(columns.mean()), float(rows.mean())) if len(rows) else None,
        area=instance.area,
        place=_place(instance),
    )


def _place(instance: Instance) -> ObjectPlace | None:
    """Return where an object is; None if it is unknown."""
    position, turn = instance.box_pose.position, instance.box_pose.orientation
    place = ObjectPlace(
        centroid=_point(instance.centroid),
        nearest=_point(instance.nearest),
        box_centre=_point(position),
        box_orientation=(turn.x, turn.y, turn.z, turn.w),
        box_size=_point(instance.box_size),
        depth_confidence=instance.depth_confidence,
    )
    numbers = (*place.centroid, *place.nearest, *place.box_centre, *place.box_size)
    return place if all(map(math.isfinite, numbers)) else None


def _point(message: PointMessage) -> Point:
    return message.x, message.y, message.z


def _memory(response: Recall.Response) -> Memory:
    places = [
        SeenPlace(
            place.name,
            _point(place.position),
            age,
            place.confidence,
            place.camera,
            place.sightings,
        )
        for place, age in zip(response.places, response.ages, strict=True)
    ]
    return Memory(response.answer, response.header.frame_id, tuple(places))
