# SPDX-License-Identifier: Apache-2.0
"""The wordings of what people ask, and the voices that say them.

{x} is the name, need or fact that is asked for. Some wordings, chosen by a checksum of form and
filling, are kept for exams, and lessons never have them, nor one that differs in capitals and
marks alone.
"""

from __future__ import annotations

import functools
import zlib

import numpy as np

from lisa_ros.tabletop.scene_graph import PLACES

NAMED = (
    'segment {x}', 'Segment {x}.', 'Please segment {x} in this image.', 'find {x}', 'Find {x}.',
    'Can you segment {x} in this image?', 'where is {x}?', 'Where is {x} in this image?', '{x}',
    'show me {x}', 'hand me {x}', 'Give me {x}, please.', 'pick up {x}', 'Please find {x}.',
    'Where is {x} in this image? Please output segmentation mask.', 'I need {x}', 'look for {x}',
    'Can you hand me {x}?', 'Please show me {x}.', 'bring me {x}', 'I want {x}.',
)  # fmt: skip
NEED = (
    '{x}', 'Find {x}.', 'find {x}', 'hand me {x}', 'Hand me {x}.', 'I need {x}', 'I want {x}.',
    'Give me {x}, please.', 'show me {x}', 'Please segment {x} in this image.', 'look for {x}',
    'Can you hand me {x}?', 'bring me {x}', 'Find {x} and say why.', 'I need {x}. Say why.',
)  # fmt: skip
WHAT = (
    '{x}?', '{x}', '{x} in this image?', '{x}? Please output segmentation mask.', '{x} here?',
    '{x}? Say why.', '{x}, and why?',
)  # fmt: skip
# A sort's name for one and for many, its wordings, and more of them that only lessons have: so
# that "hungry" and "dishwasher" are no words of exams alone.
OF_SORTS = {
    'drink': (('a drink', 'drinks'), (
        'I am thirsty', 'I am thirsty.', 'something to drink', 'what can I drink?',
        'all the drinks', 'find the drinks', 'Hand me a drink.',
    ), (
        'I feel thirsty', 'I am very thirsty.', 'Give me something to drink, please.',
        'bring me a drink', 'Which things can I drink?', 'show me all the drinks',
        'Where are the drinks?', 'the drinks', 'What is there to drink?', 'I want a drink',
    )),
    'food': (('food', 'food'), (
        'I am hungry', 'I am hungry.', 'something to eat', 'what can I eat?',
        'all the food', 'find the food', 'Where is the food?',
    ), (
        'I feel hungry', 'I am very hungry.', 'Give me something to eat, please.',
        'bring me some food', 'Which things can I eat?', 'show me all the food',
        'the child is hungry', 'the food', 'What is there to eat?', 'I want some food',
    )),
    'toy': (('a toy', 'toys'), (
        'the child is bored', 'Find the toys.', 'something to play with',
        'what can a child play with?', 'all the toys', 'find the toys', 'Put the toys away.',
    ), (
        'I am bored', 'Give me something to play with, please.', 'bring me a toy',
        'Which things can a child play with?', 'show me all the toys', 'Where are the toys?',
        'the toys', 'What is there to play with?', 'The child wants to play.', 'I want a toy',
    )),
    'dish': (('a dish', 'dishes'), (
        'set the table', 'Set the table.', 'something to eat from',
        'what goes into the dishwasher?', 'all the dishes', 'find the dishes', 'Wash the dishes.',
    ), (
        'fill the dishwasher', 'Give me something to eat from, please.', 'bring me the dishes',
        'Put the dishes into the dishwasher.', 'show me all the dishes', 'Where are the dishes?',
        'the dishes', 'what can I eat from?', 'Please set the table.', 'I want to wash the dishes',
    )),
}  # fmt: skip
MORE = ('and {x}?', 'And {x}?', 'what about {x}?', 'now {x}', 'Now segment {x}.', 'also {x}')
LIST = ('what is on the table?', 'What do you see?', 'What is in this image?', 'name the things')
TELL = ('Tell me: {x}?', 'Tell me {x}.', 'Say {x}.', 'Tell me in words: {x}', 'Just say {x}.')
WHAT_FOR = ('what is it for?', 'What is it for?', 'why?', 'What can I do with it?')
COLOUR_OF = ('what colour is {x}?', 'What colour is {x}?', 'tell me the colour of {x}')
IS_THERE = ('is there {x}?', 'Is there {x}?', 'do you see {x}?', 'Can you see {x}?')
HOW_MANY = ('how many {x}?', 'How many {x} are there?', 'count the {x}')
THE_OTHER = ('the other one', 'The other one.', 'no, the other one', 'and the other one?')
THE_ONE = ('no, the {x} one', 'the {x} one', 'I mean the {x} one.', 'The {x} one, please.')
AROUND = {
    place: (
        f'what is {place} {{x}}?', f'Find {{x}} and show me what is {place} it.',
        f'the thing {place} {{x}}', f'What is {place} {{x}}?',
    )
    for place in PLACES
}  # fmt: skip


class NoHeldOutTemplate(Exception):  # noqa: N818  # no error: something else is asked instead
    """No wording is kept for exams."""


@functools.cache
def normalize(form: str) -> str:
    """Return a form without capitals and marks."""
    return ''.join(c for c in form.lower() if c.isalpha() or c in ' {}')


class PhraseSampler:
    """A person: draws what to say, from the wordings of lessons or from those kept for exams."""

    def __init__(
        self, rng: np.random.Generator, exam: bool = False, without: tuple[str, ...] = ()
    ):
        self.rng, self.exam, self.without = rng, exam, without

    def chance(self, p: float) -> bool:
        """Return True with probability p."""
        return self.rng.random() < p

    def choice(self, things):
        """Return one of a sequence, None of an empty one."""
        return things[self.rng.integers(len(things))] if len(things) else None

    def fill_template(
        self, forms: tuple[str, ...], x: str = '', more: tuple[str, ...] = ()
    ) -> str:
        """Return a wording of `x`, of those that are this voice's; lessons have some more.

        Raises:
            Unsaid: it is an exam's voice, and no wording of `x` is kept for exams.
        """
        kept = {normalize(f) for f in forms}
        for f in forms:  # a wording is kept with all that differ in capitals and marks alone
            if zlib.crc32(f'{f}|{x}'.encode()) % 3:
                kept.discard(normalize(f))
        mine = [f for f in forms if (normalize(f) in kept) == self.exam]
        mine += () if self.exam else more
        if self.exam and not mine:
            raise NoHeldOutTemplate
        form = self.choice(mine or forms)
        text = form.format(x=x)
        # People write as they like; a form that begins in capitals keeps them.
        return text[0].upper() + text[1:] if form.startswith('{') and self.chance(0.5) else text
