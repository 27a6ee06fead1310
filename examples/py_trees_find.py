# SPDX-License-Identifier: Apache-2.0
"""A py_trees behaviour that finds an object and writes its place to the blackboard.

    pip install py_trees
    root = py_trees.composites.Sequence('fetch', memory=True, children=[
        Find('find the mug', node, 'the red mug', key='place'), ...])

Spin the node beside the tree, as py_trees_ros does; a tick does not wait, except for 0.2 s after a
lisa node was started again. Set the tree up before its first tick: a goal is only sent to a lisa
node that has been found.
"""

from __future__ import annotations

import math

import py_trees
from geometry_msgs.msg import PointStamped
from rclpy.node import Node

from lisa_ros.client import Answer, GoalFuture, LisaClient, Status
from lisa_ros.errors import LisaError


class Find(py_trees.behaviour.Behaviour):
    """Ask a lisa node: SUCCESS with a place, FAILURE without one; `feedback_message` says why."""

    def __init__(
        self, name: str, node: Node, query: str, key: str = 'place', max_age: float = 1.0
    ):
        """Make a behaviour.

        Args:
            name: of the behaviour.
            node: your node, which somebody spins.
            query: what to find.
            key: of the blackboard; gets a PointStamped in the camera's frame.
            max_age: of the image when the model begins [s].
        """
        super().__init__(name)
        self._lisa, self._query, self._max_age, self._key = LisaClient(node), query, max_age, key
        self._goal: GoalFuture | None = None
        self._error = ''  # why there is no goal
        self._board = self.attach_blackboard_client(name)
        self._board.register_key(key, py_trees.common.Access.WRITE)

    def setup(self, timeout: float = 15.0, **_: object) -> None:
        """Wait for the lisa node [s]; a LisaError names it if it does not appear."""
        self._lisa.find(timeout)

    def initialise(self) -> None:
        """Send the goal, without waiting for a node; `update` reports one that is not there."""
        self._goal = None
        try:
            self._goal = self._lisa.segment_async(self._query, timeout=0.0, max_age=self._max_age)
        except LisaError as error:
            self._error = str(error)

    def update(self) -> py_trees.common.Status:
        """Return RUNNING until the goal has ended, or its node has left the ROS graph."""
        if self._goal is None:
            return self._failed(self._error)
        if self._goal.is_lost():
            return self._failed('the lisa node has left the ROS graph during the goal')
        if not self._goal.done():
            self.feedback_message = f'looking for {self._query!r}'
            return py_trees.common.Status.RUNNING
        try:
            return self._judged(self._goal.result(0))
        except LisaError as error:
            return self._failed(str(error))

    def _judged(self, answer: Answer) -> py_trees.common.Status:
        if answer.status is not Status.FOUND:
            return self._failed(answer.answer or answer.reason)
        centroid = answer.message.instances[0].centroid
        if math.isnan(centroid.x):
            return self._failed(f'found, but not in 3D: {answer.message.place_reason}')
        self.feedback_message = answer.answer
        self._board.set(self._key, PointStamped(header=answer.header, point=centroid))
        return py_trees.common.Status.SUCCESS

    def _failed(self, cause: str) -> py_trees.common.Status:
        self.feedback_message = cause
        return py_trees.common.Status.FAILURE

    def terminate(self, new_status: py_trees.common.Status) -> None:
        """Cancel the goal if the tree goes elsewhere."""
        if new_status is py_trees.common.Status.INVALID and self._goal and not self._goal.done():
            self._goal.cancel()
