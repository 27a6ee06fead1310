# SPDX-License-Identifier: Apache-2.0
"""Run a node from the command line until it is told to stop, whatever messages it gets."""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import NoReturn, Protocol

import rclpy
from rclpy.logging import get_logger
from rclpy.node import Node

from lisa_ros import stop_signals
from lisa_ros.error_text import one_line
from lisa_ros.errors import LisaError, SettingsError
from lisa_ros.ros import fastdds_segments
from lisa_ros.ros.executor import GuardedExecutor
from lisa_ros.ros.initialization import initialize
from lisa_ros.ros.service_guard import guard_services

_DRAIN_TIME = 0.1  # after the last answer, to send the results of its goals [s]


class Stoppable(Protocol):
    """The part of a node, beside rclpy's Node, that `run` uses."""

    def stop(self) -> bool:
        """End all requests and threads; return false if one is still busy. From any thread."""


def run(name: str, create: Callable[[], Stoppable], args: list[str] | None = None) -> NoReturn:
    """Initialize ROS, create a node and run it until a stop signal comes; then end the process.

    The exit status is 0; 1 if the node cannot start, with the reason in the log.

    Args:
        name: of the node, for errors before it exists.
        create: makes the node, a subclass of rclpy's Node.
        args: ROS command-line arguments; None: those of the process.
    """
    stop_signals.install()
    try:
        initialize(args)
        node = _created(create)
    except LisaError as error:
        get_logger(name).fatal(str(error))
        rclpy.try_shutdown()
        stop_signals.end(1)
    segments = fastdds_segments.own_segments()
    stop_signals.before_exit(lambda: fastdds_segments.remove_segments(segments))
    if not spin(node, node.stop):  # loading or a long step cannot be interrupted
        stop_signals.leave(0)
    node.destroy_node()
    rclpy.try_shutdown()
    fastdds_segments.remove_segments(
        segments
    )  # an entity that something still refers to has kept them
    stop_signals.end(0)


def _created(create: Callable[[], Stoppable]) -> Stoppable:
    """Return a new node.

    Raises:
        LisaError: a parameter is not valid, or ROS refuses a name; any other error is a bug.
    """
    try:
        return create()
    except Exception as error:
        if not type(error).__module__.startswith(('rclpy.', '_rclpy')):
            raise
        raise SettingsError(
            f'the node cannot be created: {one_line(error)}; check its name, namespace, '
            'remappings (-r) and parameters'
        ) from error


def spin(node: Node, close: Callable[[], bool] = lambda: True) -> bool:
    """Run the callbacks of a node until a stop signal comes or its context is shut down.

    Errors of callbacks are logged; a service whose callback raises answers that it failed.

    Args:
        node: any.
        close: ends what the node does and returns whether it has ended. After a signal it runs in
            another thread while callbacks still run, so that goals get their results.

    Returns:
        What `close` returned: if it is false, the node may not be destroyed.
    """
    executor = GuardedExecutor(node.get_logger(), node.context)
    guard_services(node, executor.errors)
    executor.add_node(node)
    closed: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def stop() -> None:
        closed.put(close())
        executor.stop()

    stop_signals.on_stop(stop)
    executor.spin()
    if not node.context.ok():
        return close()
    executor.drain(_DRAIN_TIME)
    return closed.get()
