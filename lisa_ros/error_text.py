# SPDX-License-Identifier: Apache-2.0
"""Quotes what came from outside in errors, reasons and log lines: one line, limited length.

Messages of libraries have several lines, and values of files and requests may be large or deep.
"""

from __future__ import annotations

import reprlib
import unicodedata

MAX_CHARS = 1500  # of an error message
_CURE_CHARS = 400  # at the end of a message that is too long
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 3, 80, 80, 40
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 6


def one_line(value: object, max_chars: int = 300) -> str:
    """Return a text or the message of an error on one line, cut after `max_chars` characters.

    An error without a message gives the name of its type.
    """
    if isinstance(value, RecursionError):
        return 'it is nested too deeply'
    text = ' '.join(str(value).split())
    if not text and isinstance(value, BaseException):
        return type(value).__name__
    return text if len(text) <= max_chars else f'{text[: max_chars - 3]}...'


def error_summary(error: BaseException) -> str:
    """Return the type and message of an error on one line."""
    name, message = type(error).__name__, one_line(error)
    return name if message == name else f'{name}: {message}'


def short_repr(value: object) -> str:
    """Return a value as Python writes it, shortened, however large or deep it is."""
    return _SHORT.repr(value)


def shortened(text: str, max_chars: int = 100) -> str:
    """Return a text; a long one is cut after `max_chars` characters, with its length."""
    return text if len(text) <= max_chars else f'{text[:max_chars]}... ({len(text)} characters)'


def without_middle(text: str) -> str:
    """Return a text; a long one keeps its beginning and its end, where the cure is."""
    if len(text) <= MAX_CHARS:
        return text
    start = MAX_CHARS - _CURE_CHARS - len(' [...] ')
    return f'{text[:start]} [...] {text[-_CURE_CHARS:]}'


def printable(text: str) -> str:
    r"""Return a text with line ends and control characters escaped, as \n, \x1b and \u202e."""
    return text if text.isprintable() else ''.join(map(_printable, text))


def _printable(character: str) -> str:
    if character.isprintable() or unicodedata.category(character) == 'Zs':  # a kind of space
        return character
    return character.encode('unicode_escape').decode('ascii')
