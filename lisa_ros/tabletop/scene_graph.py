# SPDX-License-Identifier: Apache-2.0
"""Scene graph: the objects of one view, and which of them a phrase refers to.

All answers follow from geometry. An ambiguous phrase, such as "the nearest mug" with two mugs at
the same distance, refers to no object, and no query uses it. Spatial relations are seen from the
camera. The coordinates `right` and `away` start at the point of the table plane below the camera,
and point to the right and away from it [m]. "left of" and "behind" then have the meaning that they
have for a person at the camera.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lisa_ros.tabletop.objects import OBJECT_CATEGORIES, OBJECTS, PART_FLAG

MIN_VISIBLE_AREA = 100  # objects with fewer visible pixels count as hidden [px of 320 x 240]
_DISTANCE_RATIO = 1.25  # least ratio of the distances of the second nearest and nearest object
_NEXT_TO = 0.22  # largest distance of "next to" [m]
_MIN_OFFSET = 0.04  # smallest offset of "left of", "behind", ... [m]
# former key -> present one, for scenes.json and feature caches of earlier versions
_FORMER_KEYS = {'kind': 'category', 'thing': 'model', 'across': 'image_x', 'down': 'image_y'}


@dataclass(frozen=True)
class SceneObject:
    """An object of a view, with the metadata that `scene_writer.scene_metadata` describes."""

    id: int
    category: str  # key of OBJECT_CATEGORIES
    model: str  # key of OBJECTS
    colour: str | None  # None: the model has only one appearance
    size: str | None  # None: the model has one size
    area: int  # visible pixels of a 320 x 240 image, those of its named part included
    part_area: int  # visible pixels of its named part
    right: float  # position on the table, see the module's docstring [m]
    away: float  # likewise
    height: float  # above the table [m]
    longest: float  # longest edge of its bounding box [m]
    # centre of the lower half of its visible pixels, fractions of the view's width and height
    image_x: float = 0.0
    image_y: float = 0.0

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> SceneObject:
        """Return the object of an entry of scenes.json, of this version or an earlier one.

        Raises:
            TypeError: a field is missing or unknown.
        """
        return cls(**{_FORMER_KEYS.get(key, key): value for key, value in fields.items()})

    @property
    def supercategory(self) -> str | None:
        """Return "drink", "food", ... or None."""
        return OBJECT_CATEGORIES[self.category].supercategory

    @property
    def apparent_colour(self) -> str | None:
        """Return its painted colour or the main colour of its texture; None if it has none."""
        return self.colour or OBJECTS[self.model].colour

    @property
    def part(self) -> str | None:
        """Return the name of its named part, visible or not; None without one."""
        model = OBJECTS[self.model]
        if model.has_handle:
            return 'handle'
        return next((part.name for part in model.parts if part.name), None)


@dataclass(frozen=True)
class SceneGraph:
    """The objects of one view."""

    objects: tuple[SceneObject, ...]  # hidden ones included

    @classmethod
    def from_dicts(cls, objects: Iterable[Mapping[str, Any]]) -> SceneGraph:
        """Return the scene graph of a scene's entries in scenes.json, see `SceneObject`."""
        return cls(tuple(SceneObject.from_dict(fields) for fields in objects))

    @property
    def visible(self) -> tuple[SceneObject, ...]:
        """Return the objects that are visible enough for a query."""
        return tuple(o for o in self.objects if o.area >= MIN_VISIBLE_AREA)

    @property
    def visible_categories(self) -> list[str]:
        """Return the categories of the visible objects, sorted by name."""
        return sorted({o.category for o in self.visible})

    @property
    def absent_categories(self) -> list[str]:
        """Return the categories without an object, in the order of the catalogue."""
        return [category for category in OBJECT_CATEGORIES if not self.contains(category)]

    def of_category(self, category: str) -> tuple[SceneObject, ...]:
        """Return the visible objects of a category."""
        return tuple(o for o in self.visible if o.category == category)

    def contains(self, category: str) -> bool:
        """Return whether there is an object of the category, visible or hidden."""
        return any(o.category == category for o in self.objects)

    def name(self, obj: SceneObject) -> str:
        """Return the shortest unambiguous name of an object: "mug", "red mug", "small mug"."""
        return self.names(obj)[0]

    def names(self, obj: SceneObject) -> tuple[str, ...]:
        """Return the unambiguous names of an object, the shortest first.

        If no name is unambiguous, return the longest one.
        """
        others = [o for o in self.of_category(obj.category) if o.id != obj.id]
        looks = ((), (obj.colour,), (obj.size,), (obj.size, obj.colour))
        names = [' '.join((*look, obj.category)) for look in looks if None not in look]
        unambiguous = (n for n in names if not any(matches_phrase(o, n) for o in others))
        return tuple(unambiguous) or (names[-1],)

    def name_with_colour(self, obj: SceneObject) -> str:
        """Return the shortest unambiguous name that contains the colour, if the object has one.

        Unlike `name`, it contains the colour whichever other objects there are.
        """
        names = self.names(obj)
        return next((name for name in names if obj.colour in name.split()), names[0])

    def mirrored(self) -> SceneGraph:
        """Return the scene graph of the horizontally flipped image."""
        return SceneGraph(
            tuple(
                dataclasses.replace(o, right=-o.right, image_x=1 - o.image_x) for o in self.objects
            )
        )


def matches_phrase(obj: SceneObject, phrase: str) -> bool:
    """Return whether a phrase, such as "mug" or "small red mug", describes an object."""
    adjectives = phrase.removesuffix(obj.category)
    return adjectives != phrase and set(adjectives.split()) <= {obj.colour, obj.size}


def instance_ids(objects: Iterable[SceneObject]) -> tuple[int, ...]:
    """Return the values of objects in an id image, those of their named parts included."""
    return tuple(sorted(o.id + part for o in objects for part in (0, PART_FLAG)))


# ---------------------------------------------------------------- superlatives


def unambiguous_maximum(
    objects: Iterable[SceneObject], measure: Callable[[SceneObject], float], margin: float
) -> SceneObject | None:
    """Return the object with the largest measure; None if it is ambiguous.

    It is ambiguous if another object is within `margin`, or if there are fewer than two objects.
    """
    ranked = sorted(objects, key=measure, reverse=True)
    if len(ranked) < 2 or measure(ranked[0]) - measure(ranked[1]) < margin:
        return None
    return ranked[0]


# Used only within a category: between a long banana and a wide bowl "bigger" is ambiguous.
SAME_CATEGORY_SUPERLATIVES = ('biggest', 'smallest')
# word -> (measure, smallest difference to the runner-up [m])
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


def find_superlative(objects: Iterable[SceneObject], word: str) -> SceneObject | None:
    """Return the object that a key of SUPERLATIVES refers to; None if it is ambiguous."""
    measure, margin = SUPERLATIVES[word]
    return unambiguous_maximum(objects, measure, margin)


# ---------------------------------------------------------------- spatial relations

RELATIONS = ('left of', 'right of', 'behind', 'in front of', 'next to')


def in_relation(obj: SceneObject, relation: str, anchor: SceneObject) -> bool:
    """Return whether an object is in a relation to an anchor, within 45 degrees of its direction.

    "next to" has no direction: the result is always True.
    """
    right, away = obj.right - anchor.right, obj.away - anchor.away
    if relation == 'next to':
        return True
    along, sideways = (right, away) if relation in ('left of', 'right of') else (away, right)
    forward = along if relation in ('right of', 'behind') else -along
    return forward > _MIN_OFFSET and abs(sideways) < forward


def on_side(obj: SceneObject, relation: str, anchor: SceneObject) -> bool:
    """Return whether an object is on the side of an anchor that a relation names (90 degrees)."""
    right, away = obj.right - anchor.right, obj.away - anchor.away
    return {
        'left of': -right, 'right of': right, 'behind': away, 'in front of': -away, 'next to': 1,
    }[relation] > 0  # fmt: skip


def distance(obj: SceneObject, other: SceneObject) -> float:
    """Return the distance between two objects on the table [m]."""
    return ((obj.right - other.right) ** 2 + (obj.away - other.away) ** 2) ** 0.5


def nearest_in_relation(
    objects: Iterable[SceneObject], relation: str, anchor: SceneObject
) -> SceneObject | None:
    """Return the nearest object in a relation to an anchor; None if there is none or a tie."""
    others = sorted((o for o in objects if o.id != anchor.id), key=lambda o: distance(o, anchor))
    candidates = [o for o in others if in_relation(o, relation, anchor)]
    if not candidates:
        return None
    limit = distance(candidates[0], anchor) * _DISTANCE_RATIO
    # An object on the same side, even outside of the 45 degrees, must not be nearly as close.
    rivals = [o for o in others if on_side(o, relation, anchor) and distance(o, anchor) < limit]
    if rivals != candidates[:1] or (relation == 'next to' and limit > _NEXT_TO * _DISTANCE_RATIO):
        return None
    return candidates[0]


def side_is_empty(scene: SceneGraph, relation: str, anchor: SceneObject) -> bool:
    """Return whether no object is on that side of an anchor, on the table and in the image."""
    others = [o for o in scene.objects if o.id != anchor.id]
    side = {'left of': -1, 'right of': 1}.get(relation, 0)
    in_image = [side * (o.right / o.away - anchor.right / anchor.away) > 0 for o in others]
    return not any(in_image) and not any(on_side(o, relation, anchor) for o in others)
