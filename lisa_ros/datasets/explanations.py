# SPDX-License-Identifier: Apache-2.0
"""Reads why a region answers a query, and gives each query of an image its explanation.

Explanations are a list of {"image", "query", "outputs"}. The file is `explanations.json` in the
folder of the images or, as in ReasonSeg, `../explanatory/FOLDER.json`. In ReasonSeg an image has
one target, so that its explanation holds for all its texts, whatever its query; of several the
last one counts, as in LISA's code. An image with named objects has an explanation for each name.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lisa_ros.datasets.annotations import AnnotatedQuery, name_key
from lisa_ros.datasets.json_io import ErrorHandler, read_json
from lisa_ros.error_text import one_line, short_repr
from lisa_ros.errors import DataError
from lisa_ros.files.access import is_missing
from lisa_ros.files.json_schema import ANYTHING, TEXT, ListOf, Record, check_json

EXPLANATIONS_FILE = 'explanations.json'
_SCHEMA = ListOf(Record({'image': TEXT, 'outputs': TEXT}, {'query': ANYTHING}))


@dataclass(frozen=True)
class Explanation:
    """An entry of a file of explanations."""

    image: str  # name of the file
    query: str  # '': the entry has none
    text: str
    source: str  # file and entry, for error messages


def read_explanations(
    folder: Path, images: Iterable[str], on_error: ErrorHandler
) -> dict[str, list[Explanation]]:
    """Return the explanations by the name of their image; empty if there is no file.

    Args:
        folder: of the images.
        images: names of the images in it.
        on_error: called for each entry of `explanations.json` about another image; if it returns,
            the entry is left out. ReasonSeg's file may be about images that are not copied.

    Raises:
        DataError: the file cannot be read, or `on_error` raised it.
    """
    own, published = (
        folder / EXPLANATIONS_FILE,
        folder.parent / 'explanatory' / f'{folder.name}.json',
    )
    path = next((path for path in (own, published) if not is_missing(path)), None)
    by_image: dict[str, list[Explanation]] = {name: [] for name in images}
    if path is None:
        return by_image
    spelling = {unicodedata.normalize('NFC', name): name for name in by_image}
    for entry in _read_entries(path):
        image = spelling.get(unicodedata.normalize('NFC', entry.image))
        if image is not None:
            by_image[image].append(entry)
        elif path == own:
            on_error(
                DataError(
                    f'{entry.source} is about {short_repr(entry.image)}; expected the name of an '
                    f'image in {folder}, with its suffix: correct it, or remove the entry'
                )
            )
    return by_image


def _read_entries(path: Path) -> list[Explanation]:
    entries = read_json(path)
    try:
        check_json(path, entries, _SCHEMA)
    except DataError as error:
        raise DataError(
            f'{path}: cannot be read as explanations ({one_line(error)}); expected a list of '
            '{"image": name, "query": text, "outputs": explanation}'
        ) from error
    return [
        Explanation(
            entry['image'],
            entry['query'] if isinstance(entry.get('query'), str) else '',
            entry['outputs'],
            f'{path}: entry {index}',
        )
        for index, entry in enumerate(entries)
    ]


def with_explanations(
    texts: Sequence[AnnotatedQuery],
    names: Sequence[AnnotatedQuery],
    entries: Sequence[Explanation],
    on_error: ErrorHandler,
) -> tuple[AnnotatedQuery, ...]:
    """Return the queries of an image, texts first, each with its explanation.

    Args:
        texts: queries that share one target.
        names: queries for one object each.
        entries: the explanations of the image.
        on_error: called for each entry that cannot be given to a query; if it returns, the entry
            is left out.
    """
    of_name = {name_key(query.text): '' for query in names}
    known_texts = {'', *(name_key(query.text) for query in texts)}
    of_texts = ''
    for entry in entries:
        key = name_key(entry.query)
        if not key and len(of_name) == 1 and not texts:
            key = next(iter(of_name))
        if key in of_name:
            of_name[key] = entry.text
        elif texts and (key in known_texts or not names):
            of_texts = entry.text
        elif names:  # else the image has no annotations, and is skipped
            known = ', '.join(short_repr(query.text) for query in (*texts, *names))
            query = f'the query {short_repr(entry.query)}' if entry.query else 'no query'
            on_error(
                DataError(
                    f'{entry.source}, about {entry.image}, has {query}; expected one of {known}: '
                    'correct it, or remove the entry'
                )
            )
    return (
        *(replace(query, explanation=of_texts) for query in texts),
        *(replace(query, explanation=of_name[name_key(query.text)]) for query in names),
    )
