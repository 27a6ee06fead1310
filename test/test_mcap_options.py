# SPDX-License-Identifier: Apache-2.0
"""MCAP files of recorders that leave out parts of the index: no message is lost."""

import dataclasses
import itertools

import mcap_writer
import numpy as np
import pytest
from bag_kinds import IMAGE, STORE, image

from lisa_ros.messages.bag import BagImage, open_bag
from lisa_ros.messages.mcap_scan import McapScan

SECOND = 10**9
DEFINITION = STORE.generate_msgdef(IMAGE, ros_version=2)[0]
CHANNELS = {
    number: mcap_writer.channel(number, topic, 'cdr', (IMAGE, 'ros2msg', DEFINITION))
    for number, topic in ((1, '/left'), (2, '/right'))
}
TOPICS = {1: '/left', 2: '/right'}


def raw(time):
    frame = BagImage(time, np.full((2, 2, 3), time // SECOND, np.uint8), 'camera')
    return bytes(STORE.serialize_cdr(image(STORE, frame), IMAGE))


MESSAGES = [  # of two chunks
    [(1, n * SECOND, raw(n * SECOND)) for n in (1, 3, 5)],
    [(1 + n % 2, n * SECOND, raw(n * SECOND)) for n in (6, 7, 8)],
]
EXPECTED = [(TOPICS[number], time) for number, time, _ in itertools.chain(*MESSAGES)]
NAMES = [field.name for field in dataclasses.fields(mcap_writer.Options)]
OPTIONS = [
    mcap_writer.Options(*values) for values in itertools.product([True, False], repeat=len(NAMES))
]


def left_out(options):
    return ', '.join(name for name in NAMES if not getattr(options, name)) or 'nothing'


def open_written(options, folder, errors):
    path = mcap_writer.write_as(folder / 'bag.mcap', CHANNELS, MESSAGES, options)
    return open_bag(path, on_error=lambda error: errors.append(str(error)))


@pytest.mark.parametrize('options', OPTIONS, ids=left_out)
def test_a_file_without_parts_of_its_index_has_all_messages(options, tmp_path):
    errors = []
    with open_written(options, tmp_path, errors) as bag:
        messages = [(connection.topic, time) for connection, time, _ in bag.messages()]
        right = [c for c in bag.connections if c.topic == '/right']
        later = [time for _, time, _ in bag.messages(right, 7 * SECOND, 9 * SECOND)]
        types = {connection.msgtype for connection in bag.connections}
    assert messages == EXPECTED
    assert later == [7 * SECOND]
    assert types == {IMAGE}
    assert not errors


def test_a_file_with_all_of_its_index_is_not_read_from_start_to_end(tmp_path, monkeypatch):
    monkeypatch.setattr(McapScan, '__init__', None)
    errors = []
    with open_written(mcap_writer.Options(), tmp_path, errors) as bag:
        assert len(list(bag.messages())) == len(EXPECTED)
    assert not errors
