# SPDX-License-Identifier: Apache-2.0
"""~/places, ~/recall and the file of places, with a node whose model is scripted."""

import json
import os
import time
from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2: make setup')
pytest.importorskip('lisa_ros.srv', reason='needs the built interfaces: make setup')

import rclpy
from lisa_ros.msg import PlaceList
from lisa_ros.msg import Segmentation as SegmentationMessage
from lisa_ros.srv import Recall
from rclpy.lifecycle import LifecycleNode
from ros_graph import DOMAIN, image
from test_cameras import IMAGE_AT, send_command, start, tf  # noqa: F401  # fixtures

from lisa_ros.results import Segmentation, Status
from lisa_ros.ros.parameter_declaration import CurrentSettings
from lisa_ros.ros.places import Places, _duration_text
from lisa_ros.ros.qos import latched_qos
from lisa_ros.ros.throttled_log import ThrottledLog
from lisa_ros.ros.transforms import Transforms
from lisa_ros.session.frame_buffer import SyncedMessages
from lisa_ros.settings import Settings

pytestmark = pytest.mark.ros
QUERY = 'bright box'
FRAME = 'camera_optical'  # that of the camera: no TF is needed


def ask(peer, text):
    count = len(peer.received['segmentation'])
    send_command(peer, text)
    peer.wait(lambda: len(peer.received['segmentation']) > count, what='the answer')
    return peer.received['segmentation'][-1]


def test_what_was_found_is_remembered_recalled_and_kept_over_a_restart(start, tmp_path):  # noqa: F811
    file = tmp_path / 'places.json'
    node, peer, _ = start(0.0, map_frame=FRAME, places_file=str(file))
    answer = ask(peer, QUERY)
    assert answer.status == Status.FOUND
    centroid = answer.instances[0].centroid

    lists = []
    peer.node.create_subscription(PlaceList, '/lisa/places', lists.append, latched_qos())
    peer.wait(lambda: lists and lists[-1].places, what='the list')
    (place,) = lists[-1].places
    assert (lists[-1].header.frame_id, place.name, place.sightings) == (FRAME, 'bright box', 1)
    assert place.position == centroid
    assert place.stamp == answer.header.stamp

    response = peer.call(Recall, 'recall', query='where did you last see the box?')
    (place,), (age,) = response.places, response.ages
    assert response.answer.startswith('I last saw the bright box ')
    assert response.answer.endswith(f' m in {FRAME}.')
    assert 0 <= age < 60
    thumbnail = cv2.imdecode(
        np.frombuffer(bytes(place.thumbnail.data), np.uint8), cv2.IMREAD_COLOR
    )
    assert max(thumbnail.shape[:2]) <= 96
    assert thumbnail.max() > 200  # the square of the camera is bright
    assert peer.call(Recall, 'recall', query='the plate').answer == 'I have not seen the plate.'

    from_memory = ask(peer, 'Where did you last see the box?')
    assert from_memory.status == Status.NOT_FOUND
    assert from_memory.answer.startswith('I last saw the bright box ')
    spoken = peer.received['explanation']
    peer.wait(lambda: spoken[-1].data.startswith('I last saw the bright box '), what='the text')
    assert ask(peer, 'where have you seen the plate?').answer == 'I have not seen the plate.'

    assert peer.change_state('deactivate')
    saved = json.loads(file.read_text())
    assert (saved['frame'], [p['name'] for p in saved['places']]) == (FRAME, ['bright box'])
    assert peer.change_state('cleanup')
    assert peer.change_state('configure')
    assert len(peer.call(Recall, 'recall', query='').places) == 1
    # the name of the frame does not tell whether it is the same map
    node.wait_for_output(f'places.json: 1 places in {FRAME}; if the map is a new one')


def test_without_a_map_frame_nothing_is_remembered(start):  # noqa: F811
    _, peer, _ = start(0.0)
    assert ask(peer, QUERY).status == Status.FOUND
    response = peer.call(Recall, 'recall', query='')
    assert list(response.places) == []
    assert 'set map_frame' in response.answer
    # then it is a query like any other
    assert 'last saw' not in ask(peer, 'where did you last see the box?').answer


def test_a_damaged_file_is_named_and_left_as_it_is(start, tmp_path):  # noqa: F811
    file = tmp_path / 'places.json'
    file.write_text('{"frame": 3}')
    node, peer, _ = start(0.0, map_frame=FRAME, places_file=str(file))
    assert ask(peer, QUERY).status == Status.FOUND
    assert len(peer.call(Recall, 'recall', query='').places) == 1
    assert peer.change_state('deactivate')
    assert file.read_text() == '{"frame": 3}'
    assert 'places are not saved' in node.output()


def test_a_disk_that_hangs_delays_no_callback(start, tmp_path):  # noqa: F811
    """A pipe in the place of the new file: opening it waits for a reader."""
    file, pipe = tmp_path / 'places.json', tmp_path / 'places.json.new'
    os.mkfifo(pipe)
    node, peer, _ = start(0.0, map_frame=FRAME, places_file=str(file))
    assert ask(peer, QUERY).status == Status.FOUND
    end = time.monotonic() + 1.0
    while time.monotonic() < end:  # the node tries to write within 0.25 s
        assert len(peer.call(Recall, 'recall', query='').places) == 1
    descriptor = os.open(pipe, os.O_RDONLY)
    try:
        node.wait_for_output('cannot be written')  # a pipe cannot be flushed to a disk
    finally:
        os.close(descriptor)
    pipe.unlink()
    assert peer.change_state('deactivate')
    assert [place['name'] for place in json.loads(file.read_text())['places']] == ['bright box']


def test_two_cameras_answer_from_their_memory_once(start):  # noqa: F811
    _, peer, _ = start(0.0, names=('front', 'rear'), map_frame='front_optical')
    for name in ('front', 'rear'):
        peer.subscribe(f'/lisa/{name}/segmentation', SegmentationMessage, name)
    peer.settle(1.0)
    send_command(peer, f'front: {QUERY}')
    peer.wait(lambda: peer.received['front'], what='the answer')
    for command, answers in (('', (2, 0)), ('all: ', (3, 0)), ('rear: ', (3, 1))):
        send_command(peer, f'{command}where did you last see the box?')
        peer.settle(1.0)
        assert tuple(len(peer.received[name]) for name in ('front', 'rear')) == answers
    assert peer.received['rear'][-1].answer.startswith('I last saw the bright box ')


def test_a_frame_that_tf_does_not_know_is_one_error_and_the_answer_comes(start):  # noqa: F811
    node, peer, _ = start(0.0, map_frame='nowhere')
    assert ask(peer, QUERY).status == Status.FOUND
    node.wait_for_output('no place to remember')
    assert 'nowhere' in peer.call(Recall, 'recall', query='').header.frame_id


@pytest.fixture
def memory():
    """Yield places of a camera, and a function that notes (name, x [m], mask) of one answer."""
    context = rclpy.Context()
    context.init(domain_id=int(DOMAIN))
    node = LifecycleNode('lisa', context=context)
    settings = CurrentSettings(Settings(map_frame='map', transform_timeout=0.05))
    log = ThrottledLog(node.get_logger())
    places = Places(node, settings, Transforms(node, settings), log)
    places.configure()

    def note(seen, frame='map', stamp=(0, 0), arrival=IMAGE_AT):
        names, columns, masks = zip(*seen, strict=True)
        masks = np.stack(masks)
        result = Segmentation(
            'q', 'a', 'a', masks, masks * 5.0, np.ones(len(masks), np.float32), Status.FOUND
        )
        result = replace(result, names=names)
        picture = image(np.zeros((*masks.shape[1:], 3), np.uint8), stamp=stamp, frame=frame)
        objects = [SimpleNamespace(centroid=np.array([x, 0.0, 0.8])) for x in columns]
        places.note(SyncedMessages(round(arrival * 1e9), picture), result, objects, '')
        return sorted(
            (place.name, round(place.position[0], 3), place.stamp)
            for place in places._memory.stored()
        )

    yield note
    node.destroy_node()
    context.shutdown()


def box_mask(x, size=20):
    mask = np.zeros((48, 64), bool)
    mask[10 : 10 + size, x : x + size] = True
    return mask


def test_the_place_of_an_image_without_a_stamp_is_that_at_its_arrival(memory, tf):  # noqa: F811
    """The camera drives on at 0.5 m/s until the answer comes."""
    at = round(IMAGE_AT * 1e9)
    assert memory([('mug', 1.0, box_mask(5))], 'moving') == [('mug', 1.5, at)]
    assert memory([('cup', 1.0, box_mask(5))], 'moving', (102, 0), arrival=102.1) == [
        ('cup', 2.0, 102 * 10**9),
        ('mug', 1.5, at),
    ]


def test_an_object_that_an_answer_shows_twice_has_one_place(memory):
    at = round(IMAGE_AT * 1e9)
    twice = [('red mug', 1.0, box_mask(5)), ('the mug', 1.002, box_mask(6, 21))]
    assert memory(twice) == [('red mug', 1.0, at)]
    assert memory([('red mug', 4.0, box_mask(5))], arrival=102.0) == [
        ('red mug', 4.0, 102 * 10**9)  # it has moved: no other one stays behind
    ]


@pytest.mark.parametrize(
    'seen',
    [
        [('mug', 1.0, box_mask(5)), ('mug', 1.05, box_mask(25))],  # side by side
        [('mug', 1.0, box_mask(5)), ('mug', 1.05, box_mask(12))],  # one behind the other
        [('mug', 1.0, box_mask(5, 28)), ('mug', 1.05, box_mask(5))],  # all of them, and one
        [('mug', 1.0, box_mask(5)), ('plate', 1.0, box_mask(5))],  # two names for it
        [('red mug', 1.0, box_mask(5)), ('blue mug', 1.0, box_mask(5))],
    ],
)
def test_two_objects_of_an_answer_have_a_place_each(memory, seen):
    at = round(IMAGE_AT * 1e9)
    assert memory(seen) == sorted((name, x, at) for name, x, _ in seen)


@pytest.mark.parametrize(
    ('seconds', 'text'),
    [(0.4, '0 s'), (-3, '0 s'), (119, '119 s'), (300, '5 min'), (7200, '2 h'), (400000, '5 days')],
)
def test_ages_are_written_for_people(seconds, text):
    assert _duration_text(seconds) == text
