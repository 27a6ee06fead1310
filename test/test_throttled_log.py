# SPDX-License-Identifier: Apache-2.0
"""A complaint is said once in a while, and hides no other."""

import pytest

pytest.importorskip('rclpy', reason='needs ROS 2: make setup')

from lisa_ros.ros import throttled_log


def test_each_cause_is_said_once_in_five_seconds(monkeypatch):
    now, said = [100.0], []
    monkeypatch.setattr(throttled_log.time, 'monotonic', lambda: now[0])
    complain = throttled_log.ThrottledLog(said.append)
    complain('no depth')
    complain('no depth')
    complain('another')
    complain('at 1 s', 'late')
    complain('at 2 s', 'late')
    assert said == ['no depth', 'another', 'at 1 s']
    now[0] += 5
    complain('no depth')
    complain('at 7 s', 'late')
    assert said[3:] == ['no depth', 'at 7 s']
    assert len(complain._said) == 2  # what was said long ago is forgotten
