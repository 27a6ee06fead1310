# SPDX-License-Identifier: Apache-2.0
"""A judge reads requests anew: from the words and the table alone, with rules of its own.

The grammar draws the truth first and then the words; the judge goes the other way, with a
brute-force reading of what the words mean, and must come to the same things.
"""

import itertools
import math
import re

import numpy as np
import pytest

from lisa_ros.tabletop import answer_text, queries, query_sampling, templates
from lisa_ros.tabletop.objects import ALSO, COLOURS, OBJECT_CATEGORIES, OBJECTS, SIZES
from lisa_ros.tabletop.rendering import PART_FLAG
from lisa_ros.tabletop.scene_graph import VISIBLE, SceneGraph, SceneObject
from lisa_ros.tabletop.templates import PhraseSampler

MEASURES = {
    'tall': lambda o: o.height, 'low': lambda o: -o.height, 'big': lambda o: o.longest,
    'small': lambda o: -o.longest, 'near': lambda o: -o.away, 'far': lambda o: o.away,
    'leftmost': lambda o: -o.right, 'rightmost': lambda o: o.right,
}  # fmt: skip
WORDS = {
    'tallest': 'tall', 'taller': 'tall', 'lowest': 'low', 'lower': 'low', 'biggest': 'big',
    'bigger': 'big', 'smallest': 'small', 'smaller': 'small', 'nearest': 'near', 'nearer': 'near',
    'farthest': 'far', 'farther': 'far', 'leftmost': 'leftmost', 'rightmost': 'rightmost',
}  # fmt: skip
PLACE = 'left of|right of|behind|in front of|next to'
SORTS = ('drink', 'food', 'toy', 'dish')
NAMES = sorted(OBJECT_CATEGORIES, key=len, reverse=True)


def a_table(seed):
    """Some things at random places, a few of them hidden."""
    rng = np.random.default_rng(seed)
    there, looks = [], set()
    things = [t for t in OBJECTS.values() if not t.held_out]
    favourite = things[rng.integers(len(things))]
    for number in range(1, 4 + int(rng.integers(6))):
        thing = favourite if rng.random() < 0.35 else things[rng.integers(len(things))]
        colour = str(rng.choice(thing.colours)) if thing.colours else None
        size = str(rng.choice(thing.sizes)) if thing.sizes else None
        look = thing.kind, colour, size
        if look in looks or (not thing.colours and any(k == thing.kind for k, *_ in looks)):
            continue
        looks.add(look)
        area = (
            int(rng.integers(5, VISIBLE)) if rng.random() < 0.1 else int(rng.integers(150, 4000))
        )
        part = area // 8 if thing.handle or any(p.name for p in thing.parts) else 0
        right, away = rng.uniform(-0.3, 0.3), rng.uniform(0.5, 1.1)
        height, longest = rng.uniform(0.02, 0.3), rng.uniform(0.05, 0.3)
        there.append(
            SceneObject(
                number,
                thing.kind,
                thing.name,
                colour,
                size,
                area,
                part,
                right,
                away,
                height,
                longest,
                *rng.uniform(0, 1, 2),
            )
        )
    return SceneGraph(tuple(there))


TABLES = [a_table(seed) for seed in range(150)]


def asked(ask, *how, tables=TABLES):
    """(table, request) for each that comes of some tries."""
    for number, table in enumerate(tables):
        for exam in (False, True):
            for seed in range(6):
                voice = PhraseSampler(np.random.default_rng((number, seed)), exam=exam)
                try:
                    request = ask(voice, table, *how)
                except templates.NoHeldOutTemplate:
                    continue
                if request is not None:
                    yield table, request


# ---- the judge


def plain(text):
    """Words in small letters, without marks and phrases of politeness."""
    text = re.sub(r'[?.,!]', '', text.lower())
    for phrase in (
        'please output segmentation mask', 'in this image', 'please', 'and say why', 'say why',
        'and why',
    ):  # fmt: skip
        text = text.replace(phrase, '')
    return ' '.join(text.split())


def named(table, words):
    """The things, seen or not, that a name such as "small red mug" may mean."""
    words = words.strip()
    kind = next(k for k in NAMES if words == k or words.endswith(f' {k}'))
    looks = words.removesuffix(kind).split()
    assert set(looks) <= {*COLOURS, *SIZES}, words
    return [o for o in table.there if o.kind == kind and set(looks) <= {o.colour, o.size}]


def seen(things):
    return [o for o in things if o.area >= VISIBLE]


def group(table, noun):
    """What "thing", "mug" or "drink" may mean."""
    if noun == 'thing':
        return list(table.there)
    if noun in SORTS:
        return [o for o in table.there if OBJECT_CATEGORIES[o.kind].sort == noun]
    return named(table, noun)


def beside(table, noun, place, anchor):
    """The one thing of a group that stands in a place of the anchor, nearest first."""
    others = [o for o in table.there if o.id != anchor.id]

    def offset(o):
        right, away = o.right - anchor.right, o.away - anchor.away
        return {
            'left of': (-right, away), 'right of': (right, away), 'behind': (away, right),
            'in front of': (-away, right), 'next to': (math.inf, 0),
        }[place]  # fmt: skip

    inside = [o for o in others if offset(o)[0] > abs(offset(o)[1])]
    if noun not in ('thing', *SORTS):
        (one,) = [o for o in inside if o in group(table, noun)]
        return one
    return min(inside, key=lambda o: math.hypot(o.right - anchor.right, o.away - anchor.away))


def first(things, word):
    """The thing that comes first, clearly."""
    measure = MEASURES[WORDS[word]]
    one, other = sorted(things, key=measure, reverse=True)[:2]
    assert measure(one) - measure(other) >= 0.02
    return one


def targets(request, which=-1):
    return {i % PART_FLAG for i in request.targets[which]}


def said_right(table, request, one):
    """The answer names the one thing, so that nobody can take it for another; it measures well."""
    answer = request.turns[-1].answer_raw
    (name,) = re.findall(r'It is the ([a-z ]+), \[SEG\]', answer)
    assert [o.id for o in seen(named(table, name))] == [one.id]
    steps = answer[: answer.rindex('It is the')]
    assert steps
    sizes = re.findall(r'[Tt]he ([a-z ]+?) (\d+) cm', steps)
    for name, number in sizes:
        (thing,) = seen(named(table, name))
        measures = 100 * thing.height, 100 * thing.longest
        assert any(abs(int(number) - max(m, 2)) <= 1 for m in measures)
    places = re.findall(r'[Tt]he ([a-z ]+?) (\d+) (\d+)', steps)
    for name, across, down in places:
        first_of = name.split()[0] in WORDS  # "the tallest thing 20 40"
        (thing,) = [one] if first_of else seen(named(table, name))
        assert (int(across), int(down)) == place(thing)
    beside_it = re.findall(rf'(?:{PLACE}) it (\d+) (\d+)', steps)
    for across, down in beside_it:
        assert (int(across), int(down)) == place(one)
    assert sizes or places


def place(one):
    """Where an answer says that a thing shows: even hundredths, rounded down."""
    return tuple(min(98, math.floor(50 * share) * 2) for share in (one.across, one.down))


# ---- sorts


@pytest.mark.parametrize('present', [True, False])
def test_a_name_means_all_that_may_be_called_so(present):
    count = 0
    for ask in (queries.explicit, queries._looks):
        for table, request in asked(ask, present):
            query = plain(request.turns[0].query)
            (name,) = [
                m
                for k in NAMES
                if (m := re.search(rf'the ((?:small |big )?(?:\w+ )?{k})$', query))
            ][:1]
            words = name[1]
            while words.split()[0] not in {*COLOURS, *SIZES} | {
                w for k in OBJECT_CATEGORIES for w in k.split()
            }:
                words = words.split(' ', 1)[1]
            things = named(table, words)
            if present:
                assert targets(request) == {o.id for o in seen(things)} != set()
            else:
                assert not things
                assert request.turns[0].answer_raw == f'There is no {words} here.'
            count += 1
    assert count > 300


def test_places_and_comparisons_mean_one_thing_and_name_it():
    count = dict.fromkeys(('place', 'most', 'pair'), 0)
    for table, request in asked(queries.relations, True):
        query = plain(request.turns[0].query)
        if found := re.search(rf'the ([a-z ]+?) ({PLACE}) the ([a-z ]+)$', query):
            noun = found[1].split(' the ')[-1]
            (anchor,) = seen(named(table, found[3]))
            one, sort = beside(table, noun, found[2], anchor), 'place'
        elif found := re.search(r'the (\w+) one of the ([a-z ]+) and the ([a-z ]+)$', query):
            pair = [thing for name in found.groups()[1:] for thing in seen(named(table, name))]
            assert len(pair) == 2
            one, sort = first(pair, found[1]), 'pair'
        else:
            found = re.search(r'the (\w+) ([a-z ]+)$', query[query.rindex('the ') :])
            one, sort = first(group(table, found[2]), found[1]), 'most'
        assert targets(request) == {one.id}
        said_right(table, request, one)
        count[sort] += 1
    assert min(count.values()) > 100


def test_nothing_is_where_nothing_is_said_to_be():
    count = 0
    for table, request in asked(queries.relations, False):
        query, answer = plain(request.turns[0].query), request.turns[0].answer_raw
        found = re.search(rf'the thing ({PLACE}) the ([a-z ]+)$', query)
        if answer.startswith('There is no '):
            assert not named(table, found[2])
        else:
            (anchor,) = seen(named(table, found[2]))
            assert answer == f'There is nothing {found[1]} the {found[2]}.'
            with pytest.raises(ValueError, match=r'empty'):
                beside(table, 'thing', found[1], anchor)
        assert not request.targets
        count += 1
    assert count > 200


@pytest.mark.parametrize('sort', ['use', 'knowledge'])
def test_a_need_means_the_kind_that_meets_it_and_no_other_is_there_that_would(sort):
    kind_of = {plain(need): kind for kind in OBJECT_CATEGORIES.values() for need in kind.needs}
    count = 0
    for present, ask in itertools.product((True, False), (queries._need,)):
        for table, request in asked(ask, present, sort):
            query = plain(request.turns[0].query)
            need = max((n for n in kind_of if n in query), key=len)
            kind = kind_of[need]
            others = {k for n, also in ALSO.items() if plain(n) == need for k in also}
            assert not any(o.kind in others for o in table.objects)
            if present:
                assert targets(request) == {
                    o.id for o in seen(table.objects) if o.kind == kind.name
                }
                assert request.turns[0].answer_raw == f'The {kind.name} {kind.does}, [SEG].'
            else:
                assert all(o.kind != kind.name for o in table.objects)
                assert not request.targets
                said = f'The {kind.name} {kind.does}, but there is no {kind.name} here.'
                assert request.turns[0].answer_raw == said
            count += 1
    assert count > 200


def test_two_steps_lead_to_one_thing():
    kind_of = {plain(need): kind for kind in OBJECT_CATEGORIES.values() for need in kind.needs}
    count = dict.fromkeys(('does', 'need', 'sort', 'look'), 0)
    for table, request in asked(queries.two_step):
        query = plain(request.turns[0].query)
        needs = [n for n in kind_of if n in query]
        if found := re.search(rf'the (\w+) ({PLACE}) the thing that ([a-z ]+)$', query):
            (kind,) = [k.name for k in OBJECT_CATEGORIES.values() if k.does == found[3]]
            (anchor,) = seen(named(table, kind))
            one, sort = beside(table, found[1], found[2], anchor), 'does'
            if found[1] in SORTS:
                assert OBJECT_CATEGORIES[one.kind].sort == found[1]
            said_right(table, request, one)
        elif needs and (found := re.search(PLACE, query)):
            kind = kind_of[max(needs, key=len)].name
            (anchor,) = seen(named(table, kind))
            one, sort = beside(table, 'thing', found[0], anchor), 'need'
            said_right(table, request, one)
        elif found := re.search(r'the (\w+) (drink|food|toy|dish)$', query):
            one, sort = first(group(table, found[2]), found[1]), 'sort'
            said_right(table, request, one)
        else:
            colour = next(c for c in COLOURS if c in query)
            need = max((n for n in kind_of if n in query.replace(f' {colour}', '')), key=len)
            things = [o for o in seen(named(table, kind_of[need].name)) if o.colour == colour]
            assert targets(request) == {o.id for o in things}
            count['look'] += 1
            continue
        assert targets(request) == {one.id}
        count[sort] += 1
    assert min(count.values()) > 25


def test_several_names_are_answered_in_their_order_and_what_is_missing_is_said():
    count = 0
    for table, request in asked(queries.several):
        query, (turn,) = plain(request.turns[0].query), request.turns
        names = re.findall(r'the ((?:(?!the )[a-z ])+?)(?= and the |  the | the |$)', query)
        if turn.answer_raw == 'Sure, [SEG].' and len(names) == 1:
            kind = next(k for k in NAMES if answer_text._plural(k) in query)
            assert targets(request) == {o.id for o in seen(named(table, kind))}
            count += 1
            continue
        told = []
        for name in names:
            things = named(table, name)
            if things:
                (one,) = seen(things)
                told.append({one.id})
            else:
                assert f'There is no {name} here.' in turn.answer_raw
        assert [targets(request, i) for i in range(len(request.targets))] == told
        count += 1
    assert count > 200


def test_dialogues_lean_on_what_was_shown_last():
    count = dict.fromkeys(('it', 'other', 'no other', 'which', 'and'), 0)
    for table in TABLES:
        for seed in range(60):
            talk = query_sampling.dialogue(PhraseSampler(np.random.default_rng(seed)), table, 2)
            before, turn = talk.turns
            query = plain(turn.query)
            earlier, later = talk.targets[: talk.first], talk.targets[talk.first :]
            shown = {i % PART_FLAG for ids in earlier for i in ids}
            names = re.findall(r'The ([a-z ]+) is ', before.answer_raw)  # or told the colour of
            about = shown or {o.id for n in names for o in seen(named(table, n))}
            if re.search(r'\bit\b', query) and (found := re.search(PLACE, query)):
                if any(
                    plain(n) in query for kind in OBJECT_CATEGORIES.values() for n in kind.needs
                ):
                    continue  # "find something to ... and show me what is left of it"
                (anchor,) = [o for o in table.objects if o.id in about]
                one = beside(table, 'thing', found[0], anchor)
                assert {i % PART_FLAG for i in later[0]} == {one.id}
                count['it'] += 1
            elif query.endswith('the other one'):
                (one,) = [o for o in table.objects if o.id in about]
                rest = [o for o in table.objects if o.kind == one.kind and o.id != one.id]
                if later:
                    seen_well = [o for o in rest if o.area >= VISIBLE]
                    assert [{o.id} for o in seen_well] == [{i % PART_FLAG for i in later[0]}]
                    count['other'] += 1
                else:
                    assert not rest
                    assert turn.answer_raw == f'There is no other {one.kind} here.'
                    count['no other'] += 1
            elif found := re.search(r'the (\w+) one$', query):
                alike = [o for o in table.objects if o.id in shown]
                if found[1] in COLOURS:
                    (one,) = [o for o in alike if o.colour == found[1]]
                else:
                    one = first(alike, found[1])
                assert {i % PART_FLAG for i in later[0]} == {one.id}
                count['which'] += 1
            elif query.startswith(('and the', 'what about the', 'also the')):
                things = named(table, query[query.index('the ') + 4 :])
                if later:
                    assert [{o.id for o in seen(things)}] == [{i % PART_FLAG for i in later[0]}]
                else:
                    assert not things
                count['and'] += 1
    assert min(count.values()) > 20


def test_words_about_the_table_are_true():
    count = dict.fromkeys(('list', 'many', 'colour', 'there'), 0)
    for table, request in asked(queries.question):
        query, answer = plain(request.turns[0].query), request.turns[0].answer_raw
        kinds = {o.kind for o in table.visible}
        if answer.startswith('I see the'):
            told = re.findall(r'the ([a-z ]+?)(?=,| and the|\.)', answer)
            assert sorted(told) == sorted(kinds)
            count['list'] += 1
        elif found := re.match(r'There (?:is|are) (\w+) ([a-z ]+) here\.', answer):
            kind = next(k for k in NAMES if found[2] in (k, answer_text._plural(k)))
            number = answer_text._NUMBERS.index(found[1])
            assert sum(o.kind == kind for o in table.objects) == number
            count['many' if 'many' in query or 'count' in query else 'there'] += 1
        elif found := re.match(r'The ([a-z ]+) is (\w+)\.', answer):
            (one,) = seen(named(table, found[1]))
            assert one.colour == found[2]
            count['colour'] += 1
        elif answer == 'Yes.':
            assert query.split(' a ')[-1] in kinds
            count['there'] += 1
    assert min(count.values()) > 30
