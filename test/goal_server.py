# SPDX-License-Identifier: Apache-2.0
"""The action of a lisa node: its goals never end, their feedback grows; it can be replaced."""

import threading
import time

from ros_graph import DOMAIN

from lisa_ros.ros import fastdds


class GoalServer:
    """A node of a name, with `~/segment` and a latched `~/state`, spun by a thread."""

    def __init__(self, name='lisa', namespace='/'):
        import rclpy
        from lisa_ros.action import Segment
        from lisa_ros.msg import CameraState, NodeState
        from rclpy.action import ActionServer
        from rclpy.task import Future

        from lisa_ros.ros.qos import latched_qos

        fastdds.configure_shared_memory()
        self.has_goal, self._goals, self._feedback_count = threading.Event(), [], 0
        self._context = rclpy.Context()
        self._context.init(domain_id=int(DOMAIN))
        self._node = rclpy.create_node(name, context=self._context, namespace=namespace)

        async def execute(goal):
            self._goals.append(goal)
            self.has_goal.set()
            await Future()

        self._server = ActionServer(self._node, Segment, '~/segment', execute)
        state = self._node.create_publisher(NodeState, '~/state', latched_qos())
        state.publish(NodeState(lifecycle='active', cameras=[CameraState()]))
        self._node.create_timer(0.1, self._publish_feedback)
        self._executor = rclpy.executors.SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._executor.spin, daemon=True)
        self._thread.start()

    def wait_for_goals(self, count):
        """Wait until so many goals have come."""
        from ros_graph import START

        deadline = time.monotonic() + 2 * START
        while len(self._goals) < count:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def _publish_feedback(self):
        from lisa_ros.action import Segment

        self._feedback_count += 1
        for goal in self._goals:
            text = f'{goal.request.query} ' * self._feedback_count
            goal.publish_feedback(Segment.Feedback(text=text))

    def close(self):
        """Leave the graph; again: no effect."""
        if self._context.ok():
            self._executor.shutdown()
            self._thread.join()
            self._server.destroy()
            self._node.destroy_node()
            self._context.shutdown()


def replaced(server, name='lisa', namespace='/'):
    """Wait until a server has a goal; start another one in its place and return it."""
    from ros_graph import START

    assert server.has_goal.wait(2 * START)
    successor = GoalServer(name, namespace)
    server.close()
    return successor
