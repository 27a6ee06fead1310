# SPDX-License-Identifier: Apache-2.0
"""Random queries about a scene, with their answers."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable

import numpy as np

from lisa_ros.results import Turn
from lisa_ros.tabletop.answer_text import _at, _from, _it_is
from lisa_ros.tabletop.objects import COLOURS, OBJECT_CATEGORIES
from lisa_ros.tabletop.queries import (
    IMPLICIT,
    TabletopQuery,
    _found,
    _need,
    _none,
    _place,
    _somewhere,
    attributes,
    explicit,
    general_knowledge,
    knowledge,
    part,
    question,
    relations,
    several,
    two_step,
    use,
)
from lisa_ros.tabletop.scene_graph import (
    COMPARATIVES,
    VISIBLE,
    SceneGraph,
    SceneObject,
    nearest_in_relation,
    superlative,
)
from lisa_ros.tabletop.templates import (
    AROUND,
    COLOUR_OF,
    MORE,
    THE_ONE,
    THE_OTHER,
    WHAT_FOR,
    NoHeldOutTemplate,
    PhraseSampler,
)


def dialogue(voice: PhraseSampler, table: SceneGraph, turns: int) -> TabletopQuery:
    """Return a talk of so many turns, each leaning on what was said, or not.

    People do not say when they start anew, so a later turn is often a request that could stand
    alone.
    """
    talk = sample_single_turn(voice, table)
    for _ in range(turns - 1):
        then = _lean(voice, table, talk) if voice.chance(0.75) else None
        then = then or sample_single_turn(voice, table)
        talk = TabletopQuery(
            'dialogue',
            talk.turns + then.turns,
            talk.targets + then.targets,
            talk.sized + then.sized,
            talk.listed
            + tuple(dataclasses.replace(x, turn=x.turn + len(talk.turns)) for x in then.listed),
            about=then.about,
            expected_phrases=then.expected_phrases,
            first=len(talk.targets),
        )
    return talk


def _lean(voice: PhraseSampler, table: SceneGraph, talk: TabletopQuery) -> TabletopQuery | None:
    """Return a turn that means something only after the talk so far; None if none came to mind."""
    last = talk.turns[-1]
    asks: list[Callable[[], TabletopQuery | None]] = []
    if '[SEG]' in last.answer_raw:  # after "what colour is ...?" it would ask for a colour
        asks.append(lambda: _and(voice, table))
    if talk.about:
        it = talk.about[0]
        alike = table.of_category(it.kind)
        if len({o.kind for o in talk.about}) == 1 and 'use' not in voice.without:
            asks.append(lambda: _for(voice, talk.about))
        if len(talk.about) == 1:
            asks += [lambda: _beside_it(voice, table, it)] * 2
            others = [o for o in alike if o.id != it.id]
            compared = ' one of ' in last.query  # then the other one is the one it lost to
            named = it.kind in last.query or it.kind in last.answer_raw
            if len(others) == 1 and named and not compared:
                asks += [
                    lambda: _show(voice, table, voice.fill_template(THE_OTHER), 'other', others[0])
                ] * 4
            if _alone(table, it, last) and not voice.exam:  # exams are as they were drawn
                gone = f'There is no other {it.kind} here.'
                often = voice.chance(0.4) if '[SEG]' in last.answer_raw else 3
                asks += [lambda: _none('dialogue', voice.fill_template(THE_OTHER), gone)] * often
            if it.colour and not last.answer_raw.endswith(f'{it.colour}.'):
                asks.append(lambda: _coloured(voice, it))
        elif len(talk.about) == len(alike) > 1:
            asks += [lambda: _which(voice, table, alike)] * 5
    ask = voice.choice(asks)
    return ask and ask()


def _alone(table: SceneGraph, it: SceneObject, last: Turn) -> bool:
    """Return whether a thing that was just called by its kind is the only one of it."""
    told = last.query if '[SEG]' in last.answer_raw else last.query + last.answer_raw
    named = it.kind in told and f' of the {it.kind}' not in told and ' one of ' not in told
    return named and sum(o.kind == it.kind for o in table.objects) == 1


def _coloured(voice: PhraseSampler, it: SceneObject) -> TabletopQuery:
    """Say "what colour is it?"."""
    turn = Turn(voice.fill_template(COLOUR_OF, 'it'), f'It is {it.colour}.')
    return TabletopQuery('dialogue', (turn,), (), about=(it,))


def _and(voice: PhraseSampler, table: SceneGraph) -> TabletopQuery | None:
    """Say "and the bowl?"."""
    if voice.chance(0.4):
        kind = voice.choice([k for k in OBJECT_CATEGORIES if not table.contains(k)])
        query = voice.fill_template(MORE, f'the {kind}')
        return _none('dialogue', query, f'There is no {kind} here.')
    one = voice.choice(table.visible)
    return one and _found(
        'dialogue', voice.fill_template(MORE, f'the {table.name(one)}'), [one], 'Sure, [SEG].'
    )


def _for(voice: PhraseSampler, about: tuple[SceneObject, ...]) -> TabletopQuery:
    """Say "what is it for?"."""
    reason = f'The {about[0].kind} {OBJECT_CATEGORIES[about[0].kind].does}'
    turn = Turn(voice.fill_template(WHAT_FOR), f'{reason}.')
    return TabletopQuery('dialogue', (turn,), (), about=about, expected_phrases=((reason,),))


def _beside_it(voice: PhraseSampler, table: SceneGraph, it: SceneObject) -> TabletopQuery | None:
    """Say "what is left of it?"."""
    place = _somewhere(voice)
    one = nearest_in_relation(table.objects, place, it)
    if one is None or one.area < VISIBLE:
        return None
    steps = f'{_from(table.name(it), it, place, one)} {_it_is(table, [one])}'
    return _found('dialogue', voice.fill_template(AROUND[place], 'it'), [one], f'{steps}, [SEG].')


def _which(
    voice: PhraseSampler, table: SceneGraph, alike: tuple[SceneObject, ...]
) -> TabletopQuery | None:
    """Say "the red one", "the smaller one" of those that were shown."""
    word = voice.choice((*COMPARATIVES, *COLOURS, *COLOURS))
    if word in COLOURS:
        fitting = [o for o in alike if o.colour == word]
        one = fitting[0] if len(fitting) == 1 else None
    else:
        one = superlative(alike, COMPARATIVES[word])
    return one and _show(voice, table, voice.fill_template(THE_ONE, word), word, one)


def _show(
    voice: PhraseSampler, table: SceneGraph, query: str, word: str, one: SceneObject
) -> TabletopQuery:
    steps = f'The {word} one {_at(one)}. {_it_is(table, [one])}'
    return _found('dialogue', query, [one], f'{steps}, [SEG].')


_ASKED = {
    'explicit': (explicit, 0.17, 0.45),  # how it is asked, how often, how often it is not there
    'attributes': (attributes, 0.15, 0.40),
    'relations': (relations, 0.26, 0.12),
    'use': (use, 0.11, 0.42),
    'knowledge': (knowledge, 0.10, 0.42),
    'two_step': (two_step, 0.15, 0.0),
    'part': (part, 0.05, 0.25),
    'several': (several, 0.08, None),
    'question': (question, 0.07, None),
    'lore': (general_knowledge, 0.02, None),
}


def sample_single_turn(voice: PhraseSampler, table: SceneGraph) -> TabletopQuery:
    """Return one request of any sort but a dialogue."""
    share = np.array([p * (sort not in voice.without) for sort, (_, p, _) in _ASKED.items()])
    for _ in range(30):
        ask, _, gone = list(_ASKED.values())[voice.rng.choice(len(share), p=share / share.sum())]
        request = ask(voice, table) if gone is None else ask(voice, table, not voice.chance(gone))
        if request is not None:
            return request
    return question(voice, table)


def sample_query(
    rng: np.random.Generator, table: SceneGraph, without: tuple[str, ...] = ()
) -> TabletopQuery:
    """Return something to learn from: one request, or a dialogue of up to four turns.

    Args:
        rng: what to draw from.
        table: what the picture shows.
        without: sorts that are not to be learnt.
    """
    voice = PhraseSampler(rng, without=without)
    if 'dialogue' not in without and voice.chance(0.3):
        return dialogue(voice, table, 2 + int(voice.rng.choice(3, p=(0.6, 0.25, 0.15))))
    request = sample_single_turn(voice, table)
    return force_mask_on_absent(request) if voice.chance(0.3) else request


def force_mask_on_absent(request: TabletopQuery) -> TabletopQuery:
    """Return a request for what is not there as if the answer had been "Sure, [SEG]."

    A model that says so by mistake shall at least show nothing: the truth of that mask is empty.
    Other requests come back as they are.
    """
    if request.present or request.category not in ('explicit', 'attributes'):
        return request
    turn = Turn(request.turns[0].query, 'Sure, [SEG].')
    return TabletopQuery(request.category, (turn,), ((),), insisted=True)


def sample_reasoning_present(rng: np.random.Generator, table: SceneGraph) -> TabletopQuery | None:
    """Return a request of one of the sorts that take reasoning, in a wording of lessons."""
    voice = PhraseSampler(rng)
    return _try(voice.choice((use, knowledge, two_step)), voice, table, True)


def sample_reasoning(rng: np.random.Generator, table: SceneGraph) -> TabletopQuery:
    """Return a request that takes reasoning, where one can be made, for what is there or not."""
    voice = PhraseSampler(rng)
    ask, _, gone = _ASKED[voice.choice(IMPLICIT)]
    return _try(ask, voice, table, not voice.chance(gone)) or sample_single_turn(voice, table)


def sample_measured(rng: np.random.Generator, table: SceneGraph) -> TabletopQuery:
    """Return a request whose answer measures something, where one can be made."""
    voice = PhraseSampler(rng)
    asks = (relations, relations, two_step, lambda voice, table, _: _place(voice, table))
    for _ in range(30):
        request = voice.choice(asks)(voice, table, True)
        if request is not None and any(c.isdigit() for c in request.turns[0].answer_raw):
            return request
    return sample_single_turn(voice, table)


def make_test_queries(rng: np.random.Generator, table: SceneGraph) -> list[TabletopQuery]:
    """Return the requests a table is tested with, in wordings that no lesson had."""
    voice = PhraseSampler(rng, exam=True)
    asked: list[TabletopQuery | None] = []
    for ask in (explicit, attributes, use, knowledge):
        asked += [_try(ask, voice, table, present) for present in (True, False)]
    asked += [_try(ask, voice, table, True) for ask in (relations, relations, part)]
    asked += [_try(two_step, voice, table), _try(several, voice, table)]
    for _ in range(4):
        talk = _try(dialogue, voice, table, 2 + int(voice.rng.integers(3)))
        if talk is not None and talk.present:
            asked.append(talk)
            break
    return [request for request in asked if request is not None]


def _try(ask: Callable[..., TabletopQuery | None], *how) -> TabletopQuery | None:
    """Return the first request that comes of some tries."""
    for _ in range(24):
        with contextlib.suppress(NoHeldOutTemplate):
            request = ask(*how)
            if request is not None:
                return request
    return None


def make_object_test_queries(
    rng: np.random.Generator, table: SceneGraph, thing: str
) -> list[TabletopQuery]:
    """Return an explicit and a use request whose target is the one thing named."""
    voice = PhraseSampler(rng, exam=True)
    target = [o for o in table.visible if o.thing == thing]
    if not target or len([o for o in table.objects if o.kind == target[0].kind]) > 1:
        return []  # hidden, or another thing of its kind is there, too
    alone = SceneGraph(tuple(target))
    asked = [_try(explicit, voice, alone, True), _try(_need, voice, alone, True, 'use')]
    return [request for request in asked if request is not None]
