# SPDX-License-Identifier: Apache-2.0
"""An independent parser checks the queries: it reads only the text and the scene.

The generator draws the objects first and then the text. The parser goes the other way, by brute
force and with rules of its own, and must find the same objects.
"""

import itertools
import math
import re

import numpy as np
import pytest

from lisa_ros.english import plural
from lisa_ros.tabletop import (
    answer_text,
    attribute_queries,
    dialogue,
    reasoning_queries,
    relation_queries,
    templates,
    text_queries,
)
from lisa_ros.tabletop.objects import (
    ALTERNATIVES,
    COLOURS,
    OBJECT_CATEGORIES,
    OBJECTS,
    PART_FLAG,
    SIZES,
)
from lisa_ros.tabletop.scene_graph import MIN_VISIBLE_AREA, SceneGraph, SceneObject
from lisa_ros.tabletop.templates import PhraseSampler

MEASURES = {
    'tall': lambda o: o.height, 'low': lambda o: -o.height, 'big': lambda o: o.longest,
    'small': lambda o: -o.longest, 'near': lambda o: -o.away, 'far': lambda o: o.away,
    'leftmost': lambda o: -o.right, 'rightmost': lambda o: o.right,
}  # fmt: skip
COMPARISON_WORDS = {
    'tallest': 'tall', 'taller': 'tall', 'lowest': 'low', 'lower': 'low', 'biggest': 'big',
    'bigger': 'big', 'smallest': 'small', 'smaller': 'small', 'nearest': 'near', 'nearer': 'near',
    'farthest': 'far', 'farther': 'far', 'leftmost': 'leftmost', 'rightmost': 'rightmost',
}  # fmt: skip
RELATION = 'left of|right of|behind|in front of|next to'
SUPERCATEGORIES = ('drink', 'food', 'toy', 'dish')
NAMES = sorted(OBJECT_CATEGORIES, key=len, reverse=True)


def random_scene(seed):
    """A scene graph of objects at random positions, a few of them hidden."""
    rng = np.random.default_rng(seed)
    objects, appearances = [], set()
    models = [m for m in OBJECTS.values() if not m.held_out]
    favourite = models[rng.integers(len(models))]
    for number in range(1, 4 + int(rng.integers(6))):
        model = favourite if rng.random() < 0.35 else models[rng.integers(len(models))]
        colour = str(rng.choice(model.colours)) if model.colours else None
        size = str(rng.choice(model.sizes)) if model.sizes else None
        appearance = model.category, colour, size
        repeated = any(category == model.category for category, *_ in appearances)
        if appearance in appearances or (not model.colours and repeated):
            continue
        appearances.add(appearance)
        hidden = rng.random() < 0.1
        area = int(rng.integers(5, MIN_VISIBLE_AREA) if hidden else rng.integers(150, 4000))
        has_part = model.has_handle or any(part.name for part in model.parts)
        right, away = rng.uniform(-0.3, 0.3), rng.uniform(0.5, 1.1)
        height, longest = rng.uniform(0.02, 0.3), rng.uniform(0.05, 0.3)
        objects.append(
            SceneObject(
                number,
                model.category,
                model.name,
                colour,
                size,
                area,
                area // 8 if has_part else 0,
                right,
                away,
                height,
                longest,
                *rng.uniform(0, 1, 2),
            )
        )
    return SceneGraph(tuple(objects))


SCENES = [random_scene(seed) for seed in range(150)]


def sampled(sample, *arguments, scenes=SCENES):
    """(scene, query) for each draw that fits, in phrases of training and held-out ones."""
    for number, scene in enumerate(scenes):
        for held_out in (False, True):
            for seed in range(6):
                sampler = PhraseSampler(np.random.default_rng((number, seed)), held_out=held_out)
                try:
                    query = sample(sampler, scene, *arguments)
                except templates.NoHeldOutTemplate:
                    continue
                if query is not None:
                    yield scene, query


# ---- the parser


def normalized(text):
    """The words in lower case, without punctuation and polite phrases."""
    text = re.sub(r'[?.,!]', '', text.lower())
    for phrase in (
        'please output segmentation mask', 'in this image', 'please', 'and say why', 'say why',
        'and why',
    ):  # fmt: skip
        text = text.replace(phrase, '')
    return ' '.join(text.split())


def matching(scene, name):
    """The objects, visible or hidden, that a name such as "small red mug" is true of."""
    name = name.strip()
    category = next(c for c in NAMES if name == c or name.endswith(f' {c}'))
    adjectives = name.removesuffix(category).split()
    assert set(adjectives) <= {*COLOURS, *SIZES}, name
    return [
        o
        for o in scene.objects
        if o.category == category and set(adjectives) <= {o.colour, o.size}
    ]


def visible(objects):
    return [o for o in objects if o.area >= MIN_VISIBLE_AREA]


def group(scene, noun):
    """Return the objects that a noun such as "thing", "mug" or "drink" describes."""
    if noun == 'thing':
        return list(scene.objects)
    if noun in SUPERCATEGORIES:
        return [o for o in scene.objects if OBJECT_CATEGORIES[o.category].supercategory == noun]
    return matching(scene, noun)


def related(scene, noun, relation, anchor):
    """The object that "the <noun> <relation> <anchor>" refers to, the nearest in 45 degrees."""
    others = [o for o in scene.objects if o.id != anchor.id]

    def offset(o):
        right, away = o.right - anchor.right, o.away - anchor.away
        return {
            'left of': (-right, away), 'right of': (right, away), 'behind': (away, right),
            'in front of': (-away, right), 'next to': (math.inf, 0),
        }[relation]  # fmt: skip

    inside = [o for o in others if offset(o)[0] > abs(offset(o)[1])]
    if noun not in ('thing', *SUPERCATEGORIES):
        (target,) = [o for o in inside if o in group(scene, noun)]
        return target
    return min(inside, key=lambda o: math.hypot(o.right - anchor.right, o.away - anchor.away))


def extreme(objects, word):
    """The object that a comparative or superlative refers to, with a clear margin."""
    measure = MEASURES[COMPARISON_WORDS[word]]
    best, second = sorted(objects, key=measure, reverse=True)[:2]
    assert measure(best) - measure(second) >= 0.02
    return best


def object_ids(mask):
    return {i % PART_FLAG for i in mask}


def target_ids(query, mask=-1):
    return object_ids(query.targets[mask])


def assert_answer_is_correct(scene, query, target):
    """The answer names the target unambiguously, and its measurements are correct."""
    answer = query.turns[-1].answer_raw
    (name,) = re.findall(r'It is the ([a-z ]+), \[SEG\]', answer)
    assert [o.id for o in visible(matching(scene, name))] == [target.id]
    steps = answer[: answer.rindex('It is the')]
    assert steps
    sizes = re.findall(r'[Tt]he ([a-z ]+?) (\d+) cm', steps)
    for name, number in sizes:
        (measured,) = visible(matching(scene, name))
        lengths = 100 * measured.height, 100 * measured.longest
        assert any(abs(int(number) - max(length, 2)) <= 1 for length in lengths)
    positions = re.findall(r'[Tt]he ([a-z ]+?) (\d+) (\d+)', steps)
    for name, x, y in positions:
        is_superlative = name.split()[0] in COMPARISON_WORDS  # "the tallest thing 20 40"
        (located,) = [target] if is_superlative else visible(matching(scene, name))
        assert (int(x), int(y)) == image_position(located)
    for x, y in re.findall(rf'(?:{RELATION}) it (\d+) (\d+)', steps):
        assert (int(x), int(y)) == image_position(target)
    assert sizes or positions


def image_position(obj):
    """The position that an answer states: even hundredths, rounded down."""
    return tuple(min(98, math.floor(50 * share) * 2) for share in (obj.image_x, obj.image_y))


def categories_by_need():
    """Normalized use or fact -> its category."""
    return {
        normalized(need): category
        for category in OBJECT_CATEGORIES.values()
        for need in category.needs
    }


# ---- query categories


@pytest.mark.parametrize('present', [True, False])
def test_name_refers_to_all_matching_objects(present):
    count = 0
    first_words = {w for category in OBJECT_CATEGORIES for w in category.split()}
    for sample in (attribute_queries.explicit, attribute_queries.name_with_attributes):
        for scene, query in sampled(sample, present):
            text = normalized(query.turns[0].query)
            (match,) = [
                m
                for category in NAMES
                if (m := re.search(rf'the ((?:small |big )?(?:\w+ )?{category})$', text))
            ][:1]
            name = match[1]
            while name.split()[0] not in {*COLOURS, *SIZES} | first_words:
                name = name.split(' ', 1)[1]
            objects = matching(scene, name)
            if present:
                assert target_ids(query) == {o.id for o in visible(objects)} != set()
            else:
                assert not objects
                assert query.turns[0].answer_raw == f'There is no {name} here.'
            count += 1
    assert count > 300


def test_relation_superlative_and_comparative_refer_to_one_object():
    count = dict.fromkeys(('relation', 'superlative', 'comparative'), 0)
    for scene, query in sampled(relation_queries.relations, True):
        text = normalized(query.turns[0].query)
        if match := re.search(rf'the ([a-z ]+?) ({RELATION}) the ([a-z ]+)$', text):
            noun = match[1].split(' the ')[-1]
            (anchor,) = visible(matching(scene, match[3]))
            target, form = related(scene, noun, match[2], anchor), 'relation'
        elif match := re.search(r'the (\w+) one of the ([a-z ]+) and the ([a-z ]+)$', text):
            pair = [o for name in match.groups()[1:] for o in visible(matching(scene, name))]
            assert len(pair) == 2
            target, form = extreme(pair, match[1]), 'comparative'
        else:
            match = re.search(r'the (\w+) ([a-z ]+)$', text[text.rindex('the ') :])
            target, form = extreme(group(scene, match[2]), match[1]), 'superlative'
        assert target_ids(query) == {target.id}
        assert_answer_is_correct(scene, query, target)
        count[form] += 1
    assert min(count.values()) > 100


def test_absent_relation_refers_to_no_object():
    count = 0
    for scene, query in sampled(relation_queries.relations, False):
        text, answer = normalized(query.turns[0].query), query.turns[0].answer_raw
        match = re.search(rf'the thing ({RELATION}) the ([a-z ]+)$', text)
        if answer.startswith('There is no '):
            assert not matching(scene, match[2])
        else:
            (anchor,) = visible(matching(scene, match[2]))
            assert answer == f'There is nothing {match[1]} the {match[2]}.'
            with pytest.raises(ValueError, match=r'empty'):
                related(scene, 'thing', match[1], anchor)
        assert not query.targets
        count += 1
    assert count > 200


@pytest.mark.parametrize('query_category', ['use', 'knowledge'])
def test_need_refers_to_its_category_and_has_no_alternative_in_the_scene(query_category):
    category_by_need = categories_by_need()
    count = 0
    for present in (True, False):
        for scene, query in sampled(reasoning_queries.need_query, present, query_category):
            text = normalized(query.turns[0].query)
            need = max((n for n in category_by_need if n in text), key=len)
            category = category_by_need[need]
            alternatives = {
                c for n, others in ALTERNATIVES.items() if normalized(n) == need for c in others
            }
            assert not any(o.category in alternatives for o in scene.objects)
            answer = query.turns[0].answer_raw
            if present:
                assert target_ids(query) == {
                    o.id for o in visible(scene.objects) if o.category == category.name
                }
                assert answer == f'The {category.name} {category.purpose}, [SEG].'
            else:
                assert all(o.category != category.name for o in scene.objects)
                assert not query.targets
                reason = f'The {category.name} {category.purpose}'
                assert answer == f'{reason}, but there is no {category.name} here.'
            count += 1
    assert count > 200


def test_two_step_query_refers_to_one_object():
    category_by_need = categories_by_need()
    count = dict.fromkeys(('purpose', 'need', 'supercategory', 'colour'), 0)
    for scene, query in sampled(reasoning_queries.two_step):
        text = normalized(query.turns[0].query)
        needs = [n for n in category_by_need if n in text]
        if match := re.search(rf'the (\w+) ({RELATION}) the thing that ([a-z ]+)$', text):
            (category,) = [c.name for c in OBJECT_CATEGORIES.values() if c.purpose == match[3]]
            (anchor,) = visible(matching(scene, category))
            target, form = related(scene, match[1], match[2], anchor), 'purpose'
            if match[1] in SUPERCATEGORIES:
                assert OBJECT_CATEGORIES[target.category].supercategory == match[1]
            assert_answer_is_correct(scene, query, target)
        elif needs and (match := re.search(RELATION, text)):
            category = category_by_need[max(needs, key=len)].name
            (anchor,) = visible(matching(scene, category))
            target, form = related(scene, 'thing', match[0], anchor), 'need'
            assert_answer_is_correct(scene, query, target)
        elif match := re.search(r'the (\w+) (drink|food|toy|dish)$', text):
            target, form = extreme(group(scene, match[2]), match[1]), 'supercategory'
            assert_answer_is_correct(scene, query, target)
        else:
            colour = next(c for c in COLOURS if c in text)
            text = text.replace(f' {colour}', '')
            need = max((n for n in category_by_need if n in text), key=len)
            objects = visible(matching(scene, category_by_need[need].name))
            assert target_ids(query) == {o.id for o in objects if o.colour == colour}
            count['colour'] += 1
            continue
        assert target_ids(query) == {target.id}
        count[form] += 1
    assert min(count.values()) > 25


def test_several_names_have_a_mask_each_and_absent_ones_a_sentence():
    count = 0
    for scene, query in sampled(attribute_queries.several):
        text, (turn,) = normalized(query.turns[0].query), query.turns
        names = re.findall(r'the ((?:(?!the )[a-z ])+?)(?= and the |  the | the |$)', text)
        if turn.answer_raw == 'Sure, [SEG].' and len(names) == 1:
            category = next(c for c in NAMES if plural(c) in text)
            assert target_ids(query) == {o.id for o in visible(matching(scene, category))}
            count += 1
            continue
        expected = []
        for name in names:
            objects = matching(scene, name)
            if objects:
                (target,) = visible(objects)
                expected.append({target.id})
            else:
                assert f'There is no {name} here.' in turn.answer_raw
        assert [object_ids(mask) for mask in query.targets] == expected
        count += 1
    assert count > 200


def check_follow_up(scene, conversation):
    """Check the last turn of a dialogue of two; return which form it has, None for others."""
    first, turn = conversation.turns
    text = normalized(turn.query)
    earlier, later = (
        conversation.targets[: conversation.first_target],
        conversation.targets[conversation.first_target :],
    )
    shown = {i for mask in earlier for i in object_ids(mask)}
    names = re.findall(r'The ([a-z ]+) is ', first.answer_raw)  # an answer about a colour
    referents = shown or {o.id for name in names for o in visible(matching(scene, name))}
    if re.search(r'\bit\b', text) and (match := re.search(RELATION, text)):
        if any(need in text for need in categories_by_need()):
            return None  # "find something to ... and show me what is left of it"
        (anchor,) = [o for o in scene.objects if o.id in referents]
        target = related(scene, 'thing', match[0], anchor)
        assert object_ids(later[0]) == {target.id}
        return 'it'
    if text.endswith('the other one'):
        (referent,) = [o for o in scene.objects if o.id in referents]
        others = [
            o for o in scene.objects if o.category == referent.category and o.id != referent.id
        ]
        if later:
            assert [{o.id} for o in visible(others)] == [object_ids(later[0])]
            return 'other'
        assert not others
        assert turn.answer_raw == f'There is no other {referent.category} here.'
        return 'no other'
    if match := re.search(r'the (\w+) one$', text):
        candidates = [o for o in scene.objects if o.id in shown]
        if match[1] in COLOURS:
            (target,) = [o for o in candidates if o.colour == match[1]]
        else:
            target = extreme(candidates, match[1])
        assert object_ids(later[0]) == {target.id}
        return 'which'
    if text.startswith(('and the', 'what about the', 'also the')):
        objects = matching(scene, text[text.index('the ') + 4 :])
        if later:
            assert [{o.id for o in visible(objects)}] == [object_ids(later[0])]
        else:
            assert not objects
        return 'and'
    return None


def test_follow_up_refers_to_the_turn_before():
    count = dict.fromkeys(('it', 'other', 'no other', 'which', 'and'), 0)
    for scene, seed in itertools.product(SCENES, range(60)):
        sampler = PhraseSampler(np.random.default_rng(seed))
        form = check_follow_up(scene, dialogue.dialogue(sampler, scene, 2))
        if form is not None:
            count[form] += 1
    assert min(count.values()) > 20


def test_text_answers_are_true():
    count = dict.fromkeys(('list', 'count', 'colour', 'presence'), 0)
    for scene, query in sampled(text_queries.question):
        text, answer = normalized(query.turns[0].query), query.turns[0].answer_raw
        categories = {o.category for o in scene.visible}
        if answer.startswith('I see the'):
            names = re.findall(r'the ([a-z ]+?)(?=,| and the|\.)', answer)
            assert sorted(names) == sorted(categories)
            count['list'] += 1
        elif match := re.match(r'There (?:is|are) (\w+) ([a-z ]+) here\.', answer):
            category = next(c for c in NAMES if match[2] in (c, plural(c)))
            number = answer_text.COUNT_WORDS.index(match[1])
            assert sum(o.category == category for o in scene.objects) == number
            count['count' if 'many' in text or 'count' in text else 'presence'] += 1
        elif match := re.match(r'The ([a-z ]+) is (\w+)\.', answer):
            (target,) = visible(matching(scene, match[1]))
            assert target.colour == match[2]
            count['colour'] += 1
        elif answer == 'Yes.':
            assert text.split(' a ')[-1] in categories
            count['presence'] += 1
    assert min(count.values()) > 30
