# SPDX-License-Identifier: Apache-2.0
"""What all parts of the node share."""

from __future__ import annotations

import time
from dataclasses import dataclass

from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode

from lisa_ros.ros.parameter_declaration import CurrentSettings
from lisa_ros.ros.places import Places
from lisa_ros.ros.throttled_log import ThrottledLog
from lisa_ros.ros.transforms import Transforms

# For timers: with use_sim_time, a bag that restarts or is paused would stop a timer of ROS time.
STEADY_CLOCK = Clock(clock_type=ClockType.STEADY_TIME)


@dataclass(frozen=True)
class NodeContext:
    """The node itself and what its cameras and servers have in common."""

    node: LifecycleNode
    settings: CurrentSettings
    transforms: Transforms
    log: ThrottledLog  # for errors that every frame may repeat
    places: Places


@dataclass(frozen=True)
class NodeClock:
    """The node's clock as an `image_age.Clock`: simulated time under use_sim_time."""

    node: LifecycleNode

    def now_ns(self) -> int:
        """Return the present time [ns]."""
        return self.node.get_clock().now().nanoseconds

    def steady(self) -> float:
        """Return the time of the simulation [s] once it runs, else the monotonic time."""
        clock = self.node.get_clock()
        now = clock.now().nanoseconds
        return now / 1e9 if clock.ros_time_is_active and now else time.monotonic()

    def has_ended(self) -> bool:
        """Return whether /clock has had messages, and has no publisher any more.

        A process that was killed stays in the graph for up to 20 s.
        """
        clock = self.node.get_clock()
        if not clock.ros_time_is_active or not clock.now().nanoseconds:
            return False
        return not self.node.count_publishers(self.node.resolve_topic_name('/clock'))
