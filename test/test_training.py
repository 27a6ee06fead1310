# SPDX-License-Identifier: Apache-2.0
"""Scenes by seed, requests with their truth, lessons, and a trainer that learns and resumes.

Rendering itself needs meshes and a graphics library, so the scenes of these tests are rectangles.
"""

import itertools
import json
import math

import cv2
import numpy as np
import pytest
import torch

from lisa_ros.errors import DataError
from lisa_ros.model.lisa import IGNORED
from lisa_ros.segmenter import Segmenter
from lisa_ros.training import data, exams, requests, sample, scenes
from lisa_ros.training.things import COLOURS, KINDS, THINGS
from lisa_ros.training.train import CLIP_RECIPE, Recipe, Trainer

OBJECTS = [
    {'id': 1, 'kind': 'mug', 'thing': 'coffee_mug', 'colour': 'red', 'area': 900},
    {'id': 2, 'kind': 'mug', 'thing': 'porcelain_mug', 'colour': 'white', 'area': 800},
    {'id': 3, 'kind': 'banana', 'thing': 'banana', 'colour': None, 'area': 700},
    {'id': 4, 'kind': 'plate', 'thing': 'plate', 'colour': 'blue', 'area': 3000},
    {'id': 5, 'kind': 'book', 'thing': 'black_book', 'colour': None, 'area': 20},  # hardly seen
]
BOXES = {name: [[-0.5, -0.3, -0.4], [0.5, 0.3, 0.4]] for name in THINGS}


# ---- scenes


def test_a_scene_is_its_split_and_number():
    def draw(split, number):
        return scenes.draw_scene(scenes.scene_rng(split, number), BOXES)

    assert draw('train', 7) == draw('train', 7)
    assert draw('train', 7) != draw('train', 8)
    assert draw('train', 7) != draw('test', 7)


def test_held_out_things_are_seen_in_the_unseen_split_alone():
    held = {name for name, thing in THINGS.items() if thing.held_out}
    assert held
    for number in range(40):
        usual = scenes.draw_scene(scenes.scene_rng('train', number), BOXES)
        new = scenes.draw_scene(scenes.scene_rng('unseen', number), BOXES, unseen=True)
        assert not held & {p.thing.name for p in usual.placed}
        assert held & {p.thing.name for p in new.placed}


def test_things_stand_on_the_table_apart_from_each_other_and_can_be_told_apart():
    for number in range(40):
        scene = scenes.draw_scene(scenes.scene_rng('val', number), BOXES)
        looks = [(p.thing.kind, p.colour) for p in scene.placed]
        assert len(set(looks)) == len(looks)
        assert len({p.thing.name for p in scene.placed}) == len(scene.placed)
        for placed in scene.placed:
            size = THINGS[placed.thing.name].size
            corners = np.array(np.meshgrid(*zip(*BOXES[placed.thing.name], strict=True)))
            corners = corners.reshape(3, -1).T * size  # the test's boxes are one unit long
            stood = corners @ scenes._rotation(placed.quaternion).T + placed.position
            assert stood[:, 2].min() == pytest.approx(0, abs=1e-9)


def test_the_camera_looks_along_its_z_axis_with_the_horizon_level():
    position, target = np.array([0.3, -0.7, 0.5]), np.array([0.0, 0.0, 0.05])
    pose = scenes.camera_matrix(position, target)
    ahead = pose[:3, 2] * np.linalg.norm(target - position) + pose[:3, 3]
    assert ahead == pytest.approx(target)
    assert pose[2, 0] == pytest.approx(0)  # x, to the right, is level
    assert pose[2, 1] < 0  # y points down
    assert pose[:3, :3] @ pose[:3, :3].T == pytest.approx(np.eye(3))
    assert np.linalg.det(pose[:3, :3]) == pytest.approx(1)


def test_the_path_of_the_sample_bag_is_smooth():
    poses = sample.camera_path(40)
    steps = [np.linalg.norm(b[:3, 3] - a[:3, 3]) for a, b in itertools.pairwise(poses)]
    assert min(steps) > 0.005
    assert max(steps) < 0.05
    w, x, y, z = sample._quaternion(poses[3][:3, :3])
    assert scenes._rotation((w, x, y, z)) == pytest.approx(poses[3][:3, :3])


# ---- requests


@pytest.mark.parametrize('seed', range(300))
def test_a_request_points_at_what_its_words_mean(seed):
    request = requests.draw_request(np.random.default_rng(seed), OBJECTS)
    answers = [turn.answer_raw for turn in request.turns]
    assert sum(answer.count('[SEG]') for answer in answers) == len(request.targets)
    if request.insisted:
        assert request.targets == ((),)
        return
    assert all(ids and set(ids) <= {1, 2, 3, 4} for ids in request.targets)
    assert all(turn.query.strip() for turn in request.turns)
    if request.sort in ('explicit', 'implicit'):
        there = {o['id'] for o in OBJECTS if o['kind'] == request.kind}
        assert set(request.targets[0] if request.targets else ()) <= there
        words = request.turns[0].query
        colour = next((c for c in COLOURS if c in words), None)
        if request.sort == 'explicit' and colour and request.targets:
            assert [o['colour'] for o in OBJECTS if o['id'] in request.targets[0]] == [colour]


def test_what_can_hardly_be_seen_is_neither_asked_for_nor_called_absent():
    for seed in range(300):
        request = requests.draw_request(np.random.default_rng(seed), OBJECTS)
        for turn in request.turns:
            assert 'book' not in turn.query + turn.answer_raw


def test_every_need_belongs_to_one_kind():
    needs = [need for kind in KINDS.values() for need in kind.needs]
    assert len(set(needs)) == len(needs)


def test_an_exam_asks_for_what_is_there_and_what_is_not():
    asked = exams.questions('test', 3, OBJECTS)
    assert [(q['sort'], bool(q['targets'])) for q in asked] == [
        ('explicit', True),
        ('explicit', False),
        ('implicit', True),
        ('implicit', False),
    ]
    assert asked == exams.questions('test', 3, OBJECTS)


# ---- lessons and the trainer


INKS = (
    ('mug', 'coffee_mug', 'red', (200, 20, 20)),
    ('banana', 'banana', None, (230, 220, 40)),
)


@pytest.fixture(scope='module')
def rectangles(tmp_path_factory):
    """Scenes whose mugs are red rectangles and whose bananas are yellow ones."""
    root = tmp_path_factory.mktemp('scenes')
    for split, count in (('train', 12), ('val', 4)):
        notes = []
        for folder in ('colour', 'ids'):
            (root / split / folder).mkdir(parents=True)
        for number in range(count):
            rng = np.random.default_rng((len(split), number))
            colour = np.full((240, 320, 3), 120, np.uint8)
            ids = np.zeros((240, 320), np.uint8)
            objects = []
            for i, (kind, thing, name, ink) in enumerate(INKS, 1):
                x, y = rng.integers(20, 220), rng.integers(20, 150)
                ids[y : y + 60, x : x + 70], colour[y : y + 60, x : x + 70] = i, ink
                objects.append({'id': i, 'kind': kind, 'thing': thing, 'colour': name})
            for thing in objects:
                thing['area'] = int((ids == thing['id']).sum())
            cv2.imwrite(str(root / split / 'colour' / f'{number:05d}.jpg'), colour[..., ::-1])
            cv2.imwrite(str(root / split / 'ids' / f'{number:05d}.png'), ids)
            notes.append({'name': f'{number:05d}', 'objects': objects})
        (root / split / 'scenes.json').write_text(json.dumps({'split': split, 'scenes': notes}))
    return root


RECIPE = Recipe(
    steps=6, looks=2, pictures=2, requests=2, warm_up=2, validate_every=6, save_every=3, threads=1
)


@pytest.fixture(scope='module')
def trained(rectangles, tmp_path_factory):
    run = tmp_path_factory.mktemp('run')
    trainer = Trainer(run, rectangles, RECIPE)
    trainer.train()
    return trainer


def test_a_lesson_supervises_answers_and_points_at_their_truth(trained, rectangles):
    split = data.SceneSet.load(rectangles / 'train')
    request = requests.explicit(np.random.default_rng(0), split.objects[0], present=True)
    views = [(split.colour[0], split.ids[0], split.objects[0], [request])]
    lesson = data.lesson(trained.config, trained.tokenizer, CLIP_RECIPE, views)
    side = trained.config.sam_size
    assert lesson.truth.shape == (1, side, side)
    share = (split.ids[0] == request.targets[0][0]).mean()  # of the picture; 3/4 of the square
    assert float(lesson.truth.mean()) == pytest.approx(share * 0.75, rel=0.1)
    learnt = lesson.batch.labels[0]
    words = trained.tokenizer.decode(learnt[learnt != IGNORED].tolist())
    assert words.replace(' ', '') == 'Sure,[SEG].</s>'
    row, place = lesson.first_words[0].tolist()
    assert trained.tokenizer.decode([int(lesson.batch.input_ids[row, place])]) == 'Sure'


def test_augmentation_keeps_picture_and_truth_together():
    ids = np.zeros((240, 320), np.uint8)
    ids[60:180, 100:220] = 1
    colour = np.where(ids[..., None] > 0, 230, 20).astype(np.uint8).repeat(3, axis=2)
    for seed in range(10):
        seen, where = data.augment(np.random.default_rng(seed), colour, ids)
        bright = seen.mean(axis=2) > 110
        assert (bright == (where > 0)).mean() > 0.97


def test_the_losses_fall(trained):
    rows = (trained.run / 'curves.csv').read_text().splitlines()
    assert rows[0].startswith('step,minutes,ce,bce,dice')
    torch.manual_seed(0)
    lesson = trained.draw(0)
    before = trained.learn(lesson)
    for _ in range(4):
        after = trained.learn(lesson)
    assert after['ce'] < before['ce']
    assert after['pixels'] < before['pixels']
    assert all(math.isfinite(value) for value in after.values())


def test_a_run_goes_on_where_it_stopped_as_if_it_had_not(trained, rectangles, tmp_path):
    whole, parts = Trainer(tmp_path / 'a', rectangles, RECIPE), tmp_path / 'b'
    whole.train(until=4)
    Trainer(parts, rectangles, RECIPE).train(until=3)
    resumed = Trainer(parts, rectangles, RECIPE)
    assert resumed.step == 3
    resumed.train(until=4)
    for name, value in whole.lisa.state_dict().items():
        assert torch.equal(value, resumed.lisa.state_dict()[name]), name


def test_what_it_saves_is_a_model_that_answers(trained, rectangles):
    lisa = Segmenter.load(trained.run / 'model', device='cpu', max_new_tokens=8)
    assert lisa.template == 'plain'
    picture = data.SceneSet.load(rectangles / 'val').colour[0]
    result = lisa.segment(picture, 'segment the mug')
    assert result.token_ids
    assert result.mask_logits.shape[1:] == picture.shape[:2]


def test_scenes_that_are_not_there_are_named(tmp_path):
    with pytest.raises(DataError, match='no scenes here'):
        data.SceneSet.load(tmp_path)
    with pytest.raises(DataError, match=r'porcelain_mug\.obj'):
        scenes._asset(tmp_path / 'porcelain_mug.obj')
