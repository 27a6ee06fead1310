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

import pickle
from pathlib import Path

from lisa_ros.datasets.annotations import AnnotatedImage, AnnotatedQuery
from lisa_ros.datasets.coco import CocoInstances, read_instances
from lisa_ros.datasets.json_io import existing_folder, read_json, validated_entries
from lisa_ros.errors import DataError

_IMAGE_FOLDERS = {  # by name of the data set, relative to refer_seg
    'refclef': ('images/saiapr_tc-12', 'saiapr_tc-12'),
    'grefcoco': ('images/mscoco/images/train2014', 'images/train2014'),
}
_DEFAULT_IMAGE_FOLDERS = ('images/mscoco/images/train2014',)


class _PlainUnpickler(pickle.Unpickler):
    """Reads only lists, dicts, texts and numbers, so that a file cannot run code."""

    def find_class(self, module: str, name: str) -> object:
        """Refuse every class."""
        raise pickle.UnpicklingError(
            f'it contains the class {module}.{name}; expected only lists, dicts, texts and numbers'
        )


def read_refer(
    root: str | Path, split: str = 'train', split_author: str | None = None
) -> list[AnnotatedImage]:
    """Return the images of a split, with a query for each sentence.

    Args:
        root: folder of the data set, such as refer_seg/refcoco; its name selects the data set.
        split: train, val, test, testA, testB (refclef: also testC).
        split_author: author of the splits (unc, umd, google, berkeley); None: umd for refcocog,
            else unc.

    Raises:
        DataError: files are missing or broken, or there is no such split; the message names it.
    """
    root = existing_folder(root, 'instances.json and refs')
    split_author = split_author or ('umd' if root.name == 'refcocog' else 'unc')
    instances = read_instances(root / 'instances.json', _image_folder(root))
    file, refs = _read_refs(root, split_author)
    splits = sorted({ref['split'] for ref in refs})
    if split not in splits:
        raise DataError(f'{file}: no split {split!r}; it has {", ".join(splits)}')
    queries: dict[int, list[AnnotatedQuery]] = {}
    for ref in refs:
        if ref['split'] == split:
            queries.setdefault(ref['image_id'], []).extend(_queries(file, ref, instances))
    images = [
        AnnotatedImage(instances.image_paths[image], tuple(image_queries))
        for image, image_queries in queries.items()
        if image_queries
    ]
    if not images:
        raise DataError(f'{file}: the split {split!r} has no sentences')
    return images


def _image_folder(root: Path) -> Path:
    """Return the folder of the data set's images."""
    names = _IMAGE_FOLDERS.get(root.name, _DEFAULT_IMAGE_FOLDERS)
    folders = [root.parent / name for name in names]
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if folder is None:
        raise DataError(f'{folders[0]}: no such folder; expected the images of {root.name}')
    return folder


def _queries(file: Path, ref: dict, instances: CocoInstances) -> list[AnnotatedQuery]:
    """Return a query for each sentence that is not empty; in gRefCOCO it may have no region."""
    ann_id = ref['ann_id']
    ids = [i for i in (ann_id if isinstance(ann_id, list) else [ann_id]) if i != -1]
    missing = [i for i in ids if i not in instances.regions]
    if missing or ref['image_id'] not in instances.image_paths:
        raise DataError(
            f'{file}: a reference names image {ref["image_id"]} and annotations {ids}, which '
            'instances.json does not contain; use two files of the same release'
        )
    regions = tuple(instances.regions[i] for i in ids)
    sentences = validated_entries(file, ref, 'sentences', sent=str)
    texts = [entry['sent'].strip().lower() for entry in sentences]  # lower case, as in LISA's code
    return [AnnotatedQuery(text, False, regions) for text in texts if text]


def _read_refs(root: Path, split_author: str) -> tuple[Path, list[dict]]:
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
    if file.suffix == '.json':
        content = read_json(file)
    else:
        try:
            with file.open('rb') as stream:
                content = _PlainUnpickler(stream, encoding='latin1').load()  # by Python 2
        except Exception as error:  # a broken pickle raises many types
            raise DataError(
                f'{file}: cannot be read as refs ({type(error).__name__}: {error})'
            ) from error
    return file, validated_entries(
        file, content, None, image_id=int, ann_id=(int, list), split=str, sentences=list
    )
