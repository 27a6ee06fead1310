# SPDX-License-Identifier: Apache-2.0
"""Answers of the query generator, as text."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from lisa_ros.tabletop.scene_graph import SceneGraph, SceneObject, ids

_NUMBERS = ('no', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')


@dataclass(frozen=True)
class ListedName:
    """A name in a list that an answer tells."""

    turn: int  # whose answer it is
    name: str  # without "the"
    ids: tuple[int, ...]  # of what it stands for, values of the id image


def _plural(kind: str) -> str:
    return kind if kind.endswith('s') else kind + ('es' if kind.endswith('x') else 's')


def _from_left(things, name: Callable[[SceneObject], str]) -> tuple[ListedName, ...]:
    """Return the names of things from left to right, each once, as they are listed."""
    named: dict[str, list[SceneObject]] = {}
    for one in sorted(things, key=lambda o: o.across):
        named.setdefault(name(one), []).append(one)
    return tuple(ListedName(0, said, ids(some)) for said, some in named.items())


def _at(one: SceneObject) -> str:
    """Return where a thing shows, in even hundredths of the picture's width and height."""
    return ' '.join(str(min(98, 2 * int(50 * share))) for share in (one.across, one.down))


def _cm(metres: float) -> int:
    return max(2, 2 * round(50 * metres))


NUMBER_WORDS = tuple(str(number) for number in range(0, 100, 2))  # what answers measure with


def _from(name: str, anchor: SceneObject, place: str, one: SceneObject) -> str:
    return f'The {name} {_at(anchor)}, {place} it {_at(one)}.'


def _it_is(table: SceneGraph, things) -> str:
    return f'It is {_the(map(table.name_with_colour, things))}'


def _it_may_be(table: SceneGraph, one: SceneObject) -> tuple[str, ...]:
    return tuple(f'It is {x}' for x in _alternatives(table, [one]))


def _alternatives(table: SceneGraph, things) -> tuple[str, ...]:
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
