# SPDX-License-Identifier: Apache-2.0
"""Phrases for people and planners: the name of each object of an answer, and the text to speak.

The names are those that the model gives its masks. If it gives none, they come from the answer
("It is the red mug, [SEG]."), else from the command ("hand me the red mug"). No grammar is parsed:
a few rules fit how LISA models answer and how people command.

lisa-tabletop writes positions into answers about relations, in hundredths of the image's width and
height: "The bowl 30 88, left of it 22 58. It is the red mug, [SEG]." They are not for people.
"""

from __future__ import annotations

import re

import numpy as np

from lisa_ros.perception.masks import bounding_box
from lisa_ros.results import SEG, Segmentation, answer_text

MAX_NAME = 64  # length of a name [characters]
_SIGNS = ' .,;:!?"\''  # at the ends of a label

_POSITION = re.compile(r'\s*\b\d{1,2} \d{1,2}\b')
_SENTENCE = re.compile(r'[^.!?]+[.!?]*\s*')
_ARTICLE = re.compile(r'^(?:the|a|an|my|your|some)\s+', re.IGNORECASE)
_IDENTIFIED = re.compile(r'\b(?:it|this|that|they|these)\s+(?:is|are)\s+(.+)$', re.IGNORECASE)
_SUBJECT = re.compile(r'^\s*the\s+(.+)$', re.IGNORECASE)
_MODAL_VERBS = {'can', 'could', 'will', 'would', 'may', 'might', 'should', 'must'}
_VERBS = {'is', 'are', 'was', 'were', 'has', 'have', 'had', *_MODAL_VERBS}
_ADJECTIVES = {
    *('red', 'green', 'blue', 'yellow', 'orange', 'purple', 'pink', 'brown', 'black', 'white'),
    *('grey', 'gray', 'small', 'large', 'big', 'little', 'left', 'right', 'other', 'front'),
}
# Words before the object's name in a command, the longest first.
_REQUESTS = re.compile(
    r'^(?:and|please|can you|could you|would you|will you|i need|i want|i would like|where is|'
    r'where are|what is|which is|segment|find|show|hand|give|bring|get|fetch|grab|take|pick up|'
    r'pick|pass|look for|locate|detect|track|point at|point to|go to|drive to|me|us|at)\b\s*',
    re.IGNORECASE,
)
_ENDINGS = re.compile(
    r'[\s,]*(?:please|in this image|in the image|here|and say why|say why|and explain why|'
    r'explain why|(?:please )?output (?:the )?segmentation mask)$',
    re.IGNORECASE,
)
_LIST = re.compile(r'\s*(?:,\s*(?:and\s+)?|\band\b)\s*', re.IGNORECASE)


def object_names(result: Segmentation) -> tuple[str, ...]:
    """Return a name for each of the N masks, without article: "red mug".

    A name is never empty and has at most MAX_NAME characters: without any words it is "object".
    """
    if any(result.names):  # in the order of the masks; that of the command may be another
        names = [name or _asked_phrase(result.query) for name in result.names]
    else:
        names = _names_in_words(result)
    return tuple(name[:MAX_NAME].strip() or 'object' for name in names)


def labelled_name(label: str, query: str) -> str:
    """Return the name that a model's label gives an object; '' if it gives none.

    A label without a letter, such as "1", gives none. A label that repeats the whole command names
    all objects of it at once: "find the pan and the mug" gives "pan and the mug".

    Args:
        label: as the model wrote it, on one line.
        query: as the user typed it.
    """
    name = label.strip(_SIGNS)
    if _folded(name) == _folded(query):
        name = _asked_phrase(query)
    name = _ARTICLE.sub('', name)[:MAX_NAME].strip()
    return name if any(map(str.isalpha, name)) else ''


def spoken_answer(result: Segmentation) -> str:
    """Return the answer for people, with places in words: "It is the red mug on the right."

    The answer stays as it is if it has no positions in numbers.
    """
    sentences = _SENTENCE.findall(result.answer_raw)
    if not any(map(_POSITION.search, sentences)):
        return result.answer
    kept = [
        _POSITION.sub('', sentence)
        for sentence in sentences
        if SEG in sentence or not _POSITION.search(sentence)
    ]
    text = ''.join(kept)
    if text.count(SEG) == len(result.masks):
        places = iter([place_in_image(mask) for mask in result.masks])
        text = re.sub(rf'\s*,?\s*{re.escape(SEG)}', lambda _: f' {next(places)}', text)
    return answer_text(text) or result.answer


def place_in_image(mask: np.ndarray) -> str:
    """Return "on the left", "in the middle" or "on the right" of a (H, W) bool mask's box."""
    x, _, width, _ = bounding_box(mask)
    share = (x + width / 2) / max(1, mask.shape[1])
    return 'on the left' if share < 1 / 3 else 'on the right' if share > 2 / 3 else 'in the middle'


def _names_in_words(result: Segmentation) -> list[str]:
    """Return a name for each mask from the answer, else from the command; it may be empty."""
    count = len(result.masks)
    groups = _seg_groups(result.answer_raw)
    if sum(number for _, number in groups) != count:  # masks were left out: which is unknown
        groups = [('', count)] if count else []
    asked = _asked_names(result.query)
    names: list[str] = []
    for text, number in groups:
        answered = _answered_names(text)
        start = len(names)
        if answered:
            names += _distributed(answered, number)
        elif len(asked) == count:
            names += asked[start : start + number]
        else:
            names += [_asked_phrase(result.query)] * number
    return names


def _seg_groups(answer_raw: str) -> list[tuple[str, int]]:
    """Return the words before each row of [SEG] tokens, and how many follow each other."""
    groups: list[tuple[str, int]] = []
    *texts, _ = answer_raw.split(SEG)
    for text in texts:
        if groups and not _LIST.sub('', text).strip():
            words, number = groups[-1]
            groups[-1] = words, number + 1
        else:
            groups.append((text, 1))
    return groups


def _answered_names(text: str) -> list[str]:
    """Return the names in the sentence that ends before a [SEG]; none if it names nothing."""
    sentence = re.split(r'[.!?]', text)[-1].strip(' ,;:')
    identified = _IDENTIFIED.search(sentence)
    if identified:
        return _listed(identified[1])
    subject = _SUBJECT.match(sentence)
    if subject and not sentence.lower().startswith('the segmentation'):
        name = _before_verb(subject[1])
        return [name] if name else []
    return []


def _before_verb(words_text: str) -> str:
    """Return "soup can" of "soup can is a warm meal"; empty if no verb is found.

    Words that end with "s" count as verbs, except the first noun.
    """
    words = words_text.split()
    first_noun = next((i for i, word in enumerate(words) if word not in _ADJECTIVES), 0)
    for i in range(first_noun + 1, len(words)):
        follower = words[i + 1] if i + 1 < len(words) else ''
        is_noun = words[i] in _MODAL_VERBS and _is_finite(follower)  # "the soup can is"
        if _is_finite(words[i]) and not is_noun:
            return ' '.join(words[:i])
    return ''


def _is_finite(word: str) -> bool:
    return word in _VERBS or bool(re.fullmatch(r'[a-z]+[^s]s', word))


def _asked_phrase(query: str) -> str:
    """Return what a command asks for, without "hand me" and "please"."""
    text, before = query.strip().rstrip('.!? '), ''
    while text != before:
        before = text
        text = _ENDINGS.sub('', _REQUESTS.sub('', text)).rstrip('.!?, ')
    return _ARTICLE.sub('', text)


def _folded(text: str) -> str:
    """Return a text for comparison: in lower case, without signs at its ends and more spaces."""
    return ' '.join(text.casefold().split()).strip(_SIGNS)


def _asked_names(query: str) -> list[str]:
    return _listed(_asked_phrase(query))


def _listed(text: str) -> list[str]:
    """Return the names in "the pan, the mug and the bowl", without articles."""
    return [_ARTICLE.sub('', name) for name in _LIST.split(text.strip(' ,')) if name]


def _distributed(names: list[str], count: int) -> list[str]:
    """Return a name for each of `count` masks; all have the same if the numbers differ."""
    return names if len(names) == count else [' and '.join(names)] * count
