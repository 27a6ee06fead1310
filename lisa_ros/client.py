# SPDX-License-Identifier: Apache-2.0
"""Ask a running node from a node of your own; needs ROS 2.

from lisa_ros.client import LisaClient

lisa = LisaClient(node)
answer = lisa.segment('something to drink from', max_age=0.5)
if answer.status == Status.FOUND: grasp(answer.masks[0], answer.header)
"""

from lisa_ros.results import Status
from lisa_ros.ros.client import Answer, LisaClient, Pending

__all__ = ['Answer', 'LisaClient', 'Pending', 'Status']
