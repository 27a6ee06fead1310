# SPDX-License-Identifier: Apache-2.0
"""Public Python client of a running lisa node, for your own ROS 2 nodes.

The classes are in ros/action_client.py. Examples are in docs/commands.md.
"""

from lisa_ros.results import Status
from lisa_ros.ros.action_client import Answer, GoalFuture, LisaClient

__all__ = ['Answer', 'GoalFuture', 'LisaClient', 'Status']
