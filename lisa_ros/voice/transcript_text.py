# SPDX-License-Identifier: Apache-2.0
"""The text of a transcript in any script: its words, its annotations and the wake phrase."""

from __future__ import annotations

import re
import unicodedata

# What speech engines write for sounds without words: "[BLANK_AUDIO]", "(music)", "*coughs*".
_ANNOTATION = re.compile(
    r'\[[^\[\]]*\]|\([^()]*\)|（[^（）]*）|【[^【】]*】|\*(?=\S)[^*]*(?<=\S)\*'
)
# between a wake phrase and its command
_SEPARATORS = ' ,.;:!?…–—-，。、；：！？"”»」』'
# Scripts that are written without spaces, by the start of the Unicode names of their letters.
_UNSPACED = ('CJK', 'HIRAGANA', 'KATAKANA', 'BOPOMOFO', 'THAI', 'LAO', 'KHMER', 'MYANMAR')


def normalize(text: str) -> str:
    """Return a text in lower case, without punctuation, with single spaces.

    Letters, their marks and digits of every script are kept, and apostrophes.
    """
    return ' '.join(word for word, _ in _words(_composed(text)))


def without_annotations(text: str) -> str:
    """Return a transcript without descriptions of sounds, with single spaces."""
    return ' '.join(_ANNOTATION.sub(' ', text).split())


def without_wake_phrase(text: str, phrase: str) -> str | None:
    """Return what follows the wake phrase at the start of a transcript; None: it is not there.

    A script without spaces has none after the phrase: "你好給我杯子".

    Args:
        text: of the transcript; its case and punctuation are kept.
        phrase: as `normalize` returns it, not empty.
    """
    text, wanted = _composed(text), phrase.split()
    words = _words(text)[: len(wanted)]
    if len(words) < len(wanted):
        return None
    *first, (last, end) = words
    if [word for word, _ in first] != wanted[:-1] or not last.startswith(wanted[-1]):
        return None
    command_part = len(last) - len(wanted[-1])  # letters of the last word after the phrase
    if command_part and not unicodedata.name(phrase[-1], '').startswith(_UNSPACED):
        return None
    rest = text[end - command_part :].lstrip(_SEPARATORS)
    return rest if normalize(rest) else ''


def _composed(text: str) -> str:
    """Return a text with composed letters and plain apostrophes."""
    return unicodedata.normalize('NFC', text).replace('’', "'")


def _words(text: str) -> list[tuple[str, int]]:
    """Return the words of a composed text in lower case, each with its end in the text."""
    letters = ''.join(
        char if char == "'" or unicodedata.category(char)[0] in 'LMN' else ' ' for char in text
    )
    return [(word[0].lower(), word.end()) for word in re.finditer(r'\S+', letters)]
