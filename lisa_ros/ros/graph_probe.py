# SPDX-License-Identifier: Apache-2.0
"""Find out about a running node from outside; runs in a process of its own.

It looks for the node in the graph, asks it for its state and parameters, and listens to its
inputs, to the transforms that it receives, /diagnostics and /clock for two seconds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.srv import GetState
from rcl_interfaces.srv import GetParameters
from rclpy.node import Node
from rclpy.parameter import parameter_value_to_python
from rclpy.qos import QoSCompatibility, QoSProfile, qos_check_compatible, qos_profile_sensor_data
from rclpy.topic_endpoint_info import TopicEndpointInfo
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from lisa_ros.doctor.graph_facts import GraphFacts, InputFacts, PublisherFacts, StatusFacts
from lisa_ros.doctor.input_topics import split_transport
from lisa_ros.error_text import one_line
from lisa_ros.errors import LisaError
from lisa_ros.messages.stamp import stamp_ns
from lisa_ros.ros import fastdds
from lisa_ros.ros.executor import GuardedExecutor
from lisa_ros.ros.graph_names import full_name
from lisa_ros.ros.initialization import initialize
from lisa_ros.ros.qos import are_all_latched, is_latched, latched_qos

_SETTLE = 0.7  # to find more than one node [s]
_ASK = 0.7  # longest wait for a service [s]
_LISTEN = 2.0  # to its inputs, after the last one was found [s]
_LONGEST_LISTEN = 3.5  # [s]
_LONGEST = 1.5  # for replies and /diagnostics after that [s]
_TYPES = {
    'sensor_msgs/msg/Image': Image,
    'sensor_msgs/msg/CompressedImage': CompressedImage,
    'sensor_msgs/msg/CameraInfo': CameraInfo,
}
_TRANSFORMS = 'tf2_msgs/msg/TFMessage'
_PARAMETERS = (
    *('use_sim_time', 'target_frame', 'gravity_frame', 'max_image_age', 'diagnostics_period'),
    'cameras',
)
_SIMILAR = 5  # topics that are named


def main(arguments: list[str]) -> Iterator[dict[str, object]]:
    """Yield `GraphFacts` as a dict, or an `error`.

    Args:
        arguments: the full name of the node, and the longest wait for it [s].
    """
    fastdds.configure_shared_memory()
    try:
        initialize(['lisa-ros'])
    except LisaError as error:
        yield {'error': str(error)}
        return
    name, discovery = arguments
    yield asdict(_Probe(name, float(discovery)).facts())


class _Ear:
    """Receives the messages of an input topic."""

    def __init__(self) -> None:
        self.arrivals: list[float] = []  # [s, monotonic]
        self.system_ages: list[float] = []  # of stamps at arrival [s], against the system clock
        self.clock_ages: list[float] = []  # against /clock
        self.frame_id = ''
        self.is_stamped = False

    def hear(self, message: Any, clock: float | None) -> None:
        """Note a message; `clock`: newest time on /clock [s]."""
        self.arrivals.append(time.monotonic())
        self.frame_id = message.header.frame_id
        stamp = stamp_ns(message.header)
        if stamp:
            self.is_stamped = True
            self.system_ages.append((time.time_ns() - stamp) / 1e9)
            if clock is not None:
                self.clock_ages.append((int(clock * 1e9) - stamp) / 1e9)

    def stamp_age(self, uses_clock: bool | None) -> float | None:
        """Return the smallest age of a stamp at arrival [s]; None: unknown.

        Args:
            uses_clock: the node's use_sim_time; None: it did not answer.
        """
        ages = {True: self.clock_ages, False: self.system_ages}.get(
            uses_clock, self.clock_ages or self.system_ages
        )
        return min(ages, key=abs, default=None)

    @property
    def rate(self) -> float:
        """The mean rate [Hz]; 0 of fewer than two messages."""
        if len(self.arrivals) < 2:
            return 0.0
        return (len(self.arrivals) - 1) / max(self.arrivals[-1] - self.arrivals[0], 1e-6)


class _Question:
    """A request to a service of the node.

    Fast DDS may drop the reply to a client that it has not discovered yet (ros2/rmw_fastrtps#842),
    so it is asked again if no reply comes.
    """

    def __init__(self, node: Node, service_type: Any, service: str, **fields: Any):
        self._client = node.create_client(service_type, service)
        self._request = service_type.Request(**fields)
        self._futures: list[rclpy.task.Future] = []

    def ask(self) -> bool:
        """Ask once, as soon as the service is there; return whether that is done."""
        if not self._futures and self._client.service_is_ready():
            self._futures.append(self._client.call_async(self._request))
        return bool(self._futures)

    def repeat(self) -> None:
        """Ask again if no reply has come."""
        if self.reply is None:
            self._futures.append(self._client.call_async(self._request))

    @property
    def reply(self) -> Any | None:
        """The first reply; None so far."""
        return next((future.result() for future in self._futures if future.done()), None)


class _Probe:
    """A node of its own that looks at another one."""

    def __init__(self, name: str, discovery: float):
        self._name, self._discovery = name, discovery
        self._node: Node = rclpy.create_node(f'lisa_doctor_{os.getpid()}')
        self._executor = GuardedExecutor(self._node.get_logger())
        self._executor.add_node(self._node)
        self._ears: dict[str, tuple[str, _Ear]] = {}  # type and messages by topic
        self._statuses: dict[str, StatusFacts] = {}
        self._frames: dict[str, str] = {}  # parent by child
        self._clock: float | None = None
        self._system_time = 0.0

    def facts(self) -> GraphFacts:
        """Look for the node, and listen if it is there."""
        self._spin(lambda: self._name in self._names(), self._discovery)
        self._spin(lambda: False, _SETTLE)
        names = self._names()
        own = full_name(self._node.get_name(), self._node.get_namespace())
        other_nodes = tuple(sorted({*names} - {self._name, own}))
        if self._name not in names:
            return GraphFacts(self._name, 0, other_nodes)
        return self._listen(other_nodes)

    def _listen(self, other_nodes: tuple[str, ...]) -> GraphFacts:
        state = _Question(self._node, GetState, f'{self._name}/get_state')
        names = list(_PARAMETERS)
        service = f'{self._name}/get_parameters'
        parameters = _Question(self._node, GetParameters, service, names=names)
        self._subscribe_to_common_topics()
        start = time.monotonic()
        self._spin(lambda: state.ask() & parameters.ask(), _ASK)
        self._hear_inputs()
        state.repeat()
        parameters.repeat()
        listened = time.monotonic() - start
        self._spin(lambda: state.reply and parameters.reply and self._statuses, _LONGEST)
        values = _values(parameters.reply) if parameters.reply else None
        uses_clock = (values or {}).get('use_sim_time')
        inputs = tuple(
            self._input(topic, *self._ears[topic], uses_clock) for topic in sorted(self._ears)
        )
        return GraphFacts(
            self._name,
            max(1, self._names().count(self._name)),  # a second one may be found late
            other_nodes,
            state.reply.current_state.label if state.reply else '',
            inputs,
            values,
            self._node.count_publishers('/clock'),
            self._clock,
            self._system_time,
            tuple((parent, child) for child, parent in self._frames.items()),
            tuple(self._statuses.values()),
            listened,
        )

    def _spin(self, is_done: Callable[[], Any], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not is_done() and time.monotonic() < deadline:
            self._executor.spin_once(timeout_sec=0.02)

    def _names(self) -> list[str]:
        return [full_name(*pair) for pair in self._node.get_node_names_and_namespaces()]

    # ---- topics

    def _input_types(self) -> list[tuple[str, str]]:
        """Return topic and type of the images and camera infos that the node subscribes to."""
        # Not get_subscriber_names_and_types_by_node: of two nodes of one name it knows one.
        return [
            (topic, kind)
            for topic, kinds in sorted(self._node.get_topic_names_and_types())
            for kind in kinds
            if kind in _TYPES and any(self._subscriptions(topic, kind))
        ]

    def _subscriptions(self, topic: str, kind: str) -> list[TopicEndpointInfo]:
        """Return the node's subscriptions to a topic."""
        return [
            info
            for info in self._node.get_subscriptions_info_by_topic(topic)
            if info.topic_type == kind
            and full_name(info.node_name, info.node_namespace) == self._name
        ]

    def _hear_inputs(self) -> None:
        """Subscribe to the node's inputs as they are discovered, and listen to them."""
        start = found_at = time.monotonic()
        while time.monotonic() < min(found_at + _LISTEN, start + _LONGEST_LISTEN):
            new = [item for item in self._input_types() if item[0] not in self._ears]
            if new:
                found_at = time.monotonic()
            self._ears.update({topic: self._subscribe(topic, kind) for topic, kind in new})
            self._spin(lambda: False, 0.2)

    def _subscribe(self, topic: str, kind: str) -> tuple[str, _Ear]:
        ear, publishers = _Ear(), self._node.get_publishers_info_by_topic(topic)
        profile = latched_qos() if are_all_latched(publishers) else qos_profile_sensor_data
        self._node.create_subscription(
            _TYPES[kind], topic, lambda message: ear.hear(message, self._clock), profile
        )
        return kind, ear

    def _subscribe_to_common_topics(self) -> None:
        subscribe = self._node.create_subscription
        subscribe(DiagnosticArray, '/diagnostics', self._on_diagnostics, 10)
        subscribe(Clock, '/clock', self._on_clock, qos_profile_sensor_data)
        try:
            from tf2_msgs.msg import TFMessage  # not in every install
        except ImportError:
            return
        topics = {
            topic: any(map(is_latched, subscriptions))
            for topic, kinds in self._node.get_topic_names_and_types()
            if _TRANSFORMS in kinds and (subscriptions := self._subscriptions(topic, _TRANSFORMS))
        }  # of the node itself: several robots have /robot/tf
        for topic, latched in (topics or {'/tf': False, '/tf_static': True}).items():
            profile = latched_qos() if latched else QoSProfile(depth=100)
            subscribe(TFMessage, topic, self._on_transforms, profile)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name.startswith((f'{self._name}:', f'{self._name} ')):
                level = int.from_bytes(status.level, 'little')
                self._statuses[status.name] = StatusFacts(status.name, level, status.message)

    def _on_clock(self, message: Clock) -> None:
        self._clock = message.clock.sec + message.clock.nanosec / 1e9
        self._system_time = time.time()

    def _on_transforms(self, message: Any) -> None:
        for transform in message.transforms:
            self._frames[transform.child_frame_id] = transform.header.frame_id

    def _input(self, topic: str, kind: str, ear: _Ear, uses_clock: bool | None) -> InputFacts:
        infos = self._node.get_publishers_info_by_topic(topic)
        wanted = [info.qos_profile for info in self._subscriptions(topic, kind)]
        return InputFacts(
            topic,
            kind,
            tuple(_publisher(info, wanted) for info in infos),
            len(ear.arrivals),
            ear.rate,
            ear.stamp_age(uses_clock),
            ear.is_stamped,
            ear.frame_id,
            are_all_latched(infos),
            () if infos else self._similar(topic, kind),
        )

    def _similar(self, topic: str, kind: str) -> tuple[str, ...]:
        """Return published topics that may be meant instead of one without publishers."""
        base, _ = split_transport(topic)
        published = [
            (name, types)
            for name, types in self._node.get_topic_names_and_types()
            if name != topic and self._node.count_publishers(name)
        ]
        same_base = [name for name, _ in published if split_transport(name)[0] == base]
        same_type = [n for n, types in published if kind in types and f'{self._name}/' not in n]
        return tuple(dict.fromkeys([*same_base, *same_type]))[:_SIMILAR]


def _publisher(info: TopicEndpointInfo, wanted: list[QoSProfile]) -> PublisherFacts:
    """Return the facts about a publisher; `wanted`: the profiles of the node's subscriptions."""
    fault = ''
    for profile in wanted:
        compatibility, reason = qos_check_compatible(info.qos_profile, profile)
        if compatibility == QoSCompatibility.ERROR:
            fault = one_line(reason)
    name = full_name(info.node_name, info.node_namespace)
    return PublisherFacts(name, info.topic_type, fault)


def _values(response: GetParameters.Response) -> dict[str, Any]:
    values = [parameter_value_to_python(value) for value in response.values]
    return dict(zip(_PARAMETERS, values, strict=False))
