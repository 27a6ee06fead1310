# SPDX-License-Identifier: Apache-2.0
"""A message is logged once in a while, and hides no other."""

import pytest

pytest.importorskip('rclpy', reason='needs ROS 2: make setup')

from lisa_ros.ros import throttled_log


class Logger:
    """Collects messages with their severity."""

    def __init__(self):
        self.lines = []

    def error(self, message):
        self.lines.append(message)

    def warning(self, message):
        self.lines.append(f'warning: {message}')


def test_each_cause_is_logged_once_in_five_seconds(monkeypatch):
    now, logger = [100.0], Logger()
    monkeypatch.setattr(throttled_log.time, 'monotonic', lambda: now[0])
    throttled = throttled_log.ThrottledLog(logger)
    throttled.error('no depth')
    throttled.error('no depth')
    throttled.error('another')
    throttled.error('at 1 s', 'late')
    throttled.warning('at 2 s', 'late')
    assert logger.lines == ['no depth', 'another', 'at 1 s']
    now[0] += 4.9
    throttled.error('no depth')
    assert len(logger.lines) == 3
    now[0] += 0.1
    throttled.error('no depth')
    throttled.warning('at 7 s', 'late')
    assert logger.lines[3:] == [
        'no depth (and 2 more like it)',
        'warning: at 7 s (and 1 more like it)',
    ]


def test_a_cause_is_the_same_with_other_numbers_and_words_in_quotes():
    logger = Logger()
    throttled = throttled_log.ThrottledLog(logger)
    for number in ('12.5', '-3', '1e+30', 'nan', 'inf', '-inf'):
        throttled.error(f'fx is {number}, asked for {number!r}')
    throttled.error('fx is information')
    assert logger.lines == ["fx is 12.5, asked for '12.5'", 'fx is information']
