# SPDX-License-Identifier: Apache-2.0
"""What can be said: a grammar for engines that want one, and a matcher for those that do not.

A vocabulary is a YAML file of words (`weights/lisa-tabletop/vocabulary.yaml` is one):

    verbs   find, hand me, ...       may stand before things and needs; they all mean the same
    things  mug, coffee pot, ...     names
    looks   red, small, metal, ...   may stand before a name
    places  left of, behind, ...     "the thing left of the milk"
    ranks   tallest, nearest, ...    "the tallest mug"
    needs   something to read, ...   whole phrases, with or without a verb
    talk    the other one, ...       whole phrases that lean on what was said before
    sounds  ramekin: R AE M AH K IH N    pronunciations that an engine's dictionary lacks

Two commands mean the same when they differ in verb, article or courtesy alone: "find the mug" and
"please hand me a mug". Orders of `lisa_ros.session.command_parser` ("stop") need not be listed.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import yaml

from lisa_ros.errors import SettingsError
from lisa_ros.model.registry import resolve_bundled_model
from lisa_ros.session.command_parser import STOP

_ARTICLES = ('the', 'a', 'an', 'my', 'this', 'that')
_COURTESY = ('please',)
_MORE = ('and', 'what about', 'now')  # "and the bowl?"
_WATCH = 'watch'  # "watch the mug" is said, "watch: the mug" is the order
_NOUN = 'thing'
_UNLIKE = 0.5  # likeness of letters at which a text means nothing
_AHEAD = 0.05  # lead in likeness from which another meaning is no danger


@dataclass(frozen=True)
class Vocabulary:
    """Words and phrases, lower case, without marks."""

    verbs: tuple[str, ...] = ()
    things: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    superlatives: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    dialogue_phrases: tuple[str, ...] = ()
    sounds: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        """Read a YAML file.

        Raises:
            SettingsError: it cannot be read, has unknown entries, or lists that are none.
        """
        try:
            plain = yaml.safe_load(Path(path).read_text(encoding='utf-8')) or {}
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise SettingsError(f'vocabulary {path} cannot be read: {error}') from error
        names = {f.name for f in dataclasses.fields(cls)}
        if not isinstance(plain, dict) or not set(plain) <= names:
            other = sorted(set(plain) - names) if isinstance(plain, dict) else type(plain).__name__
            raise SettingsError(
                f'vocabulary {path}: expected {", ".join(sorted(names))}, found {other}'
            )
        sounds = plain.pop('sounds', None) or {}
        for name, words in plain.items():
            if not isinstance(words, list) or not all(isinstance(w, str) for w in words):
                raise SettingsError(f'vocabulary {path}: {name} must be a list of words')
        lists = {name: tuple(map(normalize, words)) for name, words in plain.items()}
        if not any(lists.get(name) for name in ('things', 'needs', 'talk')):
            raise SettingsError(f'vocabulary {path}: nothing can be said with it')
        return cls(**lists, sounds={normalize(w): str(s) for w, s in sounds.items()})

    @classmethod
    def named(cls, name: str) -> Vocabulary:
        """Read the file of this name, or the vocabulary beside a model's weights.

        Raises:
            SettingsError: see `load`.
        """
        path = Path(name).expanduser()
        return cls.load(
            path if path.is_file() else Path(resolve_bundled_model(name)) / 'vocabulary.yaml'
        )

    # ---- what a text means

    def meaning(self, text: str) -> str:
        """Return a text without verb, articles and courtesy: what it asks for."""
        words = normalize(text)
        if words in STOP:
            return 'stop'
        words = re.sub(r'\b(in|of) this image\b', '', words)
        words = ' '.join(w for w in words.split() if w not in _COURTESY)
        for verb in self._longest_first:
            if words.startswith(verb + ' '):
                words = words[len(verb) + 1 :]
                break
        return ' '.join(w for w in words.split() if w not in _ARTICLES)

    @cached_property
    def _longest_first(self) -> list[str]:
        return sorted((*self.verbs, _WATCH), key=len, reverse=True)

    @cached_property
    def sayable(self) -> dict[str, str]:
        """Every meaning, with one way to say it."""
        ways = {}
        for way in (*STOP, *self.dialogue_phrases, *self.needs, *self._things()):
            ways.setdefault(self.meaning(way), way)
        return ways

    def _things(self) -> Iterable[str]:
        """Yield every way to name things."""
        nouns = (*self.things, _NOUN) if self.things else ()
        looks = ['', *(f'{look} ' for look in self.attributes)]
        for look, noun in itertools.product(looks, nouns):
            yield f'the {look}{noun}'
            yield f'the {look}{plural(noun)}'
            yield f'all the {look}{plural(noun)}'
        yield from (f'the {rank} {noun}' for rank in self.superlatives for noun in nouns)
        for more, look, noun in itertools.product(_MORE, looks, self.things):
            yield f'{more} the {look}{noun}'
        for noun, place, other in itertools.product(nouns, self.places, self.things):
            yield f'the {noun} {place} the {other}'
        for one, other in itertools.product(self.things, repeat=2):
            yield f'the {one} and the {other}'

    def understand(self, text: str) -> tuple[str, float]:
        """Return the command that a text means, and how likely it means that, 0..1.

        What can be said stands as it is; anything else becomes the most like thing that can be,
        the less likely the more unlike it is, and the nearer another meaning comes.
        """
        meaning = self.meaning(text)
        if meaning in self.sayable:
            words = normalize(text)
            if words.startswith(f'{_WATCH} '):
                return f'{_WATCH}: {words[len(_WATCH) + 1 :]}', 1.0
            return words, 1.0
        if not meaning:
            return '', 0.0
        from rapidfuzz import distance, process  # optional: lisa_ros[voice]

        scorer = distance.Indel.normalized_similarity
        found = process.extract(meaning, list(self.sayable), scorer=scorer, limit=2)
        (best, likeness, _), *others = found
        ahead = likeness - (others[0][1] if others else 0.0)
        sure = (likeness - _UNLIKE) / (1 - _UNLIKE) * min(1.0, ahead / _AHEAD)
        return self.sayable[best], float(max(0.0, sure))

    # ---- a grammar

    def grammar(self, wake: str = '') -> str:
        """Return the vocabulary as a JSGF grammar; with a wake phrase, which may come first."""
        nouns = (*self.things, _NOUN) if self.things else ()
        rules = {
            'thing': _one_of(self.things),
            'noun': _one_of(nouns),
            'nouns': _one_of(map(plural, nouns)),
            'look': _one_of(self.attributes),
            'rank': _one_of(self.superlatives),
            'place': _one_of(self.places),
            'the': _one_of(('the', 'a', 'my')),
            'verb': _one_of(self.verbs),
            'need': _one_of(self.needs),
            'talk': _one_of(self.dialogue_phrases),
            'more': _one_of(_MORE),
            'stop': _one_of(sorted(STOP)),
        }
        rules = {name: words for name, words in rules.items() if words}
        said = ['<stop>', *(f'<{name}>' for name in ('need', 'talk') if name in rules)]
        if self.things:
            look = '[<look>] ' if self.attributes else ''
            what = [f'/1/ [<the>] {look}<noun>', f'/0.2/ [all] [<the>] {look}<nouns>']
            what.append('/0.02/ [<the>] <thing> and [<the>] <thing>')
            if self.superlatives:
                what.append('/0.2/ <the> <rank> <noun>')
            if self.places:
                what.append('/0.2/ <the> <noun> <place> [<the>] <thing>')
            rules['what'] = ' | '.join(what)
            said += [f'[{_WATCH}] <what>', f'<more> [<the>] {look}<thing>']
        if self.verbs:
            said += [f'[please] <verb> <{name}>' for name in ('what', 'need') if name in rules]
        if wake:
            rules['wake'] = normalize(wake)
            said = ['<wake>', *(f'[<wake>] {way}' for way in said)]
        lines = [f'<{name}> = {words};' for name, words in rules.items()]
        return '\n'.join(
            ['#JSGF V1.0;', 'grammar lisa;', *lines, f'public <said> = {" | ".join(said)};', '']
        )

    def words(self, wake: str = '') -> set[str]:
        """Return every word of the grammar."""
        return set(
            re.findall(
                r"[a-z']+", re.sub(r'<\w+>|#JSGF.*|grammar lisa;|public', ' ', self.grammar(wake))
            )
        )


def normalize(text: str) -> str:
    """Return a text in lower case, without marks, with single spaces."""
    return ' '.join(re.sub(r"[^a-z0-9' ]+", ' ', text.lower()).split())


def plural(noun: str) -> str:
    """Return the plural of a noun, as lisa-tabletop's grammar forms it."""
    return noun if noun.endswith('s') else noun + ('es' if noun.endswith('x') else 's')


def _one_of(words: Iterable[str]) -> str:
    return ' | '.join(dict.fromkeys(words))
