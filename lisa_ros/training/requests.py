# SPDX-License-Identifier: Apache-2.0
"""What people ask about a table, and what a good answer is: requests by grammar, truth by ids.

Sorts of request:

    explicit    a name: "segment the mug"; of two alike the answer shows both and asks back
    attributes  colour, size, material: "the red mug", "the metal thing"
    relations   places and comparisons: "the thing left of the milk", "the taller mug"
    several     "the pan and the bowl", "all the toys"
    part        "the handle of the mug"
    use         a need that one kind meets: "something to fry an egg in"
    knowledge   a need that takes knowing the world: "what comes from a cow"
    two_step    one of these inside another: "the drink next to the thing that can be read"
    question    words and no mask: "what is on the table?", "how many mugs are there?"
    lore        words and no mask, of the world, not the picture: "Tell me what comes from a cow."
    dialogue    up to four turns: "and the bowl?", "the other one", "what is it for?"

Most sorts also ask for what is not there; then the answer says so, without [SEG]. An answer that
takes reasoning names the thing before it points ("The pan fries food, [SEG]."): the reason is in
the words that lead to the mask, not made up after it. So it is where what is needed is missing
("The pan fries food, but there is no pan here."): it is named first, then looked for. Lists go
from left to right. Where things are compared by place or size, the answer first says what it
compares ("The milk 42 56, left of it 22 58. It is the red mug, [SEG]."): places in hundredths of
the picture's width and height, sizes in cm. Each step then leans on the words of the one before,
which a model of few layers cannot do in its head. A number stands right behind the name that it
is of: with "is at" in between it was not learnt in 800 steps.

How people say all this, and what they say in exams alone: `wordings`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from lisa_ros.results import Turn
from lisa_ros.training.referring import (
    COMPARATIVES,
    OF_ONE_KIND,
    PLACES,
    SUPERLATIVES,
    VISIBLE,
    Seen,
    Table,
    empty,
    fits,
    ids,
    leans,
    lies,
    most,
    nearest_in,
)
from lisa_ros.training.scenes import PART
from lisa_ros.training.things import ALSO, COLOURS, KINDS, SIZES, THINGS
from lisa_ros.training.wordings import (
    AROUND,
    COLOUR_OF,
    HOW_MANY,
    IS_THERE,
    LIST,
    MORE,
    NAMED,
    NEED,
    OF_SORTS,
    TELL,
    THE_ONE,
    THE_OTHER,
    WHAT,
    WHAT_FOR,
    Unsaid,
    Voice,
)

SORTS = (
    'explicit', 'attributes', 'relations', 'several', 'part', 'use', 'knowledge', 'two_step',
    'question', 'lore', 'dialogue',
)  # fmt: skip
IMPLICIT = ('use', 'knowledge', 'two_step')  # the sorts that take reasoning

_NUMBERS = ('no', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')


@dataclass(frozen=True)
class Listed:
    """A name in a list that an answer tells."""

    turn: int  # whose answer it is
    name: str  # without "the"
    ids: tuple[int, ...]  # of what it stands for, values of the id image


@dataclass(frozen=True)
class Request:
    """A dialogue of one to four turns about one table, with its truth."""

    sort: str  # one of SORTS
    turns: tuple[Turn, ...]
    # for each [SEG] of all turns, what it covers: values of the id image
    targets: tuple[tuple[int, ...], ...]
    # and for each size that the answers tell in cm, what it is of
    sized: tuple[tuple[int, ...], ...] = ()
    listed: tuple[Listed, ...] = ()  # the names in lists, in the order told
    about: tuple[Seen, ...] = ()  # what the last turn was about: "it"
    # what the last answer must say to name object and reason: wordings of which one is enough
    expects: tuple[tuple[str, ...], ...] = ()
    first: int = 0  # targets before this one belong to earlier turns
    insisted: bool = False  # the words are given, not learnt: what counts is the empty mask
    slip: str = ''  # the last answer as it is read, if it names a wrong thing at the right place

    @property
    def present(self) -> bool:
        """Whether there is something to point at in the last turn."""
        return len(self.targets) > self.first


def _found(sort: str, query: str, things, answer: str, **more) -> Request:
    return Request(sort, (Turn(query, answer),), (ids(things),), about=tuple(things), **more)


def _none(sort: str, query: str, answer: str) -> Request:
    return Request(sort, (Turn(query, answer),), ())


# ---------------------------------------------------------------- names and looks


def explicit(voice: Voice, table: Table, present: bool) -> Request | None:
    """Ask for a thing by the name of its kind."""
    if not present:
        kind = voice.one([k for k in KINDS if not table.has(k)])
        query = voice.say(NAMED, f'the {kind}')
        return _none('explicit', query, f'There is no {kind} here.')
    kind = voice.one(sorted({o.kind for o in table.seen}))
    if kind is None:
        return None
    things = table.of(kind)
    query = voice.say(NAMED, f'the {kind}')
    if len(things) == 1:
        return _found('explicit', query, things, 'Sure, [SEG].')
    many = _NUMBERS[len(things)]
    return _found('explicit', query, things, f'I see {many}, [SEG]. Which one?')


def attributes(voice: Voice, table: Table, present: bool) -> Request | None:
    """Ask for a thing by colour, size or material."""
    if voice.chance(0.6):
        return _looks(voice, table, present)
    if voice.chance(0.5):
        return _material(voice, table, present)
    return _colour(voice, table, present)


def _looks(voice: Voice, table: Table, present: bool) -> Request | None:
    """Ask for "the red mug", "the small mug"."""
    if present:
        one = voice.one([o for o in table.seen if o.colour or o.size])
        if one is None:
            return None
        words = voice.one(
            [
                f'{look} {one.kind}'
                for look in (one.colour, one.size, f'{one.size} {one.colour}')
                if look and 'None' not in look
            ]
        )
        if words.startswith(tuple(SIZES)) and len(table.of(one.kind)) == 1 and voice.chance(0.8):
            return None  # big or small is seldom said of a thing without another beside it
        things = [o for o in table.seen if fits(o, words)]
        return _found('attributes', voice.say(NAMED, f'the {words}'), things, 'Sure, [SEG].')
    # Half of what is not there is there in another colour.
    near = [o.kind for o in table.there if o.colour]
    kind = voice.one(near) if near and voice.chance(0.6) else voice.one(_PAINTED)
    colours = [
        c for c in COLOURS if not any(o.kind == kind and o.colour == c for o in table.there)
    ]
    if not colours:
        return None
    words = f'{voice.one(colours)} {kind}'
    query = voice.say(NAMED, f'the {words}')
    return _none('attributes', query, f'There is no {words} here.')


_PAINTED = sorted({t.kind for t in THINGS.values() if t.colours})


def _colour(voice: Voice, table: Table, present: bool) -> Request | None:
    """Ask for "the red thing", where nothing else shows some red."""
    clear = []
    for colour in COLOURS:
        if any(colour in THINGS[o.thing].tints for o in table.there):
            continue
        things = [o for o in table.there if o.looks_coloured == colour]
        if bool(things) == present and all(o.area >= VISIBLE for o in things):
            clear.append((colour, things))
    if not clear:
        return None
    colour, things = voice.one(clear)
    noun = 'thing' if len(things) < 2 else 'things'
    query = voice.say(NAMED, f'the {colour} {noun}')
    if not things:
        return _none('attributes', query, f'There is nothing {colour} here.')
    return _found('attributes', query, things, f'{_it_is(table, things)}, [SEG].')


def _material(voice: Voice, table: Table, present: bool) -> Request | None:
    """Ask for "the metal thing"."""
    there: dict[str, list[Seen]] = {m: [] for m in _MATERIALS}
    for o in table.there:
        if THINGS[o.thing].material:
            there[THINGS[o.thing].material].append(o)
    clear = [
        (material, things)
        for material, things in there.items()
        if not any(table.has(kind) for kind in _PERHAPS.get(material, ()))
        and bool(things) == present
        and len(things) <= 3
        and all(o.area >= VISIBLE for o in things)
    ]
    if not clear:
        return None
    material, things = voice.one(clear)
    noun = 'thing' if len(things) < 2 else 'things'
    words = voice.one((f'the {material} {noun}', f'the {noun} made of {material}'))
    query = voice.say(NAMED, words)
    if not things:
        return _none('attributes', query, f'There is nothing made of {material} here.')
    return _found('attributes', query, things, f'{_it_is(table, things)}, [SEG].')


# What might be of a material, as far as one can see.
_PERHAPS = {
    'glass': ('ketchup', 'barbecue sauce', 'salad dressing', 'water bottle'),
    'wood': ('toy brick',),
    'cardboard': ('book',),
}
_MATERIALS = sorted({t.material for t in THINGS.values() if t.material})


_BARE = ('bowl', 'plate', 'ramekin', 'book', 'sponge', 'candle')  # nobody sees a handle there


def part(voice: Voice, table: Table, present: bool) -> Request | None:
    """Ask for a handle or a cork."""
    if not present:
        bare = [o for o in table.seen if o.kind in _BARE or o.sort in ('food', 'drink', 'toy')]
        one = voice.one([o for o in bare if not o.part and len(table.of(o.kind)) == 1])
        if one is None:
            return None
        query = voice.say(NAMED, f'the handle of the {one.kind}')
        return _none('part', query, f'The {one.kind} has no handle.')
    one = voice.one([o for o in table.seen if o.part_area >= VISIBLE // 2])
    if one is None:
        return None
    name = table.name(one)
    query = voice.say(NAMED, f'the {one.part} of the {name}')
    turn = Turn(query, 'Sure, [SEG].')
    return Request('part', (turn,), ((one.id + PART,),), about=(one,))


# ---------------------------------------------------------------- places and comparisons


def relations(voice: Voice, table: Table, present: bool) -> Request | None:
    """Ask for a thing by where it is, or by how it compares."""
    if not present:
        return _nowhere(voice, table)
    ask = voice.one((_place, _place, _superlative, _comparative))
    return ask(voice, table)


def _place(voice: Voice, table: Table) -> Request | None:
    """Ask for "the thing left of the milk" or "the mug behind the milk"."""
    anchor = voice.one(table.seen)
    if anchor is None:
        return None
    place = _somewhere(voice)
    one = nearest_in(table.there, place, anchor)
    noun = 'thing'
    kinds = [k for k in {o.kind for o in table.seen if o.id != anchor.id} if len(table.of(k)) > 1]
    if kinds and voice.chance(0.5):
        noun = voice.one(sorted(kinds))
        alike = [o for o in table.there if o.kind == noun and o.id != anchor.id]
        inside = [o for o in alike if place != 'next to' and lies(o, place, anchor)]
        outside = [o for o in alike if not leans(o, place, anchor)]
        if len(inside) != 1 or len(inside) + len(outside) != len(alike):
            return None  # one of them is neither clearly there nor clearly elsewhere
        one = inside[0]
    if one is None or one.area < VISIBLE:
        return None
    name = table.name(anchor)
    query = voice.say(NAMED, f'the {noun} {place} the {name}')
    steps = f'{_from(name, anchor, place, one)} {_it_is(table, [one])}'
    return _found('relations', query, [one], f'{steps}, [SEG].')


def _somewhere(voice: Voice) -> str:
    """Return a place; lessons draw "next to", the hardest, twice as often as any other."""
    return voice.one(PLACES if voice.exam else (*PLACES, 'next to'))


def _superlative(voice: Voice, table: Table) -> Request | None:
    """Ask for "the tallest thing", "the leftmost mug", "the nearest toy"."""
    word = voice.one(tuple(SUPERLATIVES))
    noun, things = voice.one(_groups(table))
    if noun == 'thing' and word in OF_ONE_KIND:
        return None
    one = most(things, word)
    if one is None or one.area < VISIBLE:
        return None
    query = voice.say(NAMED, f'the {word} {noun}')
    steps = f'The {word} {noun} {_at(one)}. {_it_is(table, [one])}'
    return _found('relations', query, [one], f'{steps}, [SEG].')


def _groups(table: Table) -> list[tuple[str, tuple[Seen, ...]]]:
    """Return the words for a few things of this table, with the things."""
    groups = [('thing', table.there)]
    for kind in sorted({o.kind for o in table.there}):
        things = tuple(o for o in table.there if o.kind == kind)
        if len(things) > 1:
            groups += [(kind, things)] * 2
    return groups


def _comparative(voice: Voice, table: Table) -> Request | None:
    """Ask for "the taller one of the milk and the bowl"."""
    if len(table.seen) < 2:
        return None
    i, j = voice.rng.choice(len(table.seen), 2, replace=False)
    pair = [table.seen[i], table.seen[j]]
    word = voice.one(tuple(COMPARATIVES))
    if pair[0].kind != pair[1].kind and COMPARATIVES[word] in OF_ONE_KIND:
        return None
    one = most(pair, COMPARATIVES[word])
    if one is None:
        return None
    a, b = (table.name(o) for o in pair)
    query = voice.say(NAMED, f'the {word} one of the {a} and the {b}')
    says = _MEASURED[word]
    steps = f'The {a} {says(pair[0])}, the {b} {says(pair[1])}. It is the {table.name(one)}'
    sized = tuple(ids([o]) for o in pair) if ' cm' in steps else ()
    return _found('relations', query, [one], f'{steps}, [SEG].', sized=sized)


_MEASURED: dict[str, Callable[[Seen], str]] = {
    'taller': lambda o: f'{_cm(o.height)} cm',
    'lower': lambda o: f'{_cm(o.height)} cm',
    'bigger': lambda o: f'{_cm(o.longest)} cm',
    'smaller': lambda o: f'{_cm(o.longest)} cm',
    'nearer': lambda o: _at(o),
    'farther': lambda o: _at(o),
}


def _nowhere(voice: Voice, table: Table) -> Request | None:
    """Ask for what is beside a thing that is not there, or on an empty side of one that is."""
    place = voice.one(PLACES[:4])
    if voice.chance(0.5):
        kind = voice.one([k for k in KINDS if not table.has(k)])
        query = voice.say(NAMED, f'the thing {place} the {kind}')
        return _none('relations', query, f'There is no {kind} here.')
    bare = [o for o in table.seen if empty(table, place, o)]
    one = voice.one(bare)
    if one is None:
        return None
    name = table.name(one)
    query = voice.say(NAMED, f'the thing {place} the {name}')
    return _none('relations', query, f'There is nothing {place} the {name}.')


# ---------------------------------------------------------------- several


def several(voice: Voice, table: Table) -> Request | None:
    """Ask for two or three names at once, one may be missing; or for all of a sort."""
    if voice.chance(0.4):
        kinds = [k for k in sorted({o.kind for o in table.seen}) if len(table.of(k)) > 1]
        kind = voice.one(kinds)
        if kind is None:
            return None
        query = voice.say(NAMED, voice.one((f'all the {_plural(kind)}', f'the {_plural(kind)}')))
        return _found('several', query, table.of(kind), 'Sure, [SEG].')
    wanted: list[tuple[str, tuple[Seen, ...]]] = []
    for _ in range(2 + int(voice.chance(0.3))):
        one = voice.one(table.seen)
        if one is not None and voice.chance(0.85):
            name = table.name(one)
            wanted.append((name, (one,)))
        else:
            wanted.append((voice.one([k for k in KINDS if not table.has(k)]), ()))
    if len({name for name, _ in wanted}) < len(wanted):
        return None
    query = voice.say(NAMED, _join([f'the {name}' for name, _ in wanted]))
    found = [things for _, things in wanted if things]
    missing = [f'There is no {name} here.' for name, things in wanted if not things]
    sure = [f'Sure, {_join(["[SEG]"] * len(found))}.'] if found else []
    return Request(
        'several', (Turn(query, ' '.join(sure + missing)),), tuple(ids(t) for t in found)
    )


def _plural(kind: str) -> str:
    return kind if kind.endswith('s') else kind + ('es' if kind.endswith('x') else 's')


# ---------------------------------------------------------------- reasoning


def use(voice: Voice, table: Table, present: bool) -> Request | None:
    """Ask for what one would use for something."""
    if voice.chance(0.2 if voice.exam else 0.5):  # exams draw as the shipped one did
        return _sort(voice, table, present)
    return _need(voice, table, present, 'use')


def knowledge(voice: Voice, table: Table, present: bool) -> Request | None:
    """Ask for a thing by what one knows of it."""
    return _need(voice, table, present, 'knowledge')


def _need(voice: Voice, table: Table, present: bool, sort: str) -> Request | None:
    kinds = (
        sorted({o.kind for o in table.seen}) if present else [k for k in KINDS if not table.has(k)]
    )
    kind = voice.one(kinds)
    if kind is None:
        return None
    kind = KINDS[kind]
    need = voice.one(kind.use if sort == 'use' else kind.facts)
    if any(table.has(other) for other in ALSO.get(need, ())):
        return None  # another thing there would do
    query = voice.say(WHAT if need.startswith('what') else NEED, need)
    reason = f'The {kind.name} {kind.does}'
    if not present:
        return _none(sort, query, f'{reason}, but there is no {kind.name} here.')
    return _found(sort, query, table.of(kind.name), f'{reason}, [SEG].', expects=((reason,),))


def _sort(voice: Voice, table: Table, present: bool) -> Request | None:
    """Say "I am thirsty"."""
    sort = voice.one(tuple(OF_SORTS))
    things = [o for o in table.there if o.sort == sort]
    if bool(things) != present or any(o.area < VISIBLE for o in things) or len(things) > 3:
        return None
    (one, many), queries, more = OF_SORTS[sort]
    query = voice.say(queries, more=more)
    if not things:
        return _none('use', query, 'There is nothing like that here.')
    listed = _from_left(things, table.look)
    is_what = f'is {one}' if len(listed) == 1 else f'are {many}'

    def said(names: str) -> str:
        return f'{names[0].upper()}{names[1:]} {is_what}'

    answer = f'{said(_the(x.name for x in listed))}, [SEG].'
    expects = (tuple(map(said, _alternatives(table, things))),)
    return _found('use', query, things, answer, expects=expects, listed=listed)


def _from_left(things, name: Callable[[Seen], str]) -> tuple[Listed, ...]:
    """Return the names of things from left to right, each once, as they are listed."""
    named: dict[str, list[Seen]] = {}
    for one in sorted(things, key=lambda o: o.across):
        named.setdefault(name(one), []).append(one)
    return tuple(Listed(0, said, ids(some)) for said, some in named.items())


def two_step(voice: Voice, table: Table, present: bool = True) -> Request | None:
    """Ask for a thing by its place from another that must be found by reasoning, or the like."""
    anchor = voice.one([o for o in table.seen if len(table.of(o.kind)) == 1])
    # mostly no thing of a sort is clearly the first, so lessons try more often
    ask = voice.one(('place', 'place', 'sort', 'look', *(() if voice.exam else ('sort', 'sort'))))
    if ask == 'place':
        if anchor is None:
            return None
        place = _somewhere(voice)
        one = nearest_in(table.there, place, anchor)
        if one is None or one.area < VISIBLE:
            return None
        kind = KINDS[anchor.kind]
        noun = one.sort if one.sort and voice.chance(0.3) else 'thing'
        words = f'the {noun} {place} the thing that {kind.does}'
        query = voice.say(NAMED, words)
        if voice.chance(0.4):
            need = voice.one([n for n in kind.needs if n.startswith('something')])
            query = voice.say(AROUND[place], need)
        reason = f'The {kind.name} {kind.does}'
        steps = f'{reason}. {_from(kind.name, anchor, place, one)} {_it_is(table, [one])}'
        expects = (reason,), _it_may_be(table, one)
        return _found('two_step', query, [one], f'{steps}, [SEG].', expects=expects)
    if ask == 'sort':
        word = voice.one([w for w in SUPERLATIVES if w not in OF_ONE_KIND])
        sort = voice.one(tuple(OF_SORTS))
        one = most([o for o in table.there if o.sort == sort], word)
        if one is None or one.area < VISIBLE:
            return None
        query = voice.say(NAMED, f'the {word} {sort}')
        steps = f'The {word} {sort} {_at(one)}. {_it_is(table, [one])}'
        expects = (_it_may_be(table, one),)
        return _found('two_step', query, [one], f'{steps}, [SEG].', expects=expects)
    one = voice.one([o for o in table.seen if o.colour and len(table.of(o.kind)) > 1])
    if one is None:
        return None
    things = [o for o in table.of(one.kind) if o.colour == one.colour]
    need = voice.one([n for n in KINDS[one.kind].use if n.startswith('something')])
    query = voice.say(NEED, need.replace('something', f'something {one.colour}', 1))
    reason = f'The {one.colour} {one.kind} {KINDS[one.kind].does}'
    return _found('two_step', query, things, f'{reason}, [SEG].', expects=((reason,),))


# ---------------------------------------------------------------- words alone


def question(voice: Voice, table: Table) -> Request:
    """Ask what there is, how many, of which colour; the answer is words."""
    ask = voice.one(('list', 'list', 'count', 'colour', 'there'))
    if ask == 'count':
        kind = voice.one(_PAINTED)
        if all(o.area >= VISIBLE for o in table.there if o.kind == kind):
            many = len(table.of(kind))
            verb, noun = ('is', kind) if many == 1 else ('are', _plural(kind))
            query = voice.say(HOW_MANY, _plural(kind))
            return _none('question', query, f'There {verb} {_NUMBERS[many]} {noun} here.')
    if ask == 'colour':
        one = voice.one([o for o in table.seen if o.colour and len(table.of(o.kind)) == 1])
        if one is not None:
            query = voice.say(COLOUR_OF, f'the {one.kind}')
            turn = Turn(query, f'The {one.kind} is {one.colour}.')
            return Request('question', (turn,), (), about=(one,))
    if ask == 'there':
        kind = voice.one(sorted({o.kind for o in table.seen}) if voice.chance(0.5) else [])
        gone = voice.one([k for k in KINDS if not table.has(k)])
        query = voice.say(IS_THERE, f'a {kind or gone}')
        return _none('question', query, 'Yes.' if kind else f'There is no {gone} here.')
    listed = _from_left(table.seen, lambda one: one.kind)
    answer = f'I see {_the(x.name for x in listed)}.' if listed else 'I see nothing.'
    return Request('question', (Turn(voice.say(LIST), answer),), (), listed=listed)


def lore(voice: Voice, table: Table) -> Request:
    """Ask what one would use, or what one knows, of things in general; the answer is words.

    A language model of real size knows it from reading; this one has it from here.
    """
    kind = KINDS[voice.one(tuple(KINDS))]
    reason = f'The {kind.name} {kind.does}'
    query = voice.say(TELL, voice.one(kind.needs))
    return _none('lore', query, f'{reason}.')


# ---------------------------------------------------------------- dialogues


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


# ---------------------------------------------------------------- lessons and exams

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


def _at(one: Seen) -> str:
    """Return where a thing shows, in even hundredths of the picture's width and height."""
    return ' '.join(str(min(98, 2 * int(50 * share))) for share in (one.across, one.down))


def _cm(metres: float) -> int:
    return max(2, 2 * round(50 * metres))


MEASURES = tuple(str(number) for number in range(0, 100, 2))  # what answers measure with


def _from(name: str, anchor: Seen, place: str, one: Seen) -> str:
    return f'The {name} {_at(anchor)}, {place} it {_at(one)}.'


def _it_is(table: Table, things) -> str:
    return f'It is {_the(map(table.look, things))}'


def _it_may_be(table: Table, one: Seen) -> tuple[str, ...]:
    return tuple(f'It is {x}' for x in _alternatives(table, [one]))


def _alternatives(table: Table, things) -> tuple[str, ...]:
    """Return what the things may rightly be called, in any order; the first is the shortest."""
    return tuple(
        dict.fromkeys(
            _the(names)
            for order in itertools.permutations(things)
            for names in itertools.product(*map(table.names, order))
        )
    )


def _the(names: Iterable[str]) -> str:
    return _join(list(dict.fromkeys(f'the {name}' for name in names)))


def _join(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f'{", ".join(words[:-1])} and {words[-1]}'
