# SPDX-License-Identifier: Apache-2.0
"""What people ask about a scene, and what a good answer is: requests by grammar, truth by ids.

Sorts of request:

    explicit   a name, with or without a colour: "segment the red mug"
    implicit   a need that one kind of thing meets: "something to drink from"
    several    two or three names, one [SEG] each, in the order asked
    question   words and no mask: "what is on the table?"
    follow_up  a second turn: "and the bowl?", "what is it for?"

Explicit and implicit requests may name what is not there; then the answer says so, without [SEG].
Things that can hardly be seen are neither asked for nor called absent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lisa_ros.results import Turn
from lisa_ros.training.things import COLOURS, KINDS, THINGS

VISIBLE = 100  # pixels of a 320 x 240 picture from which on a thing counts as seen

_NAMED = (
    'segment {x}', 'Segment {x}.', 'Please segment {x} in this image.', 'find {x}', 'Find {x}.',
    'Can you segment {x} in this image?', 'where is {x}?', 'Where is {x} in this image?', '{x}',
    'show me {x}', 'hand me {x}', 'Give me {x}, please.', 'pick up {x}', 'Please find {x}.',
    'Where is {x} in this image? Please output segmentation mask.', 'I need {x}', 'look for {x}',
)  # fmt: skip
_NEED = (
    '{x}', 'Find {x}.', 'find {x}', 'hand me {x}', 'Hand me {x}.', 'I need {x}', 'I want {x}.',
    'Give me {x}, please.', 'show me {x}', 'Please segment {x} in this image.', 'look for {x}',
)  # fmt: skip
_WHAT = (
    '{x}?', '{x}', '{x} in this image?', '{x}? Please output segmentation mask.', '{x} here?',
)  # fmt: skip
_MORE = ('and {x}?', 'And {x}?', 'what about {x}?', 'now {x}', 'Now segment {x}.', 'also {x}')
_LIST = ('what is on the table?', 'What do you see?', 'What is in this image?', 'name the things')
_FOR = ('what is it for?', 'What is it for?', 'why?', 'What can I do with it?')


@dataclass(frozen=True)
class Request:
    """A dialogue of one or two turns about one scene, with its truth."""

    sort: str  # explicit | implicit | several | question | follow_up
    turns: tuple[Turn, ...]
    targets: tuple[tuple[int, ...], ...]  # for each [SEG] of all turns, the ids it covers
    kind: str | None = None  # the kind asked for, of explicit and implicit requests
    insisted: bool = False  # the words are given, not learnt: what counts is the empty mask

    @property
    def present(self) -> bool:
        """Whether there is something to point at."""
        return bool(self.targets)


def explicit(rng: np.random.Generator, objects: list[dict], present: bool) -> Request | None:
    """Ask for a thing by name; None if the scene has nothing to ask for in this way."""
    name = _name(rng, objects, present)
    if name is None:
        return None
    words, ids, kind = name
    answer = 'Sure, [SEG].' if ids else f'There is no {words} here.'
    query = _say(rng, _NAMED, f'the {words}')
    return Request('explicit', (Turn(query, answer),), (ids,) if ids else (), kind)


def implicit(rng: np.random.Generator, objects: list[dict], present: bool) -> Request | None:
    """Ask for a need that a kind meets; None if the scene has nothing to ask for in this way."""
    kinds = _kinds(objects, present)
    if not kinds:
        return None
    kind = KINDS[kinds[rng.integers(len(kinds))]]
    need = str(rng.choice(kind.needs))
    query = _say(rng, _WHAT if need.startswith('what') else _NEED, need)
    if not present:
        return Request(
            'implicit', (Turn(query, 'There is nothing like that here.'),), (), kind.name
        )
    answer = f'Sure, [SEG]. The {kind.name} {kind.does}.'
    return Request('implicit', (Turn(query, answer),), (_ids(objects, kind.name),), kind.name)


def several(rng: np.random.Generator, objects: list[dict]) -> Request | None:
    """Ask for two or three things at once; one of them may be missing."""
    wanted: list[tuple[str, tuple[int, ...]]] = []
    for _ in range(2 + int(rng.random() < 0.3)):
        name = _name(rng, objects, present=rng.random() < 0.85)
        if name and name[2] not in [w[2] for w in wanted]:
            wanted.append(name)
    if len(wanted) < 2:
        return None
    query = _say(rng, _NAMED, _join([f'the {words}' for words, *_ in wanted]))
    found = [ids for _, ids, _ in wanted if ids]
    missing = [f'There is no {words} here.' for words, ids, _ in wanted if not ids]
    sure = [f'Sure, {_join(["[SEG]"] * len(found))}.'] if found else []
    return Request('several', (Turn(query, ' '.join(sure + missing)),), tuple(found))


def question(rng: np.random.Generator, objects: list[dict]) -> Request:
    """Ask what there is; the answer names the kinds, the biggest first."""
    seen = sorted((o for o in objects if o['area'] >= VISIBLE), key=lambda o: -o['area'])
    kinds = list(dict.fromkeys(o['kind'] for o in seen))
    answer = f'I see {_join([f"the {kind}" for kind in kinds])}.' if kinds else 'I see nothing.'
    return Request('question', (Turn(_say(rng, _LIST, ''), answer),), ())


def dialogue(rng: np.random.Generator, objects: list[dict]) -> Request:
    """Return a request followed by another, of whatever sorts, or by what the found one is for.

    People do not say when they start anew, so the second turn is as often a request that could
    stand alone as one that leans on the first ("and the bowl?").
    """
    first = single(rng, objects)
    if first.kind and first.present and rng.random() < 0.25:
        kind = KINDS[first.kind]
        turn = Turn(_say(rng, _FOR, ''), f'The {kind.name} {kind.does}.')
        return Request('follow_up', (*first.turns, turn), first.targets)
    name = _name(rng, objects, present=rng.random() < 0.55) if rng.random() < 0.5 else None
    if name is None:
        then = single(rng, objects)
        return Request('follow_up', first.turns + then.turns, first.targets + then.targets)
    words, ids, _ = name
    answer = 'Sure, [SEG].' if ids else f'There is no {words} here.'
    turn = Turn(_say(rng, _MORE, f'the {words}'), answer)
    return Request('follow_up', (*first.turns, turn), first.targets + ((ids,) if ids else ()))


def single(rng: np.random.Generator, objects: list[dict]) -> Request:
    """Return one request of any sort but a follow-up; half of names and needs are absent."""
    for _ in range(20):
        sort = rng.choice(
            ['explicit', 'implicit', 'several', 'question'], p=[0.40, 0.34, 0.12, 0.14]
        )
        present = rng.random() < 0.45
        if sort == 'explicit':
            request = explicit(rng, objects, present)
        elif sort == 'implicit':
            request = implicit(rng, objects, present)
        elif sort == 'several':
            request = several(rng, objects)
        else:
            request = question(rng, objects)
        if request is not None:
            return request
    return question(rng, objects)


def draw_request(rng: np.random.Generator, objects: list[dict]) -> Request:
    """Return something to learn from: one request, or a dialogue of two."""
    if rng.random() < 0.4:
        return dialogue(rng, objects)
    request = single(rng, objects)
    return insist(request) if rng.random() < 0.35 else request


def insist(request: Request) -> Request:
    """Return a request for what is not there as if the answer had been "Sure, [SEG]."

    A model that says so by mistake shall at least show nothing: the truth of that mask is empty.
    Other requests come back as they are.
    """
    if request.present or request.sort not in ('explicit', 'implicit'):
        return request
    turn = Turn(request.turns[0].query, 'Sure, [SEG].')
    return Request(request.sort, (turn,), ((),), request.kind, insisted=True)


def exam(rng: np.random.Generator, objects: list[dict]) -> list[Request]:
    """Return the requests a scene is tested with: one of each sort, present and absent."""
    asked = [
        ask(rng, objects, present) for ask in (explicit, implicit) for present in (True, False)
    ]
    return [request for request in asked if request is not None]


def draw_exam_of(rng: np.random.Generator, objects: list[dict], thing: str) -> list[Request]:
    """Return an explicit and an implicit request whose target is the one thing named."""
    target = [o for o in objects if o['thing'] == thing and o['area'] >= VISIBLE]
    others = [o for o in objects if o['kind'] != (target[0]['kind'] if target else None)]
    if not target or len(others) + len(target) < len(objects):
        return []  # hidden, or another thing of its kind is there, too
    return [ask(rng, target, True) for ask in (explicit, implicit)]


def _say(rng: np.random.Generator, forms: tuple[str, ...], x: str) -> str:
    form = forms[rng.integers(len(forms))]
    text = form.format(x=x)
    # People write as they like; a form that begins in capitals keeps them.
    return text[0].upper() + text[1:] if form.startswith('{') and rng.random() < 0.5 else text


def _ids(objects: list[dict], kind: str, colour: str | None = None) -> tuple[int, ...]:
    return tuple(
        o['id']
        for o in objects
        if o['kind'] == kind and (colour is None or o['colour'] == colour) and o['area'] > 0
    )


def _kinds(objects: list[dict], present: bool) -> list[str]:
    """Return the kinds that can well be seen, or those of which nothing at all is there."""
    if present:
        return sorted({o['kind'] for o in objects if o['area'] >= VISIBLE})
    there = {o['kind'] for o in objects}
    return [kind for kind in KINDS if kind not in there]


def _name(
    rng: np.random.Generator, objects: list[dict], present: bool
) -> tuple[str, tuple[int, ...], str] | None:
    """Return words for a thing, the ids they mean (none if absent) and its kind."""
    coloured = [o for o in objects if o['colour'] and o['area'] >= VISIBLE]
    if coloured and rng.random() < 0.4:
        one = coloured[rng.integers(len(coloured))]
        kind = one['kind']
        there = {o['colour'] for o in objects if o['kind'] == kind}
        if present:
            return f'{one["colour"]} {kind}', _ids(objects, kind, one['colour']), kind
        other = [c for c in COLOURS if c not in there]
        if rng.random() < 0.5 and other:
            return f'{rng.choice(other)} {kind}', (), kind
    kinds = _kinds(objects, present)
    if not kinds:
        return None
    kind = kinds[rng.integers(len(kinds))]
    if present:
        return kind, _ids(objects, kind), kind
    paintable = any(t.colours for t in THINGS.values() if t.kind == kind)
    if paintable and rng.random() < 0.3:
        return f'{rng.choice(list(COLOURS))} {kind}', (), kind
    return kind, (), kind


def _join(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f'{", ".join(words[:-1])} and {words[-1]}'
