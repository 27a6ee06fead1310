# SPDX-License-Identifier: Apache-2.0
"""Reads a whole data set once before a long run, so that nothing in it ends the run half-way.

Every image is decoded, and every region is compared with its image. That takes a few milliseconds
for each image, on all cores; a training or an evaluation takes hours.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TypeVar

from tqdm import tqdm

from lisa_ros.datasets import registry
from lisa_ros.datasets.annotations import (
    AnnotatedImage,
    AnnotatedQuery,
    ImageWithQueries,
    read_image,
)
from lisa_ros.datasets.json_io import check_image
from lisa_ros.datasets.llava import TextDialogue
from lisa_ros.errors import DataError, ErrorHandler

_Item = TypeVar('_Item', ImageWithQueries, TextDialogue)
_SILENT = 3.0  # a progress bar appears after this time [s]


def read_checked(
    text: str, on_error: ErrorHandler, limit: int | None = None, *, explained: bool = True
) -> list[ImageWithQueries] | list[TextDialogue]:
    """Return the items of a data set that can be used, after a check of every item.

    Args:
        text: as in `registry.read_dataset`.
        on_error: called for each item that cannot be used; if it returns, the item is left out.
        limit: use and check only the first items; None: all.
        explained: as in `registry.read_dataset`.

    Raises:
        SettingsError, DataError: as `registry.read_dataset`.
    """
    items = registry.read_dataset(text, on_error, explained=explained)
    return check_items(items[:limit], on_error, text)


def check_items(
    items: Sequence[_Item], on_error: ErrorHandler, source: str = 'the data set'
) -> list[_Item]:
    """Return the items that can be used, with the queries that can be used.

    Args:
        items: of a data set.
        on_error: called for each image and for each query that cannot be used; if it returns, the
            image or the query is left out.
        source: of the items, for messages.

    Raises:
        DataError: `on_error` raised it.
    """
    with ThreadPoolExecutor() as pool:
        results = pool.map(partial(_check_item, source=source), items)
        results = tqdm(results, 'checking', len(items), unit='image', delay=_SILENT)
        usable = []
        try:
            for item, errors in results:
                for error in errors:
                    on_error(error)
                if item is not None:
                    usable.append(item)
        finally:
            pool.shutdown(cancel_futures=True)
    return usable


def _check_item(item: _Item, source: str) -> tuple[_Item | None, list[DataError]]:
    """Return an item as it can be used, None if it cannot, and the errors in it."""
    try:
        height, width = read_image(check_image(item.path, source)).shape[:2]
        queries = () if isinstance(item, TextDialogue) else item.queries
    except DataError as error:
        return None, [error]
    errors: list[DataError] = []
    valid = [query for query in queries if _is_valid(query, height, width, errors.append)]
    if not errors:
        return item, []
    if not valid or not isinstance(item, AnnotatedImage):
        return None, errors
    return replace(item, queries=tuple(valid)), errors


def _is_valid(query: AnnotatedQuery, height: int, width: int, on_error: ErrorHandler) -> bool:
    """Return whether the regions of a query fit an image of this size."""
    try:
        query.check(height, width)
    except DataError as error:
        on_error(error)
        return False
    return True
