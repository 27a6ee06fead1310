# SPDX-License-Identifier: Apache-2.0
"""Folders of pictures that people have labelled, as ReasonSeg has them and labelme writes them.

ReasonSeg (LISA, section 3.2): beside each picture a JSON file of the same name:

    {"text": ["the thing that keeps her warm"], "is_sentence": false,
     "shapes": [{"label": "target", "points": [[x, y], ...]}, {"label": "ignore", ...}]}

All "target" shapes together are the mask that each text asks for; pixels of "ignore" count
neither way; "flag" is left over from labelling and means nothing.

A file without "text", as labelme's window makes it, asks by its labels: every label but target,
ignore and flag is a thing of that name ("the red mug"), one mask for all shapes of the label.

A folder of masks is read to the same end: beside `kitchen.jpg` a folder `kitchen/` with
`red mug.png` in it, (H, W), 0 outside of the red mug.

Explanations, which ReasonSeg keeps in explanatory/train.json, are a list of {"image", "query",
"outputs"}; they are found as `explanations.json` in the folder, or as `<folder>.json` in a folder
`explanatory` beside it.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from lisa_ros.datasets import json_io
from lisa_ros.datasets.annotations import IMAGE_SUFFIXES, AnnotatedImage, Polygon, Query, size_of
from lisa_ros.datasets.json_io import Broken, raise_error, read_json
from lisa_ros.errors import DataError
from lisa_ros.model.image_processing import UNREADABLE

_EXPLANATIONS = 'explanations.json'
_Asked = tuple[Path, tuple[Query, ...]]

# ---- folders


def read_folder(folder: str | Path, broken: Broken = raise_error) -> list[AnnotatedImage]:
    """Return the labelled pictures of a folder, by name; those without labels are left out.

    Every JSON file is read and checked here, and every picture's size, so that what is broken is
    named before a training begins; only a picture's pixels are read when they are drawn.

    Args:
        folder: of pictures and labels.
        broken: what becomes of a file that cannot be used; what it belongs to is left out if this
            returns.

    Raises:
        DataError: no picture is labelled; or a file is broken: the message names it.
    """
    folder = json_io.folder(folder, 'pictures with labels')
    why = _read_explanations(folder)
    pictures: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in IMAGE_SUFFIXES and pictures.setdefault(path.stem, path) != path:
            broken(DataError(f'{path}: {pictures[path.stem].name} has the same name; rename one'))
    labels = [p for p in sorted(folder.glob('*.json')) if p.name != _EXPLANATIONS]
    queries = dict(one for path in labels for one in _kept(broken, _of_json, path, pictures))
    for picture in pictures.values():
        for _, asked in _kept(broken, _of_masks, picture):
            queries[picture] = (*queries.get(picture, ()), *asked)
    labelled = [
        AnnotatedImage(p, asked, why.get(p.name, '')) for p, asked in sorted(queries.items())
    ]
    if not labelled:
        raise DataError(
            f'{folder}: {len(pictures)} pictures, none of them labelled; expected beside each a '
            'JSON file of the same name, as labelme writes it: `labelme FOLDER` makes them'
        )
    return labelled


def _kept(broken: Broken, read: Callable[..., list[_Asked]], *given: object) -> list[_Asked]:
    """Return what can be read; say of the rest that it is broken."""
    try:
        return read(*given)
    except DataError as error:
        broken(error)
        return []


def _of_json(path: Path, pictures: dict[str, Path]) -> list[_Asked]:
    """Return the picture that a JSON file is about, or nothing if it asks nothing."""
    if path.stem not in pictures:
        raise DataError(
            f'{path}: no picture {path.stem} ({", ".join(IMAGE_SUFFIXES)}) lies beside it; put it '
            'there or take the file away'
        )
    queries = read_labels(path)
    picture = pictures[path.stem]
    noted = read_json(path)
    width, height = _same_size(picture, path, noted.get('imageWidth'), noted.get('imageHeight'))
    for query in queries:
        for shape in (one for one in query.regions if one.mask is None):
            x, y = shape.points.T
            if x.max() < 0 or y.max() < 0 or x.min() >= width or y.min() >= height:
                raise DataError(
                    f'{path}: a shape {shape.label!r} lies outside of its picture of {width} x '
                    f'{height} pixels; draw it again'
                )
    return [(picture, queries)] if queries else []


def _of_masks(picture: Path) -> list[_Asked]:
    """Return a picture with the masks in the folder of its name, or nothing without any."""
    masks = sorted(picture.with_suffix('').glob('*.png'))
    shapes = [_mask_file(path) for path in masks]
    for path, shape in zip(masks, shapes, strict=True):
        _same_size(picture, path, *shape.mask.shape[::-1])
    queries = tuple(Query(p.stem, False, (s,)) for p, s in zip(masks, shapes, strict=True))
    return [(picture, queries)] if queries else []


def _same_size(
    picture: Path, labels: Path, width: int | None, height: int | None
) -> tuple[int, int]:
    """Hold the size that labels are for against the picture's, as a person sees it; return it.

    Raises:
        DataError: they differ, or the picture cannot be opened.
    """
    size = size_of(picture)
    if None not in (width, height) and (width, height) != size:
        raise DataError(
            f'{labels}: labels of {width} x {height} pixels for a picture of '
            f'{size[0]} x {size[1]} ({picture.name}); bring both to one size'
        )
    return size


def read_labels(path: Path) -> tuple[Query, ...]:
    """Return what a JSON file of labels asks; nothing if it has neither texts nor shapes.

    Raises:
        DataError: it is none, naming the file, what is wrong and what was expected.
    """
    plain = read_json(path)
    if not isinstance(plain, dict) or not isinstance(plain.get('shapes'), list):
        raise DataError(f'{path}: no labels; expected an object with a list "shapes", as labelme')
    shapes = [_shape(path, entry) for entry in plain['shapes']]
    shapes = [shape for shape in shapes if shape.label.lower() != 'flag']
    ignored = tuple(shape for shape in shapes if shape.ignored)
    targets = [shape for shape in shapes if not shape.ignored]
    texts = plain.get('text') or []
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not all(isinstance(t, str) and t.strip() for t in texts):
        raise DataError(f'{path}: "text" is {texts!r}; expected a list of instructions')
    if texts and ignored and not targets:
        raise DataError(
            f'{path}: asks {texts[0]!r} and labels nothing but what is ignored; draw its target'
        )
    if texts:
        # in ReasonSeg whatever is not ignored is the target, whatever its label
        is_sentence = plain.get('is_sentence')
        return tuple(
            Query(
                text.strip(),
                _looks_like_a_sentence(text) if is_sentence is None else bool(is_sentence),
                (*targets, *ignored),
            )
            for text in texts
        )
    names = list(dict.fromkeys(shape.label.strip() for shape in targets))
    if any(name.lower() == 'target' for name in names):
        raise DataError(
            f'{path}: has shapes "target" and no "text" that says what they are; add "text": '
            '["an instruction"], or label the shapes by what they show'
        )
    return tuple(
        Query(name, False, (*(s for s in targets if s.label.strip() == name), *ignored))
        for name in names
    )


def _looks_like_a_sentence(text: str) -> bool:
    return text.rstrip().endswith(('.', '?', '!'))


def _read_explanations(folder: Path) -> dict[str, str]:
    """Return explanations by picture's name, if there are any."""
    own, beside = folder / _EXPLANATIONS, folder.parent / 'explanatory' / f'{folder.name}.json'
    path = next((p for p in (own, beside) if p.is_file()), None)
    if path is None:
        return {}
    entries = read_json(path)
    try:
        return {str(entry['image']): str(entry['outputs']) for entry in entries}
    except (TypeError, KeyError) as error:
        raise DataError(
            f'{path}: no explanations ({error!r}); expected a list of {{"image": name, '
            '"query": text, "outputs": explanation}'
        ) from error


# ---- shapes


def _shape(path: Path, entry: object) -> Polygon:
    """Return a shape of a JSON file: polygon, rectangle, circle or mask."""
    try:
        label, kind = entry['label'], entry.get('shape_type') or 'polygon'
        points = np.array(entry['points'], np.float64).reshape(-1, 2)
        if not isinstance(label, str) or not label.strip() or not np.isfinite(points).all():
            raise ValueError(f'label {label!r}, points {entry["points"]!r}')
        ignored = 'ignore' in label.lower()  # ReasonSeg has "ignore" and "ignored"
        if kind == 'mask' and len(points):
            return Polygon(label, points, _decoded(entry['mask']), ignored)
        return Polygon(label, _outline(kind, points), ignored=ignored)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f'{path}: a shape that cannot be read ({type(error).__name__}: {error}); expected '
            '{"label": name, "points": [[x, y], ...]} of a polygon, rectangle, circle or mask'
        ) from error


def _outline(kind: str, points: np.ndarray) -> np.ndarray:
    """Return the corners of a region, (n, 2), of the points that labelme keeps of it."""
    if kind == 'polygon' and len(points) >= 1:
        return points
    if kind == 'rectangle' and len(points) == 2:
        (left, top), (right, bottom) = points
        return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    if kind == 'rectangle' and len(points) == 4:
        return points
    if kind == 'circle' and len(points) == 2:
        centre, edge = points
        angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
        ring = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        return centre + np.linalg.norm(edge - centre) * ring
    raise ValueError(f'a {kind} of {len(points)} points is no region')


def _decoded(text: str) -> np.ndarray:
    """Return the mask that labelme keeps as a PNG in base64, (h, w) bool."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(text))) as picture:
            return np.asarray(picture.convert('L')) > 0
    except (binascii.Error, *UNREADABLE) as error:
        raise ValueError(f'a mask that is no PNG: {error}') from error


def _mask_file(path: Path) -> Polygon:
    """Return a mask of a folder of masks.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with Image.open(path) as picture:
            mask = np.asarray(picture.convert('L')) > 0
    except UNREADABLE as error:
        raise DataError(f'{path}: no mask that can be read ({error}); save it again') from error
    return Polygon(path.stem, np.zeros((1, 2)), mask)
