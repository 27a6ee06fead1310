# SPDX-License-Identifier: Apache-2.0
"""The text of a transcript in any script: its words, its annotations and the wake phrase."""

from __future__ import annotations

import re
import unicodedata

# What speech engines write for sounds without words: "[BLANK_AUDIO]", "(music)", "*coughs*".
_ANNOTATION = re.compile(
    r'\[[^\[\]]*\]|\([^()]*\)|（[^（）]*）|【[^【】]*】|\*(?=\S)[^*]*(?<=\S)\*'
)
_QUOTES = {'"': '"', "'": "'", '“': '”', '„': '“', '«': '»', '「': '」', '『': '』'}
_OPENING_PUNCTUATION = '¿¡'  # part of a sentence, as no other punctuation at its start
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

    A script without spaces has none after the phrase: "你好給我杯子". A word in Katakana is read
    to its end: "リサーチ" does not begin with the phrase "リサ".

    Args:
        text: of the transcript; its case and punctuation are kept.
        phrase: as `normalize` returns it, not empty.
    """
    text, wanted = _unquoted(_composed(text)), phrase.split()
    words = _words(text)[: len(wanted)]
    if len(words) < len(wanted):
        return None
    *first, (last, end) = words
    if [word for word, _ in first] != wanted[:-1] or not last.startswith(wanted[-1]):
        return None
    command_part = len(last) - len(wanted[-1])  # letters of the last word after the phrase
    rest = text[end - command_part :]
    if command_part and (
        not _is_of(phrase[-1], *_UNSPACED)
        or (_is_of(phrase[-1], 'KATAKANA') and _is_of(rest[0], 'KATAKANA'))
    ):
        return None
    return _without_separators(rest) if normalize(rest) else ''


def _is_of(letter: str, *scripts: str) -> bool:
    """Return whether a letter is of one of these scripts, by the start of its Unicode name."""
    return unicodedata.name(letter, '').startswith(scripts)


def _without_separators(text: str) -> str:
    """Return a text without the spaces and punctuation before it, and without quotes around it.

    A minus sign stays, and a quote that is closed within the text.
    """
    for start, char in enumerate(text):
        rest, category = text[start + 1 :], unicodedata.category(char)
        is_sign = category == 'Pd' and rest[:1].isdigit()
        is_quote = rest[:1].isalnum() and char in _QUOTES and _QUOTES[char] in rest
        if category[0] not in 'ZP' or is_sign or is_quote or char in _OPENING_PUNCTUATION:
            return _unquoted(text[start:])
    return ''


def _unquoted(text: str) -> str:
    """Return a text without the quotes around the whole."""
    end = _QUOTES.get(text[:1])
    is_quoted = len(text) > 1 and text[-1] == end and end not in text[1:-1]
    return text[1:-1] if is_quoted else text


def _composed(text: str) -> str:
    """Return a text with composed letters and plain apostrophes."""
    return unicodedata.normalize('NFC', text).replace('’', "'")


def _words(text: str) -> list[tuple[str, int]]:
    """Return the words of a composed text in lower case, each with its end in the text."""
    letters = ''.join(
        char if char == "'" or unicodedata.category(char)[0] in 'LMN' else ' ' for char in text
    )
    return [(word[0].lower(), word.end()) for word in re.finditer(r'\S+', letters)]
