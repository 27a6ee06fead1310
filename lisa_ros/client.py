# SPDX-License-Identifier: Apache-2.0
"""Ask a running node from a node of your own; needs ROS 2.

docs/commands.md shows how.
"""

from lisa_ros.results import Status
from lisa_ros.ros.action_client import Answer, LisaClient, Pending

__all__ = ['Answer', 'LisaClient', 'Pending', 'Status']
