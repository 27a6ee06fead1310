# SPDX-License-Identifier: Apache-2.0
"""refCOCO, refCOCO+, refCOCOg, refCLEF and gRefCOCO, as their authors publish them.

    refer_seg/refcoco/instances.json, refs(unc).p        (refcocog: refs(umd).p)
    refer_seg/grefcoco/instances.json, grefs(unc).json
    refer_seg/images/mscoco/images/train2014/*.jpg       (refclef: images/saiapr_tc-12)

github.com/lichengunc/refer, github.com/henghuiding/gRefCOCO. Each sentence of a ref is a query;
gRefCOCO's may mean several instances, or none at all, which is -1 there.
"""

from __future__ import annotations

import pickle
from pathlib import Path

from lisa_ros.datasets.annotations import AnnotatedImage, Query
from lisa_ros.datasets.coco import read_instances
from lisa_ros.datasets.json_io import folder, read_json, validated_entries
from lisa_ros.errors import DataError

_PICTURES = {
    'refclef': ('images/saiapr_tc-12', 'saiapr_tc-12'),
    'grefcoco': ('images/mscoco/images/train2014', 'images/train2014'),
}
_USUAL = ('images/mscoco/images/train2014',)


class _Plain(pickle.Unpickler):
    """Reads lists, dicts, texts and numbers: what refs are made of, and nothing that runs."""

    def find_class(self, module: str, name: str) -> object:
        """Refuse every class."""
        raise pickle.UnpicklingError(f'it wants {module}.{name}, which refs have no need of')


def read_refer(
    root: str | Path, split: str = 'train', by: str | None = None
) -> list[AnnotatedImage]:
    """Return the pictures of a split, with a query for each sentence.

    Args:
        root: the data set's folder, such as refer_seg/refcoco; its name tells which it is.
        split: train, val, test, testA, testB (refclef: also testC).
        by: who split it (unc, umd, google, berkeley); by default umd for refcocog, else unc.

    Raises:
        DataError: files are missing or broken, or there is no such split; the message names it.
    """
    root = folder(root, 'instances.json and refs')
    name = root.name
    by = by or ('umd' if name == 'refcocog' else 'unc')
    places = [root.parent / place for place in _PICTURES.get(name, _USUAL)]
    pictures = next((place for place in places if place.is_dir()), None)
    if pictures is None:
        raise DataError(f'{places[0]}: there is no such folder; expected the pictures of {name}')
    found = read_instances(root / 'instances.json', pictures)
    file, refs = _refs(root, by)
    splits = sorted({ref['split'] for ref in refs})
    if split not in splits:
        raise DataError(f'{file}: no split {split!r}; it has {", ".join(splits)}')
    queries: dict[int, list[Query]] = {}
    for ref in refs:
        if ref['split'] != split:
            continue
        number = ref['ann_id']
        numbers = [n for n in (number if isinstance(number, list) else [number]) if n != -1]
        missing = [n for n in numbers if n not in found.regions]
        if missing or ref['image_id'] not in found.pictures:
            raise DataError(
                f'{file}: a ref of picture {ref["image_id"]} with annotations {numbers} that '
                'instances.json does not have; take both files from one place'
            )
        regions = tuple(found.regions[n] for n in numbers)
        told = queries.setdefault(ref['image_id'], [])
        texts = [text.strip().lower() for text in _texts(file, ref)]  # so does the original
        told += [Query(text, False, regions) for text in texts if text]
    told = [AnnotatedImage(found.pictures[n], tuple(said)) for n, said in queries.items() if said]
    if not told:
        raise DataError(f'{file}: nothing is said in the split {split!r}')
    return told


def _texts(file: Path, ref: dict) -> list[str]:
    """Return what was said of it; gRefCOCO says [""] or more where nothing is meant, too."""
    return [one['sent'] for one in validated_entries(file, ref, 'sentences', sent=str)]


def _refs(root: Path, by: str) -> tuple[Path, list[dict]]:
    """Return the file of refs, and what it holds."""
    names = [f'{g}refs({by}).{end}' for g in ('', 'g') for end in ('p', 'json')]
    file = next((root / name for name in names if (root / name).is_file()), None)
    if file is None:
        raise DataError(f'{root}: no file of refs split by {by}; expected {" or ".join(names)}')
    if file.suffix == '.json':
        plain = read_json(file)
    else:
        try:
            with file.open('rb') as opened:
                plain = _Plain(opened, encoding='latin1').load()  # Python 2 wrote them
        except Exception as error:  # a broken pickle raises nearly anything
            raise DataError(
                f'{file}: no refs that can be read ({type(error).__name__}: {error})'
            ) from error
    return file, validated_entries(
        file, plain, None, image_id=int, ann_id=(int, list), split=str, sentences=list
    )
