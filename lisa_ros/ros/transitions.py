# SPDX-License-Identifier: Apache-2.0
"""Transitions of the lifecycle: log why one fails, and keep the state for /diagnostics.

rclpy turns an exception of a transition into ERROR without a traceback.
"""

from __future__ import annotations

import functools
import time
import traceback
from collections.abc import Callable
from typing import Protocol

from rclpy.impl.rcutils_logger import RcutilsLogger
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn

from lisa_ros.errors import LisaError
from lisa_ros.health.node import Lifecycle

_CHANGING = {
    'configure': 'configuring',
    'activate': 'activating',
    'deactivate': 'deactivating',
    'cleanup': 'cleaning up',
    'shutdown': 'shutting down',
    'error': 'recovering from an error',
}
_STATE_AFTER = {
    'configure': 'inactive',
    'activate': 'active',
    'deactivate': 'inactive',
    'cleanup': 'unconfigured',
    'shutdown': 'finalized',
    'error': 'unconfigured',
}
_ENDS_IF_FAILED = ('shutdown', 'error')  # the node is finalized then (rcl_lifecycle)


class LifecycleRecord:
    """The state of the lifecycle, and why the last transition failed.

    Threads: one at a time notes transitions; any thread reads `current`.
    """

    def __init__(self) -> None:
        self.current = Lifecycle('unconfigured', time.monotonic())

    def begin(self, transition: str) -> None:
        """Note that a transition begins; the reason of an earlier failure stays."""
        self._note(_CHANGING[transition], self.current.error)

    def succeed(self, transition: str) -> None:
        """Note that a transition has succeeded; on_error keeps the reason why it was called."""
        self._note(_STATE_AFTER[transition], self.current.error if transition == 'error' else '')

    def fail(self, transition: str, state: str, error: str) -> None:
        """Note that a transition from `state` has failed, and why."""
        self._note('finalized' if transition in _ENDS_IF_FAILED else state, error)

    def _note(self, state: str, error: str) -> None:
        self.current = Lifecycle(state, time.monotonic(), error)


class TransitionNode(Protocol):
    """A lifecycle node with a record."""

    lifecycle: LifecycleRecord

    def get_logger(self) -> RcutilsLogger:
        """Return the logger of the node."""


Transition = Callable[[TransitionNode, LifecycleState], TransitionCallbackReturn]


def log_transition_errors(transition: Transition) -> Transition:
    """Make `on_configure` and the like log their exceptions and record the state.

    A LisaError, which the user can correct, is one line, and the transition fails. Another
    exception is a bug, logged with its traceback, and the transition ends in ERROR.
    """

    @functools.wraps(transition)
    def run(node: TransitionNode, state: LifecycleState) -> TransitionCallbackReturn:
        name = transition.__name__.removeprefix('on_')
        node.lifecycle.begin(name)
        reason = ''
        try:
            result = transition(node, state)
        except LisaError as error:
            reason = f'{name} failed: {error}'
            node.get_logger().error(reason)
            result = TransitionCallbackReturn.FAILURE
        except (Exception, SystemExit, GeneratorExit) as error:  # noqa: BLE001  # logged whole
            reason = f'{name} failed: internal error: {type(error).__name__}: {error}'
            node.get_logger().error(traceback.format_exc())
            result = TransitionCallbackReturn.ERROR
        if result == TransitionCallbackReturn.SUCCESS:
            node.lifecycle.succeed(name)
        else:
            node.lifecycle.fail(name, state.label, reason)
        return result

    return run
