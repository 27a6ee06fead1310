# SPDX-License-Identifier: Apache-2.0
"""Ask a running node from a node of your own; needs ROS 2.

docs/commands.md shows how.
"""

from lisa_ros.results import Status
from lisa_ros.ros.action_client import Answer, GoalFuture, LisaClient

__all__ = ['Answer', 'GoalFuture', 'LisaClient', 'Status']
