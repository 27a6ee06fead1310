# SPDX-License-Identifier: Apache-2.0
"""Where objects were seen last: a bounded list of places in one fixed frame, such as the map.

Rules:

- A sighting near a known place of the same object updates it. Two names mean the same object if
  they have the same noun and one has all words of the other: "mug" and "red mug". Words from the
  first preposition on do not count: "mug on the left" is "mug".
- There are as many places of a name as were seen at once. A sighting elsewhere is therefore an
  object that has moved, and replaces the place that was seen longest ago, unless the answer shows
  more objects of the name than any answer before. A sighting of a name that fits several known
  ones ("mug", with a red and a blue one) replaces none.
- A sighting never replaces a newer one: an answer may be about an old image.
- Of an object that the image's edge cuts off only a part is seen, whose middle is another point:
  such a sighting leaves a known place nearby where it is, and only makes it newer. Farther away
  it may be the object itself, moved, and is a sighting like others.
- The oldest places are dropped when there are too many, and each one after `max_age`. Places of
  the future, after a simulation has begun again, count as seen now.

Threads: any; each method holds a lock for microseconds.
"""

from __future__ import annotations

import itertools
import math
import re
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

_FARTHEST = 1e6  # coordinate of a place [m]
_FIRST_DATE = 10**18  # September 2001; simulations have smaller stamps [ns]
_STEP = 10**9  # smaller steps of a clock are corrections [ns]
_LATEST = 2**31 * 10**9  # stamp that ROS messages can hold [ns]
_ARTICLES = {'the', 'a', 'an', 'my', 'our', 'your', 'its'}
_ABOUT_THE_PAST = re.compile(
    r'^(?:where (?:did|have) (?:you|we|i) (?:last )?(?:see|seen)|where (?:was|were)|'
    r'when did you (?:last )?see|have you seen)\b',
    re.IGNORECASE,
)
_ABOUT_NOW = re.compile(r'^where (?:is|are)\b', re.IGNORECASE)
_ENDING = re.compile(r'\b(?:the last time|last time|last|seen|before)$', re.IGNORECASE)
_SIDES = {'left', 'right'}
_WITH_SIDES = {*_SIDES, 'side', 'and', 'or'}  # "left side", "left and right"
_PLACE_WORDS = {
    *('on', 'onto', 'in', 'into', 'inside', 'outside', 'at', 'of', 'by', 'to', 'from'),
    *('with', 'near', 'next', 'behind', 'under', 'underneath', 'beneath', 'over', 'above'),
    *('below', 'between', 'beside', 'against', 'around', 'across', 'along', 'after', 'opposite'),
    *('that', 'which', 'who', 'for', 'here', 'there', 'now', 'again', 'today', 'yesterday'),
}
# Endings that differ in singular and plural, after its s: berry, tomato, vase and box, knife
_STEMS = (('ie$', 'y'), ('oe$', 'o'), ('(s|x|z|ch|sh)e$', r'\1'), ('[fv]e$', 'f'))
_PRONOUNS = {'it', 'that', 'this', 'them', 'one'}


@dataclass(frozen=True)
class PlaceMemoryOptions:
    """How places are kept."""

    merge_distance: float  # nearer sightings of a name are the same object [m]
    max_places: int
    max_age: float  # a place is dropped this long after its last sighting [s]; 0: never


@dataclass(frozen=True)
class Place:
    """Where an object was seen last."""

    name: str  # "red mug"
    position: tuple[float, float, float]  # in the frame of the memory [m]
    stamp: int  # of the image [ns]
    confidence: float  # of the mask, 0..1
    camera: str = ''
    thumbnail: bytes = b''  # JPEG; empty: none
    sightings: int = 1  # answers that have shown it at this place
    is_cut: bool = False  # the edge of the image cut the object off; not kept in files


class PlaceMemory:
    """The places; see the module's docstring for rules and threads."""

    def __init__(self, options: PlaceMemoryOptions, places: Iterable[Place] = ()):
        """Make a memory, which may begin with places of an earlier one."""
        self._lock = threading.Lock()
        self._options = options
        self._places = list(places)
        self._changes = 0
        self._now = 0  # the time of the last call that had one [ns]

    @property
    def changes(self) -> int:
        """How often the places have changed; to see whether they must be published or saved."""
        return self._changes

    def set_options(self, options: PlaceMemoryOptions) -> None:
        """Use other options from now on."""
        with self._lock:
            self._options = options

    def add(self, seen: Sequence[Place]) -> None:
        """Take the objects of one answer."""
        if not seen:
            return
        with self._lock:
            pending = list(seen)
            while pending:
                group = [place for place in pending if is_same_name(place.name, pending[0].name)]
                pending = [place for place in pending if place not in group]
                self._add_group(group)
            self._places.sort(key=lambda place: place.stamp)
            del self._places[: max(0, len(self._places) - self._options.max_places)]
            self._changes += 1

    def places(self, now: int) -> list[Place]:
        """Return all places, the one seen last first, none of them in the future.

        Args:
            now: the present time [ns]; 0: the time of a simulation that has not started, nothing
                is too old.
        """
        with self._lock:
            count = len(self._places)
            # A simulation began again, or time went back. Other stamps stay: a computer may start
            # with a clock in the past, and correct it a minute later.
            is_back = 0 < now < self._now - _STEP
            self._places = [
                _seen_by(place, now) if is_back or place.stamp < _FIRST_DATE else place
                for place in self._places
            ]
            self._now = max(0, now)
            if now > 0:
                self._drop_old(now)
            self._changes += count != len(self._places)
            places = [_seen_by(place, self._now) for place in self._places]
            return sorted(places, key=lambda place: -place.stamp)

    def stored(self) -> list[Place]:
        """Return all places with the stamps that they were seen at, to save them."""
        with self._lock:
            return list(self._places)

    def recall(self, query: str, now: int) -> list[Place]:
        """Return the places of an object, the one seen last first.

        Args:
            query: a name ("the mug") or a question ("where did you last see the mug?"); empty:
                all places.
            now: the present time [ns].
        """
        name = asked_name(query)
        return [place for place in self.places(now) if not name or is_same_name(place.name, name)]

    def _add_group(self, seen: list[Place]) -> None:
        """Take the sightings of one name in one answer."""
        known = [place for place in self._places if is_same_name(place.name, seen[0].name)]
        pairs = _nearest_pairs(known, seen, self._options.merge_distance)
        for place, sighting in pairs:
            if not self._is_newer(place, sighting):
                self._places[self._places.index(place)] = _merged(place, sighting)
        elsewhere = _without(seen, [sighting for _, sighting in pairs])
        unseen = _without(known, [place for place, _ in pairs])
        unseen.sort(key=lambda place: place.stamp)
        # more places than were ever seen at once: that many objects have moved
        moved = len(known) + len(elsewhere) - max(len(known), len(seen))
        is_one_name = all(
            is_same_name(first.name, second.name) for first in known for second in known
        )
        for place, sighting in list(zip(unseen[:moved], elsewhere, strict=False)):
            if self._is_newer(place, sighting):
                elsewhere.remove(sighting)  # of an old image
            elif is_one_name:
                self._places.remove(place)
        self._places += elsewhere

    def _is_newer(self, place: Place, sighting: Place) -> bool:
        """Return whether a place was seen after a sighting; one of the future was not."""
        is_future = 0 < self._now < place.stamp
        return place.stamp > sighting.stamp and not is_future

    def _drop_old(self, now: int) -> None:
        if self._options.max_age:
            oldest = now - round(self._options.max_age * 1e9)
            self._places = [place for place in self._places if place.stamp >= oldest]


def _seen_by(place: Place, now: int) -> Place:
    """Return a place, seen at the latest now [ns]; 0: the time is not known."""
    return replace(place, stamp=now) if 0 < now < place.stamp else place


def _nearest_pairs(
    known: Sequence[Place], seen: Sequence[Place], limit: float
) -> list[tuple[Place, Place]]:
    """Return known places and their sightings within a distance [m], each at most once."""
    pairs: list[tuple[Place, Place]] = []
    candidates = sorted(
        itertools.product(known, seen),
        key=lambda pair: math.dist(pair[0].position, pair[1].position),
    )
    for place, sighting in candidates:
        is_free = all(place is not taken and sighting is not used for taken, used in pairs)
        if is_free and math.dist(place.position, sighting.position) <= limit:
            pairs.append((place, sighting))
    return pairs


def _without(places: Sequence[Place], removed: Sequence[Place]) -> list[Place]:
    """Return the places that are not among the removed ones."""
    return [place for place in places if all(place is not excluded for excluded in removed)]


def is_valid_place(place: Place) -> bool:
    """Return whether a message can hold a place, and a robot can have seen it."""
    return (
        all(abs(metres) < _FARTHEST for metres in place.position)
        and 0 <= place.stamp < _LATEST
        and 0 <= place.sightings < 2**32
    )


def is_same_name(first: str, second: str) -> bool:
    """Return whether two names may mean the same object: "mug" and "the red mug"."""
    first_words, second_words = _words(first), _words(second)
    if not first_words or not second_words or first_words[-1] != second_words[-1]:
        return first_words == second_words
    shorter, longer = sorted((set(first_words), set(second_words)), key=len)
    return shorter <= longer


def asks_about_the_past(command: str) -> bool:
    """Return whether a command asks the memory: "where did you last see the mug?"."""
    return _ABOUT_THE_PAST.match(command.strip()) is not None


def asked_name(query: str) -> str:
    """Return the name in a question: "red mug" of "where did you last see the red mug?"."""
    text = query.strip().rstrip('?.! ')
    for pattern in (_ABOUT_THE_PAST, _ABOUT_NOW, _ENDING):
        text = pattern.sub('', text).strip()
    return ' '.join(word for word in text.split() if word.lower() not in _ARTICLES)


def is_pronoun(name: str) -> bool:
    """Return whether a name names nothing: "it"."""
    return name.lower() in _PRONOUNS


def _words(name: str) -> list[str]:
    """Return the words of a name up to those of a place, as `_stem` has them, without articles."""
    words, places = [], []  # the words, and those that may tell a place
    for compound in re.findall(r'\w+(?:-\w+)*', name.lower()):
        parts = [word for word in compound.split('-') if word not in _ARTICLES]
        if compound in ('left-hand', 'right-hand'):  # "left-hand side", "left-hand drawer"
            parts.pop()
        may_tell_place = len(parts) == 1
        words += parts
        places += parts if may_tell_place else [''] * len(parts)  # not "built-in oven"
    ends = (i for i in range(1, len(words)) if _is_place(places[i:]))
    return [_stem(word) for word in words[: next(ends, len(words))]]


def _is_place(words: Sequence[str]) -> bool:
    """Return whether a place begins: "on ...", "left of ...", a last "left", not "left drawer"."""
    following = list(itertools.dropwhile(lambda word: word in _WITH_SIDES, words))
    is_end = not following or following[0] in _PLACE_WORDS
    return is_end if words[0] in _SIDES else words[0] in _PLACE_WORDS


def _stem(word: str) -> str:
    """Return a form that singular and plural share, only to compare words: "vas" of "vases"."""
    if not re.search(r'(?:[su]s|^gas|^lens|^canvas)$', word):
        word = word.removesuffix('s')
    for ending, stem in _STEMS:
        word = re.sub(ending, stem, word)
    return word


def _merged(old: Place, new: Place) -> Place:
    """Return a known place after a new sighting; the longer name and the whole view stay."""
    name = max(old.name, new.name, key=lambda text: len(_words(text)))
    view = old if new.is_cut and not old.is_cut else new
    return replace(
        new,
        name=name,
        position=view.position,
        thumbnail=view.thumbnail or old.thumbnail,
        sightings=old.sightings + 1,
        is_cut=view.is_cut,
    )
