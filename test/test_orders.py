# SPDX-License-Identifier: Apache-2.0
"""What kind of thing was said on ~/command."""

import pytest

from lisa_ros.orders import Kind, Order, order


@pytest.mark.parametrize(
    ('said', 'kind', 'text'),
    [
        ('find the red mug', Kind.ASK, 'find the red mug'),
        ('find the stop sign', Kind.ASK, 'find the stop sign'),
        ('watch the mug', Kind.ASK, 'watch the mug'),
        ('', Kind.ASK, ''),
        ('watch: the red mug', Kind.WATCH, 'the red mug'),
        (' Watch:find it ', Kind.WATCH, 'find it'),
        ('watch:', Kind.WATCH, ''),
        ('stop', Kind.STOP, 'stop'),
        (' Stop. ', Kind.STOP, 'Stop.'),
        ('CANCEL!', Kind.STOP, 'CANCEL!'),
        ('never mind', Kind.STOP, 'never mind'),
    ],
)
def test_the_kind_of_an_order(said, kind, text):
    assert order(said) == Order(kind, text)
