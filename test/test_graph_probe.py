# SPDX-License-Identifier: Apache-2.0
"""What the doctor finds out about a running node: its own clock and its own TF topic."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip('rclpy', reason='needs ROS 2: make setup')
pytest.importorskip('lisa_ros.msg', reason='needs the built interfaces: make setup')

import rclpy
from geometry_msgs.msg import TransformStamped
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import qos_profile_sensor_data
from ros_graph import DOMAIN, START
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image

from lisa_ros.doctor.graph import judge_frames, judge_topic
from lisa_ros.doctor.graph_facts import graph_facts
from lisa_ros.doctor.probe import run_probe
from lisa_ros.health.verdict import Level
from lisa_ros.ros import fastdds

pytestmark = pytest.mark.ros
PARAMETERS = {  # that the doctor asks for, besides use_sim_time
    'target_frame': 'map',
    'gravity_frame': '',
    'max_image_age': 3.0,
    'diagnostics_period': 1.0,
    'cameras': [''],
}
SIMULATED = 5  # newest time on /clock [s]


@pytest.fixture
def context():
    fastdds.configure_shared_memory()
    context = rclpy.Context()
    context.init(domain_id=int(DOMAIN))
    yield context
    context.shutdown()


def facts_of(context, uses_clock, stamp, transforms=None):
    """Return the facts about a robot's node, while images and /clock come.

    Args:
        context: of rclpy.
        uses_clock: the node's use_sim_time.
        stamp: returns the stamp of an image [s].
        transforms: messages by the topic that they are sent on; the node receives tf.
    """
    values = {**PARAMETERS, 'use_sim_time': uses_clock}
    parameters = [Parameter(name, value=value) for name, value in values.items()]
    node = rclpy.create_node(
        'lisa', context=context, namespace='/robot', parameter_overrides=parameters,
        automatically_declare_parameters_from_overrides=True,
    )  # fmt: skip
    node.create_subscription(Image, 'image', lambda _: None, qos_profile_sensor_data)
    world = rclpy.create_node('world', context=context)
    images = world.create_publisher(Image, '/robot/image', qos_profile_sensor_data)
    clock = world.create_publisher(Clock, '/clock', 10)
    broadcasts = []
    for topic, message in (transforms or {}).items():
        broadcasts.append((world.create_publisher(type(message), topic, 10), message))
    if broadcasts:
        node.create_subscription(type(broadcasts[0][1]), 'tf', lambda _: None, 10)  # -r /tf:=tf
    executor = SingleThreadedExecutor(context=context)
    for member in (node, world):
        executor.add_node(member)
    thread = threading.Thread(target=executor.spin, daemon=True)
    thread.start()
    image, clock_time = Image(), Clock()
    image.header.frame_id, clock_time.clock.sec = 'optical', SIMULATED
    try:
        with ThreadPoolExecutor() as pool:
            name = 'lisa_ros.ros.graph_probe'
            future = pool.submit(run_probe, name, ['/robot/lisa', str(START)], 2 * START)
            while not future.done():
                image.header.stamp.sec = stamp()
                for publisher, message in ((images, image), (clock, clock_time), *broadcasts):
                    publisher.publish(message)
                time.sleep(0.05)
        assert future.result().error == ''
        return graph_facts(future.result().facts)
    finally:
        executor.shutdown()
        thread.join()
        node.destroy_node()
        world.destroy_node()


@pytest.fixture(autouse=True)
def domain(monkeypatch):
    monkeypatch.setenv('ROS_DOMAIN_ID', DOMAIN)


@pytest.mark.parametrize(
    ('uses_clock', 'stamp'),
    [(False, lambda: int(time.time())), (True, lambda: SIMULATED - 1)],
    ids=['system', 'simulated'],
)
def test_stamps_are_judged_by_the_clock_of_the_node(context, uses_clock, stamp):
    facts = facts_of(context, uses_clock, stamp)
    (item,) = facts.inputs
    assert facts.clock == SIMULATED
    assert item.messages > 0
    assert 0 <= item.stamp_age < 2
    (finding,) = judge_topic(facts, item)
    assert finding.level is Level.OK, finding


def test_transforms_are_those_that_the_node_receives(context):
    tf2_msgs = pytest.importorskip('tf2_msgs.msg', reason='comes with a ROS install only')

    def from_frame(parent):
        transform = TransformStamped(child_frame_id='optical')
        transform.header.frame_id = parent
        return tf2_msgs.TFMessage(transforms=[transform])

    topics = {'/robot/tf': from_frame('map'), '/tf': from_frame('other_robot')}
    facts = facts_of(context, False, lambda: int(time.time()), topics)
    assert facts.frames == (('map', 'optical'),)
    (finding,) = judge_frames(facts)
    assert finding.level is Level.OK, finding
