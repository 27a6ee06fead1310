# SPDX-License-Identifier: Apache-2.0
"""Random scenes, scene graphs, sampled queries and test sets of the generator.

Meshes are not in the repository, so no test renders a scene.
"""

import itertools
import json
import re
import zipfile
import zlib
from dataclasses import asdict, replace

import cv2
import numpy as np
import pytest
from tabletop_graph import BANANA, PLATE, RED, TABLE, WHITE, corrupted_queries

from lisa_ros.errors import DataError
from lisa_ros.evaluation.tabletop import read_test_set
from lisa_ros.geometry.rotation import matrix_to_quaternion
from lisa_ros.tabletop import (
    answer_text,
    assets,
    attribute_queries,
    dialogue,
    queries,
    query_sampling,
    reasoning_queries,
    relation_queries,
    sample_bag,
    scene_sampling,
    scene_writer,
    templates,
    test_sets,
    text_queries,
)
from lisa_ros.tabletop.objects import COLOURS, OBJECT_CATEGORIES, OBJECTS, PART_FLAG, SIZES
from lisa_ros.tabletop.scene_graph import (
    RELATIONS,
    SceneGraph,
    SceneObject,
    find_superlative,
    in_relation,
    nearest_in_relation,
    side_is_empty,
)
from lisa_ros.tabletop.templates import PhraseSampler

BOXES = {name: [[-0.5, -0.3, -0.4], [0.5, 0.3, 0.4]] for name in OBJECTS}


def sampler(seed, held_out=False):
    return PhraseSampler(np.random.default_rng(seed), held_out=held_out)


def object_ids(mask):
    """The ids of a target mask without the flag of named parts."""
    return {i % PART_FLAG for i in mask}


# ---- scenes


def draw_scene(split, number):
    rng = scene_sampling.scene_rng(split, number)
    return scene_sampling.draw_scene(rng, BOXES, unseen=split == 'unseen')


def test_scene_depends_on_split_and_number_only():
    assert draw_scene('train', 7) == draw_scene('train', 7)
    assert draw_scene('train', 7) != draw_scene('train', 8)
    assert draw_scene('train', 7) != draw_scene('test', 7)


def test_held_out_objects_are_in_the_unseen_split_only():
    held_out = {name for name, model in OBJECTS.items() if model.held_out}
    assert held_out
    for number in range(40):
        train, unseen = draw_scene('train', number), draw_scene('unseen', number)
        assert not held_out & {placed.model.name for placed in train.objects}
        assert held_out & {placed.model.name for placed in unseen.objects}


def test_objects_are_upright_on_the_table_and_have_distinct_appearances():
    for number in range(40):
        scene = draw_scene('val', number)
        appearances = [(p.model.category, p.colour, p.size) for p in scene.objects]
        assert len(set(appearances)) == len(appearances)
        bodies = [scene_sampling.body_name(p.model, p.size) for p in scene.objects]
        assert len(set(bodies)) == len(bodies)
        for placed in scene.objects:
            scale = placed.model.size * SIZES.get(placed.size, 1)  # BOXES are one unit long
            corners = scene_sampling.box_corners(BOXES[placed.model.name]) * scale
            rotation = scene_sampling.rotation_matrix(placed.quaternion)
            corners = corners @ rotation.T + placed.position
            assert corners[:, 2].min() == pytest.approx(0, abs=1e-9)
            assert corners.min(0) == pytest.approx(placed.box_min)
            assert corners.max(0) == pytest.approx(placed.box_max)


def test_handle_is_split_off_a_round_body():
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    ring = np.stack([np.cos(angles), np.sin(angles), np.zeros(24)], axis=1)
    body = np.concatenate([ring, ring + np.array([0, 0, 2])])
    grip = np.array([[1.2, 0.1, 0.5], [1.2, -0.1, 0.5], [1.6, 0, 1.0]])
    wall = [(i, (i + 1) % 24, 24 + i) for i in range(24)]
    points, faces = np.concatenate([body, grip]), np.array([*wall, (48, 49, 50)])
    unsplit = assets.split_handle(points, faces, None, has_handle=False)
    parts = assets.split_handle(points, faces, None, has_handle=True)
    (_, body_faces, _), (_, handle_faces, _) = parts
    assert len(unsplit) == 1
    assert len(body_faces) == 24
    assert handle_faces.tolist() == [[48, 49, 50]]


def metadata_of_first_object():
    """The metadata of a scene's first object, and the object."""
    scene = draw_scene('val', 3)
    pose = scene_sampling.camera_matrix(np.array([0.0, -0.8, 0.5]), np.array([0.0, 0.0, 0.0]))
    ids = np.zeros((240, 320), np.uint8)
    ids[:10, :10], ids[:10, 10:12] = 1, 1 + PART_FLAG
    return scene_writer.scene_metadata(scene, pose, ids)[0], scene.objects[0]


def test_scene_metadata_has_visible_area_and_position():
    metadata, placed = metadata_of_first_object()
    middle = (np.array(placed.box_min) + placed.box_max) / 2
    assert (metadata['area'], metadata['part_area']) == (120, 20)
    assert metadata['right'] == pytest.approx(middle[0], abs=1e-3)  # this camera looks along y
    assert metadata['away'] == pytest.approx(middle[1] + 0.8, abs=1e-3)
    assert metadata['height'] == pytest.approx(placed.box_max[2] - placed.box_min[2], abs=1e-3)


def test_scene_graph_reads_metadata_also_with_former_keys():
    metadata, _ = metadata_of_first_object()
    former = {'category': 'kind', 'model': 'thing'}
    renamed = {former.get(key, key): value for key, value in metadata.items()}
    graph = SceneGraph.from_dicts([metadata])
    assert graph == SceneGraph.from_dicts([renamed])
    assert graph == SceneGraph.from_dicts([asdict(graph.objects[0])])
    with pytest.raises(TypeError, match='shape'):
        SceneGraph.from_dicts([{**metadata, 'shape': 'round'}])


def test_the_optical_axis_is_z_and_the_horizon_is_level():
    position, target = np.array([0.3, -0.7, 0.5]), np.array([0.0, 0.0, 0.05])
    pose = scene_sampling.camera_matrix(position, target)
    ahead = pose[:3, 2] * np.linalg.norm(target - position) + pose[:3, 3]
    assert ahead == pytest.approx(target)
    assert pose[2, 0] == pytest.approx(0)  # x, to the right, is level
    assert pose[2, 1] < 0  # y points down
    assert pose[:3, :3] @ pose[:3, :3].T == pytest.approx(np.eye(3))
    assert np.linalg.det(pose[:3, :3]) == pytest.approx(1)


def test_camera_path_of_the_sample_bag_is_smooth():
    poses = sample_bag.camera_path(40)
    steps = [np.linalg.norm(b[:3, 3] - a[:3, 3]) for a, b in itertools.pairwise(poses)]
    assert min(steps) > 0.005
    assert max(steps) < 0.05
    x, y, z, w = matrix_to_quaternion(poses[3][:3, :3])
    assert scene_sampling.rotation_matrix((w, x, y, z)) == pytest.approx(poses[3][:3, :3])


def test_missing_assets_are_an_error(tmp_path):
    with pytest.raises(DataError, match=r'porcelain_mug\.obj'):
        assets.find_asset(tmp_path, 'porcelain_mug.obj')
    with pytest.raises(DataError, match='pip install'):
        assets.find_asset(tmp_path, 'no_such_package:mug.obj')


# ---- scene graphs


def test_names_are_unambiguous():
    assert [TABLE.name(o) for o in TABLE.visible] == ['red mug', 'white mug', 'banana', 'plate']
    twin = SceneObject(6, 'mug', 'round_mug', 'red', 'small', 500, 0, 0, 0, 0.1, 0.1)
    twins = SceneGraph((RED, twin))
    assert [twins.name(o) for o in twins.visible] == ['big mug', 'small mug']


def test_all_unambiguous_names_and_orders_are_accepted():
    red, blue = (replace(RED, id=i, colour=c, size=None) for i, c in ((1, 'red'), (2, 'blue')))
    assert SceneGraph((red,)).names(red) == ('mug', 'red mug')
    assert SceneGraph((red, blue)).names(red) == ('red mug',)
    identical = SceneGraph((red, replace(red, id=2)))
    assert identical.names(red) == ('red mug',)  # no name is unambiguous
    first, *others = answer_text.accepted_name_lists(SceneGraph((red, BANANA)), [red, BANANA])
    assert first == 'the mug and the banana'
    assert set(others) == {
        'the red mug and the banana',
        'the banana and the mug',
        'the banana and the red mug',
    }


def test_name_with_colour_is_unambiguous_and_states_the_colour():
    assert TABLE.name_with_colour(RED) == 'red mug'
    assert TABLE.name_with_colour(PLATE) == 'blue plate'
    assert TABLE.name_with_colour(BANANA) == 'banana'
    twin = replace(WHITE, id=6, size='big')
    assert SceneGraph((*TABLE.objects, twin)).name_with_colour(WHITE) == 'small white mug'


def test_relations_are_those_of_the_camera():
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
    assert not side_is_empty(TABLE, 'left of', PLATE)  # the mug is also in front of it
    mirrored = TABLE.mirrored().objects
    assert nearest_in_relation(mirrored, 'right of', mirrored[2]).id == RED.id


def test_superlatives_need_a_clear_margin():
    assert find_superlative(TABLE.visible, 'tallest') is RED
    assert find_superlative(TABLE.visible, 'leftmost') is RED
    assert find_superlative(TABLE.visible, 'farthest') is PLATE
    assert find_superlative(TABLE.visible, 'nearest') is None
    assert find_superlative([RED], 'tallest') is None


# ---- single turns


@pytest.mark.parametrize('seed', range(300))
def test_query_has_one_target_mask_per_seg_token(seed):
    query = query_sampling.sample_query(np.random.default_rng(seed), TABLE)
    answers = [turn.answer_raw for turn in query.turns]
    assert 1 <= len(query.turns) <= 4
    assert sum(answer.count('[SEG]') for answer in answers) == len(query.targets)
    if query.forced_mask:
        assert query.targets == ((),)
        return
    assert all(mask and object_ids(mask) <= {1, 2, 3, 4} for mask in query.targets)
    assert all(turn.query.strip() for turn in query.turns)
    if query.category == 'attributes' and query.targets:
        text = query.turns[0].query
        colour = next((c for c in COLOURS if c in text), None)
        targets = [o for o in TABLE.objects if o.id in query.targets[0]]
        assert colour is None or {o.apparent_colour for o in targets} == {colour}


def test_hidden_object_is_neither_a_target_nor_called_absent():
    for seed in range(300):
        query = query_sampling.sample_query(
            np.random.default_rng(seed), TABLE, excluded=('general_knowledge',)
        )
        for turn in query.turns:
            assert 'book' not in turn.query + turn.answer_raw


def test_answer_states_the_reason_before_the_mask():
    query = reasoning_queries.use(sampler(1), SceneGraph((BANANA,)), True)
    (turn,) = query.turns
    assert turn.answer_raw.endswith(', [SEG].')
    assert 'banana' in turn.answer_raw
    assert query.expected_phrases
    assert all(phrases[0] in turn.answer_raw for phrases in query.expected_phrases)


def test_ambiguous_name_gets_one_mask_of_both_objects_and_a_question():
    for seed in range(50):
        query = attribute_queries.explicit(sampler(seed), TABLE, True)
        if 'mug' in query.turns[0].query:
            assert query.turns[0].answer_raw == 'I see two, [SEG]. Which one?'
            assert object_ids(query.targets[0]) == {1, 2}


def test_part_query_targets_the_part_only():
    query = attribute_queries.part(sampler(0), SceneGraph((RED,)), True)
    assert query.targets == ((1 + PART_FLAG,),)
    query = attribute_queries.part(sampler(0), SceneGraph((BANANA,)), False)
    assert query.turns[0].answer_raw == 'The banana has no handle.'


def test_answer_names_the_colour_except_in_comparisons():
    """Comparisons name both objects as the query does."""
    names = set()
    for seed in range(200):
        for sample in (relation_queries.spatial_relation, relation_queries.superlative_query):
            query = sample(sampler(seed), TABLE)
            if query is not None:
                names |= set(re.findall(r'It is the (.*), ', query.turns[0].answer_raw))
        comparison = relation_queries.comparative_query(sampler(seed), TABLE)
        if comparison is not None:
            (turn,) = comparison.turns
            (name,) = re.findall(r'It is the (.*), ', turn.answer_raw)
            assert f'the {name}' in turn.query
            assert name != 'blue plate'
    assert names == {'red mug', 'white mug', 'banana', 'blue plate'}


def test_training_samples_next_to_twice_as_often_as_other_relations():
    for held_out, weights in ((False, (1, 1, 1, 1, 2)), (True, (1, 1, 1, 1, 1))):
        phrases = sampler(0, held_out)
        relations = [relation_queries.sample_relation(phrases) for _ in range(3000)]
        shares = [relations.count(relation) / len(relations) for relation in RELATIONS]
        assert np.allclose(shares, np.array(weights) / sum(weights), atol=0.03)


def test_measured_targets_follow_the_sizes_of_the_answer():
    heights = {o.id: o.height for o in TABLE.objects}
    longest = {o.id: o.longest for o in TABLE.objects}
    count = 0
    for seed in range(60):
        query = relation_queries.comparative_query(sampler(seed), TABLE)
        if query is None:
            continue
        (turn,) = query.turns
        sizes = [int(n) for n in re.findall(r'(\d+) cm', turn.answer_raw)]
        lengths = longest if 'bigger' in turn.query or 'smaller' in turn.query else heights
        assert sizes == [
            answer_text.even_centimetres(lengths[mask[0]]) for mask in query.measured_targets
        ]
        count += len(sizes)
    assert count > 20


def test_lists_go_from_left_to_right_with_the_objects_of_each_name():
    image_x = {1: 0.2, 2: 0.9, 3: 0.5, 4: 0.3, 5: 0.6}
    scene = SceneGraph(tuple(replace(o, image_x=image_x[o.id]) for o in TABLE.objects))
    orders = {'dish': 'red mug, blue plate, white mug', 'list': 'mug, plate, banana'}
    count = dict.fromkeys((*orders, 'later'), 0)
    for seed in range(200):
        phrases = sampler(seed)
        for query in (
            reasoning_queries.supercategory_use(phrases, scene, True),
            text_queries.question(phrases, scene),
        ):
            if query is None or not query.listed_names:
                continue
            (turn,) = query.turns
            names = re.findall(r'the ([a-z ]+?)(?=,| and| is| are|\.)', turn.answer_raw.lower())
            assert names == [listed.name for listed in query.listed_names]
            assert {listed.turn for listed in query.listed_names} == {0}
            for listed in query.listed_names:
                expected = {
                    o.id
                    for o in scene.visible
                    if listed.name in (scene.name_with_colour(o), o.category)
                }
                assert object_ids(listed.instance_ids) == expected
            for name, order in orders.items():
                count[name] += ', '.join(names) == order
        talk = dialogue.dialogue(phrases, scene, 3)
        for listed in talk.listed_names:
            assert f'the {listed.name}' in talk.turns[listed.turn].answer_raw.lower()
            count['later'] += listed.turn > 0
    assert min(count.values()) > 5, count


def test_general_knowledge_does_not_depend_on_the_scene():
    sampled = [text_queries.general_knowledge(sampler(seed)) for seed in range(60)]
    assert len({query.turns[0].answer_raw for query in sampled}) > 20
    names = sorted(OBJECT_CATEGORIES, key=len, reverse=True)
    for query in sampled:
        assert not query.targets
        answer = query.turns[0].answer_raw.removeprefix('The ')
        category = next(name for name in names if answer.startswith(name))
        assert any(need in query.turns[0].query for need in OBJECT_CATEGORIES[category].needs)


# ---- dialogues and sampling


def test_dialogue_keeps_the_measured_targets_of_all_turns():
    earlier = 0
    for seed in range(200):
        talk = dialogue.dialogue(sampler(seed), TABLE, 4)
        sizes = [turn.answer_raw.count(' cm') for turn in talk.turns]
        assert len(talk.measured_targets) == sum(sizes)
        earlier += sum(sizes[:-1]) > 0
    assert earlier > 5


def test_excluded_categories_are_not_sampled():
    excluded = (*queries.IMPLICIT, 'general_knowledge')
    for seed in range(300):
        query = query_sampling.sample_query(np.random.default_rng(seed), TABLE, excluded=excluded)
        for turn in query.turns:
            purposes = [category.purpose for category in OBJECT_CATEGORIES.values()]
            assert not any(purpose in turn.answer_raw for purpose in purposes)


def test_sample_reasoning_asks_for_visible_and_absent_objects():
    keys = itertools.product(queries.IMPLICIT, (True, False))
    count = dict.fromkeys(keys, 0)
    for seed in range(200):
        query = query_sampling.sample_reasoning(np.random.default_rng(seed), TABLE)
        count[query.category, query.present] += 1
    assert count.pop(('two_step', False)) == 0
    assert min(count.values()) > 15, count


def test_corrupted_answer_has_a_wrong_name_at_the_right_position():
    names, unchanged = set(), 0
    for query, corrupted in corrupted_queries(300):
        answer = query.turns[-1].answer_raw
        if not corrupted.corrupted_answer:
            assert corrupted is query
            unchanged += 1
            compares = re.search(r'\d, the .*\. It is the', answer)
            assert compares or not re.search(r'\d\. It is the', answer), answer
            continue
        assert replace(corrupted, corrupted_answer='') == query
        match = re.fullmatch(
            r'(.* \d+ \d+\. It is the )(.+), \[SEG\]\.', corrupted.corrupted_answer
        )
        prefix, name = match.groups()
        assert answer.startswith(prefix)
        assert name not in TABLE.names(query.referents[0])
        names.add(name)
    assert unchanged > 20
    assert 'banana' in names  # another object of the scene
    assert {'mug', 'white mug'} <= names  # ambiguous, or the other object of the category
    assert names & (set(OBJECT_CATEGORIES) - {'mug', 'plate', 'banana'})  # absent categories
    assert 'book' not in names  # it is hidden


# ---- phrases and test sets


def test_training_and_held_out_phrases_are_disjoint():
    phrases = {
        held_out: {
            phrase_sampler.fill_template(templates.NAME_TEMPLATES, f'the {category}').lower()
            for category in OBJECT_CATEGORIES
            for _ in range(60)
        }
        for held_out, phrase_sampler in ((h, sampler(0, held_out=h)) for h in (False, True))
    }
    assert not phrases[False] & phrases[True]
    assert zlib.crc32(b'find {x}|the mug') % 3 != 0  # the split is fixed: a training phrase
    assert 'find the mug' in phrases[False]


def test_training_only_templates_are_never_held_out():
    for phrases in templates.SUPERCATEGORY_PHRASES.values():
        shared, training_only = (
            {templates.normalize(template) for template in group}
            for group in (phrases.templates, phrases.training_only)
        )
        assert not shared & training_only
    for held_out in (True, False):
        texts = {
            sampler(seed, held_out).fill_template(('a', 'b'), training_only=('c',))
            for seed in range(40)
        }
        assert ('c' in texts) == (not held_out)
    words = {
        word
        for phrases in templates.SUPERCATEGORY_PHRASES.values()
        for template in phrases.training_only
        for word in templates.normalize(template).split()
    }
    assert {'hungry', 'thirsty', 'dishwasher', 'bored', 'play'} <= words


def test_every_need_belongs_to_one_category():
    needs = [need for category in OBJECT_CATEGORIES.values() for need in category.needs]
    assert len(set(needs)) == len(needs)
    assert all(
        any(need.startswith('something') for need in category.needs)
        for category in OBJECT_CATEGORIES.values()
    )


def test_test_queries_ask_for_visible_and_absent_objects():
    entries = test_sets.make_test_queries('test', 3, TABLE)
    categories = [(entry['category'], bool(entry['targets'])) for entry in entries]
    for category in ('explicit', 'attributes', 'use', 'knowledge'):
        assert (category, True) in categories
        assert (category, False) in categories
    for category in ('relations', 'part', 'two_step', 'several', 'dialogue'):
        assert (category, True) in categories
    (talk,) = [entry for entry in entries if entry['category'] == 'dialogue']
    assert 1 <= len(talk['history']) <= 3
    assert all(
        entry['expected_phrases']
        for entry in entries
        if entry['category'] == 'use' and entry['targets']
    )
    assert entries == test_sets.make_test_queries('test', 3, TABLE)


def test_packed_test_set_reads_like_its_folder(tmp_path):
    folder = tmp_path / 'test'
    for name in ('colour', 'ids'):
        (folder / name).mkdir(parents=True)
    ids = np.zeros((24, 32), np.uint8)
    ids[4:9, 6:20] = 1
    cv2.imwrite(str(folder / 'colour' / '00003.jpg'), np.full((24, 32, 3), 120, np.uint8))
    cv2.imwrite(str(folder / 'ids' / '00003.png'), ids)
    scene = {'name': '00003', 'objects': [asdict(o) for o in TABLE.objects]}
    (folder / 'scenes.json').write_text(json.dumps({'split': 'test', 'scenes': [scene]}))
    test_sets.write_test_set(folder)
    test_sets.pack_test_set([folder], tmp_path / 'test.zip')
    with zipfile.ZipFile(tmp_path / 'test.zip') as archive:
        assert archive.namelist() == ['test_00003.webp', 'test_00003.png', 'queries.json']
        packed_ids = cv2.imdecode(np.frombuffer(archive.read('test_00003.png'), np.uint8), -1)
    assert np.array_equal(packed_ids, ids)
    in_folder, packed = read_test_set(folder), read_test_set(tmp_path / 'test.zip')
    assert [query.text for query in in_folder] == [query.text for query in packed]
    assert [query.targets for query in in_folder] == [query.targets for query in packed]
    entries = test_sets.make_test_queries('test', 3, TABLE)
    assert [query.category for query in packed] == [entry['category'] for entry in entries]
