# SPDX-License-Identifier: Apache-2.0
"""Reads refCOCO, refCOCO+, refCOCOg, refCLEF and gRefCOCO, in the layout of their authors.

    refer_seg/refcoco/instances.json, refs(unc).p        (refcocog: refs(umd).p)
    refer_seg/grefcoco/instances.json, grefs(unc).json
    refer_seg/images/mscoco/images/train2014/*.jpg       (refclef: images/saiapr_tc-12)

Sources: github.com/lichengunc/refer, github.com/henghuiding/gRefCOCO. Each sentence of a
reference is a query. In gRefCOCO a sentence may refer to several instances or to none (annotation
id -1).
"""

from __future__ import annotations

import io
import pickle
import pickletools
from functools import partial
from pathlib import Path

from lisa_ros.datasets.annotations import AnnotatedImage, AnnotatedQuery, with_names
from lisa_ros.datasets.coco import CocoInstance, CocoInstances, read_instances
from lisa_ros.datasets.json_io import (
    ErrorHandler,
    raise_error,
    read_json,
    read_or_skip,
    validated_entries,
)
from lisa_ros.error_text import one_line, short_repr
from lisa_ros.errors import DataError
from lisa_ros.files.access import access_problem, readable_folder

_IMAGE_FOLDERS = {  # by name of the data set, relative to refer_seg
    'refclef': ('images/saiapr_tc-12', 'saiapr_tc-12'),
    'grefcoco': ('images/mscoco/images/train2014', 'images/train2014'),
}
_TO_ASCII = bytes(range(128)) + b'?' * 128
_MEMO_OPCODES = ('PUT', 'BINPUT', 'LONG_BINPUT')
_DEFAULT_IMAGE_FOLDERS = ('images/mscoco/images/train2014',)


class _PlainUnpickler(pickle.Unpickler):
    """Reads only lists, dicts, texts and numbers, so that a file cannot run code."""

    def find_class(self, module: str, name: str) -> object:
        """Refuse every class."""
        raise pickle.UnpicklingError(
            f'it contains the class {module}.{name}; expected only lists, dicts, texts and numbers'
        )


def _unpickled(raw: bytes) -> object:
    """Return the content of a pickle of lists, dicts, texts and numbers.

    Its claims are read first: for a memo of number 10^9 or an array of 10^11 bytes, in a file of
    10 bytes, the unpickler would allocate as much.

    Raises:
        Exception: of any type, if it is damaged, claims more than its bytes, or has other content.
    """
    try:
        _check_claims(raw)
    except UnicodeDecodeError:  # a text of Python 2, in which genops expects ASCII
        _check_claims(raw.translate(_TO_ASCII))
    return _PlainUnpickler(io.BytesIO(raw), encoding='latin1').load()  # by Python 2


def _check_claims(raw: bytes) -> None:
    """Raise an UnpicklingError for a memo of more values than there are bytes."""
    for opcode, argument, _ in pickletools.genops(raw):
        if opcode.name in _MEMO_OPCODES and argument > len(raw):
            raise pickle.UnpicklingError(f'it claims {argument} values in {len(raw)} bytes')


def read_refer(
    root: str | Path,
    split: str = 'train',
    split_author: str | None = None,
    *,
    on_error: ErrorHandler = raise_error,
) -> list[AnnotatedImage]:
    """Return the images of a split, with a query for each sentence.

    Args:
        root: folder of the data set, such as refer_seg/refcoco; its name selects the data set.
        split: train, val, test, testA, testB (refclef: also testC).
        split_author: author of the splits (unc, umd, google, berkeley); None: umd for refcocog,
            else unc.
        on_error: called for each reference that cannot be used; if it returns, the reference is
            left out.

    Raises:
        DataError: files are missing or broken, or there is no such split; the message names it.
    """
    root = readable_folder(root, 'instances.json and refs')
    split_author = split_author or ('umd' if root.name == 'refcocog' else 'unc')
    image_folder = _image_folder(root)
    content = read_instances(root / 'instances.json', image_folder, on_error)
    instances = content.by_id(root / 'instances.json')
    file, refs = _read_refs(root, split_author, on_error)
    splits = sorted({ref['split'] for ref in refs})
    if split not in splits:
        raise DataError(f'{file}: no split {split!r}; it has {", ".join(splits)}')
    queries: dict[int, list[AnnotatedQuery]] = {}
    for ref in refs:
        if ref['split'] == split:
            own = read_or_skip(partial(_queries, file, ref, content, instances), on_error)
            queries.setdefault(ref['image_id'], []).extend(own or ())
    images = [
        AnnotatedImage(content.image_paths[image], tuple(image_queries))
        for image, image_queries in queries.items()
        if image_queries
    ]
    if not images:
        raise DataError(f'{file}: the split {split!r} has no sentences')
    return with_names(images, image_folder)


def _image_folder(root: Path) -> Path:
    """Return the folder of the data set's images."""
    names = _IMAGE_FOLDERS.get(root.name, _DEFAULT_IMAGE_FOLDERS)
    folders = [root.parent / name for name in names]
    problems = [access_problem(folder) for folder in folders]
    if '' in problems:
        return folders[problems.index('')]
    problem = next((p for p in problems if not p.startswith('no such')), 'no such folder')
    raise DataError(f'{folders[0]}: {problem}; expected the images of {root.name}')


def _queries(
    file: Path, ref: dict, content: CocoInstances, instances: dict[int, CocoInstance]
) -> list[AnnotatedQuery]:
    """Return a query for each sentence that is not empty.

    In gRefCOCO a reference to nothing has the annotation id -1, and only it has no region.

    Raises:
        DataError: the reference names no annotation, an unknown one, or one without a mask.
    """
    ids = ref['ann_id'] if isinstance(ref['ann_id'], list) else [ref['ann_id']]
    if not all(isinstance(i, int) for i in ids) or not ids or (-1 in ids and set(ids) != {-1}):
        raise DataError(
            f'{file}: a reference to image {ref["image_id"]} has the annotation ids '
            f'{short_repr(ids)}; expected ids, or -1 alone for an absent object'
        )
    ids = [i for i in ids if i != -1]
    own = [instances[i] for i in ids if i in instances]
    is_known = len(own) == len(ids) and ref['image_id'] in content.image_paths
    if not is_known or any(instance.image != ref['image_id'] for instance in own):
        raise DataError(
            f'{file}: a reference names image {ref["image_id"]} and annotations {ids}, which '
            'instances.json does not contain; use two files of the same release'
        )
    for instance in own:
        instance.check()
    regions = tuple(instance.region for instance in own)
    sentences = validated_entries(file, ref, 'sentences', sent=str)
    texts = [entry['sent'].strip().lower() for entry in sentences]  # lower case, as in LISA's code
    return [AnnotatedQuery(text, False, regions) for text in texts if text]


def _read_refs(root: Path, split_author: str, on_error: ErrorHandler) -> tuple[Path, list[dict]]:
    """Return the file of references and its entries."""
    names = [
        f'{prefix}refs({split_author}).{suffix}'
        for prefix in ('', 'g')
        for suffix in ('p', 'json')
    ]
    file = next((root / name for name in names if (root / name).is_file()), None)
    if file is None:
        raise DataError(
            f'{root}: no references with the splits of {split_author}; expected '
            f'{" or ".join(names)}'
        )
    problem = access_problem(file)
    if problem:
        raise DataError(f'{file}: {problem}')
    if file.suffix == '.json':
        content = read_json(file)
    else:
        try:
            content = _unpickled(file.read_bytes())
        except Exception as error:  # a broken pickle raises many types
            raise DataError(
                f'{file}: cannot be read as refs ({type(error).__name__}: {one_line(error)})'
            ) from error
    return file, validated_entries(
        file, content, None, on_error, image_id=int, ann_id=(int, list), split=str, sentences=list
    )
