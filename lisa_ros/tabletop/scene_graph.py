# SPDX-License-Identifier: Apache-2.0
"""Which things on a table words mean: names, colours, sizes, places, comparisons.

Everything here is truth by geometry: a phrase that people would quarrel about (two things equally
near) means nothing and is not said. Places are the camera's: `right` and `away` are metres on the
table from the camera's foot, so "left of" and "behind" are what the one who looks would say.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from lisa_ros.tabletop.objects import OBJECT_CATEGORIES, OBJECTS
from lisa_ros.tabletop.rendering import PART_FLAG

VISIBLE = 100  # pixels of a 320 x 240 picture from which on a thing counts as seen
_CLEAR = 1.25  # how much nearer, taller, bigger the right one must be than the next
_BESIDE = 0.22  # how near a thing must be to be "next to" another [m]
_APART = 0.04  # how far to the side a thing must be to be "left of" or "right of" [m]


@dataclass(frozen=True)
class SceneObject:
    """A thing in a picture, as scenes.py describes it."""

    id: int
    kind: str
    thing: str
    colour: str | None
    size: str | None
    area: int  # [px] of a 320 x 240 picture
    part_area: int
    right: float  # [m]
    away: float
    height: float
    longest: float
    # the middle of the lower half of what shows of it, shares of the view's width and height
    across: float = 0.0
    down: float = 0.0

    @property
    def sort(self) -> str | None:
        """Return "drink", "food", ... or None."""
        return OBJECT_CATEGORIES[self.kind].sort

    @property
    def looks_coloured(self) -> str | None:
        """Return the colour that words give it, painted or its own."""
        return self.colour or OBJECTS[self.thing].colour

    @property
    def part(self) -> str | None:
        """Return the name of its named part, seen or not."""
        thing = OBJECTS[self.thing]
        return 'handle' if thing.handle else next((p.name for p in thing.parts if p.name), None)


@dataclass(frozen=True)
class SceneGraph:
    """What one picture shows: `seen` can well be seen, `there` may hide."""

    objects: tuple[SceneObject, ...]

    @property
    def visible(self) -> tuple[SceneObject, ...]:
        """Return the things that may be asked for."""
        return tuple(o for o in self.objects if o.area >= VISIBLE)

    def of_category(self, kind: str) -> tuple[SceneObject, ...]:
        """Return the well seen things of a kind."""
        return tuple(o for o in self.visible if o.kind == kind)

    def contains(self, kind: str) -> bool:
        """Return whether there is one of the kind, hidden or not."""
        return any(o.kind == kind for o in self.objects)

    def name(self, one: SceneObject) -> str:
        """Return the fewest words that tell it from the others: "mug", "red mug", "small mug"."""
        return self.names(one)[0]

    def names(self, one: SceneObject) -> tuple[str, ...]:
        """Return what tells it from the others, the fewest words first; if nothing, the most."""
        alike = [o for o in self.of_category(one.kind) if o.id != one.id]
        looks = ((), (one.colour,), (one.size,), (one.size, one.colour))
        said = [' '.join((*look, one.kind)) for look in looks if None not in look]
        return tuple(w for w in said if not any(matches_phrase(o, w) for o in alike)) or (
            said[-1],
        )

    def name_with_colour(self, one: SceneObject) -> str:
        """Return the fewest words that tell it from the others and say its colour, if it has one.

        Whether "mug" is enough depends on what else is there; what colour it is, on itself.
        """
        names = self.names(one)
        return next((name for name in names if one.colour in name.split()), names[0])

    def mirrored(self) -> SceneGraph:
        """Return the same table in a mirror."""
        return SceneGraph(
            tuple(
                dataclasses.replace(o, right=-o.right, across=1 - o.across) for o in self.objects
            )
        )


def matches_phrase(one: SceneObject, words: str) -> bool:
    """Return whether "red mug", "small mug" or "small red mug" may be said of it."""
    rest = words.removesuffix(one.kind)
    return rest != words and set(rest.split()) <= {one.colour, one.size}


def ids(things: Iterable[SceneObject]) -> tuple[int, ...]:
    """Return the ids of things in an id image, their named parts' with them."""
    return tuple(sorted(o.id + part for o in things for part in (0, PART_FLAG)))


# ---------------------------------------------------------------- the one of several


def unique_extreme(
    things: Iterable[SceneObject], measure: Callable[[SceneObject], float], margin: float
) -> SceneObject | None:
    """Return the thing of the greatest measure, None if another comes within `margin` of it."""
    ranked = sorted(things, key=measure, reverse=True)
    if len(ranked) < 2 or measure(ranked[0]) - measure(ranked[1]) < margin:
        return None
    return ranked[0]


# word -> (measure, how far apart the best two must be [m])
# Of unlike things nobody agrees on "bigger": a long banana, a wide bowl?
OF_ONE_KIND = ('biggest', 'smallest')
SUPERLATIVES: dict[str, tuple[Callable[[SceneObject], float], float]] = {
    'tallest': (lambda o: o.height, 0.03),
    'lowest': (lambda o: -o.height, 0.025),
    'biggest': (lambda o: o.longest, 0.03),
    'smallest': (lambda o: -o.longest, 0.02),
    'nearest': (lambda o: -o.away, 0.05),
    'farthest': (lambda o: o.away, 0.05),
    'leftmost': (lambda o: -o.right, 0.05),
    'rightmost': (lambda o: o.right, 0.05),
}
COMPARATIVES = {
    'taller': 'tallest', 'lower': 'lowest', 'bigger': 'biggest', 'smaller': 'smallest',
    'nearer': 'nearest', 'farther': 'farthest',
}  # fmt: skip


def superlative(things: Iterable[SceneObject], word: str) -> SceneObject | None:
    """Return the thing that a superlative means among `things`, None where it is not clear."""
    measure, margin = SUPERLATIVES[word]
    return unique_extreme(things, measure, margin)


# ---------------------------------------------------------------- places

PLACES = ('left of', 'right of', 'behind', 'in front of', 'next to')


def in_relation(one: SceneObject, place: str, anchor: SceneObject) -> bool:
    """Return whether a thing is clearly in a place of another: within 45 degrees of it."""
    right, away = one.right - anchor.right, one.away - anchor.away
    if place == 'next to':
        return True
    along, across = (right, away) if place in ('left of', 'right of') else (away, right)
    forward = along if place in ('right of', 'behind') else -along
    return forward > _APART and abs(across) < forward


def on_side(one: SceneObject, place: str, anchor: SceneObject) -> bool:
    """Return whether a thing is at all to that side of another."""
    right, away = one.right - anchor.right, one.away - anchor.away
    return {
        'left of': -right, 'right of': right, 'behind': away, 'in front of': -away, 'next to': 1,
    }[place] > 0  # fmt: skip


def distance(one: SceneObject, other: SceneObject) -> float:
    """Return how far apart two things stand [m]."""
    return ((one.right - other.right) ** 2 + (one.away - other.away) ** 2) ** 0.5


def nearest_in_relation(
    things: Iterable[SceneObject], place: str, anchor: SceneObject
) -> SceneObject | None:
    """Return the nearest thing in a place of another, None if there is none or two are as near."""
    others = sorted((o for o in things if o.id != anchor.id), key=lambda o: distance(o, anchor))
    there = [o for o in others if in_relation(o, place, anchor)]
    if not there:
        return None
    far = distance(there[0], anchor) * _CLEAR
    # Nothing else to that side may be as near, even if it is only about there.
    rivals = [o for o in others if on_side(o, place, anchor) and distance(o, anchor) < far]
    if rivals != there[:1] or (place == 'next to' and far > _BESIDE * _CLEAR):
        return None
    return there[0]


def side_is_empty(table: SceneGraph, place: str, anchor: SceneObject) -> bool:
    """Return whether nothing at all is to a side of a thing, on the table or in the picture."""
    others = [o for o in table.objects if o.id != anchor.id]
    side = {'left of': -1, 'right of': 1}.get(place, 0)
    in_picture = [side * (o.right / o.away - anchor.right / anchor.away) > 0 for o in others]
    return not any(in_picture) and not any(on_side(o, place, anchor) for o in others)
