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

from collections.abc import Callable
from dataclasses import dataclass

from lisa_ros.results import Turn
from lisa_ros.tabletop.answer_text import (
    _NUMBERS,
    ListedName,
    _alternatives,
    _at,
    _cm,
    _from,
    _from_left,
    _it_is,
    _it_may_be,
    _join,
    _plural,
    _the,
)
from lisa_ros.tabletop.objects import ALSO, COLOURS, OBJECT_CATEGORIES, OBJECTS, SIZES
from lisa_ros.tabletop.rendering import PART_FLAG
from lisa_ros.tabletop.scene_graph import (
    COMPARATIVES,
    OF_ONE_KIND,
    PLACES,
    SUPERLATIVES,
    VISIBLE,
    SceneGraph,
    SceneObject,
    ids,
    in_relation,
    matches_phrase,
    nearest_in_relation,
    on_side,
    side_is_empty,
    superlative,
)
from lisa_ros.tabletop.templates import (
    AROUND,
    COLOUR_OF,
    HOW_MANY,
    IS_THERE,
    LIST,
    NAMED,
    NEED,
    OF_SORTS,
    TELL,
    WHAT,
    PhraseSampler,
)

CATEGORIES = (
    'explicit', 'attributes', 'relations', 'several', 'part', 'use', 'knowledge', 'two_step',
    'question', 'lore', 'dialogue',
)  # fmt: skip
IMPLICIT = ('use', 'knowledge', 'two_step')  # the sorts that take reasoning


@dataclass(frozen=True)
class TabletopQuery:
    """A dialogue of one to four turns about one table, with its truth."""

    category: str  # one of SORTS
    turns: tuple[Turn, ...]
    # for each [SEG] of all turns, what it covers: values of the id image
    targets: tuple[tuple[int, ...], ...]
    # and for each size that the answers tell in cm, what it is of
    sized: tuple[tuple[int, ...], ...] = ()
    listed: tuple[ListedName, ...] = ()  # the names in lists, in the order told
    about: tuple[SceneObject, ...] = ()  # what the last turn was about: "it"
    # what the last answer must say to name object and reason: wordings of which one is enough
    expected_phrases: tuple[tuple[str, ...], ...] = ()
    first: int = 0  # targets before this one belong to earlier turns
    insisted: bool = False  # the words are given, not learnt: what counts is the empty mask
    slip: str = ''  # the last answer as it is read, if it names a wrong thing at the right place

    @property
    def present(self) -> bool:
        """Whether there is something to point at in the last turn."""
        return len(self.targets) > self.first


def _found(sort: str, query: str, things, answer: str, **more) -> TabletopQuery:
    return TabletopQuery(sort, (Turn(query, answer),), (ids(things),), about=tuple(things), **more)


def _none(sort: str, query: str, answer: str) -> TabletopQuery:
    return TabletopQuery(sort, (Turn(query, answer),), ())


# ---------------------------------------------------------------- names and looks


def explicit(voice: PhraseSampler, table: SceneGraph, present: bool) -> TabletopQuery | None:
    """Ask for a thing by the name of its kind."""
    if not present:
        kind = voice.choice([k for k in OBJECT_CATEGORIES if not table.contains(k)])
        query = voice.fill_template(NAMED, f'the {kind}')
        return _none('explicit', query, f'There is no {kind} here.')
    kind = voice.choice(sorted({o.kind for o in table.visible}))
    if kind is None:
        return None
    things = table.of_category(kind)
    query = voice.fill_template(NAMED, f'the {kind}')
    if len(things) == 1:
        return _found('explicit', query, things, 'Sure, [SEG].')
    many = _NUMBERS[len(things)]
    return _found('explicit', query, things, f'I see {many}, [SEG]. Which one?')


def attributes(voice: PhraseSampler, table: SceneGraph, present: bool) -> TabletopQuery | None:
    """Ask for a thing by colour, size or material."""
    if voice.chance(0.6):
        return _looks(voice, table, present)
    if voice.chance(0.5):
        return _material(voice, table, present)
    return _colour(voice, table, present)


def _looks(voice: PhraseSampler, table: SceneGraph, present: bool) -> TabletopQuery | None:
    """Ask for "the red mug", "the small mug"."""
    if present:
        one = voice.choice([o for o in table.visible if o.colour or o.size])
        if one is None:
            return None
        words = voice.choice(
            [
                f'{look} {one.kind}'
                for look in (one.colour, one.size, f'{one.size} {one.colour}')
                if look and 'None' not in look
            ]
        )
        if (
            words.startswith(tuple(SIZES))
            and len(table.of_category(one.kind)) == 1
            and voice.chance(0.8)
        ):
            return None  # big or small is seldom said of a thing without another beside it
        things = [o for o in table.visible if matches_phrase(o, words)]
        return _found(
            'attributes', voice.fill_template(NAMED, f'the {words}'), things, 'Sure, [SEG].'
        )
    # Half of what is not there is there in another colour.
    near = [o.kind for o in table.objects if o.colour]
    kind = voice.choice(near) if near and voice.chance(0.6) else voice.choice(_PAINTED)
    colours = [
        c for c in COLOURS if not any(o.kind == kind and o.colour == c for o in table.objects)
    ]
    if not colours:
        return None
    words = f'{voice.choice(colours)} {kind}'
    query = voice.fill_template(NAMED, f'the {words}')
    return _none('attributes', query, f'There is no {words} here.')


_PAINTED = sorted({t.kind for t in OBJECTS.values() if t.colours})


def _colour(voice: PhraseSampler, table: SceneGraph, present: bool) -> TabletopQuery | None:
    """Ask for "the red thing", where nothing else shows some red."""
    clear = []
    for colour in COLOURS:
        if any(colour in OBJECTS[o.thing].tints for o in table.objects):
            continue
        things = [o for o in table.objects if o.looks_coloured == colour]
        if bool(things) == present and all(o.area >= VISIBLE for o in things):
            clear.append((colour, things))
    if not clear:
        return None
    colour, things = voice.choice(clear)
    noun = 'thing' if len(things) < 2 else 'things'
    query = voice.fill_template(NAMED, f'the {colour} {noun}')
    if not things:
        return _none('attributes', query, f'There is nothing {colour} here.')
    return _found('attributes', query, things, f'{_it_is(table, things)}, [SEG].')


def _material(voice: PhraseSampler, table: SceneGraph, present: bool) -> TabletopQuery | None:
    """Ask for "the metal thing"."""
    there: dict[str, list[SceneObject]] = {m: [] for m in _MATERIALS}
    for o in table.objects:
        if OBJECTS[o.thing].material:
            there[OBJECTS[o.thing].material].append(o)
    clear = [
        (material, things)
        for material, things in there.items()
        if not any(table.contains(kind) for kind in _PERHAPS.get(material, ()))
        and bool(things) == present
        and len(things) <= 3
        and all(o.area >= VISIBLE for o in things)
    ]
    if not clear:
        return None
    material, things = voice.choice(clear)
    noun = 'thing' if len(things) < 2 else 'things'
    words = voice.choice((f'the {material} {noun}', f'the {noun} made of {material}'))
    query = voice.fill_template(NAMED, words)
    if not things:
        return _none('attributes', query, f'There is nothing made of {material} here.')
    return _found('attributes', query, things, f'{_it_is(table, things)}, [SEG].')


# What might be of a material, as far as one can see.
_PERHAPS = {
    'glass': ('ketchup', 'barbecue sauce', 'salad dressing', 'water bottle'),
    'wood': ('toy brick',),
    'cardboard': ('book',),
}
_MATERIALS = sorted({t.material for t in OBJECTS.values() if t.material})


_BARE = ('bowl', 'plate', 'ramekin', 'book', 'sponge', 'candle')  # nobody sees a handle there


def part(voice: PhraseSampler, table: SceneGraph, present: bool) -> TabletopQuery | None:
    """Ask for a handle or a cork."""
    if not present:
        bare = [o for o in table.visible if o.kind in _BARE or o.sort in ('food', 'drink', 'toy')]
        one = voice.choice([o for o in bare if not o.part and len(table.of_category(o.kind)) == 1])
        if one is None:
            return None
        query = voice.fill_template(NAMED, f'the handle of the {one.kind}')
        return _none('part', query, f'The {one.kind} has no handle.')
    one = voice.choice([o for o in table.visible if o.part_area >= VISIBLE // 2])
    if one is None:
        return None
    name = table.name(one)
    query = voice.fill_template(NAMED, f'the {one.part} of the {name}')
    turn = Turn(query, 'Sure, [SEG].')
    return TabletopQuery('part', (turn,), ((one.id + PART_FLAG,),), about=(one,))


# ---------------------------------------------------------------- places and comparisons


def relations(voice: PhraseSampler, table: SceneGraph, present: bool) -> TabletopQuery | None:
    """Ask for a thing by where it is, or by how it compares."""
    if not present:
        return _nowhere(voice, table)
    ask = voice.choice((_place, _place, _superlative, _comparative))
    return ask(voice, table)


def _place(voice: PhraseSampler, table: SceneGraph) -> TabletopQuery | None:
    """Ask for "the thing left of the milk" or "the mug behind the milk"."""
    anchor = voice.choice(table.visible)
    if anchor is None:
        return None
    place = _somewhere(voice)
    one = nearest_in_relation(table.objects, place, anchor)
    noun = 'thing'
    kinds = [
        k
        for k in {o.kind for o in table.visible if o.id != anchor.id}
        if len(table.of_category(k)) > 1
    ]
    if kinds and voice.chance(0.5):
        noun = voice.choice(sorted(kinds))
        alike = [o for o in table.objects if o.kind == noun and o.id != anchor.id]
        inside = [o for o in alike if place != 'next to' and in_relation(o, place, anchor)]
        outside = [o for o in alike if not on_side(o, place, anchor)]
        if len(inside) != 1 or len(inside) + len(outside) != len(alike):
            return None  # one of them is neither clearly there nor clearly elsewhere
        one = inside[0]
    if one is None or one.area < VISIBLE:
        return None
    name = table.name(anchor)
    query = voice.fill_template(NAMED, f'the {noun} {place} the {name}')
    steps = f'{_from(name, anchor, place, one)} {_it_is(table, [one])}'
    return _found('relations', query, [one], f'{steps}, [SEG].')


def _somewhere(voice: PhraseSampler) -> str:
    """Return a place; lessons draw "next to", the hardest, twice as often as any other."""
    return voice.choice(PLACES if voice.exam else (*PLACES, 'next to'))


def _superlative(voice: PhraseSampler, table: SceneGraph) -> TabletopQuery | None:
    """Ask for "the tallest thing", "the leftmost mug", "the nearest toy"."""
    word = voice.choice(tuple(SUPERLATIVES))
    noun, things = voice.choice(_groups(table))
    if noun == 'thing' and word in OF_ONE_KIND:
        return None
    one = superlative(things, word)
    if one is None or one.area < VISIBLE:
        return None
    query = voice.fill_template(NAMED, f'the {word} {noun}')
    steps = f'The {word} {noun} {_at(one)}. {_it_is(table, [one])}'
    return _found('relations', query, [one], f'{steps}, [SEG].')


def _groups(table: SceneGraph) -> list[tuple[str, tuple[SceneObject, ...]]]:
    """Return the words for a few things of this table, with the things."""
    groups = [('thing', table.objects)]
    for kind in sorted({o.kind for o in table.objects}):
        things = tuple(o for o in table.objects if o.kind == kind)
        if len(things) > 1:
            groups += [(kind, things)] * 2
    return groups


def _comparative(voice: PhraseSampler, table: SceneGraph) -> TabletopQuery | None:
    """Ask for "the taller one of the milk and the bowl"."""
    if len(table.visible) < 2:
        return None
    i, j = voice.rng.choice(len(table.visible), 2, replace=False)
    pair = [table.visible[i], table.visible[j]]
    word = voice.choice(tuple(COMPARATIVES))
    if pair[0].kind != pair[1].kind and COMPARATIVES[word] in OF_ONE_KIND:
        return None
    one = superlative(pair, COMPARATIVES[word])
    if one is None:
        return None
    a, b = (table.name(o) for o in pair)
    query = voice.fill_template(NAMED, f'the {word} one of the {a} and the {b}')
    says = _MEASURED[word]
    steps = f'The {a} {says(pair[0])}, the {b} {says(pair[1])}. It is the {table.name(one)}'
    sized = tuple(ids([o]) for o in pair) if ' cm' in steps else ()
    return _found('relations', query, [one], f'{steps}, [SEG].', sized=sized)


_MEASURED: dict[str, Callable[[SceneObject], str]] = {
    'taller': lambda o: f'{_cm(o.height)} cm',
    'lower': lambda o: f'{_cm(o.height)} cm',
    'bigger': lambda o: f'{_cm(o.longest)} cm',
    'smaller': lambda o: f'{_cm(o.longest)} cm',
    'nearer': lambda o: _at(o),
    'farther': lambda o: _at(o),
}


def _nowhere(voice: PhraseSampler, table: SceneGraph) -> TabletopQuery | None:
    """Ask for what is beside a thing that is not there, or on an empty side of one that is."""
    place = voice.choice(PLACES[:4])
    if voice.chance(0.5):
        kind = voice.choice([k for k in OBJECT_CATEGORIES if not table.contains(k)])
        query = voice.fill_template(NAMED, f'the thing {place} the {kind}')
        return _none('relations', query, f'There is no {kind} here.')
    bare = [o for o in table.visible if side_is_empty(table, place, o)]
    one = voice.choice(bare)
    if one is None:
        return None
    name = table.name(one)
    query = voice.fill_template(NAMED, f'the thing {place} the {name}')
    return _none('relations', query, f'There is nothing {place} the {name}.')


# ---------------------------------------------------------------- several


def several(voice: PhraseSampler, table: SceneGraph) -> TabletopQuery | None:
    """Ask for two or three names at once, one may be missing; or for all of a sort."""
    if voice.chance(0.4):
        kinds = [
            k for k in sorted({o.kind for o in table.visible}) if len(table.of_category(k)) > 1
        ]
        kind = voice.choice(kinds)
        if kind is None:
            return None
        query = voice.fill_template(
            NAMED, voice.choice((f'all the {_plural(kind)}', f'the {_plural(kind)}'))
        )
        return _found('several', query, table.of_category(kind), 'Sure, [SEG].')
    wanted: list[tuple[str, tuple[SceneObject, ...]]] = []
    for _ in range(2 + int(voice.chance(0.3))):
        one = voice.choice(table.visible)
        if one is not None and voice.chance(0.85):
            name = table.name(one)
            wanted.append((name, (one,)))
        else:
            wanted.append(
                (voice.choice([k for k in OBJECT_CATEGORIES if not table.contains(k)]), ())
            )
    if len({name for name, _ in wanted}) < len(wanted):
        return None
    query = voice.fill_template(NAMED, _join([f'the {name}' for name, _ in wanted]))
    found = [things for _, things in wanted if things]
    missing = [f'There is no {name} here.' for name, things in wanted if not things]
    sure = [f'Sure, {_join(["[SEG]"] * len(found))}.'] if found else []
    return TabletopQuery(
        'several', (Turn(query, ' '.join(sure + missing)),), tuple(ids(t) for t in found)
    )


# ---------------------------------------------------------------- reasoning


def use(voice: PhraseSampler, table: SceneGraph, present: bool) -> TabletopQuery | None:
    """Ask for what one would use for something."""
    if voice.chance(0.2 if voice.exam else 0.5):  # exams draw as the shipped one did
        return _sort(voice, table, present)
    return _need(voice, table, present, 'use')


def knowledge(voice: PhraseSampler, table: SceneGraph, present: bool) -> TabletopQuery | None:
    """Ask for a thing by what one knows of it."""
    return _need(voice, table, present, 'knowledge')


def _need(
    voice: PhraseSampler, table: SceneGraph, present: bool, sort: str
) -> TabletopQuery | None:
    kinds = (
        sorted({o.kind for o in table.visible})
        if present
        else [k for k in OBJECT_CATEGORIES if not table.contains(k)]
    )
    kind = voice.choice(kinds)
    if kind is None:
        return None
    kind = OBJECT_CATEGORIES[kind]
    need = voice.choice(kind.use if sort == 'use' else kind.facts)
    if any(table.contains(other) for other in ALSO.get(need, ())):
        return None  # another thing there would do
    query = voice.fill_template(WHAT if need.startswith('what') else NEED, need)
    reason = f'The {kind.name} {kind.does}'
    if not present:
        return _none(sort, query, f'{reason}, but there is no {kind.name} here.')
    return _found(
        sort, query, table.of_category(kind.name), f'{reason}, [SEG].', expects=((reason,),)
    )


def _sort(voice: PhraseSampler, table: SceneGraph, present: bool) -> TabletopQuery | None:
    """Say "I am thirsty"."""
    sort = voice.choice(tuple(OF_SORTS))
    things = [o for o in table.objects if o.sort == sort]
    if bool(things) != present or any(o.area < VISIBLE for o in things) or len(things) > 3:
        return None
    (one, many), queries, more = OF_SORTS[sort]
    query = voice.fill_template(queries, more=more)
    if not things:
        return _none('use', query, 'There is nothing like that here.')
    listed = _from_left(things, table.name_with_colour)
    is_what = f'is {one}' if len(listed) == 1 else f'are {many}'

    def said(names: str) -> str:
        return f'{names[0].upper()}{names[1:]} {is_what}'

    answer = f'{said(_the(x.name for x in listed))}, [SEG].'
    expects = (tuple(map(said, _alternatives(table, things))),)
    return _found('use', query, things, answer, expects=expects, listed=listed)


def two_step(
    voice: PhraseSampler, table: SceneGraph, present: bool = True
) -> TabletopQuery | None:
    """Ask for a thing by its place from another that must be found by reasoning, or the like."""
    anchor = voice.choice([o for o in table.visible if len(table.of_category(o.kind)) == 1])
    # mostly no thing of a sort is clearly the first, so lessons try more often
    ask = voice.choice(
        ('place', 'place', 'sort', 'look', *(() if voice.exam else ('sort', 'sort')))
    )
    if ask == 'place':
        if anchor is None:
            return None
        place = _somewhere(voice)
        one = nearest_in_relation(table.objects, place, anchor)
        if one is None or one.area < VISIBLE:
            return None
        kind = OBJECT_CATEGORIES[anchor.kind]
        noun = one.sort if one.sort and voice.chance(0.3) else 'thing'
        words = f'the {noun} {place} the thing that {kind.does}'
        query = voice.fill_template(NAMED, words)
        if voice.chance(0.4):
            need = voice.choice([n for n in kind.needs if n.startswith('something')])
            query = voice.fill_template(AROUND[place], need)
        reason = f'The {kind.name} {kind.does}'
        steps = f'{reason}. {_from(kind.name, anchor, place, one)} {_it_is(table, [one])}'
        expects = (reason,), _it_may_be(table, one)
        return _found('two_step', query, [one], f'{steps}, [SEG].', expects=expects)
    if ask == 'sort':
        word = voice.choice([w for w in SUPERLATIVES if w not in OF_ONE_KIND])
        sort = voice.choice(tuple(OF_SORTS))
        one = superlative([o for o in table.objects if o.sort == sort], word)
        if one is None or one.area < VISIBLE:
            return None
        query = voice.fill_template(NAMED, f'the {word} {sort}')
        steps = f'The {word} {sort} {_at(one)}. {_it_is(table, [one])}'
        expects = (_it_may_be(table, one),)
        return _found('two_step', query, [one], f'{steps}, [SEG].', expects=expects)
    one = voice.choice(
        [o for o in table.visible if o.colour and len(table.of_category(o.kind)) > 1]
    )
    if one is None:
        return None
    things = [o for o in table.of_category(one.kind) if o.colour == one.colour]
    need = voice.choice([n for n in OBJECT_CATEGORIES[one.kind].use if n.startswith('something')])
    query = voice.fill_template(NEED, need.replace('something', f'something {one.colour}', 1))
    reason = f'The {one.colour} {one.kind} {OBJECT_CATEGORIES[one.kind].does}'
    return _found('two_step', query, things, f'{reason}, [SEG].', expects=((reason,),))


# ---------------------------------------------------------------- words alone


def question(voice: PhraseSampler, table: SceneGraph) -> TabletopQuery:
    """Ask what there is, how many, of which colour; the answer is words."""
    ask = voice.choice(('list', 'list', 'count', 'colour', 'there'))
    if ask == 'count':
        kind = voice.choice(_PAINTED)
        if all(o.area >= VISIBLE for o in table.objects if o.kind == kind):
            many = len(table.of_category(kind))
            verb, noun = ('is', kind) if many == 1 else ('are', _plural(kind))
            query = voice.fill_template(HOW_MANY, _plural(kind))
            return _none('question', query, f'There {verb} {_NUMBERS[many]} {noun} here.')
    if ask == 'colour':
        one = voice.choice(
            [o for o in table.visible if o.colour and len(table.of_category(o.kind)) == 1]
        )
        if one is not None:
            query = voice.fill_template(COLOUR_OF, f'the {one.kind}')
            turn = Turn(query, f'The {one.kind} is {one.colour}.')
            return TabletopQuery('question', (turn,), (), about=(one,))
    if ask == 'there':
        kind = voice.choice(sorted({o.kind for o in table.visible}) if voice.chance(0.5) else [])
        gone = voice.choice([k for k in OBJECT_CATEGORIES if not table.contains(k)])
        query = voice.fill_template(IS_THERE, f'a {kind or gone}')
        return _none('question', query, 'Yes.' if kind else f'There is no {gone} here.')
    listed = _from_left(table.visible, lambda one: one.kind)
    answer = f'I see {_the(x.name for x in listed)}.' if listed else 'I see nothing.'
    return TabletopQuery('question', (Turn(voice.fill_template(LIST), answer),), (), listed=listed)


def general_knowledge(voice: PhraseSampler, table: SceneGraph) -> TabletopQuery:
    """Ask what one would use, or what one knows, of things in general; the answer is words.

    A language model of real size knows it from reading; this one has it from here.
    """
    kind = OBJECT_CATEGORIES[voice.choice(tuple(OBJECT_CATEGORIES))]
    reason = f'The {kind.name} {kind.does}'
    query = voice.fill_template(TELL, voice.choice(kind.needs))
    return _none('lore', query, f'{reason}.')


# ---------------------------------------------------------------- dialogues


# ---------------------------------------------------------------- lessons and exams
