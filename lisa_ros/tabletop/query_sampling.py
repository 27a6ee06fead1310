# SPDX-License-Identifier: Apache-2.0
"""Random queries about a scene, with their answers."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable

import numpy as np

from lisa_ros.results import Turn
from lisa_ros.tabletop.answer_text import _at, _from, _it_is
from lisa_ros.tabletop.objects import COLOURS, KINDS
from lisa_ros.tabletop.queries import (
    IMPLICIT,
    Request,
    _found,
    _need,
    _none,
    _place,
    _somewhere,
    attributes,
    explicit,
    knowledge,
    lore,
    part,
    question,
    relations,
    several,
    two_step,
    use,
)
from lisa_ros.tabletop.scene_graph import COMPARATIVES, VISIBLE, Seen, Table, most, nearest_in
from lisa_ros.tabletop.templates import (
    AROUND,
    COLOUR_OF,
    MORE,
    THE_ONE,
    THE_OTHER,
    WHAT_FOR,
    Unsaid,
    Voice,
)


def dialogue(voice: Voice, table: Table, turns: int) -> Request:
    """Return a talk of so many turns, each leaning on what was said, or not.

    People do not say when they start anew, so a later turn is often a request that could stand
    alone.
    """
    talk = single(voice, table)
    for _ in range(turns - 1):
        then = _lean(voice, table, talk) if voice.chance(0.75) else None
        then = then or single(voice, table)
        talk = Request(
            'dialogue',
            talk.turns + then.turns,
            talk.targets + then.targets,
            talk.sized + then.sized,
            talk.listed
            + tuple(dataclasses.replace(x, turn=x.turn + len(talk.turns)) for x in then.listed),
            about=then.about,
            expects=then.expects,
            first=len(talk.targets),
        )
    return talk


def _lean(voice: Voice, table: Table, talk: Request) -> Request | None:
    """Return a turn that means something only after the talk so far; None if none came to mind."""
    last = talk.turns[-1]
    asks: list[Callable[[], Request | None]] = []
    if '[SEG]' in last.answer_raw:  # after "what colour is ...?" it would ask for a colour
        asks.append(lambda: _and(voice, table))
    if talk.about:
        it = talk.about[0]
        alike = table.of(it.kind)
        if len({o.kind for o in talk.about}) == 1 and 'use' not in voice.without:
            asks.append(lambda: _for(voice, talk.about))
        if len(talk.about) == 1:
            asks += [lambda: _beside_it(voice, table, it)] * 2
            others = [o for o in alike if o.id != it.id]
            compared = ' one of ' in last.query  # then the other one is the one it lost to
            named = it.kind in last.query or it.kind in last.answer_raw
            if len(others) == 1 and named and not compared:
                asks += [lambda: _show(voice, table, voice.say(THE_OTHER), 'other', others[0])] * 4
            if _alone(table, it, last) and not voice.exam:  # exams are as they were drawn
                gone = f'There is no other {it.kind} here.'
                often = voice.chance(0.4) if '[SEG]' in last.answer_raw else 3
                asks += [lambda: _none('dialogue', voice.say(THE_OTHER), gone)] * often
            if it.colour and not last.answer_raw.endswith(f'{it.colour}.'):
                asks.append(lambda: _coloured(voice, it))
        elif len(talk.about) == len(alike) > 1:
            asks += [lambda: _which(voice, table, alike)] * 5
    ask = voice.one(asks)
    return ask and ask()


def _alone(table: Table, it: Seen, last: Turn) -> bool:
    """Return whether a thing that was just called by its kind is the only one of it."""
    told = last.query if '[SEG]' in last.answer_raw else last.query + last.answer_raw
    named = it.kind in told and f' of the {it.kind}' not in told and ' one of ' not in told
    return named and sum(o.kind == it.kind for o in table.there) == 1


def _coloured(voice: Voice, it: Seen) -> Request:
    """Say "what colour is it?"."""
    turn = Turn(voice.say(COLOUR_OF, 'it'), f'It is {it.colour}.')
    return Request('dialogue', (turn,), (), about=(it,))


def _and(voice: Voice, table: Table) -> Request | None:
    """Say "and the bowl?"."""
    if voice.chance(0.4):
        kind = voice.one([k for k in KINDS if not table.has(k)])
        query = voice.say(MORE, f'the {kind}')
        return _none('dialogue', query, f'There is no {kind} here.')
    one = voice.one(table.seen)
    return one and _found(
        'dialogue', voice.say(MORE, f'the {table.name(one)}'), [one], 'Sure, [SEG].'
    )


def _for(voice: Voice, about: tuple[Seen, ...]) -> Request:
    """Say "what is it for?"."""
    reason = f'The {about[0].kind} {KINDS[about[0].kind].does}'
    turn = Turn(voice.say(WHAT_FOR), f'{reason}.')
    return Request('dialogue', (turn,), (), about=about, expects=((reason,),))


def _beside_it(voice: Voice, table: Table, it: Seen) -> Request | None:
    """Say "what is left of it?"."""
    place = _somewhere(voice)
    one = nearest_in(table.there, place, it)
    if one is None or one.area < VISIBLE:
        return None
    steps = f'{_from(table.name(it), it, place, one)} {_it_is(table, [one])}'
    return _found('dialogue', voice.say(AROUND[place], 'it'), [one], f'{steps}, [SEG].')


def _which(voice: Voice, table: Table, alike: tuple[Seen, ...]) -> Request | None:
    """Say "the red one", "the smaller one" of those that were shown."""
    word = voice.one((*COMPARATIVES, *COLOURS, *COLOURS))
    if word in COLOURS:
        fitting = [o for o in alike if o.colour == word]
        one = fitting[0] if len(fitting) == 1 else None
    else:
        one = most(alike, COMPARATIVES[word])
    return one and _show(voice, table, voice.say(THE_ONE, word), word, one)


def _show(voice: Voice, table: Table, query: str, word: str, one: Seen) -> Request:
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
    'lore': (lore, 0.02, None),
}


def single(voice: Voice, table: Table) -> Request:
    """Return one request of any sort but a dialogue."""
    share = np.array([p * (sort not in voice.without) for sort, (_, p, _) in _ASKED.items()])
    for _ in range(30):
        ask, _, gone = list(_ASKED.values())[voice.rng.choice(len(share), p=share / share.sum())]
        request = ask(voice, table) if gone is None else ask(voice, table, not voice.chance(gone))
        if request is not None:
            return request
    return question(voice, table)


def draw_request(rng: np.random.Generator, table: Table, without: tuple[str, ...] = ()) -> Request:
    """Return something to learn from: one request, or a dialogue of up to four turns.

    Args:
        rng: what to draw from.
        table: what the picture shows.
        without: sorts that are not to be learnt.
    """
    voice = Voice(rng, without=without)
    if 'dialogue' not in without and voice.chance(0.3):
        return dialogue(voice, table, 2 + int(voice.rng.choice(3, p=(0.6, 0.25, 0.15))))
    request = single(voice, table)
    return insist(request) if voice.chance(0.3) else request


def insist(request: Request) -> Request:
    """Return a request for what is not there as if the answer had been "Sure, [SEG]."

    A model that says so by mistake shall at least show nothing: the truth of that mask is empty.
    Other requests come back as they are.
    """
    if request.present or request.sort not in ('explicit', 'attributes'):
        return request
    turn = Turn(request.turns[0].query, 'Sure, [SEG].')
    return Request(request.sort, (turn,), ((),), insisted=True)


def reasoning(rng: np.random.Generator, table: Table) -> Request | None:
    """Return a request of one of the sorts that take reasoning, in a wording of lessons."""
    voice = Voice(rng)
    return _try(voice.one((use, knowledge, two_step)), voice, table, True)


def thinking(rng: np.random.Generator, table: Table) -> Request:
    """Return a request that takes reasoning, where one can be made, for what is there or not."""
    voice = Voice(rng)
    ask, _, gone = _ASKED[voice.one(IMPLICIT)]
    return _try(ask, voice, table, not voice.chance(gone)) or single(voice, table)


def placing(rng: np.random.Generator, table: Table) -> Request:
    """Return a request whose answer measures something, where one can be made."""
    voice = Voice(rng)
    asks = (relations, relations, two_step, lambda voice, table, _: _place(voice, table))
    for _ in range(30):
        request = voice.one(asks)(voice, table, True)
        if request is not None and any(c.isdigit() for c in request.turns[0].answer_raw):
            return request
    return single(voice, table)


def exam(rng: np.random.Generator, table: Table) -> list[Request]:
    """Return the requests a table is tested with, in wordings that no lesson had."""
    voice = Voice(rng, exam=True)
    asked: list[Request | None] = []
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


def _try(ask: Callable[..., Request | None], *how) -> Request | None:
    """Return the first request that comes of some tries."""
    for _ in range(24):
        with contextlib.suppress(Unsaid):
            request = ask(*how)
            if request is not None:
                return request
    return None


def exam_of(rng: np.random.Generator, table: Table, thing: str) -> list[Request]:
    """Return an explicit and a use request whose target is the one thing named."""
    voice = Voice(rng, exam=True)
    target = [o for o in table.seen if o.thing == thing]
    if not target or len([o for o in table.there if o.kind == target[0].kind]) > 1:
        return []  # hidden, or another thing of its kind is there, too
    alone = Table(tuple(target))
    asked = [_try(explicit, voice, alone, True), _try(_need, voice, alone, True, 'use')]
    return [request for request in asked if request is not None]
