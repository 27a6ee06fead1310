# SPDX-License-Identifier: Apache-2.0
"""A data set by one text, as a command line gives it: `FOLDER`, or `KIND:PATH[:MORE]`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

from lisa_ros.datasets.annotations import Picture
from lisa_ros.datasets.coco import read_coco
from lisa_ros.datasets.json_io import Broken, raise_error
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


def read(text: str | Path, broken: Broken = raise_error) -> list[Picture] | list[TextDialogue]:
    """Return a data set's pictures, or its talks.

    Args:
        text: a folder as `reasonseg.read_folder` reads it, or a kind of READERS with what its
            reader takes: `coco:instances.json:pictures`, `refer:refer_seg/refcoco:val`,
            `llava:llava_instruct_150k.json:train2017`.
        broken: what becomes of a file of a folder that cannot be used (`reading.Broken`).

    Raises:
        SettingsError: too many or too few parts are given.
        DataError: as the reader.
    """
    kind, *given = str(text).split(':')
    if kind not in READERS or not given:
        return read_folder(text, broken)
    try:
        inspect.signature(READERS[kind]).bind(*given)
    except TypeError as error:
        raise SettingsError(f'{text}: {error}; expected {usage(kind)}') from error
    return READERS[kind](*given)


def usage(kind: str) -> str:
    """Return how a data set of a kind is named: `refer:ROOT[:SPLIT[:BY]]`."""
    parts = inspect.signature(READERS[kind]).parameters.values()
    texts = [('[:{}' if p.default is not p.empty else ':{}').format(p.name.upper()) for p in parts]
    return kind + ''.join(texts) + ']' * sum(text.startswith('[') for text in texts)
