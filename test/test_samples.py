# SPDX-License-Identifier: Apache-2.0
"""What is shipped beside the code: the bag with its truth, and the exam."""

import json

import cv2
import numpy as np
import pytest
import yaml
from rosbags.highlevel import AnyReader

from lisa_ros.errors import DataError
from lisa_ros.evaluation import tabletop
from lisa_ros.messages import rgbd
from lisa_ros.messages.image import camera_from_info, depth_to_metres, image_to_rgb
from lisa_ros.resources import SAMPLE, TEST_SETS


@pytest.fixture(scope='module')
def bag():
    """Messages by topic, in the order of the bag."""
    found = {}
    with AnyReader([SAMPLE / 'bag']) as reader:
        for connection, when, data in reader.messages():
            message = reader.deserialize(data, connection.msgtype)
            found.setdefault(connection.topic, []).append((when, message))
    return found


def stamp(message):
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


def test_the_bag_has_what_a_camera_on_a_robot_sends(bag):
    colour = bag['/camera/color/image_raw']
    depth = bag['/camera/aligned_depth_to_color/image_raw']
    info = bag['/camera/color/camera_info']
    assert len(colour) == len(depth) == len(info) == 40
    assert {m.encoding for _, m in colour} == {'rgb8'}
    assert {m.encoding for _, m in depth} == {'16UC1'}
    for (_, a), (_, b), (_, c) in zip(colour, depth, info, strict=True):
        assert stamp(a) == stamp(b) == stamp(c)
        assert a.header.frame_id == b.header.frame_id == c.header.frame_id
    assert (colour[-1][0] - colour[0][0]) / 1e9 == pytest.approx(3.9)
    (_, latched), *_ = bag['/tf_static']
    assert latched.transforms[0].child_frame_id == colour[0][1].header.frame_id
    assert sum(file.stat().st_size for file in (SAMPLE / 'bag').iterdir()) < 6e6


def test_the_camera_moves(bag):
    first, *_, last = (image_to_rgb(m).astype(int) for _, m in bag['/camera/color/image_raw'])
    assert np.abs(first - last).mean() > 10


def test_every_frame_has_its_truth_and_every_id_a_name(bag):
    names = json.loads((SAMPLE / 'truth' / 'objects.json').read_text())
    seen = set()
    for _, message in bag['/camera/color/image_raw']:
        path = SAMPLE / 'truth' / f'{stamp(message)}.png'
        ids = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert ids.shape == (message.height, message.width)
        seen |= set(np.unique(ids).tolist())
    assert {str(i) for i in seen - {0}} == names.keys()
    assert len(names) >= 5


def test_the_truth_lies_on_the_things_in_depth_too(bag):
    """Things stand on the table: their depth is smaller than that of the table around them."""
    _, message = bag['/camera/aligned_depth_to_color/image_raw'][0]
    depth = depth_to_metres(message)
    ids = cv2.imread(str(SAMPLE / 'truth' / f'{stamp(message)}.png'), cv2.IMREAD_UNCHANGED)
    for i in np.unique(ids)[1:]:
        mask = (ids == i).astype(np.uint8)
        ring = (cv2.dilate(mask, np.ones((9, 9))) > 0) & (ids == 0)
        assert np.nanmedian(depth[mask > 0]) < np.nanmedian(depth[ring])
    k = camera_from_info(bag['/camera/color/camera_info'][0][1]).k
    assert k[0, 0] == k[1, 1] > 200


def test_the_commands_ask_for_things_that_are_there_and_one_that_is_not():
    commands = yaml.safe_load((SAMPLE / 'commands.yaml').read_text())
    names = json.loads((SAMPLE / 'truth' / 'objects.json').read_text())
    kinds = [c['kind'] for c in commands]
    assert kinds == ['explicit', 'implicit', 'several', 'follow_up', 'absent']
    for command in commands:
        assert all(str(i) in names for i in command['targets'])
        assert bool(command['targets']) == (command['kind'] != 'absent')


def test_the_exam_asks_of_500_scenes_present_and_absent_alike():
    questions = tabletop.read_test_set(TEST_SETS / 'test.zip')
    for sort in tabletop.PRESENCE:
        of_sort = [q for q in questions if q.category == sort]
        assert len({q.image.name for q in of_sort}) == 500
        assert sum(bool(q.targets) for q in of_sort) == pytest.approx(len(of_sort) / 2, abs=10)
    for sort in ('relations', 'several', 'two_step', 'dialogue', 'part'):
        assert sum(q.category == sort and bool(q.targets) for q in questions) > 150
    assert all(q.history for q in questions if q.category == 'dialogue')
    assert all(
        q.expected_phrases for q in questions if q.category in tabletop.IMPLICIT and q.targets
    )
    new = [q for q in questions if q.category == 'unseen_objects']
    assert len(new) > 100
    assert all(q.targets for q in new)


def test_an_exam_that_is_none_is_named(tmp_path):
    with pytest.raises(DataError, match='no exam here'):
        tabletop.read_test_set(tmp_path)
    (tmp_path / 'exam.json').write_text('[{"picture": "a.png"}]')
    with pytest.raises(DataError, match='no exam here'):
        tabletop.read_test_set(tmp_path)


def test_what_an_answer_must_say_is_a_text_or_one_of_several(tmp_path):
    asked = {'sort': 'use', 'text': 'x', 'targets': [1], 'expects': ['milk', ['red', 'blue']]}
    page = {'picture': 'a.png', 'ids': 'b.png', 'questions': [asked]}
    (tmp_path / 'exam.json').write_text(json.dumps([page]))
    (question,) = tabletop.read_test_set(tmp_path)
    for none in ('milk', [[]], 3):
        asked['expects'] = none
        (tmp_path / 'exam.json').write_text(json.dumps([page]))
        with pytest.raises(DataError, match='no exam here'):
            tabletop.read_test_set(tmp_path)
    nothing = tabletop.Overlap(0, 1)
    for answer, right in {
        'It is blue. It is the milk.': True,
        'It is the milk. It is red.': True,
        'It is the milk.': False,
        'It is red.': False,
        'It is red. It is the milk, but there is no milk here.': False,  # and so denied
    }.items():
        assert tabletop.Graded(question, answer, True, nothing, (), ()).explained == right


def test_an_unreadable_picture_is_named(tmp_path):
    page = {'picture': 'a.png', 'ids': 'b.png', 'questions': [
        {'sort': 'explicit', 'text': 'the mug', 'targets': [1]}]}  # fmt: skip
    (tmp_path / 'exam.json').write_text(json.dumps([page]))
    with pytest.raises(DataError, match=r'a\.png'):
        list(tabletop.run_test_set(None, tabletop.read_test_set(tmp_path)))


def test_a_report_counts_masks_where_there_is_something_and_presence_everywhere():
    def graded(sort, targets, found, intersection=0, union=100, answer='', expects=()):
        question = tabletop.TabletopTestQuery(
            SAMPLE, SAMPLE, sort, 'the mug', targets, (), expects
        )
        scores = (0.9,) if found else ()
        covered = tabletop.Overlap(intersection, union)
        return tabletop.Graded(question, answer, found, covered, scores, ())

    figures = tabletop.report(
        [
            graded('explicit', (1,), True, 90, 100),
            graded('explicit', (2,), False, 0, 50),
            graded('explicit', (), True, 0, 10),
            graded('knowledge', (), False, 0, 0),
            graded(
                'two_step', (4,), True, 8, 10, 'The pan fries food.', (('The pan fries food',),)
            ),
            graded('two_step', (4,), True, 6, 10, 'The mug.', (('The pan fries food',),)),
            graded('unseen_objects', (3,), True, 6, 10),
            graded('use', (3,), False, 0, 10, 'The pan.', (('The pan',),)),
        ]
    )
    assert figures['explicit'] == {
        'giou': pytest.approx(0.45, abs=1e-6),
        'ciou': pytest.approx(0.6),
        'count': 2,
    }
    assert 'knowledge' not in figures  # nothing there to point at
    assert figures['two_step']['giou'] == pytest.approx(0.7, abs=1e-6)
    assert figures['implicit']['giou'] == pytest.approx(1.4 / 3, abs=1e-6)  # with the use
    assert figures['explanation_accuracy'] == pytest.approx(2 / 3)
    assert figures['explanations'] == 3
    assert figures['explanation'] == {
        'two_step': {'accuracy': 0.5, 'count': 2},
        'use': {'accuracy': 1.0, 'count': 1},
    }
    assert figures['ece'] == pytest.approx(0.9 - 4 / 5)  # four of the five masks are right
    assert figures['unseen_objects']['count'] == 1
    assert figures['presence_accuracy'] == 0.4
    assert figures['presence']['absent'] == {'accuracy': 0.5, 'count': 2}
    assert json.dumps(figures, allow_nan=False)


def test_the_places_of_the_bag_s_things_are_those_of_their_surfaces(bag):
    """Truth masks; the truth of a centroid is the mean of the thing's own visible points."""
    off = []
    infos = {stamp(m): m for _, m in bag['/camera/color/camera_info']}
    depths = {stamp(m): m for _, m in bag['/camera/aligned_depth_to_color/image_raw']}
    for _, message in bag['/camera/color/image_raw'][::5]:
        at = stamp(message)
        there = rgbd.rgbd_from_messages(image_to_rgb(message), message, depths[at], infos[at])
        ids = cv2.imread(str(SAMPLE / 'truth' / f'{at}.png'), cv2.IMREAD_UNCHANGED)
        masks = np.stack([ids == i for i in np.unique(ids)[1:]])
        rays = there.camera.rays()
        points = np.concatenate([rays, np.ones_like(rays[..., :1])], -1) * there.depth[..., None]
        for mask, thing in zip(masks, there.localize(masks), strict=True):
            off.append(np.linalg.norm(thing.centroid - np.nanmean(points[mask], axis=0)))
    assert len(off) > 40
    assert np.median(off) < 0.003
    assert np.max(off) < 0.02
