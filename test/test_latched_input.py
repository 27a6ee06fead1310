# SPDX-License-Identifier: Apache-2.0
"""A camera info that was latched before the node subscribed; QoS overrides and rates of inputs."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2: make setup')
pytest.importorskip('lisa_ros.msg', reason='needs the built interfaces: make setup')

from rclpy.event_handler import PublisherEventCallbacks
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from rclpy.serialization import serialize_message
from ros_graph import NodeProcess, Peer, image
from rosbags.interfaces import (
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from sensor_msgs.msg import CameraInfo

from lisa_ros.ros import inputs
from lisa_ros.ros.bag_player import BagPlayer
from lisa_ros.session.image_age import SystemClock

pytestmark = pytest.mark.ros

LATCHED = QoSProfile(
    depth=1,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
    reliability=ReliabilityPolicy.RELIABLE,
)
PIXELS = np.full((48, 64, 3), 255, np.uint8)
INFO = CameraInfo(width=64, height=48, k=[50.0, 0.0, 32.0, 0.0, 50.0, 24.0, 0.0, 0.0, 1.0])


@pytest.fixture
def start(tmp_path):
    """Return a function that starts a node in /latched; it must end well."""
    (tmp_path / 'replies.json').write_text(json.dumps({'': {'masks': 'bright'}}))
    program = [sys.executable, str(Path(__file__).with_name('slow_node.py'))]
    started = []

    def start(*arguments):
        parameters = {'model': f'scripted:{tmp_path}/replies.json', 'diagnostics_period': 0.1}
        namespace = ('-r', '__ns:=/latched')
        node = NodeProcess(tmp_path / 'log', parameters, *namespace, *arguments, program=program)
        started.append(node)
        return node

    yield start
    for node in started:
        assert node.stop() == 0, node.output()
        assert 'Traceback' not in node.output(), node.output()


@pytest.fixture
def peer():
    peer = Peer('/latched')
    peer.node.destroy_publisher(peer.infos)
    yield peer
    peer.close()


def place_reason(peer):
    """Return why an answer has no position; empty: it has one, so that K is known."""
    peer.depths.publish(image(np.full(PIXELS.shape[:2], 1000, np.uint16), '16UC1'))
    peer.publish_image(image(PIXELS))
    (answer,) = peer.ask('the mug')
    return answer.place_reason


def publish_once(peer, qos=LATCHED, fx=50.0):
    publisher = peer.node.create_publisher(CameraInfo, '/latched/camera_info', qos)
    publisher.publish(CameraInfo(width=64, height=48, k=[fx, *INFO.k[1:]]))
    return publisher


def test_a_latched_camera_info_is_received_before_and_after_the_start(start, peer):
    first = publish_once(peer, fx=0.0)
    peer.wait_until_active(start())
    peer.wait(lambda: 'fx 0' in place_reason(peer), what='the first camera info')
    peer.node.destroy_publisher(first)
    second = publish_once(peer)  # the driver was restarted
    peer.wait(lambda: not place_reason(peer), what='the second camera info')
    peer.node.destroy_publisher(second)
    live = peer.node.create_publisher(CameraInfo, '/latched/camera_info', qos_profile_sensor_data)

    def has_changed():
        live.publish(CameraInfo(width=64, height=48))  # not calibrated
        return 'fx 0' in place_reason(peer)

    peer.wait(has_changed, what='the camera info of a camera that latches nothing')


def test_a_publisher_that_latches_nothing_is_not_asked_for_more(start, peer):
    warnings = []
    callbacks = PublisherEventCallbacks(incompatible_qos=warnings.append)
    live = peer.node.create_publisher(
        CameraInfo, '/latched/camera_info', qos_profile_sensor_data, event_callbacks=callbacks
    )
    peer.wait_until_active(start())
    peer.settle(1.5)  # longer than the period of the check
    live.publish(INFO)
    assert place_reason(peer) == ''
    assert warnings == []


def test_a_latched_camera_info_is_received_beside_a_publisher_that_latches_nothing(start, peer):
    silent = peer.node.create_publisher(
        CameraInfo, '/latched/camera_info', qos_profile_sensor_data
    )
    latched = publish_once(peer)
    peer.wait_until_active(start())
    peer.wait(lambda: not place_reason(peer), what='the latched camera info')

    def has_changed():
        silent.publish(CameraInfo(width=64, height=48))  # not calibrated
        return 'fx 0' in place_reason(peer)

    peer.wait(has_changed, what='the camera info of the other publisher')
    peer.node.destroy_publisher(silent)
    peer.node.destroy_publisher(latched)


def test_durability_can_be_overridden_for_each_input(start, peer):
    topics = [f'/latched/{name}' for name in ('camera_info', 'image', 'depth')]
    start(
        *(
            part
            for topic in topics
            for policy in ('durability:=transient_local', 'reliability:=reliable')
            for part in ('-p', f'qos_overrides.{topic}.subscription.{policy}')
        )
    )
    for topic in topics:
        peer.wait(lambda: peer.node.count_subscribers(topic), 60)  # noqa: B023
        (info,) = peer.node.get_subscriptions_info_by_topic(topic)
        assert info.qos_profile.durability is DurabilityPolicy.TRANSIENT_LOCAL
        assert info.qos_profile.reliability is ReliabilityPolicy.RELIABLE


@pytest.mark.parametrize(
    ('policy', 'value', 'message'),
    [
        ('durability', 'latched', 'Unexpected QoS override for policy `durability`: `latched`'),
        ('durability', 'transient_local', 'durability transient_local needs reliability reliable'),
    ],
)
def test_an_override_that_cannot_work_is_reported(start, policy, value, message):
    node = start('-p', f'qos_overrides./latched/image.subscription.{policy}:={value}')
    node.wait_for_output(message)


def test_a_played_bag_latches_what_was_latched_when_it_was_recorded(peer, tmp_path):
    forever = QosTime(2147483647, 4294967295)
    latched = Qos(
        QosHistory.KEEP_LAST, 1, QosReliability.RELIABLE, QosDurability.TRANSIENT_LOCAL,
        forever, forever, QosLiveliness.AUTOMATIC, forever, avoid_ros_namespace_conventions=False,
    )  # fmt: skip
    with Writer(tmp_path / 'bag', version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connection = writer.add_connection(
            '/latched/camera_info',
            'sensor_msgs/msg/CameraInfo',
            typestore=get_typestore(Stores.ROS2_JAZZY),
            offered_qos_profiles=[latched],
        )
        writer.write(connection, 1, serialize_message(INFO))
    player = BagPlayer(peer.node, tmp_path / 'bag')
    player.start()
    player.wait()
    received = []
    peer.node.create_subscription(CameraInfo, '/latched/camera_info', received.append, LATCHED)
    peer.wait(lambda: received, what='the camera info')
    assert list(received[0].k) == list(INFO.k)
    player.stop()


@pytest.mark.parametrize(
    'name', ['RealsenseMetadata', 'other_msgs/Name', '/msg/Name', 'a.b/msg/C']
)
def test_a_topic_of_an_odd_type_is_not_played_and_the_others_are(name, peer, tmp_path):
    store = get_typestore(Stores.ROS2_JAZZY)
    with Writer(tmp_path / 'bag', version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connections = [
            writer.add_connection('/odd', name, msgdef='int32 a', rihs01=f'RIHS01_{0:064}'),
            writer.add_connection('/info', 'sensor_msgs/msg/CameraInfo', typestore=store),
        ]
        for connection in connections:
            writer.write(connection, 1, serialize_message(INFO))
    player = BagPlayer(peer.node, tmp_path / 'bag')
    player.start()
    player.wait()
    player.stop()
    assert player.sent == {'/info': 1}


def test_a_pause_does_not_count_for_the_rate_of_an_input(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(inputs.time, 'monotonic', lambda: now[0])
    watch = inputs.TopicWatch('/image', 'sensor_msgs/msg/Image', is_required=True)
    for second in (*range(100), *range(6000, 6010)):  # tenths: ten seconds, and one after a pause
        now[0] = second / 10
        watch.count(1, SystemClock())
    assert watch.rate() == pytest.approx(10)
    now[0] += 1.2
    assert watch.has_stopped()


def test_a_slow_input_has_a_rate(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(inputs.time, 'monotonic', lambda: now[0])
    watch = inputs.TopicWatch('/image', 'sensor_msgs/msg/Image', is_required=True)
    for second in range(0, 30, 3):
        now[0] = float(second)
        watch.count(1, SystemClock())
    assert watch.rate() == pytest.approx(1 / 3)
    now[0] += 5
    assert not watch.has_stopped()
