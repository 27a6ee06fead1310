# SPDX-License-Identifier: Apache-2.0
"""The input topics of one camera: image, depth, camera_info.

Threads: callbacks run on the executor's thread, keep the message as it is, and return at once.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import qos_policy_name_from_kind
from rclpy.subscription import Subscription
from rclpy.timer import Timer
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from lisa_ros.errors import SettingsError
from lisa_ros.health.inputs import silent_after
from lisa_ros.messages.stamp import stamp_ns
from lisa_ros.ros.context import STEADY_CLOCK, NodeClock
from lisa_ros.ros.message_types import type_name
from lisa_ros.ros.qos import (
    are_all_latched,
    creation_fault,
    input_qos_overrides,
    is_latched,
    is_latched_in_vain,
    latched_qos,
    sensor_qos,
)
from lisa_ros.session.frame_buffer import SyncedMessages
from lisa_ros.session.image_age import (
    MAX_STAMP_AGE,
    STAMP_IS_CONSTANT,
    Clock,
    clock_hint,
    stamp_age,
)
from lisa_ros.session.scheduler import RequestScheduler
from lisa_ros.tracking.worker import TrackingWorker

_PUBLISHER_CHECK_PERIOD = 0.5  # at which an input looks whether its publishers are latched [s]


@dataclass
class TopicWatch:
    """Statistics of one input topic, for the diagnostics; any thread may read them."""

    topic: str  # full name
    type_name: str  # such as sensor_msgs/msg/Image
    is_required: bool  # without it nothing is answered
    incompatible_qos: str = ''  # QoS policy on which publisher and node disagree
    arrivals: deque[float] = field(default_factory=lambda: deque(maxlen=60))  # [s, monotonic]
    # stamps of the last messages [ns]
    stamps: deque[int] = field(default_factory=lambda: deque(maxlen=3))
    stamp_age: float = 0.0  # of the last message at its arrival [s]

    def count(self, stamp: int, clock: Clock) -> None:
        """Note that a message with this stamp [ns] has just arrived."""
        self.incompatible_qos = ''  # of another publisher, or an earlier one
        if len(self.arrivals) > 1 and self.has_stopped():
            self.arrivals.clear()  # the pause does not count for the rate
        self.arrivals.append(time.monotonic())
        self.stamps.append(stamp)
        self.stamp_age = stamp_age(stamp, clock)

    def stamp_fault(self, clock: Clock) -> str:
        """Return what is wrong with the stamps, and the cure; empty if nothing is."""
        stamps, age = tuple(self.stamps), self.stamp_age
        if not stamps:
            return ''
        if not any(stamps):
            return 'its stamps are 0, so its images count as new when they arrive: stamp them'
        if len(stamps) == self.stamps.maxlen and len(set(stamps)) == 1:
            return STAMP_IS_CONSTANT
        if abs(age) <= MAX_STAMP_AGE:
            return ''
        side = 'behind' if age > 0 else 'ahead of'
        hint = clock_hint(age, clock)
        return f"its stamps are {abs(age):.1f} s {side} the node's clock: {hint}"

    def note_incompatible_qos(self, policy: str) -> None:
        """Note the QoS policy on which a publisher and the node disagree."""
        self.incompatible_qos = policy

    def rate(self) -> float:
        """Return the mean rate of the last sixty messages [Hz]."""
        if len(self.arrivals) < 2:
            return 0.0
        return (len(self.arrivals) - 1) / max(self.arrivals[-1] - self.arrivals[0], 1e-9)

    def silence(self) -> float:
        """Return the time since the last message [s], infinite before the first."""
        return time.monotonic() - self.arrivals[-1] if self.arrivals else float('inf')

    def has_stopped(self) -> bool:
        """Return whether messages came before and are missing now."""
        return bool(self.arrivals) and self.silence() > silent_after(self.rate())


class LatchedInput:
    """A subscription that also receives a message that was latched before it existed.

    A camera info may be published once, as a transient local message. A transient local
    subscription receives it, but nothing of a volatile publisher, and makes that publisher log a
    warning. So the subscription is replaced as soon as the publishers require the other kind. If
    there are publishers of both kinds, a second subscription receives the latched messages.
    It stays as it is if `qos_overrides` has set its QoS.
    """

    def __init__(self, node: LifecycleNode, subscription: Subscription):
        """Take over a subscription to a topic; `destroy` removes it."""
        self._node, self._subscription = node, subscription
        self._is_latched = False
        self._second: Subscription | None = None  # latched, beside a volatile one
        self._timer: Timer | None = None

    def start(self) -> None:
        """Look at the publishers now, and twice a second."""
        if self._subscription.qos_profile == sensor_qos():
            self._timer = self._node.create_timer(
                _PUBLISHER_CHECK_PERIOD,
                self._follow,
                clock=STEADY_CLOCK,
            )
            self._follow()

    def destroy(self) -> None:
        """Remove the subscription."""
        if self._timer is not None:
            self._node.destroy_timer(self._timer)
        if self._second is not None:
            self._node.destroy_subscription(self._second)
        self._node.destroy_subscription(self._subscription)

    def _follow(self) -> None:
        publishers = self._node.get_publishers_info_by_topic(self._subscription.topic)
        if not publishers:
            return
        is_only_latched = are_all_latched(publishers)
        if is_only_latched != self._is_latched:
            old, self._is_latched = self._subscription, is_only_latched
            self._subscription = self._subscribe(is_only_latched)
            self._node.destroy_subscription(old)
        needs_second = any(map(is_latched, publishers)) and not is_only_latched
        if needs_second and self._second is None:
            self._second = self._subscribe(True)
        elif not needs_second and self._second is not None:
            self._node.destroy_subscription(self._second)
            self._second = None

    def _subscribe(self, to_latched: bool) -> Subscription:
        """Return one more subscription to the same topic."""
        return self._node.create_subscription(
            self._subscription.msg_type,
            self._subscription.topic,
            self._subscription.callback,
            latched_qos() if to_latched else sensor_qos(),
            # a publisher of the other kind is expected, and no fault
            event_callbacks=SubscriptionEventCallbacks(use_default_callbacks=False),
        )


class CameraInputs:
    """The subscriptions of one camera; messages go to its scheduler, new frames to its tracker."""

    def __init__(
        self,
        node: LifecycleNode,
        scheduler: RequestScheduler,
        tracking: TrackingWorker[SyncedMessages] | None,
    ):
        self._node, self._scheduler, self._tracking = node, scheduler, tracking
        self._clock = NodeClock(node)
        self._subscriptions: list[Subscription] = []
        self._latched: LatchedInput | None = None
        self.watches: list[TopicWatch] = []  # that of the colour image comes first

    def subscribe(self, prefix: str, image_transport: str, depth_transport: str) -> None:
        """Subscribe to all inputs.

        Args:
            prefix: of relative topic names, such as "front/"; may be empty.
            image_transport: raw or compressed.
            depth_transport: raw, compressedDepth or compressed.

        Raises:
            SettingsError: an input cannot be subscribed to.
        """
        image_type, image_topic = self._transported(f'{prefix}image', image_transport)
        depth_type, depth_topic = self._transported(f'{prefix}depth', depth_transport)
        self._subscribe(image_type, image_topic, self._on_image, is_required=True)
        self._subscribe(depth_type, depth_topic, self._on_depth)
        self._subscribe(CameraInfo, f'{prefix}camera_info', self._on_camera_info)
        self._latched = LatchedInput(self._node, self._subscriptions.pop())
        self._latched.start()

    def destroy(self) -> None:
        """Remove the subscriptions."""
        if self._latched is not None:
            self._latched.destroy()
            self._latched = None
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions = []

    def _on_image(self, message: Image | CompressedImage) -> None:
        self._scheduler.add_image(stamp_ns(message.header), message)

    def _on_depth(self, message: Image | CompressedImage) -> None:
        self._scheduler.add_depth(stamp_ns(message.header), message)

    def _on_camera_info(self, message: CameraInfo) -> None:
        self._scheduler.add_camera_info(stamp_ns(message.header), message)

    def _transported(self, topic: str, transport: str) -> tuple[type, str]:
        """Return type and name of a topic of images; as in image_transport, the name of the
        transport follows the topic's name after remapping.
        """
        if transport == 'raw':
            return Image, topic
        return CompressedImage, f'{self._node.resolve_topic_name(topic)}/{transport}'

    def _subscribe(
        self,
        message_type: type,
        topic: str,
        callback: Callable[[Any], None],
        is_required: bool = False,
    ) -> None:
        watch = TopicWatch(
            self._node.resolve_topic_name(topic), type_name(message_type), is_required
        )

        def receive(message: Any) -> None:
            watch.count(stamp_ns(message.header), self._clock)
            callback(message)
            if self._tracking is not None:
                self._tracking.notify()

        def warn_of_qos(event: Any) -> None:
            policy = qos_policy_name_from_kind(event.last_policy_kind)
            watch.note_incompatible_qos(policy)
            self._node.get_logger().warning(
                f'a publisher of {watch.topic} offers a QoS that does not fit ({policy}): '
                f'set qos_overrides.{watch.topic}.subscription.*'
            )

        try:
            subscription = self._node.create_subscription(
                message_type,
                topic,
                receive,
                sensor_qos(),
                event_callbacks=SubscriptionEventCallbacks(incompatible_qos=warn_of_qos),
                qos_overriding_options=input_qos_overrides(),
            )
        except Exception as error:  # rclpy has an exception type for each wrong override
            raise SettingsError(creation_fault('subscription', watch.topic, error)) from error
        if is_latched_in_vain(subscription.qos_profile):
            self._node.get_logger().warning(
                f'{watch.topic}: durability transient_local needs reliability reliable: set '
                f'qos_overrides.{watch.topic}.subscription.reliability'
            )
        self._subscriptions.append(subscription)
        self.watches.append(watch)
