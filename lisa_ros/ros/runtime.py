# SPDX-License-Identifier: Apache-2.0
"""Run a node until it is told to stop."""

from __future__ import annotations

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node


def spin(node: Node) -> None:
    """Run the callbacks of a node until a signal shuts its context down.

    A callback that publishes at that moment raises "context is invalid"; this is not an error
    either. Any other exception of a callback reaches the caller.
    """
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except RuntimeError:  # RCLError or InvalidHandle, which rclpy keeps private
        if node.context.ok():
            raise
