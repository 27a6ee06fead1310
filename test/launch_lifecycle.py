# SPDX-License-Identifier: Apache-2.0
"""A launch test as a user writes it: events configure and activate lisa_node.

launch_test test/launch_lifecycle.py
"""

import time
import unittest

import launch_testing
import launch_testing.actions
import launch_testing.asserts
import rclpy
from launch.actions import EmitEvent, RegisterEventHandler
from launch.event_handlers import OnProcessStart
from launch.events import matches_action
from launch_ros.actions import LifecycleNode
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import GetState

from launch import LaunchDescription


def generate_test_description():
    node = LifecycleNode(
        package='lisa_ros',
        executable='lisa_node',
        name='lisa',
        namespace='lifecycle_test',
        parameters=[{'model': 'lisa-tabletop', 'threads': 1, 'autostart': False}],
        output='screen',
    )

    def change(transition):
        return EmitEvent(
            event=ChangeState(
                lifecycle_node_matcher=matches_action(node), transition_id=transition
            )
        )

    configure = change(Transition.TRANSITION_CONFIGURE)
    activate = change(Transition.TRANSITION_ACTIVATE)
    return LaunchDescription(
        [
            RegisterEventHandler(OnProcessStart(target_action=node, on_start=[configure])),
            RegisterEventHandler(
                OnStateTransition(
                    target_lifecycle_node=node, goal_state='inactive', entities=[activate]
                )
            ),
            node,
            launch_testing.actions.ReadyToTest(),
        ]
    ), {'node': node}


class TestLifecycle(unittest.TestCase):
    def test_the_node_becomes_active(self):
        rclpy.init()
        peer = rclpy.create_node('peer')
        client = peer.create_client(GetState, '/lifecycle_test/lisa/get_state')
        try:
            self.assertTrue(client.wait_for_service(30))
            deadline, state = time.monotonic() + 60, None
            while state != State.PRIMARY_STATE_ACTIVE and time.monotonic() < deadline:
                future = client.call_async(GetState.Request())
                rclpy.spin_until_future_complete(peer, future, timeout_sec=5)
                state = future.result().current_state.id if future.done() else None
                time.sleep(0.1)
            self.assertEqual(state, State.PRIMARY_STATE_ACTIVE)
        finally:
            peer.destroy_node()
            rclpy.shutdown()


@launch_testing.post_shutdown_test()
class TestEnd(unittest.TestCase):
    def test_the_node_ends_with_status_0(self, proc_info, node):
        launch_testing.asserts.assertExitCodes(proc_info, [0], process=node)
