# SPDX-License-Identifier: Apache-2.0
"""The bond with a lifecycle manager: it learns within 4 s that this process has died.

As in Nav2's own nodes: topic `bond`, the node's name as id, one bond while the node is active.
`bondpy` comes with a ROS distribution; without it there is no bond.

Threads: any. The heartbeats come from a thread of bondpy, so they show that the process lives,
not that its model answers; the diagnostics show that.
"""

from __future__ import annotations

from typing import Any

from rclpy.node import Node

_TOPIC = 'bond'
_HEARTBEAT_PERIOD = 0.1  # as in Nav2 [s]
_HEARTBEAT_TIMEOUT = 4.0  # as in Nav2 [s]


class ManagerBond:
    """A bond that exists between `start` and `stop`, if bondpy is installed."""

    def __init__(self, node: Node):
        self._node = node
        self._bond: Any = None  # a bondpy.bondpy.Bond

    def start(self) -> bool:
        """Begin the heartbeats; return whether bondpy is installed."""
        bond_class = _bond_class()
        if bond_class is None:
            return False
        self.stop()
        self._bond = bond_class(self._node, _TOPIC, self._node.get_name())
        self._bond.set_heartbeat_period(_HEARTBEAT_PERIOD)
        self._bond.set_heartbeat_timeout(_HEARTBEAT_TIMEOUT)
        self._bond.start()
        return True

    def stop(self) -> None:
        """Break the bond, which tells the manager that this is intended; no effect without one."""
        bond, self._bond = self._bond, None
        if bond is None:
            return
        # bondpy destroys it behind the node's back, which ends the executor that waits for it.
        self._node.destroy_subscription(bond.sub)
        bond.shutdown()
        self._node.destroy_publisher(bond.pub)


def _bond_class() -> type | None:
    """Return bondpy's Bond, without a traceback when ROS shuts down; None if not installed."""
    try:
        from bondpy.bondpy import Bond
    except ImportError:  # also the package of this name on PyPI, which is another one
        return None

    class QuietBond(Bond):
        def _publish(self, active: bool) -> None:
            try:
                super()._publish(active)
            except RuntimeError:  # RCLError or InvalidHandle, which rclpy keeps private
                if self.node.context.ok():
                    raise

    return QuietBond
