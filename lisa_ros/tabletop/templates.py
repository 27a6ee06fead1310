# SPDX-License-Identifier: Apache-2.0
"""Phrase templates of queries, and the sampler that fills them.

{x} stands for the name, need or fact that a query asks for. A checksum of template and filling
splits all phrases: some are held out for test sets, all others are for training. A training phrase
never differs from a held-out one by upper case or punctuation alone.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from lisa_ros.tabletop.scene_graph import RELATIONS

_Option = TypeVar('_Option')


@dataclass(frozen=True)
class SupercategoryPhrases:
    """How people name and ask for the objects of a supercategory."""

    singular: str
    plural: str
    templates: tuple[str, ...]
    # more templates of training, so that words such as "hungry" and "dishwasher" are not only in
    # held-out phrases
    training_only: tuple[str, ...]


NAME_TEMPLATES = (
    'segment {x}', 'Segment {x}.', 'Please segment {x} in this image.', 'find {x}', 'Find {x}.',
    'Can you segment {x} in this image?', 'where is {x}?', 'Where is {x} in this image?', '{x}',
    'show me {x}', 'hand me {x}', 'Give me {x}, please.', 'pick up {x}', 'Please find {x}.',
    'Where is {x} in this image? Please output segmentation mask.', 'I need {x}', 'look for {x}',
    'Can you hand me {x}?', 'Please show me {x}.', 'bring me {x}', 'I want {x}.',
)  # fmt: skip
NEED_TEMPLATES = (
    '{x}', 'Find {x}.', 'find {x}', 'hand me {x}', 'Hand me {x}.', 'I need {x}', 'I want {x}.',
    'Give me {x}, please.', 'show me {x}', 'Please segment {x} in this image.', 'look for {x}',
    'Can you hand me {x}?', 'bring me {x}', 'Find {x} and say why.', 'I need {x}. Say why.',
)  # fmt: skip
QUESTION_TEMPLATES = (
    '{x}?', '{x}', '{x} in this image?', '{x}? Please output segmentation mask.', '{x} here?',
    '{x}? Say why.', '{x}, and why?',
)  # fmt: skip
SUPERCATEGORY_PHRASES = {
    'drink': SupercategoryPhrases('a drink', 'drinks', (
        'I am thirsty', 'I am thirsty.', 'something to drink', 'what can I drink?',
        'all the drinks', 'find the drinks', 'Hand me a drink.',
    ), (
        'I feel thirsty', 'I am very thirsty.', 'Give me something to drink, please.',
        'bring me a drink', 'Which things can I drink?', 'show me all the drinks',
        'Where are the drinks?', 'the drinks', 'What is there to drink?', 'I want a drink',
    )),
    'food': SupercategoryPhrases('food', 'food', (
        'I am hungry', 'I am hungry.', 'something to eat', 'what can I eat?',
        'all the food', 'find the food', 'Where is the food?',
    ), (
        'I feel hungry', 'I am very hungry.', 'Give me something to eat, please.',
        'bring me some food', 'Which things can I eat?', 'show me all the food',
        'the child is hungry', 'the food', 'What is there to eat?', 'I want some food',
    )),
    'toy': SupercategoryPhrases('a toy', 'toys', (
        'the child is bored', 'Find the toys.', 'something to play with',
        'what can a child play with?', 'all the toys', 'find the toys', 'Put the toys away.',
    ), (
        'I am bored', 'Give me something to play with, please.', 'bring me a toy',
        'Which things can a child play with?', 'show me all the toys', 'Where are the toys?',
        'the toys', 'What is there to play with?', 'The child wants to play.', 'I want a toy',
    )),
    'dish': SupercategoryPhrases('a dish', 'dishes', (
        'set the table', 'Set the table.', 'something to eat from',
        'what goes into the dishwasher?', 'all the dishes', 'find the dishes', 'Wash the dishes.',
    ), (
        'fill the dishwasher', 'Give me something to eat from, please.', 'bring me the dishes',
        'Put the dishes into the dishwasher.', 'show me all the dishes', 'Where are the dishes?',
        'the dishes', 'what can I eat from?', 'Please set the table.', 'I want to wash the dishes',
    )),
}  # fmt: skip
FOLLOW_UP_TEMPLATES = (
    'and {x}?',
    'And {x}?',
    'what about {x}?',
    'now {x}',
    'Now segment {x}.',
    'also {x}',
)
LIST_TEMPLATES = (
    'what is on the table?',
    'What do you see?',
    'What is in this image?',
    'name the things',
)
GENERAL_KNOWLEDGE_TEMPLATES = (
    'Tell me: {x}?',
    'Tell me {x}.',
    'Say {x}.',
    'Tell me in words: {x}',
    'Just say {x}.',
)
PURPOSE_TEMPLATES = ('what is it for?', 'What is it for?', 'why?', 'What can I do with it?')
COLOUR_TEMPLATES = ('what colour is {x}?', 'What colour is {x}?', 'tell me the colour of {x}')
PRESENCE_TEMPLATES = ('is there {x}?', 'Is there {x}?', 'do you see {x}?', 'Can you see {x}?')
COUNT_TEMPLATES = ('how many {x}?', 'How many {x} are there?', 'count the {x}')
OTHER_ONE_TEMPLATES = (
    'the other one',
    'The other one.',
    'no, the other one',
    'and the other one?',
)
WHICH_ONE_TEMPLATES = (
    'no, the {x} one',
    'the {x} one',
    'I mean the {x} one.',
    'The {x} one, please.',
)
RELATION_TEMPLATES = {
    relation: (
        f'what is {relation} {{x}}?', f'Find {{x}} and show me what is {relation} it.',
        f'the thing {relation} {{x}}', f'What is {relation} {{x}}?',
    )
    for relation in RELATIONS
}  # fmt: skip


class NoHeldOutTemplate(Exception):  # noqa: N818  # not an error: the caller samples again
    """No template is held out for this filling."""


@functools.cache
def normalize(template: str) -> str:
    """Return a template in lower case, without punctuation."""
    return ''.join(c for c in template.lower() if c.isalpha() or c in ' {}')


class PhraseSampler:
    """Samples phrases, either those of training or the held-out ones.

    Args:
        rng: the generator of all random draws.
        held_out: sample the phrases that are held out for test sets, not those of training.
        excluded: query categories to leave out, see `queries.CATEGORIES`.
    """

    def __init__(
        self, rng: np.random.Generator, held_out: bool = False, excluded: tuple[str, ...] = ()
    ):
        self.rng, self.held_out, self.excluded = rng, held_out, excluded

    def chance(self, probability: float) -> bool:
        """Return True with the given probability."""
        return self.rng.random() < probability

    def choice(self, options: Sequence[_Option]) -> _Option | None:
        """Return one of the options, each with equal probability; None if there are none."""
        return options[self.rng.integers(len(options))] if len(options) else None

    def fill_template(
        self, templates: tuple[str, ...], x: str = '', training_only: tuple[str, ...] = ()
    ) -> str:
        """Return `x` in one of the templates that belong to this sampler's part of the split.

        Args:
            templates: templates of both parts.
            x: the filling.
            training_only: further templates, never held out.

        Raises:
            NoHeldOutTemplate: the sampler is for held-out phrases and `x` has none.
        """
        held_out = {normalize(template) for template in templates}
        for template in templates:  # all spellings of a template are held out, or none
            if zlib.crc32(f'{template}|{x}'.encode()) % 3:
                held_out.discard(normalize(template))
        usable = [t for t in templates if (normalize(t) in held_out) == self.held_out]
        usable += () if self.held_out else training_only
        if self.held_out and not usable:
            raise NoHeldOutTemplate
        template = self.choice(usable or templates)
        text = template.format(x=x)
        # people often write in lower case; a template that starts in upper case keeps it
        is_bare = template.startswith('{')
        return text[0].upper() + text[1:] if is_bare and self.chance(0.5) else text
