# SPDX-License-Identifier: Apache-2.0
"""Running a node until it is told to stop."""

from __future__ import annotations

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node


def spin(node: Node) -> None:
    """Run the callbacks of a node until a signal ends its context.

    The signal may come while a callback is about to publish, which then raises that the context
    is invalid: no error either. What a callback raises before that goes on to the caller.
    """
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except RuntimeError:  # RCLError or InvalidHandle, which rclpy keeps private
        if node.context.ok():
            raise
