# SPDX-License-Identifier: Apache-2.0
"""The data in the package: the sample bag with its ground truth, and the test set."""

import json

import cv2
import numpy as np
import pytest
import yaml
from rosbags.highlevel import AnyReader

from lisa_ros.errors import DataError
from lisa_ros.evaluation import tabletop
from lisa_ros.evaluation.cases import Case
from lisa_ros.evaluation.metrics import Overlap
from lisa_ros.messages import rgbd
from lisa_ros.messages.camera_info import camera_from_info
from lisa_ros.messages.image import depth_to_metres, image_to_rgb
from lisa_ros.resources import SAMPLE, TEST_SETS

COLOUR, DEPTH = '/camera/color/image_raw', '/camera/aligned_depth_to_color/image_raw'
CAMERA_INFO = '/camera/color/camera_info'


@pytest.fixture(scope='module')
def bag():
    """Topic -> its (time [ns], message) pairs in the order of the bag."""
    messages = {}
    with AnyReader([SAMPLE / 'bag']) as reader:
        for connection, time, data in reader.messages():
            message = reader.deserialize(data, connection.msgtype)
            messages.setdefault(connection.topic, []).append((time, message))
    return messages


def stamp(message):
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


def ground_truth_ids(message):
    """The id image (H, W) of a colour image."""
    return cv2.imread(str(SAMPLE / 'truth' / f'{stamp(message)}.png'), cv2.IMREAD_UNCHANGED)


def object_names():
    return json.loads((SAMPLE / 'truth' / 'objects.json').read_text())


def test_bag_has_the_topics_of_a_robot_camera(bag):
    colour, depth, info = bag[COLOUR], bag[DEPTH], bag[CAMERA_INFO]
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


def test_camera_of_the_bag_moves(bag):
    first, *_, last = (image_to_rgb(m).astype(int) for _, m in bag[COLOUR])
    assert np.abs(first - last).mean() > 10


def test_every_frame_has_ground_truth_and_every_id_a_name(bag):
    names = object_names()
    ids_of_all_frames = set()
    for _, message in bag[COLOUR]:
        ids = ground_truth_ids(message)
        assert ids.shape == (message.height, message.width)
        ids_of_all_frames |= set(np.unique(ids).tolist())
    assert {str(i) for i in ids_of_all_frames - {0}} == names.keys()
    assert len(names) >= 5


def test_masks_match_the_depth_image(bag):
    """Objects are nearer to the camera than the table around them."""
    depth = depth_to_metres(bag[DEPTH][0][1])
    ids = ground_truth_ids(bag[DEPTH][0][1])
    for i in np.unique(ids)[1:]:
        mask = (ids == i).astype(np.uint8)
        ring = (cv2.dilate(mask, np.ones((9, 9))) > 0) & (ids == 0)
        assert np.nanmedian(depth[mask > 0]) < np.nanmedian(depth[ring])
    k = camera_from_info(bag[CAMERA_INFO][0][1]).k
    assert k[0, 0] == k[1, 1] > 200


def test_object_positions_are_the_centres_of_their_visible_surfaces(bag):
    """With ground-truth masks; the expected centroid is the mean of the visible points."""
    errors = []
    infos = {stamp(m): m for _, m in bag[CAMERA_INFO]}
    depths = {stamp(m): m for _, m in bag[DEPTH]}
    for _, message in bag[COLOUR][::5]:
        depth, info = depths[stamp(message)], infos[stamp(message)]
        frame = rgbd.rgbd_from_messages(image_to_rgb(message), message, depth, info)
        ids = ground_truth_ids(message)
        masks = np.stack([ids == i for i in np.unique(ids)[1:]])
        rays = frame.camera.rays()
        points = np.concatenate([rays, np.ones_like(rays[..., :1])], -1) * frame.depth[..., None]
        for mask, obj in zip(masks, frame.localize(masks), strict=True):
            errors.append(np.linalg.norm(obj.centroid - np.nanmean(points[mask], axis=0)))
    assert len(errors) > 40
    assert np.median(errors) < 0.003
    assert np.max(errors) < 0.02


def test_commands_ask_for_visible_objects_and_one_absent_object():
    commands = yaml.safe_load((SAMPLE / 'commands.yaml').read_text())
    names = object_names()
    kinds = [command['kind'] for command in commands]
    assert kinds == ['explicit', 'implicit', 'several', 'follow_up', 'absent']
    for command in commands:
        assert all(str(i) in names for i in command['targets'])
        assert bool(command['targets']) == (command['kind'] != 'absent')


# ---- test sets


def test_test_set_has_500_scenes_with_present_and_absent_objects():
    queries = tabletop.read_test_set(TEST_SETS / 'test.zip')
    for category in tabletop.PRESENCE:
        of_category = [q for q in queries if q.category == category]
        assert len({q.image.name for q in of_category}) == 500
        present = sum(bool(q.targets) for q in of_category)
        assert present == pytest.approx(len(of_category) / 2, abs=10)
    for category in ('relations', 'several', 'two_step', 'dialogue', 'part'):
        assert sum(q.category == category and bool(q.targets) for q in queries) > 150
    assert all(q.history for q in queries if q.category == 'dialogue')
    assert all(
        q.expected_phrases for q in queries if q.category in tabletop.IMPLICIT and q.targets
    )
    unseen = [q for q in queries if q.category == 'unseen_objects']
    assert len(unseen) > 100
    assert all(q.targets for q in unseen)


def write_test_set(folder, query):
    """Write a test set of one image with one query."""
    entry = {'image': 'a.png', 'ids': 'b.png', 'queries': [query]}
    (folder / 'queries.json').write_text(json.dumps([entry]))


def test_missing_and_malformed_test_sets_are_errors(tmp_path):
    with pytest.raises(DataError, match=f'{tmp_path}: expected a test set'):
        tabletop.read_test_set(tmp_path)
    (tmp_path / 'queries.json').write_text('[{"image": "a.png"}]')
    with pytest.raises(DataError, match=f'{tmp_path}: expected a test set'):
        tabletop.read_test_set(tmp_path)


def test_unreadable_image_is_an_error(tmp_path):
    write_test_set(tmp_path, {'category': 'explicit', 'text': 'the mug', 'targets': [1]})
    with pytest.raises(DataError, match=r'a\.png'):
        list(tabletop.run_test_set(None, tabletop.read_test_set(tmp_path)))


def make_case(category, answer, present=True, found=True, overlap=None, expected_phrases=()):
    return Case(
        'a.0', 'a', category, 'the mug', 'the mug', answer, 'FOUND', present, found, overlap,
        boundary_f=None, scores=(0.9,) if found else (), expected_phrases=expected_phrases,
    )  # fmt: skip


def test_answer_must_state_one_alternative_of_each_expected_phrase(tmp_path):
    entry = {'category': 'use', 'text': 'x', 'targets': [1]}
    write_test_set(tmp_path, {**entry, 'expected_phrases': ['milk', ['red', 'blue']]})
    (query,) = tabletop.read_test_set(tmp_path)
    for malformed in ('milk', [[]], 3):
        write_test_set(tmp_path, {**entry, 'expected_phrases': malformed})
        with pytest.raises(DataError, match='expected a test set'):
            tabletop.read_test_set(tmp_path)
    for answer, explained in {
        'It is blue. It is the milk.': True,
        'It is the milk. It is red.': True,
        'It is the milk.': False,
        'It is red.': False,
        'It is red. It is the milk, but there is no milk here.': False,
    }.items():
        case = make_case('use', answer, expected_phrases=query.expected_phrases)
        assert case.explained == explained


def test_report_has_iou_of_present_objects_and_presence_accuracy_of_all():
    def case(category, targets, found, intersection=0, union=100, answer='', phrases=()):
        overlap = Overlap(intersection, union)
        return make_case(category, answer, bool(targets), found, overlap, phrases)

    figures = tabletop.compute_figures(
        [
            case('explicit', (1,), True, 90, 100),
            case('explicit', (2,), False, 0, 50),
            case('explicit', (), True, 0, 10),
            case('knowledge', (), False, 0, 0),
            case('two_step', (4,), True, 8, 10, 'The pan fries food.', (('The pan fries food',),)),
            case('two_step', (4,), True, 6, 10, 'The mug.', (('The pan fries food',),)),
            case('unseen_objects', (3,), True, 6, 10),
            case('use', (3,), False, 0, 10, 'The pan.', (('The pan',),)),
        ]
    )
    assert figures['explicit'] == {
        'giou': pytest.approx(0.45, abs=1e-6),
        'ciou': pytest.approx(0.6),
        'count': 2,
    }
    assert 'knowledge' not in figures  # no present object
    assert figures['two_step']['giou'] == pytest.approx(0.7, abs=1e-6)
    assert figures['implicit']['giou'] == pytest.approx(1.4 / 3, abs=1e-6)  # of two_step and use
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
