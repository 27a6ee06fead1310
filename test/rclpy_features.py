# SPDX-License-Identifier: Apache-2.0
"""What the installed rclpy can do: marks of tests that need more than ROS 2 Jazzy has."""

import pytest
from rclpy.action import ActionServer

needs_goal_clients = pytest.mark.skipif(
    not hasattr(ActionServer, 'configure_introspection'),
    reason='ROS 2 Jazzy has no introspection of actions: the client of a goal is unknown',
)
