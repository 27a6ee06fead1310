# SPDX-License-Identifier: Apache-2.0
"""Phrases of answers: names, lists, positions and sizes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from lisa_ros.tabletop.scene_graph import SceneGraph, SceneObject, instance_ids

COUNT_WORDS = ('no', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
NUMBER_WORDS = tuple(str(number) for number in range(0, 100, 2))  # all numbers of measurements


@dataclass(frozen=True)
class ListedName:
    """A name in a list of an answer."""

    turn: int  # index of the answer in the dialogue
    name: str  # without "the"
    instance_ids: tuple[int, ...]  # the objects with this name, values of the id image


def list_left_to_right(
    objects: Iterable[SceneObject], name: Callable[[SceneObject], str]
) -> tuple[ListedName, ...]:
    """Return the names of objects in the order from left to right, each name once."""
    objects_by_name: dict[str, list[SceneObject]] = {}
    for obj in sorted(objects, key=lambda o: o.image_x):
        objects_by_name.setdefault(name(obj), []).append(obj)
    return tuple(
        ListedName(0, text, instance_ids(named)) for text, named in objects_by_name.items()
    )


def position_text(obj: SceneObject) -> str:
    """Return an object's image position, "42 56": even hundredths of image width and height."""
    return ' '.join(str(min(98, 2 * int(50 * share))) for share in (obj.image_x, obj.image_y))


def even_centimetres(metres: float) -> int:
    """Return a length rounded to an even number of centimetres, at least 2."""
    return max(2, 2 * round(50 * metres))


def relation_text(name: str, anchor: SceneObject, relation: str, target: SceneObject) -> str:
    """Return "The milk 42 56, left of it 22 58." for an anchor named "milk"."""
    return f'The {name} {position_text(anchor)}, {relation} it {position_text(target)}.'


def identification(scene: SceneGraph, objects: Iterable[SceneObject]) -> str:
    """Return "It is the red mug", without a full stop."""
    return f'It is {join_names(map(scene.name_with_colour, objects))}'


def accepted_identifications(scene: SceneGraph, obj: SceneObject) -> tuple[str, ...]:
    """Return all correct forms of `identification`, the shortest first."""
    return tuple(f'It is {names}' for names in accepted_name_lists(scene, [obj]))


def accepted_name_lists(scene: SceneGraph, objects: Sequence[SceneObject]) -> tuple[str, ...]:
    """Return all correct lists of the objects' names, in any order; the first is the shortest."""
    return tuple(
        dict.fromkeys(
            join_names(names)
            for order in itertools.permutations(objects)
            for names in itertools.product(*map(scene.names, order))
        )
    )


def join_names(names: Iterable[str]) -> str:
    """Return "the pan, the mug and the bowl"; equal names are listed once."""
    return join_words(list(dict.fromkeys(f'the {name}' for name in names)))


def join_words(words: Sequence[str]) -> str:
    """Return "a, b and c"."""
    return words[0] if len(words) == 1 else f'{", ".join(words[:-1])} and {words[-1]}'
