# SPDX-License-Identifier: Apache-2.0
"""Scenes by seed, requests with their truth, lessons, and a trainer that learns and resumes.

Rendering itself needs meshes and a graphics library, so the scenes of these tests are rectangles.
"""

import itertools
import json
import math
import os.path
import re
import shutil
import zlib
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from lisa_ros import cli
from lisa_ros.errors import CheckpointError, DataError, QueryError, SettingsError
from lisa_ros.geometry.rotation import matrix_to_quaternion
from lisa_ros.model import checkpoint, lora
from lisa_ros.model.lisa import IGNORED, IMAGE_TOKEN
from lisa_ros.perception.segmenter import Segmenter
from lisa_ros.results import SEG, Turn
from lisa_ros.tabletop import (
    answer_text,
    assets,
    queries,
    query_sampling,
    rendering,
    sample_bag,
    scene_sampling,
    templates,
    test_sets,
)
from lisa_ros.tabletop.answer_noise import corrupt_object_name
from lisa_ros.tabletop.objects import COLOURS, OBJECT_CATEGORIES, OBJECTS
from lisa_ros.tabletop.rendering import PART_FLAG
from lisa_ros.tabletop.scene_graph import (
    PLACES,
    SUPERLATIVES,
    SceneGraph,
    SceneObject,
    in_relation,
    nearest_in_relation,
    side_is_empty,
    superlative,
)
from lisa_ros.tabletop.templates import PhraseSampler
from lisa_ros.training.tabletop import (
    attention_supervision,
    batches,
    dataset,
    feature_cache,
    initialization,
    position_codes,
)
from lisa_ros.training.tabletop.attention_supervision import AttentionSupervision
from lisa_ros.training.tabletop.initialization import resize_position_embedding
from lisa_ros.training.tabletop.pretrain import PretrainConfig, PretrainTask
from lisa_ros.training.trainer import Trainer, TrainerConfig

# From above, the camera at the bottom:      book (hardly seen)
#                                     plate
#                      red mug   banana   white mug
TABLE = SceneGraph(
    (
        SceneObject(1, 'mug', 'coffee_mug', 'red', 'big', 900, 90, -0.2, 0.5, 0.12, 0.15),
        SceneObject(2, 'mug', 'porcelain_mug', 'white', 'small', 800, 80, 0.2, 0.5, 0.08, 0.10),
        SceneObject(3, 'banana', 'banana', None, None, 700, 0, 0.0, 0.5, 0.04, 0.19),
        SceneObject(4, 'plate', 'plate', 'blue', 'big', 3000, 0, -0.01, 0.8, 0.02, 0.24),
        SceneObject(5, 'book', 'black_book', None, None, 20, 0, 0.1, 1.3, 0.2, 0.24),
    )
)
RED, WHITE, BANANA, PLATE, BOOK = TABLE.objects
BOXES = {name: [[-0.5, -0.3, -0.4], [0.5, 0.3, 0.4]] for name in OBJECTS}


# ---- scenes


def test_a_scene_is_its_split_and_number():
    def draw(split, number):
        return scene_sampling.draw_scene(scene_sampling.scene_rng(split, number), BOXES)

    assert draw('train', 7) == draw('train', 7)
    assert draw('train', 7) != draw('train', 8)
    assert draw('train', 7) != draw('test', 7)


def test_held_out_things_are_seen_in_the_unseen_split_alone():
    held = {name for name, thing in OBJECTS.items() if thing.held_out}
    assert held
    for number in range(40):
        usual = scene_sampling.draw_scene(scene_sampling.scene_rng('train', number), BOXES)
        new = scene_sampling.draw_scene(
            scene_sampling.scene_rng('unseen', number), BOXES, unseen=True
        )
        assert not held & {p.thing.name for p in usual.placed}
        assert held & {p.thing.name for p in new.placed}


def test_things_stand_on_the_table_apart_from_each_other_and_can_be_told_apart():
    for number in range(40):
        scene = scene_sampling.draw_scene(scene_sampling.scene_rng('val', number), BOXES)
        looks = [(p.thing.kind, p.colour, p.size) for p in scene.placed]
        assert len(set(looks)) == len(looks)
        bodies = [scene_sampling.body_name(p.thing, p.size) for p in scene.placed]
        assert len(set(bodies)) == len(bodies)
        for placed in scene.placed:
            size = placed.thing.size * rendering.SIZES.get(placed.size, 1)
            corners = np.array(np.meshgrid(*zip(*BOXES[placed.thing.name], strict=True)))
            corners = corners.reshape(3, -1).T * size  # the test's boxes are one unit long
            stood = corners @ scene_sampling._rotation(placed.quaternion).T + placed.position
            assert stood[:, 2].min() == pytest.approx(0, abs=1e-9)
            assert stood.min(0) == pytest.approx(placed.low)
            assert stood.max(0) == pytest.approx(placed.high)


def test_a_handle_is_what_stands_out_of_a_round_body():
    turn = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    ring = np.stack([np.cos(turn), np.sin(turn), np.zeros(24)], axis=1)
    body = np.concatenate([ring, ring + np.array([0, 0, 2])])
    grip = np.array([[1.2, 0.1, 0.5], [1.2, -0.1, 0.5], [1.6, 0, 1.0]])
    around = [(i, (i + 1) % 24, 24 + i) for i in range(24)]
    points, faces = np.concatenate([body, grip]), np.array([*around, (48, 49, 50)])
    whole = assets._split(points, faces, None, handle=False)
    (_, kept, _), (_, handle, _) = assets._split(points, faces, None, handle=True)
    assert len(whole) == 1
    assert len(kept) == 24
    assert handle.tolist() == [[48, 49, 50]]


def test_a_description_tells_what_words_need():
    scene = scene_sampling.draw_scene(scene_sampling.scene_rng('val', 3), BOXES)
    pose = scene_sampling.camera_matrix(np.array([0.0, -0.8, 0.5]), np.array([0.0, 0.0, 0.0]))
    ids = np.zeros((240, 320), np.uint8)
    ids[:10, :10], ids[:10, 10:12] = 1, 1 + PART_FLAG
    first, *_ = rendering.scene_metadata(scene, pose, ids)
    placed = scene.placed[0]
    middle = (np.array(placed.low) + placed.high) / 2
    assert (first['area'], first['part_area']) == (120, 20)
    assert first['right'] == pytest.approx(middle[0], abs=1e-3)  # this camera looks along y
    assert first['away'] == pytest.approx(middle[1] + 0.8, abs=1e-3)
    assert first['height'] == pytest.approx(placed.high[2] - placed.low[2], abs=1e-3)
    assert SceneObject(**first)


def test_the_camera_looks_along_its_z_axis_with_the_horizon_level():
    position, target = np.array([0.3, -0.7, 0.5]), np.array([0.0, 0.0, 0.05])
    pose = scene_sampling.camera_matrix(position, target)
    ahead = pose[:3, 2] * np.linalg.norm(target - position) + pose[:3, 3]
    assert ahead == pytest.approx(target)
    assert pose[2, 0] == pytest.approx(0)  # x, to the right, is level
    assert pose[2, 1] < 0  # y points down
    assert pose[:3, :3] @ pose[:3, :3].T == pytest.approx(np.eye(3))
    assert np.linalg.det(pose[:3, :3]) == pytest.approx(1)


def test_the_path_of_the_sample_bag_is_smooth():
    poses = sample_bag.camera_path(40)
    steps = [np.linalg.norm(b[:3, 3] - a[:3, 3]) for a, b in itertools.pairwise(poses)]
    assert min(steps) > 0.005
    assert max(steps) < 0.05
    x, y, z, w = matrix_to_quaternion(poses[3][:3, :3])
    assert scene_sampling._rotation((w, x, y, z)) == pytest.approx(poses[3][:3, :3])


# ---- what words mean


def test_names_tell_alike_things_apart():
    assert [TABLE.name(o) for o in TABLE.visible] == ['red mug', 'white mug', 'banana', 'plate']
    twins = SceneGraph(
        (RED, SceneObject(6, 'mug', 'round_mug', 'red', 'small', 500, 0, 0, 0, 0.1, 0.1))
    )
    assert [twins.name(o) for o in twins.visible] == ['big mug', 'small mug']


def test_places_are_those_of_the_one_who_looks():
    assert in_relation(RED, 'left of', BANANA)
    assert in_relation(WHITE, 'right of', BANANA)
    assert in_relation(PLATE, 'behind', BANANA)
    assert in_relation(BANANA, 'in front of', PLATE)
    assert not in_relation(PLATE, 'left of', BANANA)  # a little to the left, but far behind
    assert nearest_in_relation(TABLE.objects, 'left of', BANANA) is RED
    assert nearest_in_relation(TABLE.objects, 'right of', RED) is BANANA
    assert nearest_in_relation(TABLE.objects, 'in front of', RED) is None
    assert nearest_in_relation(TABLE.objects, 'next to', BANANA) is None  # two mugs are as near
    assert side_is_empty(TABLE, 'left of', RED)
    assert not side_is_empty(TABLE, 'left of', PLATE)  # the mug is left of it, if not only
    assert (
        nearest_in_relation(TABLE.mirrored().objects, 'right of', TABLE.mirrored().objects[2]).id
        == RED.id
    )


def test_superlatives_are_said_where_they_are_clear():
    assert superlative(TABLE.visible, 'tallest') is RED
    assert superlative(TABLE.visible, 'leftmost') is RED
    assert superlative(TABLE.visible, 'farthest') is PLATE
    assert superlative(TABLE.visible, 'nearest') is None
    assert superlative([RED], 'tallest') is None


# ---- requests


@pytest.mark.parametrize('seed', range(300))
def test_a_request_points_at_what_its_words_mean(seed):
    request = query_sampling.sample_query(np.random.default_rng(seed), TABLE)
    answers = [turn.answer_raw for turn in request.turns]
    assert 1 <= len(request.turns) <= 4
    assert sum(answer.count('[SEG]') for answer in answers) == len(request.targets)
    if request.insisted:
        assert request.targets == ((),)
        return
    assert all(ids and {i % PART_FLAG for i in ids} <= {1, 2, 3, 4} for ids in request.targets)
    assert all(turn.query.strip() for turn in request.turns)
    if request.category == 'attributes' and request.targets:
        words = request.turns[0].query
        colour = next((c for c in COLOURS if c in words), None)
        chosen = [o for o in TABLE.objects if o.id in request.targets[0]]
        assert colour is None or {o.looks_coloured for o in chosen} == {colour}


def test_what_can_hardly_be_seen_is_neither_asked_for_nor_called_absent():
    for seed in range(300):
        request = query_sampling.sample_query(
            np.random.default_rng(seed), TABLE, without=('lore',)
        )
        for turn in request.turns:
            assert 'book' not in turn.query + turn.answer_raw


def test_reasons_come_before_the_mask_and_name_the_thing():
    request = queries.use(PhraseSampler(np.random.default_rng(1)), SceneGraph((BANANA,)), True)
    (turn,) = request.turns
    assert turn.answer_raw.endswith(', [SEG].')
    assert 'banana' in turn.answer_raw
    assert request.expected_phrases
    assert all(wordings[0] in turn.answer_raw for wordings in request.expected_phrases)


def test_every_right_name_and_order_is_as_good():
    red, blue = (replace(RED, id=i, colour=c, size=None) for i, c in ((1, 'red'), (2, 'blue')))
    assert SceneGraph((red,)).names(red) == ('mug', 'red mug')
    assert SceneGraph((red, blue)).names(red) == ('red mug',)
    assert SceneGraph((red, replace(red, id=2))).names(red) == (
        'red mug',
    )  # nothing tells them apart
    first, *rest = answer_text._alternatives(SceneGraph((red, BANANA)), [red, BANANA])
    assert first == 'the mug and the banana'
    assert set(rest) == {
        'the red mug and the banana',
        'the banana and the mug',
        'the banana and the red mug',
    }


def test_two_alike_are_both_shown_and_asked_back():
    for seed in range(50):
        request = queries.explicit(PhraseSampler(np.random.default_rng(seed)), TABLE, True)
        if 'mug' in request.turns[0].query:
            assert request.turns[0].answer_raw == 'I see two, [SEG]. Which one?'
            assert {i % PART_FLAG for i in request.targets[0]} == {1, 2}


def test_the_part_of_a_thing_is_less_than_the_thing():
    request = queries.part(PhraseSampler(np.random.default_rng(0)), SceneGraph((RED,)), True)
    assert request.targets == ((1 + PART_FLAG,),)
    request = queries.part(PhraseSampler(np.random.default_rng(0)), SceneGraph((BANANA,)), False)
    assert request.turns[0].answer_raw == 'The banana has no handle.'


def test_sorts_can_be_kept_out_of_lessons():
    for seed in range(300):
        rng = np.random.default_rng(seed)
        request = query_sampling.sample_query(rng, TABLE, without=(*queries.IMPLICIT, 'lore'))
        for turn in request.turns:
            assert not any(kind.does in turn.answer_raw for kind in OBJECT_CATEGORIES.values())


def test_lessons_and_exams_never_share_a_wording():
    lesson, exam = (PhraseSampler(np.random.default_rng(0), exam=e) for e in (False, True))
    said = {
        name: {
            v.fill_template(templates.NAMED, f'the {k}').lower()
            for k in OBJECT_CATEGORIES
            for _ in range(60)
        }
        for name, v in (('lesson', lesson), ('exam', exam))
    }
    assert not said['lesson'] & said['exam']
    assert zlib.crc32(b'find {x}|the mug') % 3 != 0  # the split is fixed: a lesson's wording
    assert 'find the mug' in said['lesson']


def test_every_need_belongs_to_one_kind():
    needs = [need for kind in OBJECT_CATEGORIES.values() for need in kind.needs]
    assert len(set(needs)) == len(needs)
    assert all(
        any(n.startswith('something') for n in kind.needs) for kind in OBJECT_CATEGORIES.values()
    )


def test_an_exam_asks_for_what_is_there_and_what_is_not():
    asked = test_sets.make_test_queries('test', 3, TABLE)
    sorts = [(q['sort'], bool(q['targets'])) for q in asked]
    for sort in ('explicit', 'attributes', 'use', 'knowledge'):
        assert (sort, True) in sorts
        assert (sort, False) in sorts
    for sort in ('relations', 'part', 'two_step', 'several', 'dialogue'):
        assert (sort, True) in sorts
    (talk,) = [q for q in asked if q['sort'] == 'dialogue']
    assert 1 <= len(talk['before']) <= 3
    assert all(q['expects'] for q in asked if q['sort'] == 'use' and q['targets'])
    assert asked == test_sets.make_test_queries('test', 3, TABLE)


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
            for one in objects:
                one['area'] = int((ids == one['id']).sum())
                one.update(size=None, part_area=0, right=0.3 * one['id'], away=0.5)
                one.update(height=0.1, longest=0.1 * one['id'])
            cv2.imwrite(str(root / split / 'colour' / f'{number:05d}.jpg'), colour[..., ::-1])
            cv2.imwrite(str(root / split / 'ids' / f'{number:05d}.png'), ids)
            notes.append({'name': f'{number:05d}', 'objects': objects})
        (root / split / 'scenes.json').write_text(json.dumps({'split': split, 'scenes': notes}))
    return root


PACE = TrainerConfig(steps=6, warmup_steps=2, ema_decay=0.9, validate_every=6, save_every=3)
RECIPE = PretrainConfig(PACE, vision_warmup_steps=2, batch_size=2, queries_per_image=2, threads=1)


@pytest.fixture(scope='module')
def trained(rectangles, tmp_path_factory):
    run = tmp_path_factory.mktemp('run')
    loop = Trainer(run, PACE, PretrainTask(run, rectangles, RECIPE))
    loop.train()
    return loop


def test_a_lesson_supervises_answers_and_points_at_their_truth(trained, rectangles):
    pupil = trained.pupil
    split = dataset.SceneSet.load(rectangles / 'train')
    request = queries.explicit(
        PhraseSampler(np.random.default_rng(0)), split.tables[0], present=True
    )
    views = [(split.colour[0], split.ids[0], split.tables[0], [request])]
    lesson = batches.make_batch(pupil.config, pupil.tokenizer, pupil.clip_recipe, views)
    side = pupil.config.sam_size
    assert lesson.truth.shape == (1, side, side)
    share = (split.ids[0] == request.targets[0][0]).mean()  # of the picture; 3/4 of the square
    assert float(lesson.truth.float().mean()) == pytest.approx(share * 0.75, rel=0.1)
    learnt = lesson.batch.labels[0]
    words = pupil.tokenizer.decode(learnt[learnt != IGNORED].tolist())
    assert words.replace(' ', '') == 'Sure,[SEG].</s>'
    row, place = lesson.first_words[0].tolist()
    assert pupil.tokenizer.decode([int(lesson.batch.input_ids[row, place])]) == 'Sure'


def test_a_layout_tells_who_stands_beside_whom_and_who_comes_first():
    there, standing, beside, firsts = batches.auxiliary_targets(TABLE)
    index = batches.KIND_INDEX
    assert there[index['mug'] - 1] == there[index['plate'] - 1] == 1
    assert np.isnan(there[index['book'] - 1])  # too little of it is seen
    assert there[index['pan'] - 1] == 0
    assert standing[PLATE.id] == pytest.approx([-0.01, 0.8, 0.02, 0.24])

    def neighbour(one, place):
        return tuple(beside[one.id, PLACES.index(place)])

    yellow, pale = batches.COLOUR_INDEX['yellow'], batches.COLOUR_INDEX['white']
    banana, white = (index['banana'], yellow), (index['mug'], pale)
    assert neighbour(RED, 'right of') == banana
    assert neighbour(BANANA, 'right of') == white
    assert neighbour(RED, 'left of') == (0, 0)  # nothing is there
    assert neighbour(PLATE, 'behind') == (IGNORED, IGNORED)  # the book, which is hardly seen

    def first(one, word):
        of_all, of_kind = firsts[one.id].reshape(2, -1)[:, list(SUPERLATIVES).index(word)]
        return of_all, of_kind

    assert first(RED, 'leftmost') == (1, 1)
    assert first(WHITE, 'leftmost') == (0, 0)
    assert first(PLATE, 'leftmost')[0] == 0
    assert np.isnan(first(PLATE, 'leftmost')[1])  # it is alone of its kind
    assert np.isnan(first(RED, 'nearest')).all()  # both mugs and the banana are as near
    assert np.isnan(first(RED, 'tallest')[0])  # the book is taller, and can hardly be seen
    assert first(RED, 'tallest')[1] == 1
    assert first(BANANA, 'tallest')[0] == 0


def test_the_lesson_of_places_is_about_each_patchs_own_thing(trained, rectangles):
    """Patches without a thing say nothing, and what is not clear does not count."""
    pupil = trained.pupil
    split = dataset.SceneSet.load(rectangles / 'train')
    request = queries.explicit(
        PhraseSampler(np.random.default_rng(0)), split.tables[0], present=True
    )
    views = [(split.colour[0], split.ids[0], split.tables[0], [request])]
    lesson = batches.make_batch(pupil.config, pupil.tokenizer, pupil.clip_recipe, views)
    tokens = torch.zeros(1, pupil.config.image_tokens, pupil.config.llama.hidden_size)
    tokens[..., 0] = 1.0
    heads = pupil.heads
    told = heads.places(tokens, lesson)
    assert torch.isfinite(told)
    assert told > 0
    nothing = replace(lesson, things=torch.zeros_like(lesson.things))
    assert heads.places(tokens, nothing) == 0
    unclear = replace(
        lesson,
        beside=torch.full_like(lesson.beside, IGNORED),
        firsts=torch.full_like(lesson.firsts, torch.nan),
    )
    assert 0 < heads.places(tokens, unclear) < told  # where it stands is left


def test_a_view_tells_where_its_things_show():
    ids = np.zeros((100, 200), np.uint8)
    ids[20:60, 40:60] = BANANA.id
    ids[50:60, 40:60] |= PART_FLAG
    view = dataset.with_visibility(TABLE, ids)
    (banana,) = [o for o in view.objects if o.id == BANANA.id]
    assert (banana.area, banana.part_area) == (800 * 3.84, 768)
    assert (banana.across, banana.down) == (0.25, 0.5)  # the lower half is rows 40 to 59
    assert [o.area for o in view.objects if o.id != BANANA.id] == [0] * 4
    assert view.mirrored().objects[2].across == 0.75


def test_augmentation_keeps_picture_truth_and_places_together():
    ids = np.zeros((240, 320), np.uint8)
    ids[60:180, 40:140] = 1
    ids[60:180, 180:300] = 2
    colour = np.where(ids[..., None] > 0, 230, 20).astype(np.uint8).repeat(3, axis=2)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        seen, where, table = dataset.augment(rng, colour, ids, SceneGraph((RED, WHITE)))
        bright = seen.mean(axis=2) > 110
        assert (bright == (where > 0)).mean() > 0.97
        first, second = (np.argwhere(where == i)[:, 1].mean() for i in (1, 2))
        assert (first < second) == (table.objects[0].right < table.objects[1].right)
        assert table.objects[0].area == pytest.approx(
            (where == 1).sum() * 76800 / where.size, abs=1
        )


def test_reasoning_pairs_are_the_same_whenever_they_come(rectangles, tmp_path):
    recipe = PretrainConfig(
        PACE,
        batch_size=2,
        queries_per_image=1,
        fixed_reasoning_pairs=3,
        exclude_categories=queries.IMPLICIT,
        threads=1,
    )
    pupil = PretrainTask(tmp_path, rectangles, recipe)
    tables = pupil.train_set.tables
    pairs = [pupil._pair(n % 3, tables) for n in range(12)]
    assert pairs[:3] * 4 == pairs
    assert all(request.category in queries.IMPLICIT for _, (request,) in pairs)


def test_what_the_eyes_saw_is_kept_and_gives_the_same_losses(trained, rectangles, tmp_path):
    recipe = replace(RECIPE, init_from=trained.run / 'model', feature_cache=tmp_path / 'memory')
    pupil = PretrainTask(tmp_path / 'run', rectangles, recipe)
    pupil.module.eval()
    seen = pupil.draw(0, 0)
    assert isinstance(seen, feature_cache.CachedBatch)
    told = pupil.losses(seen, 0)

    def view(i):  # as the memory drew it
        rng = np.random.default_rng((feature_cache._VIEWS, i))
        scenes = pupil.train_set
        return dataset.augment(rng, scenes.colour[i], scenes.ids[i], scenes.tables[i])

    rng = np.random.default_rng((PACE.seed, 0, 0))
    views = []
    for _ in range(RECIPE.batch_size):
        i = int(rng.integers(len(pupil.memory)))
        assert pupil.memory.tables[i] == view(i)[2]
        views.append((*view(i), pupil._requests(rng, view(i)[2], step=99)))
    lesson = batches.make_batch(pupil.config, pupil.tokenizer, pupil.clip_recipe, views)
    assert torch.equal(lesson.batch.input_ids, seen.batch.input_ids)
    assert torch.equal(lesson.truth, seen.truth)
    fresh = pupil._all(pupil._looked(lesson), 99)
    for name in ('ce', 'bce', 'dice', 'pointing', 'presence'):
        assert float(told[name].detach()) == pytest.approx(float(fresh[name].detach()), rel=1e-2)


def test_the_first_answers_may_all_measure_and_not_count_by_their_masks(trained, rectangles):
    pupil = trained.pupil
    pupil.recipe, before = replace(RECIPE, number_warmup_steps=2), pupil.recipe
    try:
        told = pupil.losses(pupil.draw(3, 0), 3)
        looks = set(pupil.losses(pupil.draw(1, 0), 1))
        assert set(told) == looks | {'ce', 'numbers', 'looking', 'naming'}
        assert float(told['numbers'].detach()) > 1
        assert 'dice' in pupil.losses(pupil.draw(4, 0), 4)
    finally:
        pupil.recipe = before


def test_some_requests_about_each_picture_may_always_measure(trained):
    pupil = trained.pupil
    pupil.recipe, before = replace(RECIPE, measured_per_image=2, queries_per_image=3), pupil.recipe
    try:
        for seed in range(20):
            asked = pupil._requests(np.random.default_rng(seed), TABLE, 99)
            answers = [request.turns[-1].answer_raw for request in asked]
            assert len(answers) == 3
            assert all(any(c.isdigit() for c in answer) for answer in answers[:2]), answers
    finally:
        pupil.recipe = before


def test_and_some_may_always_take_reasoning(trained, rectangles, tmp_path):
    pupil = trained.pupil
    before = pupil.recipe
    try:
        for measured, reasoned in ((1, 1), (0, 2), (2, 5), (5, 1)):
            pupil.recipe = replace(
                RECIPE,
                measured_per_image=measured,
                reasoning_per_image=reasoned,
                queries_per_image=3,
            )
            thought = slice(measured, measured + reasoned)
            for seed in range(20):
                asked = pupil._requests(np.random.default_rng(seed), TABLE, 99)
                assert len(asked) == 3
                assert all(request.sort in queries.IMPLICIT for request in asked[thought])
    finally:
        pupil.recipe = before
    for recipe in (
        replace(RECIPE, reasoning_per_image=1, exclude_categories=('use',)),
        replace(RECIPE, measured_per_image=1, exclude_categories=('relations', 'use')),
    ):
        with pytest.raises(SettingsError, match='cannot be left out'):
            PretrainTask(tmp_path, rectangles, recipe)


def test_what_tells_whether_a_thing_is_there_counts_for_itself(trained, rectangles):
    """The first word of an answer, and [SEG] or "but" behind a reason: each kind is a mean."""
    pupil, tokenizer = trained.pupil, trained.pupil.tokenizer
    answers = {
        'Sure, [SEG].': ((1,),),
        'There is no mug here.': (),
        'The pan fries food, [SEG].': ((2,),),
        'The pan fries food, but there is no pan here.': (),
    }
    asked = [
        queries.TabletopQuery('use', (Turn('find it', said),), targets)
        for said, targets in answers.items()
    ]
    split = dataset.SceneSet.load(rectangles / 'train', limit=1)
    view = split.colour[0], split.ids[0], split.tables[0], asked
    lesson = batches.make_batch(pupil.config, tokenizer, pupil.clip_recipe, [view])
    labels = lesson.batch.labels
    with torch.no_grad():
        out = pupil.lisa(lesson.batch, packed=True)
        told, right = pupil.heads.presence(pupil.lisa, out, lesson)
        scores = pupil.lisa.llm.lm_head(out.llm_states)
    losses, hits = [], []
    for words in (('Sure', 'There', 'The'), (SEG, 'but')):
        each = []
        for row, label in enumerate(labels.tolist()):
            learnt = [i for i, word in enumerate(label) if word != IGNORED]
            said = [tokenizer.decode([label[i]]).strip() for i in learnt]
            if words[0] == 'Sure':
                assert said[0] in words
                deciding = learnt[:1]
            else:
                deciding = [i for i, word in zip(learnt, said, strict=True) if word in words]
            for word in deciding:
                logits = scores[row, out.says(torch.tensor(word))]
                each.append(-logits.log_softmax(-1)[label[word]])
                hits.append(float(logits.argmax() == label[word]))
        losses.append(torch.stack(each).mean())
    assert len(hits) == 4 + 3
    assert torch.allclose(told, sum(losses), rtol=1e-5)
    assert float(right) == pytest.approx(np.mean(hits))


def test_numbers_begin_beside_their_neighbours(trained):
    """Six steps have not moved them far from where they began."""
    lisa, heads = trained.pupil.lisa, trained.pupil.heads
    assert len(heads.numbers) == len(answer_text.NUMBER_WORDS)
    rows = lisa.llm.get_input_embeddings().weight[heads.numbers]
    near = (rows[1:] - rows[:-1]).norm(dim=1)
    far = (rows[10:] - rows[:-10]).norm(dim=1)
    assert near.max() < 0.7 * far.min()


LOOKS = [  # an answer, what its [SEG], sizes and lists are of, and where each word is to look
    (
        'The milk 42 56, left of it 22 58. It is the red mug, [SEG].',
        ((1,),),
        (),
        (),
        '42 @43 57; 56 @43 57; 22 @23 59; 58 @23 59; red @20 38; mug @20 38; [SEG] @20 38',
    ),
    # of two that are compared, the numbers say which one the name is of, not the picture
    (
        'The mug 42 56, the book 22 58. It is the mug, [SEG].',
        ((1,),),
        (),
        (),
        '42 @43 57; 56 @43 57; 22 @23 59; 58 @23 59; [SEG] @20 38',
    ),
    (
        'The pan 6 cm, the bowl 8 cm. It is the pan, [SEG].',
        ((2,),),
        ((2,), (1,)),
        (),
        '6 @75 75; 8 @20 38; [SEG] @75 75',
    ),
    ('It is the pan, [SEG].', ((2,),), (), (), 'pan @75 75; [SEG] @75 75'),
    ('It is the pan, [SEG].', ((3,),), (), (), ''),  # hidden
    ('Sure, [SEG].', ((1,),), (), (), '[SEG] @20 38'),
    (
        'The red mug, the pan and the milk are dishes, [SEG].',
        ((1, 2),),
        (),
        (('red mug', 1), ('pan', 2), ('milk', 3)),  # the milk is hidden
        'The @20 38; red @20 38; mug @20 38; , @75 75; the @75 75; pan @75 75; [SEG] @68 70',
    ),
    (
        'I see the pan and the red mug.',
        (),
        (),
        (('pan', 2), ('red mug', 1)),
        'the @75 75; pan @75 75; and @20 38; the @20 38; red @20 38; mug @20 38',
    ),
    # which of them?
    ('It is the pan and the mug, [SEG].', ((1, 2),), (), (), '[SEG] @68 70'),
    ('It is the pan, the mug and the milk, [SEG].', ((1, 2),), (), (), '[SEG] @68 70'),
]


def test_what_is_said_by_looking_is_found_in_answers(trained):
    """Each word with the share of the picture's width and height where it looks, in hundredths."""
    tokenizer, config = trained.pupil.tokenizer, trained.pupil.config
    ids = np.zeros((120, 160), np.uint8)
    ids[30:60, 16:48] = 1  # its middle is at 20 37.5 in hundredths
    ids[60:120, 80:160] = 2  # and its at 75 75
    # of a turn before it, and of a request whose words are not learnt, [SEG] count as well
    first = Turn('segment the milk', 'Sure, [SEG].')
    insisted = queries.TabletopQuery('explicit', (first,), ((),), insisted=True)
    asked = [
        queries.TabletopQuery(
            'relations',
            (first, Turn('and?', answer)),
            ((3,), *targets),
            sized=sized,
            listed=tuple(answer_text.ListedName(1, name, (number,)) for name, number in listed),
        )
        for answer, targets, sized, listed, _ in LOOKS
    ]
    lesson = batches.make_query_batch(
        config,
        tokenizer,
        ids.shape,
        [dataset.to_sam_square(ids, config.sam_size)],
        [[insisted, *asked]],
    )
    found = AttentionSupervision(tokenizer).attention_targets(lesson, 14)
    assert torch.allclose(found.wanted.sum(1), torch.ones(len(found.rows)))
    side = (torch.arange(14) + 0.5) / 14 * 100
    grids = found.wanted.unflatten(1, (14, 14))
    where = torch.stack([(grids.sum(1) * side).sum(1), (grids.sum(2) * side).sum(1)], 1)
    for row, (answer, *_, wanted) in enumerate(LOOKS, start=1):
        mine = found.rows == row
        words = lesson.batch.input_ids[row, found.words[mine]].tolist()
        told = [tokenizer.decode([word]).strip() for word in words]
        expected = [spot.split(' @') for spot in wanted.split('; ') if spot]
        order = sorted(range(len(told)), key=lambda i: int(found.words[mine][i]))
        assert [told[i] for i in order] == [word for word, _ in expected], answer
        spots = [[float(n) for n in spot.split()] for _, spot in expected]
        if spots:
            assert np.allclose(where[mine][order], spots, atol=1.5), answer
        assert [word.isdigit() or word == SEG for word in told] == (~found.names[mine]).tolist()


def slipped(count):
    """Requests whose answers measure, and talks, each with what it becomes if its answer slips."""
    for seed in range(count):
        rng = np.random.default_rng(seed)
        request = query_sampling.sample_measured(rng, TABLE)
        yield request, corrupt_object_name(rng, request, TABLE)
        talk = query_sampling.dialogue(PhraseSampler(rng), TABLE, 3)
        yield talk, corrupt_object_name(rng, talk, TABLE)


def test_a_slip_is_a_wrong_name_at_the_right_place():
    names, kept = set(), 0
    for request, read in slipped(300):
        answer = request.turns[-1].answer_raw
        if not read.slip:
            assert read is request
            kept += 1
            compares = re.search(r'\d, the .*\. It is the', answer)
            assert compares or not re.search(r'\d\. It is the', answer), answer
            continue
        assert replace(read, slip='') == request
        said = re.fullmatch(r'(.* \d+ \d+\. It is the )(.+), \[SEG\]\.', read.slip)
        before, name = said.groups()
        assert answer.startswith(before)
        assert name not in TABLE.names(request.about[0])
        names.add(name)
    assert kept > 20
    assert 'banana' in names  # which is there, and called so where it is something else
    assert {'mug', 'white mug'} <= names  # which do not tell it from the other one
    assert names & (
        set(OBJECT_CATEGORIES) - {'mug', 'plate', 'banana'}
    )  # which are not there at all
    assert 'book' not in names  # which is hidden


def test_of_a_slip_the_wrong_name_is_read_and_not_learnt(trained):
    tokenizer, config = trained.pupil.tokenizer, trained.pupil.config
    square = np.zeros((config.sam_size,) * 2, np.uint8)
    square[10:20, 30:60] = 1
    pairs = list(itertools.islice((pair for pair in slipped(99) if pair[1].slip), 40))
    assert sum(len(read.turns) > 1 for _, read in pairs) > 5
    for right, read in pairs:
        true, slip_of = (
            batches.make_query_batch(config, tokenizer, (120, 160), [square], [[one]])
            for one in (right, read)
        )
        words, labels = slip_of.batch.input_ids[0], slip_of.batch.labels[0]
        learnt = (labels != IGNORED).nonzero()[:, 0]
        assert torch.equal(labels[learnt], true.batch.labels[0, learnt])
        assert torch.equal(labels[learnt], words[learnt])
        told = tokenizer.decode(labels[learnt].tolist())
        last = told[told.rindex('It is the') :]
        assert SEG not in last
        assert last.removeprefix('It is the').split() == shared(
            right.turns[-1].answer_raw, read.slip
        )
        assert read.slip.replace(', [SEG].', '') in tokenizer.decode(words.tolist())
        assert torch.equal(slip_of.truth, true.truth)
        assert torch.equal(slip_of.first_words, true.first_words)
        for one in AttentionSupervision(tokenizer)._said(slip_of):
            assert all(slip_of.batch.labels[row, word] != IGNORED for row, word, _ in one)
        assert (
            AttentionSupervision(tokenizer)._said(slip_of)[:2]
            == AttentionSupervision(tokenizer)._said(true)[:2]
        )


def shared(*answers):
    """The words that the names of some answers begin with alike."""
    names = [re.findall(r'It is the (.*), ', answer)[-1].split() for answer in answers]
    return os.path.commonprefix(names)


def test_answers_slip_as_often_as_they_are_told_to_where_masks_count(trained):
    pupil = trained.pupil
    before = pupil.recipe
    try:
        shares = {}
        for slips, places in ((0.0, 0), (0.5, 0), (1.0, 0), (1.0, 100)):
            pupil.recipe = replace(
                RECIPE,
                measured_per_image=3,
                queries_per_image=3,
                name_noise_rate=slips,
                number_warmup_steps=places,
            )
            asked = [
                one
                for seed in range(20)
                for one in pupil._requests(np.random.default_rng(seed), TABLE, 99)
            ]
            shares[slips, places] = np.mean([bool(one.slip) for one in asked])
    finally:
        pupil.recipe = before
    assert shares[0.0, 0] == shares[1.0, 100] == 0
    assert shares[1.0, 0] > 0.5
    assert 0.3 < shares[0.5, 0] / shares[1.0, 0] < 0.7


def test_an_answer_calls_a_thing_by_its_colour_unless_it_compares():
    """As `TABLE.look` has it; of two that are compared, as the request has it."""
    names = set()
    for seed in range(200):
        voice = PhraseSampler(np.random.default_rng(seed))
        for ask in (queries._place, queries._superlative):
            request = ask(voice, TABLE)
            if request is not None:
                names |= set(re.findall(r'It is the (.*), ', request.turns[0].answer_raw))
        compared = queries._comparative(voice, TABLE)
        if compared is not None:
            (turn,) = compared.turns
            (name,) = re.findall(r'It is the (.*), ', turn.answer_raw)
            assert f'the {name}' in turn.query
            assert name != 'blue plate'
    assert names == {'red mug', 'white mug', 'banana', 'blue plate'}


def test_lessons_draw_next_to_twice_as_often_as_another_place():
    for exam, shares in ((False, (1, 1, 1, 1, 2)), (True, (1, 1, 1, 1, 1))):
        voice = PhraseSampler(np.random.default_rng(0), exam=exam)
        drawn = [queries._somewhere(voice) for _ in range(3000)]
        counts = [drawn.count(place) / len(drawn) for place in PLACES]
        assert np.allclose(counts, np.array(shares) / sum(shares), atol=0.03)


def test_the_look_of_a_thing_is_what_tells_it_apart_with_its_colour():
    """Of one mug, too: "the mug" is not enough where there are two, "the red mug" may be."""
    assert TABLE.name_with_colour(RED) == 'red mug'
    assert TABLE.name_with_colour(PLATE) == 'blue plate'
    assert TABLE.name_with_colour(BANANA) == 'banana'
    twins = replace(WHITE, id=6, size='big')
    assert SceneGraph((*TABLE.objects, twins)).name_with_colour(WHITE) == 'small white mug'


def test_every_size_that_is_told_has_its_thing():
    """In the order in which they are told: by that alone they are matched."""
    heights = {o.id: o.height for o in TABLE.objects}
    longest = {o.id: o.longest for o in TABLE.objects}
    told = 0
    for seed in range(60):
        request = queries._comparative(PhraseSampler(np.random.default_rng(seed)), TABLE)
        if request is None:
            continue
        (turn,) = request.turns
        sizes = [int(n) for n in re.findall(r'(\d+) cm', turn.answer_raw)]
        measure = longest if 'bigger' in turn.query or 'smaller' in turn.query else heights
        assert sizes == [answer_text._cm(measure[things[0]]) for things in request.sized]
        told += len(sizes)
    assert told > 20


def test_a_dialogue_keeps_the_sizes_of_all_its_turns():
    early = 0
    for seed in range(200):
        talk = query_sampling.dialogue(PhraseSampler(np.random.default_rng(seed)), TABLE, 4)
        told = [turn.answer_raw.count(' cm') for turn in talk.turns]
        assert len(talk.sized) == sum(told)
        early += sum(told[:-1]) > 0
    assert early > 5


def test_lists_go_from_left_to_right_and_know_what_each_name_means():
    across = {1: 0.2, 2: 0.9, 3: 0.5, 4: 0.3, 5: 0.6}
    table = SceneGraph(tuple(replace(o, across=across[o.id]) for o in TABLE.objects))
    orders = {'dish': 'red mug, blue plate, white mug', 'list': 'mug, plate, banana'}
    told = dict.fromkeys((*orders, 'later'), 0)
    for seed in range(200):
        voice = PhraseSampler(np.random.default_rng(seed))
        for request in (queries._sort(voice, table, True), queries.question(voice, table)):
            if request is None or not request.listed:
                continue
            (turn,) = request.turns
            names = re.findall(r'the ([a-z ]+?)(?=,| and| is| are|\.)', turn.answer_raw.lower())
            assert names == [one.name for one in request.listed]
            assert {one.turn for one in request.listed} == {0}
            for one in request.listed:
                meant = [
                    o for o in table.visible if one.name in (table.name_with_colour(o), o.kind)
                ]
                assert {i % PART_FLAG for i in one.ids} == {o.id for o in meant}
            for name, order in orders.items():
                told[name] += ', '.join(names) == order
        talk = query_sampling.dialogue(voice, table, 3)
        for one in talk.listed:
            assert f'the {one.name}' in talk.turns[one.turn].answer_raw.lower()
            told['later'] += one.turn > 0
    assert min(told.values()) > 5, told


def test_each_name_of_each_list_of_a_talk_is_found_in_its_own_answer(trained):
    pupil = trained.pupil
    square, twice = np.zeros((pupil.config.sam_size,) * 2, np.uint8), 0
    for seed in range(800):
        talk = query_sampling.dialogue(PhraseSampler(np.random.default_rng(seed)), TABLE, 4)
        if not talk.listed:
            continue
        lesson = batches.make_query_batch(
            pupil.config, pupil.tokenizer, (120, 160), [square], [[talk]]
        )
        ids, labels = lesson.batch.input_ids[0].tolist(), lesson.batch.labels[0].tolist()
        before = [IGNORED, *labels]
        for one, (row, first, end) in zip(talk.listed, lesson.listed_words.tolist(), strict=True):
            words = pupil.tokenizer.decode(ids[first:end]).lower()
            assert row == 0
            assert re.fullmatch(rf'(,|and|, and)? ?the {one.name}', words), words
            assert IGNORED not in labels[first:end]
            begun = [a == IGNORED != b for a, b in itertools.pairwise(before[: first + 2])]
            assert sum(begun) == one.turn + 1
        twice += len({one.turn for one in talk.listed}) > 1
    assert twice > 5


def test_thinking_asks_for_what_takes_reasoning_and_is_there_or_not():
    there = dict.fromkeys(((s, p) for s in queries.IMPLICIT for p in (True, False)), 0)
    for seed in range(200):
        request = query_sampling.sample_reasoning(np.random.default_rng(seed), TABLE)
        there[request.category, request.present] += 1
    assert there.pop(('two_step', False)) == 0
    assert min(there.values()) > 15, there


def test_more_wordings_of_lessons_are_none_of_an_exam():
    for _, exam, more in templates.OF_SORTS.values():
        assert not {templates.normalize(f) for f in exam} & {templates.normalize(f) for f in more}
    for exam in (True, False):
        said = {
            PhraseSampler(np.random.default_rng(i), exam).fill_template(('a', 'b'), more=('c',))
            for i in range(40)
        }
        assert ('c' in said) == (not exam)
    sorts = templates.OF_SORTS.values()
    heard = {w for *_, more in sorts for f in more for w in templates.normalize(f).split()}
    assert {'hungry', 'thirsty', 'dishwasher', 'bored', 'play'} <= heard


def test_names_are_scored_by_the_state_before_each_word(trained):
    """As a plain run of the language model over picture and words has it."""
    pupil = trained.pupil
    lisa, inner = pupil.lisa.eval(), attention_supervision.supervised_layer(pupil.lisa)
    for step in range(RECIPE.vision_warmup_steps, 20):
        lesson = pupil.draw(step, 0)
        spots = lesson.spots
        if spots.names.any():
            break
    with torch.no_grad():
        out = lisa(lesson.batch, packed=True, inner=inner)
        ours = pupil.looking.losses(lisa, out, lesson)['naming']
        batch, each = lesson.batch, []
        pairs = zip(spots.rows[spots.names], spots.words[spots.names], strict=True)
        for row, word in pairs:
            image = out.clip_tokens[batch.image_index[row]]
            words = lisa.embed(batch.input_ids[row, :word], image)[None]
            state = lisa.llm.model(inputs_embeds=words).last_hidden_state[0, -1]
            said = lisa.llm.lm_head(state).log_softmax(-1)
            each.append(-said[batch.labels[row, word]])
    assert torch.allclose(ours, torch.stack(each).mean(), rtol=1e-4)


def test_the_attention_that_is_held_against_places_is_the_models_own(trained):
    pupil = trained.pupil
    lisa, inner = pupil.lisa.eval(), attention_supervision.supervised_layer(pupil.lisa)
    pupil.recipe, before = replace(RECIPE, number_warmup_steps=9), pupil.recipe
    try:
        lesson = pupil.draw(3, 0)
    finally:
        pupil.recipe = before
    spots = lesson.spots
    assert len(spots.rows) >= 2
    begin = (lesson.batch.input_ids == IMAGE_TOKEN).long().argmax(1)
    with torch.no_grad():
        out = lisa(lesson.batch, packed=True, inner=inner)
        ours = attention_supervision.attention(lisa, out, spots, begin[spots.rows])
        lisa.llm.set_attn_implementation('eager')  # which tells its attention
        try:
            for row in spots.rows.unique().tolist():
                batch, start = lesson.batch, int(begin[row])
                image = out.clip_tokens[batch.image_index[row]]
                words = lisa.embed(batch.input_ids[row], image)[None]
                told = lisa.llm.model(inputs_embeds=words, output_attentions=True).attentions
                for number in (spots.rows == row).nonzero()[:, 0].tolist():
                    says = int(spots.words[number]) + len(image) - 2
                    heads = told[inner][
                        0, : attention_supervision.HEADS, says, start : start + len(image)
                    ]
                    assert torch.allclose(heads.mean(0), ours[number], atol=1e-5)
        finally:
            lisa.llm.set_attn_implementation('sdpa')


def test_to_look_is_learnt_within_steps(trained):
    pupil = trained.pupil
    pupil.recipe, before = replace(RECIPE, number_warmup_steps=99), pupil.recipe
    try:
        lesson = pupil.draw(3, 0)
        trained.step = 3
        first = trained.learn([lesson])['looking']
        for _ in range(4):
            last = trained.learn([lesson])['looking']
    finally:
        pupil.recipe = before
    assert last < first


# ---- CLIP that tells places


@pytest.fixture(scope='module')
def waving(trained, rectangles):
    start = trained.run / 'model'
    return position_codes.PositionDistillationTask(
        start, dataset.SceneSet.load(rectangles / 'train')
    )


def test_waves_come_out_of_clip_as_they_went_in_and_it_sees_as_before(waving):
    with torch.no_grad():
        pixels = waving.draw(0, 0)
        before, after = (
            waving._states(clip, pixels) for clip in (waving.teacher, waving.lisa.clip)
        )
    told = ((after - waving.mean) @ waving.quiet.T).flatten(0, 1)
    wanted = waving.waves.repeat(len(pixels), 1)
    for ours, truth in zip(told.T, wanted.T, strict=True):
        assert float(torch.corrcoef(torch.stack([ours, truth]))[0, 1]) > 0.8
    untold = ((before - waving.mean) @ waving.quiet.T).flatten(0, 1)
    assert abs(float(torch.corrcoef(torch.stack([untold[:, 0], wanted[:, 0]]))[0, 1])) < 0.8
    moved = ((after - before) @ waving.others).norm() / (before - waving.mean).norm()
    assert float(moved) < 0.5


def test_clean_waves_are_learnt_and_the_model_is_written(waving, tmp_path):
    pace = TrainerConfig(
        steps=8,
        learning_rate=2e-4,
        warmup_steps=1,
        validate_every=8,
        save_every=8,
        max_grad_norm=5.0,
    )
    pixels = waving.draw(1, 0)

    def off():
        with torch.no_grad():
            told = waving.losses(pixels, 0)
        return float(sum(waving.weights[name] * loss for name, loss in told.items()))

    before = off()
    assert Trainer(tmp_path, pace, waving).train()
    assert off() < before
    model = checkpoint.load(tmp_path / 'model').model
    with torch.no_grad():
        said = model.clip_states(pixels)
        assert torch.allclose(said, waving._states(waving.lisa.clip, pixels), atol=0.1)


def test_waves_want_a_model_that_they_are_given_to(rectangles, tmp_path, capsys):
    given = ['train', '--scenes', str(rectangles), '--out', str(tmp_path), '--position-codes']
    assert cli.main(given) == 1
    assert (
        '--position-codes are given to a model: name its folder with --init-from'
        in capsys.readouterr().err
    )


def test_with_a_memory_the_eyes_stand_still_and_the_rest_learns(trained, rectangles, tmp_path):
    recipe = replace(RECIPE, init_from=trained.run / 'model', feature_cache=tmp_path / 'memory')
    loop = Trainer(tmp_path / 'run', PACE, PretrainTask(tmp_path / 'run', rectangles, recipe))
    before = {n: t.clone() for n, t in loop.pupil.lisa.state_dict().items()}
    loop.train(until=2)
    moved = {n for n, t in loop.pupil.lisa.state_dict().items() if not torch.equal(t, before[n])}
    assert not any(name.startswith(('clip.', 'sam.vision_encoder.')) for name in moved)
    for part in ('mm_projector.', 'llm.model.layers.', 'text_hidden_fcs.', 'sam.mask_decoder.'):
        assert any(name.startswith(part) for name in moved), part


def test_a_memory_of_other_eyes_or_scenes_is_refused(trained, rectangles, tmp_path):
    recipe = replace(RECIPE, init_from=trained.run / 'model', feature_cache=tmp_path / 'memory')
    PretrainTask(tmp_path / 'run', rectangles, recipe)
    with pytest.raises(DataError, match=r'views 1, not 2'):
        PretrainTask(tmp_path / 'run', rectangles, replace(recipe, views_per_scene=2))
    with pytest.raises(DataError, match=r'eyes \w+, not'):
        PretrainTask(tmp_path / 'run', rectangles, replace(recipe, init_from=None))


def test_new_words_keep_the_rows_of_old_ones(rectangles, tmp_path):
    tables = dataset.SceneSet.load(rectangles / 'train').tables
    old, new = (initialization.write_tokenizer(tmp_path / str(n), tables, n) for n in (700, 1400))
    assert len(old) < len(new)
    names = ('llm.model.embed_tokens.weight', 'llm.lm_head.weight')
    state = {name: torch.randn(len(old), 8) for name in names}
    made = initialization.remap_vocabulary({**state, 'other': torch.ones(3)}, old, new)
    assert torch.equal(made['other'], torch.ones(3))
    known = {old.token(i): i for i in range(len(old))}
    words = [i for i in range(len(new)) if new.token(i) not in known]
    assert words
    for name in names:
        assert made[name].shape == (len(new), 8)
        for text in (SEG, '<s>', '\N{LOWER ONE EIGHTH BLOCK}the', '\N{LOWER ONE EIGHTH BLOCK}42'):
            i = next(i for i in range(len(new)) if new.token(i) == text)
            assert torch.equal(made[name][i], state[name][known[text]]), text
        for i in words:
            pieces = old.encode(new.token(i).replace('\N{LOWER ONE EIGHTH BLOCK}', ' ').strip())
            assert torch.allclose(made[name][i], state[name][pieces].mean(0), atol=1e-6)


def test_eyes_are_taken_without_the_words(trained, rectangles, tmp_path):
    taken = trained.run / 'model'
    recipe = replace(RECIPE, init_vision_from=taken)
    lisa = PretrainTask(tmp_path, rectangles, recipe).lisa.state_dict()
    given = Segmenter.load(taken, device='cpu').model.state_dict()
    for name, tensor in given.items():
        if name.startswith(('clip.', 'mm_projector.', 'sam.')):
            assert torch.equal(lisa[name], tensor), name
        elif tensor.ndim > 1:
            assert not torch.equal(lisa[name], tensor), name
    with pytest.raises(SettingsError, match='--init-from or --init-vision-from'):
        PretrainTask(tmp_path, rectangles, replace(recipe, init_from=taken))


def test_clip_can_be_given_larger_pictures(trained, rectangles, tmp_path):
    start = trained.run / 'model'
    recipe = replace(RECIPE, init_from=start, vision_warmup_steps=0, clip_image_size=320)
    pupil = PretrainTask(tmp_path, rectangles, recipe)
    view = pupil._examined(0)
    lesson = batches.make_batch(pupil.config, pupil.tokenizer, pupil.clip_recipe, [view])
    assert lesson.batch.clip_pixels.shape[-2:] == (320, 320)
    pupil.export(tmp_path)
    other = Segmenter.load(tmp_path / 'model', device='cpu')
    assert other.model.config.clip.image_size == 320
    assert other.segment(view[0], 'find the box').answer
    for change, message in (
        ({'clip_side': 300}, 'multiple of 16 up to 352'),
        ({'clip_side': 368}, 'multiple of 16 up to 352'),
        ({'additions': 4}, 'give no --clip-image-size'),
    ):
        with pytest.raises(SettingsError, match=message):
            PretrainTask(tmp_path, rectangles, replace(recipe, **change))
    eyes = replace(RECIPE, init_vision_from=tmp_path / 'model')
    assert PretrainTask(tmp_path / 'eyes', rectangles, eyes).config.clip.image_size == 320


def test_a_finer_table_of_places_has_the_old_ones_where_it_has_their_patches_middles(trained):
    name = 'clip.embeddings.position_embedding.weight'
    small = trained.pupil.lisa.state_dict()
    side = round(len(small[name][1:]) ** 0.5)
    large = resize_position_embedding(small, (3 * side) ** 2)[name]
    assert torch.equal(large[0], small[name][0])
    middles = large[1:].unflatten(0, (3 * side, 3 * side))[1::3, 1::3].flatten(0, 1)
    assert torch.allclose(middles, small[name][1:], atol=1e-5)


def test_a_start_keeps_its_eyes_until_the_lessons_heads_can_read_them(trained, rectangles):
    pupil = trained.pupil
    pupil.recipe, before = replace(pupil.recipe, init_from=trained.run / 'model'), pupil.recipe
    try:
        for step, learns in ((1, False), (2, True)):  # a warm-up of two steps
            lesson = replace(pupil.draw(5, 0), spots=None)
            told = pupil._all(lesson, step)
            eyes = pupil.lisa.clip, pupil.lisa.sam.vision_encoder
            for name, of in (('pixels', 1), ('patches', 0), ('places', 0)):
                weight = next(eyes[of].parameters())
                pupil.module.zero_grad()
                told[name].backward(retain_graph=True)
                assert (weight.grad is not None) == learns, (name, step)
    finally:
        pupil.recipe = before
        pupil.module.zero_grad()


def test_lore_is_of_the_world_and_tells_nothing_of_the_picture():
    empty_table = SceneGraph(())
    asked = [
        queries.general_knowledge(PhraseSampler(np.random.default_rng(n)), empty_table)
        for n in range(60)
    ]
    assert len({request.turns[0].answer_raw for request in asked}) > 20
    for request in asked:
        assert not request.targets
        name = request.turns[0].answer_raw.removeprefix('The ')
        kind = next(
            k for k in sorted(OBJECT_CATEGORIES, key=len, reverse=True) if name.startswith(k)
        )
        assert any(need in request.turns[0].query for need in OBJECT_CATEGORIES[kind].needs)


def test_conversations_read_packed_give_the_same_numbers(trained):
    batch = trained.pupil.draw(5, 0).batch
    lisa = trained.pupil.lisa.eval()
    with torch.no_grad():
        rows, packed = lisa(batch), lisa(batch, packed=True)
    assert len(batch.input_ids) > len(batch.sam_pixels)  # several about one picture
    assert float(packed.ce_loss) == pytest.approx(float(rows.ce_loss), abs=1e-5)
    assert torch.allclose(packed.mask_logits, rows.mask_logits, atol=1e-4)
    assert packed.seg_query.tolist() == rows.seg_query.tolist()
    places = lisa.config.image_tokens - 1
    for one, other, real in zip(
        rows.llm_states, packed.llm_states, batch.attention_mask, strict=True
    ):
        count = int(real.sum()) + places
        assert torch.allclose(one[:count], other[:count], atol=1e-4)


def test_packed_conversations_must_begin_alike(trained):
    batch = trained.pupil.draw(0, 0).batch
    assert batch.image_index[0] == batch.image_index[1]
    ids = batch.input_ids.clone()
    ids[1, 1] += 1  # before the picture
    with pytest.raises(QueryError, match='same up to the picture'):
        trained.pupil.lisa(replace(batch, input_ids=ids), packed=True)


def test_the_losses_fall(trained):
    rows = (trained.run / 'curves.csv').read_text().splitlines()
    assert rows[0].startswith('step,minutes,pixels,patches,words,inventory,places,ce,bce,dice')
    lesson = trained.pupil.draw(0, 0)
    trained.step = 2  # the rate is at its peak
    before = trained.learn([lesson])
    for _ in range(4):
        after = trained.learn([lesson])
    assert after['ce'] < before['ce']
    assert after['pixels'] < before['pixels']
    assert all(math.isfinite(value) for value in after.values())


def test_what_it_saves_is_a_model_that_answers(trained, rectangles):
    lisa = Segmenter.load(trained.run / 'model', device='cpu', max_new_tokens=8)
    assert lisa.template == 'plain'
    picture = dataset.SceneSet.load(rectangles / 'val').colour[0]
    result = lisa.segment(picture, 'segment the mug')
    assert result.token_ids
    assert result.mask_logits.shape[1:] == picture.shape[:2]


def test_scenes_that_are_not_there_are_named(tmp_path):
    with pytest.raises(DataError, match='no scenes here'):
        dataset.SceneSet.load(tmp_path)
    with pytest.raises(DataError, match=r'porcelain_mug\.obj'):
        assets._asset(tmp_path, 'porcelain_mug.obj')
    with pytest.raises(DataError, match='pip install'):
        assets._asset(tmp_path, 'no_such_package:mug.obj')


def test_the_command_trains_with_the_numbers_given(rectangles, tmp_path, capsys):
    given = {'steps': 2, 'looks': 1, 'pictures': 2, 'requests': 1, 'threads': 1, 'warm_up': 1}
    numbers = [w for k, v in given.items() for w in (f'--{k.replace("_", "-")}', str(v))]
    command = ['train', '--scenes', str(rectangles), '--out', str(tmp_path / 'run'), *numbers]
    assert cli.main([*command, '--exclude-categories', 'use', 'knowledge', 'two_step']) == 0
    assert (tmp_path / 'run' / 'model' / 'model.safetensors').is_file()
    rows = (tmp_path / 'run' / 'curves.csv').read_text().splitlines()
    assert rows[-1].startswith('2.0000,')
    assert cli.main(['train', '--scenes', str(rectangles)]) == 1
    assert '--out' in capsys.readouterr().err


# ---- additions to weights that stand


@pytest.fixture(scope='module')
def added(trained, rectangles, tmp_path_factory):
    """A run that adds to the weights of another, and that run's model."""
    start = tmp_path_factory.mktemp('start') / 'model'
    shutil.copytree(trained.run / 'model', start)
    run = tmp_path_factory.mktemp('added')
    recipe = replace(
        RECIPE,
        init_from=start,
        lora_rank=4,
        vision_warmup_steps=0,
        pace=replace(PACE, ema_decay=0.0),
    )
    loop = Trainer(run, recipe.pace, PretrainTask(run, rectangles, recipe))
    loop.train()
    return loop, start


def test_additions_lie_beside_weights_that_stand_and_load_on_top(added):
    loop, start = added
    model = loop.run / 'model'
    weights = 'model.safetensors'
    assert (model / weights).read_bytes() == (start / weights).read_bytes()
    small = (model / lora.FILE).stat().st_size
    assert 0 < small < (model / weights).stat().st_size / 10
    learnt, before = checkpoint.load(model).model, checkpoint.load(start).model
    encoder = 'sam.vision_encoder.'
    same = {n for n, p in before.named_parameters() if torch.equal(p, learnt.get_parameter(n))}
    assert {n for n in learnt.state_dict() if n.startswith(encoder)} <= same
    assert 'llm.model.layers.0.mlp.up_proj.weight' not in same
    # what loads is what was trained, to the rounding of its additions
    trained_weight = loop.pupil.lisa.llm.model.layers[0].mlp.up_proj.weight.detach()
    loaded = learnt.llm.model.layers[0].mlp.up_proj.weight
    change = (trained_weight - before.llm.model.layers[0].mlp.up_proj.weight).norm()
    assert (loaded - trained_weight).norm() < 0.02 * change


def test_additions_are_gone_on_with(added, rectangles, tmp_path):
    loop, _ = added
    recipe = replace(RECIPE, init_from=loop.run / 'model', lora_rank=4)
    pupil = PretrainTask(tmp_path, rectangles, recipe)
    name = 'llm.model.layers.0.mlp.up_proj'
    layer = pupil.lisa.get_submodule(name)
    given = lora.load_lora(loop.run / 'model')
    assert torch.equal(layer.parametrizations.weight[0].up, given[f'{name}.weight.up'])
    merged = checkpoint.load(loop.run / 'model').model.get_parameter(f'{name}.weight')
    assert torch.allclose(layer.weight, merged, atol=1e-6)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'llm.lm_head.weight': torch.zeros(3, 5)}, r'llm\.lm_head\.weight is \(3, 5\)'),
        ({'nothing.weight': torch.zeros(3)}, r'there is no nothing\.weight'),
        ({'llm.lm_head.weight.up': torch.zeros(9, 2)}, r'lm_head\.weight\.up is \(9, 2\)'),
    ],
)
def test_additions_of_another_model_are_named(added, tmp_path, change, message):
    _, start = added
    model = tmp_path / 'model'
    shutil.copytree(start, model)
    lora.save_lora(change, model)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(model)


def test_additions_want_a_start(rectangles, tmp_path):
    with pytest.raises(SettingsError, match='give --init-from'):
        PretrainTask(tmp_path, rectangles, replace(RECIPE, lora_rank=4))


def test_a_broken_file_of_additions_is_named(added, tmp_path):
    _, start = added
    shutil.copytree(start, tmp_path / 'model')
    (tmp_path / 'model' / lora.FILE).write_bytes(b'no safetensors')
    with pytest.raises(CheckpointError, match=lora.FILE):
        checkpoint.load(tmp_path / 'model')
