# SPDX-License-Identifier: Apache-2.0
"""The record of the lifecycle, after each kind of transition and of its end."""

import pytest

pytest.importorskip('rclpy', reason='needs ROS 2: make setup')

from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn

from lisa_ros.errors import LisaError
from lisa_ros.ros.transitions import LifecycleRecord, log_transition_errors

pytestmark = pytest.mark.ros
SUCCESS = TransitionCallbackReturn.SUCCESS


class Node:
    """A node whose transitions end as the test says."""

    def __init__(self):
        self.lifecycle = LifecycleRecord()
        self.lines = []
        self.error = self.lines.append

    def get_logger(self):
        return self


def run(node, name, ends, state='active'):
    """Run a transition from `state`; return how it ends and the record: state and error."""

    def transition(node, state):
        if isinstance(ends, BaseException):
            raise ends
        return ends

    transition.__name__ = f'on_{name}'
    result = log_transition_errors(transition)(node, LifecycleState(state, 0))
    return result, node.lifecycle.current.state, node.lifecycle.current.error


def test_a_success_forgets_the_error_of_an_earlier_transition():
    node = Node()
    ends = run(node, 'activate', LisaError('no camera: plug it in'), 'inactive')
    assert ends == (
        TransitionCallbackReturn.FAILURE,
        'inactive',
        'activate failed: no camera: plug it in',
    )
    assert node.lines == ['activate failed: no camera: plug it in']
    assert run(node, 'cleanup', SUCCESS, 'inactive') == (SUCCESS, 'unconfigured', '')


def test_after_a_bug_on_error_keeps_the_reason():
    node = Node()
    result, _, reason = run(node, 'activate', ZeroDivisionError('a bug'), 'inactive')
    assert result is TransitionCallbackReturn.ERROR
    assert reason == 'activate failed: internal error: ZeroDivisionError: a bug'
    assert 'Traceback' in node.lines[0]
    assert run(node, 'error', SUCCESS) == (SUCCESS, 'unconfigured', reason)
    assert run(node, 'configure', SUCCESS, 'unconfigured') == (SUCCESS, 'inactive', '')


@pytest.mark.parametrize('name', ['shutdown', 'error'])
def test_a_node_whose_shutdown_fails_is_finalized(name):
    """As rcl_lifecycle has it: it is in no state from which it could go on."""
    _, state, reason = run(Node(), name, LisaError('a tracker is busy: try again'))
    assert (state, reason) == ('finalized', f'{name} failed: a tracker is busy: try again')


def test_a_failed_deactivate_leaves_the_node_active():
    _, state, _ = run(Node(), 'deactivate', LisaError('a tracker is busy: try again'))
    assert state == 'active'
