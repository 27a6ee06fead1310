# SPDX-License-Identifier: Apache-2.0
"""A py_trees behaviour that finds an object and writes its place to the blackboard.

    pip install py_trees
    root = py_trees.composites.Sequence('fetch', memory=True, children=[
        Find('find the mug', node, 'the red mug', key='place'), ...])

Spin the node beside the tree, as py_trees_ros does; a tick never waits.
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
        self._board = self.attach_blackboard_client(name)
        self._board.register_key(key, py_trees.common.Access.WRITE)

    def setup(self, timeout: float = 15.0, **_: object) -> None:
        """Wait for the lisa node [s]; a LisaError names it if it does not appear."""
        self._lisa.find(timeout)

    def initialise(self) -> None:
        """Send the goal."""
        self._goal = self._lisa.segment_async(self._query, max_age=self._max_age)

    def update(self) -> py_trees.common.Status:
        """Return RUNNING until the goal has ended."""
        if not self._goal.done():
            self.feedback_message = f'looking for {self._query!r}'
            return py_trees.common.Status.RUNNING
        try:
            return self._judged(self._goal.result(0))
        except LisaError as error:
            self.feedback_message = str(error)
            return py_trees.common.Status.FAILURE

    def _judged(self, answer: Answer) -> py_trees.common.Status:
        self.feedback_message = answer.answer or answer.reason
        if answer.status is not Status.FOUND:
            return py_trees.common.Status.FAILURE
        centroid = answer.message.instances[0].centroid
        if math.isnan(centroid.x):
            self.feedback_message = f'found, but not in 3D: {answer.message.place_reason}'
            return py_trees.common.Status.FAILURE
        self._board.set(self._key, PointStamped(header=answer.header, point=centroid))
        return py_trees.common.Status.SUCCESS

    def terminate(self, new_status: py_trees.common.Status) -> None:
        """Cancel the goal if the tree goes elsewhere."""
        if new_status is py_trees.common.Status.INVALID and self._goal and not self._goal.done():
            self._goal.cancel()
