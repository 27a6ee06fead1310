# SPDX-License-Identifier: Apache-2.0
"""Which client sent which goal, and whether that client is still in the ROS graph.

An action server is not told who sends a goal. Service introspection is: its events carry the
client's GID and the goal's id. The client is present while the DDS reader of that GID is, which
is the one for the responses to its goals. A client that is killed stays in the graph until its
DDS lease ends, 20 s with Fast DDS.

Not every middleware gives that GID: the one in the events of Cyclone DDS is that of no reader
(https://github.com/ros2/rmw_cyclonedds/issues/377). So only a client whose reader was seen can be
found gone. The client of any other goal, and of each goal without introspection of actions
(ROS 2 Jazzy), counts as gone when no action client at all is left.

Threads: the executor's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from rclpy.action import ActionServer
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.topic_endpoint_info import TopicEndpointInfo
from service_msgs.msg import ServiceEventInfo

from lisa_ros.action import Segment
from lisa_ros.ros.graph_names import full_name

_QOS = QoSProfile(depth=1000)
_MAX_GOALS = 2000  # whose client is remembered; rejected goals are forgotten only in this way


class GoalClients:
    """Knows the clients of the goals of one action server."""

    def __init__(
        self, node: Node, server: ActionServer, action: str, on_known: Callable[[bytes], None]
    ):
        """Listen to the events of a server.

        Args:
            node: the server's.
            server: its introspection is switched on, with contents: without them an event does
                not tell the goal.
            action: full name of the action.
            on_known: called with the id of each goal whose client has become known.
        """
        self._node, self._action, self._on_known = node, action, on_known
        self._clients: dict[bytes, str] = {}  # by goal id, in the order of arrival
        # of nodes, by the GID of the reader of their client, if it was seen; who has left stays as
        # long as one of its goals is remembered
        self._names: dict[str, str] = {}
        if hasattr(server, 'configure_introspection'):
            self._listen(server)

    def _listen(self, server: ActionServer) -> None:
        from rclpy.service_introspection import ServiceIntrospectionState

        server.configure_introspection(
            self._node.get_clock(), _QOS, ServiceIntrospectionState.CONTENTS
        )
        self._node.create_subscription(
            Segment.Impl.SendGoalService.Event,
            f'{self._action}/_action/send_goal/_service_event',
            self._on_event,
            _QOS,
        )

    def _on_event(self, event: Any) -> None:
        if event.info.event_type == ServiceEventInfo.REQUEST_RECEIVED and event.request:
            goal_id = bytes(event.request[0].goal_id.uuid)
            client = bytes(event.info.client_gid).hex()
            is_new = client not in self._names and client not in self._clients.values()
            self._clients[goal_id] = client
            if len(self._clients) > _MAX_GOALS:
                self.forget(next(iter(self._clients)))
            if is_new:
                self._look()  # it may leave before the next `gone`
            self._on_known(goal_id)

    def client(self, goal_id: bytes) -> str:
        """Return the GID of a goal's client; '' as long as it is unknown."""
        return self._clients.get(goal_id, '')

    def name(self, goal_id: bytes) -> str:
        """Return the name of the node that sent a goal, as last seen in the graph; '': unknown."""
        return self._names.get(self.client(goal_id), '')

    def forget(self, goal_id: bytes) -> None:
        """Forget a goal that has ended."""
        self._clients.pop(goal_id, None)

    def gone(self, goal_ids: Iterable[bytes]) -> set[bytes]:
        """Return those of these goals whose client is not in the graph."""
        has_listeners = self._node.count_subscribers(f'{self._action}/_action/feedback') > 0
        present = self._look()
        clients = {goal_id: self.client(goal_id) for goal_id in goal_ids}
        return {
            goal_id
            for goal_id, client in clients.items()
            if not (client in present if client in self._names else has_listeners)
        }

    def _look(self) -> set[str]:
        """Note the names of the clients in the graph; return their GIDs."""
        present = {
            bytes(reader.endpoint_gid).hex(): full_name(reader.node_name, reader.node_namespace)
            for reader in self._readers()
        }
        known = {*present, *self._clients.values()}
        self._names = {gid: n for gid, n in {**self._names, **present}.items() if gid in known}
        return set(present)

    def _readers(self) -> list[TopicEndpointInfo]:
        """Return the DDS readers of responses to goals; none with middleware that has none."""
        replies = f'rr{self._action}/_action/send_goalReply'
        return self._node.get_subscriptions_info_by_topic(replies, no_mangle=True)
