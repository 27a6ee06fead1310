# SPDX-License-Identifier: Apache-2.0
"""Reads text, JSON and YAML files of other people, with errors that name the file and the cure.

All of them are UTF-8, with or without a byte order mark. Bytes of another encoding are refused and
never guessed: "café" in GBK would be trained, spoken and compared as other words.
"""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import TypeVar

import yaml

from lisa_ros.error_text import one_line, short_repr
from lisa_ros.errors import DataError
from lisa_ros.files.access import access_problem, describe_error

File = Path | zipfile.Path
_MERGE = 'tag:yaml.org,2002:merge'
_DEFAULT = 'tag:yaml.org,2002:value'  # of the key "="; PyYAML reads it as text
_Item = TypeVar('_Item', bound=Hashable)

_LARGEST_IN_ARCHIVE = 10**9  # uncompressed size of a file [bytes]
# of files, and of damaged, encrypted or oddly compressed entries of an archive
_READ_ERRORS = (
    OSError,
    ValueError,
    EOFError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)
_BYTE_ORDER_MARKS = {
    b'\xff\xfe\x00\x00': 'UTF-32',
    b'\x00\x00\xfe\xff': 'UTF-32',
    b'\xff\xfe': 'UTF-16',
    b'\xfe\xff': 'UTF-16',
}


def read_bytes(path: File) -> bytes:
    """Return the content of a file, in a folder or in a zip archive.

    Raises:
        DataError: it is missing, may not be read, or is too large to be true in an archive.
    """
    problem = access_problem(path) if isinstance(path, Path) else ''
    if problem:
        raise DataError(f'{path}: {problem}')
    try:
        if isinstance(path, zipfile.Path):
            size = path.root.getinfo(path.at).file_size
            if size > _LARGEST_IN_ARCHIVE:
                raise DataError(f'{path}: has {size} bytes; expected at most 1 GB')
        return path.read_bytes()
    except KeyError as error:
        raise DataError(f'{path}: no such file in the archive') from error
    except _READ_ERRORS as error:
        raise DataError(f'{path}: cannot be read ({describe_error(path, error)})') from error


def read_text(path: File) -> str:
    """Return the content of a UTF-8 file, without a byte order mark.

    Raises:
        DataError: it is missing, may not be read, or is not UTF-8.
    """
    raw = read_bytes(path)
    try:
        return raw.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        marks = (name for mark, name in _BYTE_ORDER_MARKS.items() if raw.startswith(mark))
        encoding = next(marks, 'GBK')
        found = f'byte 0x{raw[error.start]:02x} at position {error.start}'
        raise DataError(
            f'{path}: is not UTF-8 ({found}); save it as UTF-8, or convert it from its own '
            f'encoding, for example `iconv -f {encoding} -t UTF-8 FILE > NEW_FILE` (GBK, CP1252, '
            'UTF-16, ...)'
        ) from error


def read_json(path: File) -> object:
    """Return the content of a JSON file.

    Raises:
        DataError: it cannot be read, is not UTF-8 or not JSON, or has a key twice in an object.
    """
    text = read_text(path)
    try:
        return checked_characters(text, json.loads(text, object_pairs_hook=unique_keys))
    except (ValueError, RecursionError) as error:
        raise DataError(
            f'{path}: cannot be read as JSON ({one_line(error)}); copy or save it again'
        ) from error


def unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return the object of these keys and values, for `json.loads`.

    Raises:
        ValueError: a key occurs twice; one of its values would be lost silently.
    """
    content = dict(pairs)
    if len(content) < len(pairs):
        twice = _first_repeated(key for key, _ in pairs)
        raise ValueError(f'the key {short_repr(twice)} occurs twice in an object')
    return content


def _first_repeated(items: Iterable[_Item]) -> _Item | None:
    """Return the first item that equals an earlier one; None without one."""
    earlier: set[_Item] = set()
    for item in items:
        if item in earlier:
            return item
        earlier.add(item)
    return None


_HALF_CHARACTER = re.compile(r'\\[uU](?:0000)?[dD][89a-fA-F]')  # also of a valid pair


def checked_characters(text: str, content: object) -> object:
    r"""Return the content of JSON or YAML text, if all of its characters are whole.

    JSON writes an emoji as two escapes. Half of such a pair, \ud83d alone, is no character: it
    cannot be written to a file, a message or a tokenizer.

    Raises:
        ValueError: a text or a key has half a character.
    """
    rest, visited = [content] if _HALF_CHARACTER.search(text) else [], set()
    while rest:
        value = rest.pop()
        if isinstance(value, str) and not is_encodable(value):
            raise ValueError(f'the text {short_repr(value)} has half a character')
        if id(value) not in visited and isinstance(value, dict | list):  # YAML may have loops
            visited.add(id(value))
            rest += [*value, *value.values()] if isinstance(value, dict) else value
    return content


def encodable(text: str) -> str:
    r"""Return a text that can be written as UTF-8.

    Bytes of a file name in another encoding are half characters in Python; they are escaped, as
    \udce9.
    """
    return text.encode(errors='backslashreplace').decode()


def is_encodable(text: str) -> bool:
    """Return whether a text can be written as UTF-8: it has no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_yaml(path: File) -> object:
    """Return the content of a YAML file, read without running any code.

    Raises:
        DataError: it cannot be read, is not UTF-8 or not YAML, or has a key twice in a mapping.
    """
    return parse_yaml(read_text(path), str(path))


def parse_yaml(text: str, source: str) -> object:
    """Return the content of YAML text.

    Raises:
        DataError: it is not YAML, or has a key twice in a mapping; the message starts with
            `source`.
    """
    try:
        content = yaml.load(text, _UniqueKeyLoader)  # noqa: S506  # a SafeLoader
        return checked_characters(text, content)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise DataError(f'{source}: cannot be read as YAML ({one_line(error)})') from error


class _UniqueKeyLoader(yaml.SafeLoader):
    """A SafeLoader that refuses a key that occurs twice in a mapping.

    Keys are compared as Python compares them: 1 and "1" are two keys, 1 and 0x1 are one.
    """

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        # before any merge: a merge adds the keys of other mappings to the node
        node = super().compose_mapping_node(anchor)
        scalars = (key for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        # in a tuple, as a key may be null
        twice = _first_repeated((self._key(scalar),) for scalar in scalars)
        if twice is not None:
            name = short_repr('<<' if twice[0] == _MERGE else twice[0])
            raise yaml.constructor.ConstructorError(
                None, None, f'the key {name} occurs twice', node.start_mark
            )
        return node

    def _key(self, scalar: yaml.ScalarNode) -> object:
        """Return a key; "<<", which merges another mapping, has no value of its own."""
        if scalar.tag == _DEFAULT:
            return scalar.value
        return scalar.tag if scalar.tag == _MERGE else self.construct_object(scalar)
