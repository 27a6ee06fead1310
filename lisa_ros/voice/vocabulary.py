# SPDX-License-Identifier: Apache-2.0
"""The sentences that can be spoken. Some engines use them as a grammar; any transcript is matched.

A vocabulary is a YAML file, for example `weights/lisa-tabletop/vocabulary.yaml`. Its keys:

    verbs             find, hand me, ...       may precede objects and needs; no change of meaning
    objects           mug, coffee pot, ...     names of objects
    attributes        red, small, metal, ...   may precede a name
    relations         left of, behind, ...     spatial: "the thing left of the milk"
    superlatives      tallest, nearest, ...    "the tallest mug"
    needs             something to read, ...   complete phrases, with or without a verb
    dialogue_phrases  the other one, ...       complete sentences that refer to the dialogue
    pronunciations    ramekin: R AE M AH K IH N    that an engine's dictionary lacks

Two sentences have the same meaning if they differ only in verb, article or "please": "find the
mug" and "please hand me a mug". The stop words of `lisa_ros.session.command_parser` are always
part of a vocabulary.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from lisa_ros.english import plural
from lisa_ros.errors import DataError, SettingsError
from lisa_ros.files.text import read_yaml
from lisa_ros.model.registry import resolve_bundled_model
from lisa_ros.session.command_parser import POLITE_WORDS, STOP, CommandKind, parse_command
from lisa_ros.voice.transcript_text import normalize

_ARTICLES = ('the', 'a', 'an', 'my', 'this', 'that')
_FOLLOW_UPS = ('and', 'what about', 'now')  # "and the bowl?"
_WATCH = 'watch'  # "watch the mug" is spoken, "watch: the mug" is the command
_WATCHED = re.compile(rf'(?:{"|".join(POLITE_WORDS)} )*{_WATCH} (.+)')
_ANY_OBJECT = 'thing'  # noun that can stand for any object
# Similarity of the letters of two texts, 0..1 (normalized indel similarity). The confidence is 0
# at this similarity to the best sentence, and rises linearly to 1 for equal texts.
_MIN_SIMILARITY = 0.5
_CLEAR_LEAD = 0.05  # a smaller lead over the second best sentence lowers the confidence


@dataclass(frozen=True)
class Vocabulary:
    """Words and phrases, in lower case without punctuation."""

    verbs: tuple[str, ...] = ()
    objects: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    relations: tuple[str, ...] = ()
    superlatives: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    dialogue_phrases: tuple[str, ...] = ()
    pronunciations: dict[str, str] = field(default_factory=dict)  # CMU phonemes by word

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        """Read a YAML file.

        Raises:
            SettingsError: it cannot be read, has unknown keys or no sentences, a value is not a
                list of texts, or `pronunciations` is not a dict.
        """
        try:
            content = read_yaml(Path(path)) or {}
        except DataError as error:
            raise SettingsError(f'vocabulary {path} cannot be read: {error}') from error
        keys = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(content, dict) or not set(content) <= keys:
            is_dict = isinstance(content, dict)
            unknown = sorted(map(str, set(content) - keys)) if is_dict else type(content).__name__
            raise SettingsError(
                f'vocabulary {path}: found {unknown}; expected only the keys '
                f'{", ".join(sorted(keys))}'
            )
        pronunciations = content.pop('pronunciations', None) or {}
        _check_pronunciations(pronunciations, path)
        for key, phrases in content.items():
            if not isinstance(phrases, list) or not all(isinstance(p, str) for p in phrases):
                raise SettingsError(f'vocabulary {path}: {key} must be a list of texts')
        phrases_by_key = {k: tuple(map(normalize, phrases)) for k, phrases in content.items()}
        if not any(phrases_by_key.get(key) for key in ('objects', 'needs', 'dialogue_phrases')):
            raise SettingsError(
                f'vocabulary {path}: has no sentences; expected objects, needs or dialogue_phrases'
            )
        return cls(
            **phrases_by_key,
            pronunciations={normalize(str(word)): p for word, p in pronunciations.items()},
        )

    @classmethod
    def open(cls, name: str) -> Vocabulary:
        """Read a YAML file, or vocabulary.yaml in a model's folder.

        Args:
            name: of the file, of the folder, or of a bundled model.

        Raises:
            SettingsError: as `load`.
        """
        path = Path(name).expanduser()
        return cls.load(
            path if path.is_file() else Path(resolve_bundled_model(name)) / 'vocabulary.yaml'
        )

    # ---- meaning of a text

    def meaning(self, text: str) -> str:
        """Return a text without verb, articles and "please"; it is equal for equal meanings."""
        words = normalize(text)
        if parse_command(words).kind is CommandKind.STOP:
            return 'stop'
        words = re.sub(r'\b(in|of) this image\b', '', words)
        words = ' '.join(word for word in words.split() if word not in POLITE_WORDS)
        for verb in self._verbs_longest_first:
            if words.startswith(verb + ' '):
                words = words[len(verb) + 1 :]
                break
        return ' '.join(word for word in words.split() if word not in _ARTICLES)

    @cached_property
    def _verbs_longest_first(self) -> list[str]:
        return sorted((*self.verbs, _WATCH), key=len, reverse=True)

    @cached_property
    def sentence_by_meaning(self) -> dict[str, str]:
        """One sentence of the vocabulary for each meaning, by `meaning`."""
        return self._by_meaning(
            *(('stop',), self.dialogue_phrases, self.needs),
            *(self._object_phrases(), self._follow_up_phrases()),
        )

    @cached_property
    def _watched_by_meaning(self) -> dict[str, str]:
        """The sentences that "watch" may precede: what they name does not depend on a dialogue."""
        return self._by_meaning(self.needs, self._object_phrases())

    def _by_meaning(self, *groups: Iterable[str]) -> dict[str, str]:
        """Return the first sentence of each meaning."""
        sentences: dict[str, str] = {}
        for sentence in itertools.chain(*groups):
            sentences.setdefault(self.meaning(sentence), sentence)
        return sentences

    def _follow_up_phrases(self) -> Iterable[str]:
        """Yield the noun phrases that follow a question, such as "and the bowl"."""
        attributes = ['', *(f'{attribute} ' for attribute in self.attributes)]
        for word, attribute, noun in itertools.product(_FOLLOW_UPS, attributes, self.objects):
            yield f'{word} the {attribute}{noun}'

    def _object_phrases(self) -> Iterable[str]:
        """Yield all noun phrases of objects."""
        nouns = (*self.objects, _ANY_OBJECT) if self.objects else ()
        attributes = ['', *(f'{attribute} ' for attribute in self.attributes)]
        for attribute, noun in itertools.product(attributes, nouns):
            yield f'the {attribute}{noun}'
            yield f'the {attribute}{plural(noun)}'
            yield f'all the {attribute}{plural(noun)}'
        yield from (f'the {word} {noun}' for word in self.superlatives for noun in nouns)
        for noun, relation, anchor in itertools.product(nouns, self.relations, self.objects):
            yield f'the {noun} {relation} the {anchor}'
        for first, second in itertools.product(self.objects, repeat=2):
            yield f'the {first} and the {second}'

    def match(self, text: str) -> tuple[str, float]:
        """Return the command that matches a text best, and the confidence of the match, 0..1.

        A sentence of the vocabulary matches itself with confidence 1. For any other text it is
        the sentence with the most similar meaning. The confidence falls with a lower similarity,
        and with a smaller lead over the second best sentence.

        "watch" is no part of the sentence, and precedes the command with a colon.
        """
        words, prefix, sentences = normalize(text), '', self.sentence_by_meaning
        if watched := _WATCHED.fullmatch(words):
            words, prefix, sentences = watched[1], f'{_WATCH}: ', self._watched_by_meaning
        meaning = self.meaning(words)
        if meaning == 'stop' and 'stop' not in self.objects:
            return words if words in STOP else 'stop', 1.0
        if meaning in sentences:
            return prefix + words, 1.0
        if not meaning or not sentences:
            return '', 0.0
        from rapidfuzz import distance, process  # optional: lisa_ros[voice]

        scorer = distance.Indel.normalized_similarity
        matches = process.extract(meaning, list(sentences), scorer=scorer, limit=2)
        (best, similarity, _), *rest = matches
        lead = similarity - (rest[0][1] if rest else 0.0)
        confidence = (
            (similarity - _MIN_SIMILARITY) / (1 - _MIN_SIMILARITY) * min(1.0, lead / _CLEAR_LEAD)
        )
        return prefix + sentences[best], float(max(0.0, confidence))

    # ---- grammar

    def grammar(self, wake_phrase: str = '') -> str:
        """Return the vocabulary as a JSGF grammar.

        Args:
            wake_phrase: phrase that may precede each command; empty: there is none.
        """
        nouns = (*self.objects, _ANY_OBJECT) if self.objects else ()
        rules = {
            'object': _alternatives(self.objects),
            'noun': _alternatives(nouns),
            'nouns': _alternatives(map(plural, nouns)),
            'attribute': _alternatives(self.attributes),
            'superlative': _alternatives(self.superlatives),
            'relation': _alternatives(self.relations),
            'article': _alternatives(('the', 'a', 'my')),
            'verb': _alternatives(self.verbs),
            'need': _alternatives(self.needs),
            'dialogue': _alternatives(self.dialogue_phrases),
            'follow_up': _alternatives(_FOLLOW_UPS),
            'stop': _alternatives(sorted(STOP)),
        }
        rules = {name: words for name, words in rules.items() if words}
        sentences = [f'<{name}>' for name in ('need', 'dialogue') if name in rules]
        commands = ['[please] <stop> [please]', *sentences]
        if self.objects:
            attribute = '[<attribute>] ' if self.attributes else ''
            rules['target'] = self._target_rule(attribute)
            follow_up = f'<follow_up> [<article>] {attribute}<object>'
            commands += [f'[{_WATCH}] <target>', follow_up]
        if self.verbs:
            complements = [name for name in ('target', 'need') if name in rules]
            commands += [f'[please] <verb> <{name}>' for name in complements]
        if wake_phrase:
            rules['wake'] = normalize(wake_phrase)
            commands = ['<wake>', *(f'[<wake>] {command}' for command in commands)]
        lines = [f'<{name}> = {words};' for name, words in rules.items()]
        public_rule = f'public <command> = {" | ".join(commands)};'
        return '\n'.join(['#JSGF V1.0;', 'grammar lisa;', *lines, public_rule, ''])

    def _target_rule(self, attribute: str) -> str:
        """Return the alternatives of an object phrase with their weights."""
        alternatives = [
            f'/1/ [<article>] {attribute}<noun>',
            f'/0.2/ [all] [<article>] {attribute}<nouns>',
            '/0.02/ [<article>] <object> and [<article>] <object>',
        ]
        if self.superlatives:
            alternatives.append('/0.2/ <article> <superlative> <noun>')
        if self.relations:
            alternatives.append('/0.2/ <article> <noun> <relation> [<article>] <object>')
        return ' | '.join(alternatives)

    def words(self, wake_phrase: str = '') -> set[str]:
        """Return all words of the grammar."""
        rules = self.grammar(wake_phrase).splitlines()[2:]
        syntax = r'^public\b|<\w+>|/[\d.]+/|[=|;\[\]]'
        return {word for rule in rules for word in re.sub(syntax, ' ', rule).split()}


def _check_pronunciations(pronunciations: object, path: str | Path) -> None:
    """Check the pronunciations of a YAML file: phonemes by word."""
    form = 'such as "ramekin: R AE M AH K IH N"'
    if not isinstance(pronunciations, dict):
        raise SettingsError(
            f'vocabulary {path}: pronunciations is {pronunciations!r}; expected a word and its '
            f'CMU phonemes on each line, {form}'
        )
    for word, phonemes in pronunciations.items():
        if not isinstance(phonemes, str):
            raise SettingsError(
                f'vocabulary {path}: pronunciations of {word} is {phonemes!r}; expected text, '
                f'{form}'
            )


def _alternatives(phrases: Iterable[str]) -> str:
    return ' | '.join(dict.fromkeys(phrases))
