# SPDX-License-Identifier: Apache-2.0
"""The node's clock tells a simulation that has ended from one that is paused."""

import time

import pytest

pytest.importorskip('rclpy', reason='needs ROS 2: make setup')
pytest.importorskip('lisa_ros.msg', reason='needs the built interfaces: make setup')

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from ros_graph import DOMAIN

from lisa_ros.ros.context import NodeClock

pytestmark = pytest.mark.ros


@pytest.fixture
def context():
    context = rclpy.Context()
    context.init(domain_id=int(DOMAIN))
    yield context
    context.shutdown()


@pytest.mark.parametrize('topic', ['/clock', '/simulation/clock'])
def test_a_simulation_has_ended_when_its_clock_has_no_publisher(context, topic):
    from rosgraph_msgs.msg import Clock

    simulation = rclpy.create_node('simulation', context=context)
    node = rclpy.create_node(
        'robot',
        context=context,
        cli_args=['--ros-args', '-r', f'/clock:={topic}'],
        parameter_overrides=[Parameter('use_sim_time', value=True)],
    )
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    clock = NodeClock(node)

    def wait(done):
        end = time.monotonic() + 20
        while not done():
            assert time.monotonic() < end
            executor.spin_once(timeout_sec=0.05)

    assert not clock.has_ended()  # it has not started
    publisher = simulation.create_publisher(Clock, topic, 10)
    message = Clock()
    message.clock.sec = 5

    def is_running():
        publisher.publish(message)
        return clock.now_ns() == 5 * 10**9

    wait(is_running)
    assert not clock.has_ended()  # it is paused from here on
    simulation.destroy_publisher(publisher)
    wait(clock.has_ended)
    simulation.create_publisher(Clock, topic, 10)  # the next one
    wait(lambda: not clock.has_ended())
    executor.shutdown()
    node.destroy_node()
    simulation.destroy_node()


def test_the_time_of_the_computer_never_ends(context):
    node = rclpy.create_node('robot', context=context)
    assert not NodeClock(node).has_ended()
    node.destroy_node()
