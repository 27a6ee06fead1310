# SPDX-License-Identifier: Apache-2.0
"""Data sets by one text, as on a command line: `FOLDER`, or `KIND:PATH[:MORE]`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

from lisa_ros.datasets.annotations import ImageWithQueries
from lisa_ros.datasets.coco import read_coco
from lisa_ros.datasets.json_io import ErrorHandler, raise_error
from lisa_ros.datasets.label_maps import read_ade20k, read_cocostuff, read_mapillary
from lisa_ros.datasets.llava import TextDialogue, read_llava
from lisa_ros.datasets.reasonseg import read_folder
from lisa_ros.datasets.refer import read_refer
from lisa_ros.errors import SettingsError

READERS: dict[str, Callable[..., list]] = {
    'coco': read_coco,
    'refer': read_refer,
    'ade20k': read_ade20k,
    'cocostuff': read_cocostuff,
    'mapillary': read_mapillary,
    'llava': read_llava,
}


def read_dataset(
    text: str | Path, on_error: ErrorHandler = raise_error, *, explained: bool = True
) -> list[ImageWithQueries] | list[TextDialogue]:
    """Return the annotated images of a data set, or its text dialogues.

    Args:
        text: a folder for `reasonseg.read_folder`; or a key of READERS with the arguments of its
            reader: `coco:instances.json:images`, `refer:refer_seg/refcoco:val`,
            `llava:llava_instruct_150k.json:train2017`.
        on_error: called for each file or entry that cannot be used; if it returns, the item is
            left out.
        explained: read the explanations of a folder, too; only a training needs them.

    Raises:
        SettingsError: there are too many or too few arguments.
        DataError: as the reader.
    """
    kind, *arguments = str(text).split(':')
    if kind not in READERS or not arguments:
        return read_folder(text, on_error, explained=explained)
    try:
        inspect.signature(READERS[kind]).bind(*arguments)
    except TypeError as error:
        raise SettingsError(f'{text}: {error}; expected {usage(kind)}') from error
    return READERS[kind](*arguments, on_error=on_error)


def usage(kind: str) -> str:
    """Return the form of a data set's text: `refer:ROOT[:SPLIT[:SPLIT_AUTHOR]]`."""
    parameters = inspect.signature(READERS[kind]).parameters.values()
    texts = [
        (':{}' if parameter.default is parameter.empty else '[:{}').format(parameter.name.upper())
        for parameter in parameters
        if parameter.kind is not parameter.KEYWORD_ONLY
    ]
    return kind + ''.join(texts) + ']' * sum(text.startswith('[') for text in texts)
