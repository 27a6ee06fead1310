# SPDX-License-Identifier: Apache-2.0
"""Reads folders of annotated images in the formats of ReasonSeg and of the program labelme.

In ReasonSeg (LISA, section 3.2) each image has a JSON file of the same name next to it:

    {"text": ["the thing that keeps her warm"], "is_sentence": false,
     "shapes": [{"label": "target", "points": [[x, y], ...]}, {"label": "ignore", ...}]}

Each text is a query. Its mask is the union of all "target" shapes. Pixels of "ignore" shapes are
left out of losses and metrics. "flag" shapes are annotation notes and are skipped. A text with
`"shapes": []` asks for something that is not there; no other file says so.

labelme writes files without "text". There each label is a query, except target, ignore and flag:
the label is the name of an object ("the red mug"), its mask the union of all its shapes.

Masks can also be PNG files. The folder `kitchen/` next to `kitchen.jpg` then has a file for each
query, such as `red mug.png`: (H, W), not 0 on the red mug, 0 elsewhere. `images.mask_file` says
what this means for palettes, transparency and colours.

Labels that differ only in case are one query ("Mug", "mug"); two masks are an error. The module
`explanations.py` reads the explanations of the answers.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from lisa_ros.datasets.annotations import (
    IMAGE_SUFFIXES,
    AnnotatedImage,
    AnnotatedQuery,
    Polygon,
    image_error,
    image_size,
    name_key,
    phrase,
    unify_spellings,
    with_names,
)
from lisa_ros.datasets.explanations import (
    EXPLANATIONS_FILE,
    read_explanations,
    with_explanations,
)
from lisa_ros.datasets.json_io import ErrorHandler, raise_error, read_json, read_or_skip
from lisa_ros.error_text import one_line, short_repr
from lisa_ros.errors import DataError, ImageError
from lisa_ros.files.access import is_missing, list_folder, readable_folder
from lisa_ros.images.mask_file import read_mask

_OTHER_MASK_SUFFIXES = tuple({*IMAGE_SUFFIXES, '.tif', '.tiff', '.gif'} - {'.png'})


@dataclass(frozen=True)
class _Labels:
    """The queries of an annotation file."""

    texts: tuple[AnnotatedQuery, ...] = ()  # all with the same regions
    names: tuple[AnnotatedQuery, ...] = ()  # of objects, each with its own

    @property
    def queries(self) -> tuple[AnnotatedQuery, ...]:
        return (*self.texts, *self.names)


# ---- folders


def read_folder(
    folder: str | Path, on_error: ErrorHandler = raise_error, *, explained: bool = True
) -> list[AnnotatedImage]:
    """Return the annotated images of a folder, sorted by name; skip images without annotations.

    It checks every JSON file, every shape and the size of every image, so that errors are found
    before a training starts. The pixels are read later.

    Args:
        folder: images and annotations.
        on_error: called for each file that cannot be used; if it returns, the file is skipped.
        explained: read the explanations, too; only a training needs them.

    Raises:
        DataError: no image is annotated, or `on_error` raised it; the message names the file.
    """
    folder = readable_folder(folder, 'images and annotations')
    images: dict[str, Path] = {}
    for path in list_folder(folder):
        if path.suffix.lower() in IMAGE_SUFFIXES and images.setdefault(path.stem, path) != path:
            on_error(
                DataError(
                    f'{path}: {images[path.stem].name} has the same stem; rename one of them'
                )
            )
    names = [path.name for path in images.values()]
    explanations = read_explanations(folder, names, on_error) if explained else {}
    labels: dict[Path, _Labels] = {}
    for path in list_folder(folder, '.json'):
        if path.name != EXPLANATIONS_FILE:
            own = read_or_skip(partial(_read_json_labels, path, images), on_error)
            if own and own.queries and images[path.stem] in labels:
                on_error(DataError(f'{path}: another file has the same stem; rename one of them'))
            elif own and own.queries:
                labels[images[path.stem]] = own
    for image in images.values():
        own = labels.get(image, _Labels())
        masks = read_or_skip(partial(_queries_of_masks, image, own.queries), on_error)
        if masks:
            labels[image] = _Labels(own.texts, (*own.names, *masks))
    annotated = [
        AnnotatedImage(
            image,
            with_explanations(own.texts, own.names, explanations.get(image.name, ()), on_error),
        )
        for image, own in sorted(labels.items())
    ]
    if not annotated:
        raise DataError(
            f'{folder}: {len(images)} images, none of them annotated; expected a JSON file of the '
            'same name next to each, as labelme writes it: run `labelme FOLDER`'
        )
    return with_names(annotated, folder)


def _read_json_labels(path: Path, images: dict[str, Path]) -> _Labels:
    """Return the queries of a JSON file; check that its shapes lie inside its image."""
    if path.stem not in images:
        raise DataError(
            f'{path}: there is no image {path.stem} ({", ".join(IMAGE_SUFFIXES)}) next to it; add '
            'the image, or remove this file'
        )
    labels = _read_labels(path)
    content = read_json(path)
    width, height = _check_size(
        images[path.stem], path, content.get('imageWidth'), content.get('imageHeight')
    )
    for query in labels.queries:
        query.check(height, width)
    return labels


def _queries_of_masks(
    image: Path, others: tuple[AnnotatedQuery, ...]
) -> tuple[AnnotatedQuery, ...]:
    """Return a query for each mask in the folder with the image's name; none without it.

    Raises:
        DataError: a mask cannot be used, or its query is one of `others` or of another mask.
    """
    folder = image.with_suffix('')
    files = [] if is_missing(folder) or folder.is_file() else list_folder(folder)
    for path in files:
        if path.suffix.lower() in _OTHER_MASK_SUFFIXES:
            raise DataError(
                f'{path}: a mask as {path.suffix[1:]}; expected PNG: save it as {path.stem}.png, '
                f'or move it out of the folder of the masks of {image.name}'
            )
    paths = [path for path in files if path.suffix.lower() == '.png']
    known = {name_key(query.text) for query in others}
    for path in paths:
        text = phrase(path.stem)
        if name_key(text) in known:
            raise DataError(
                f'{path}: there is another region of {short_repr(text)} in {image.name}, in a '
                'JSON file or a mask; keep one of them, or give them different names'
            )
        known.add(name_key(text))
    masks = [_read_mask(path) for path in paths]
    for path, mask in zip(paths, masks, strict=True):
        _check_size(image, path, *mask.mask.shape[::-1])
        if not mask.mask.any():
            raise DataError(
                f'{path}: has no pixel, which is not taken for an absent object; draw it, remove '
                f'the file, or write "text": ["{path.stem}"], "shapes": [] into '
                f'{image.stem}.json if it is not there'
            )
    return tuple(
        AnnotatedQuery(phrase(path.stem), False, (mask,))
        for path, mask in zip(paths, masks, strict=True)
    )


def _check_size(image: Path, labels: Path, width: object, height: object) -> tuple[int, int]:
    """Compare the size in an annotation file with the upright image's; return (width, height).

    Raises:
        DataError: they differ, or one of them is no number; or the image cannot be opened.
    """
    size = image_size(image)
    if not all(side is None or type(side) in (int, float) for side in (width, height)):
        raise DataError(
            f'{labels}: imageWidth and imageHeight are {short_repr((width, height))}; expected '
            f'the numbers {size[0]} and {size[1]}, or null'
        )
    if None not in (width, height) and (width, height) != size:
        raise DataError(
            f'{labels}: annotations of {width} x {height} pixels for an image of '
            f'{size[0]} x {size[1]} ({image.name}); scale both to one size'
        )
    return size


def _read_labels(path: Path) -> _Labels:
    """Return the queries of a JSON file; none if it has neither texts nor shapes.

    Raises:
        DataError: it is not an annotation file; the message says what was expected.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get('shapes'), list):
        raise DataError(
            f'{path}: has no annotations; expected a JSON object with a list "shapes", as labelme '
            'writes it'
        )
    shapes = [_read_shape(path, *numbered) for numbered in enumerate(content['shapes'])]
    shapes = [shape for shape in shapes if shape.label.lower() != 'flag']
    ignored = tuple(shape for shape in shapes if shape.ignored)
    targets = [shape for shape in shapes if not shape.ignored]
    texts = _read_texts(path, content)
    if not texts:
        return _Labels(names=_queries_of_labels(path, targets, ignored))
    if content['shapes'] and not targets:
        kind = 'ignored shapes' if ignored else '"flag" shapes'
        raise DataError(
            f'{path}: has the text {short_repr(texts[0])}, but only {kind}; draw a shape "target"'
            + ('' if ignored else ', or write "shapes": [] if it is not there')
        )
    if targets and not any(map(_has_area, targets)):
        raise DataError(f'{targets[0].source}: {_NO_AREA}')
    # in ReasonSeg all shapes that are not ignored are the target, whatever their labels
    return _Labels(_queries_of_texts(texts, content.get('is_sentence'), (*targets, *ignored)))


def _read_texts(path: Path, content: dict) -> list[str]:
    """Return the texts of a JSON file of ReasonSeg; none if it has none.

    Raises:
        DataError: they are not texts, or `is_sentence` is not true or false.
    """
    texts = content.get('text') or []
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not all(isinstance(t, str) and t.strip() for t in texts):
        raise DataError(f'{path}: "text" is {short_repr(texts)}; expected a list of instructions')
    is_sentence = content.get('is_sentence')
    if is_sentence not in (None, True, False):
        raise DataError(
            f'{path}: "is_sentence" is {short_repr(is_sentence)}; expected true or false'
        )
    return texts


def _queries_of_texts(
    texts: list[str], is_sentence: object, regions: tuple[Polygon, ...]
) -> tuple[AnnotatedQuery, ...]:
    """Return a query for each text, all with the same regions."""
    return tuple(
        AnnotatedQuery(
            text.strip(),
            _looks_like_a_sentence(text) if is_sentence is None else bool(is_sentence),
            regions,
        )
        for text in texts
    )


def _queries_of_labels(
    path: Path, targets: list[Polygon], ignored: tuple[Polygon, ...]
) -> tuple[AnnotatedQuery, ...]:
    """Return a query for each label, with all shapes of this label as one mask."""
    names = unify_spellings(dict(enumerate(phrase(shape.label) for shape in targets)))
    if any(name.lower() == 'target' for name in names.values()):
        raise DataError(
            f'{path}: has "target" shapes, but no "text" for them; add "text": '
            '["an instruction"], or use object names as labels'
        )
    for shape in targets:
        if not _has_area(shape):
            raise DataError(f'{shape.source}: {_NO_AREA}')
    shapes: dict[str, list[Polygon]] = {}
    for index, shape in enumerate(targets):
        shapes.setdefault(names[index], []).append(shape)
    return tuple(AnnotatedQuery(name, False, (*own, *ignored)) for name, own in shapes.items())


def _looks_like_a_sentence(text: str) -> bool:
    return text.rstrip().endswith(('.', '?', '!'))


# ---- shapes

_SHAPE_TYPES = 'a polygon, rectangle, oriented_rectangle, circle or mask'
_BOX_TOLERANCE = 1.5  # between a mask and its box [px]: rounding, and ends that count or not
_NO_AREA = 'has fewer than 3 different points, and no area; draw it again, or remove it'


def _read_shape(path: Path, index: int, entry: object) -> Polygon:
    """Return a shape of a JSON file."""
    source = f'{path}: shape {index}'
    try:
        label, shape_type = entry['label'], entry.get('shape_type') or 'polygon'
        if not isinstance(label, str) or not label.strip():
            raise ValueError(f'label {short_repr(label)}')
        source = f'{source}, {short_repr(label)},'
        points = np.array(entry['points'], np.float64)
        if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
            raise ValueError(f'points {short_repr(entry["points"])}')
        ignored = 'ignore' in label.lower()  # ReasonSeg has "ignore" and "ignored"
        if shape_type == 'mask':
            mask = _decode_mask(entry['mask'])
            _check_box(points, mask)
            return Polygon(label, points, mask, ignored, source)
        return Polygon(label, _corners(shape_type, points), ignored=ignored, source=source)
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise DataError(
            f'{source} cannot be read ({type(error).__name__}: {one_line(error)}); expected '
            f'{{"label": name, "points": [[x, y], ...]}} of {_SHAPE_TYPES}'
        ) from error


def _corners(shape_type: str, points: np.ndarray) -> np.ndarray:
    """Return the corners of a region, (n, 2), from the points in labelme's file.

    "rotation" is X-AnyLabeling's name of an oriented rectangle.
    """
    if shape_type == 'polygon' and len(points) >= 1:
        return points
    if shape_type == 'rectangle' and len(points) == 2:
        (left, top), (right, bottom) = points
        return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    if shape_type in ('rectangle', 'oriented_rectangle', 'rotation') and len(points) == 4:
        return points
    if shape_type == 'circle' and len(points) == 2:
        centre, edge = points
        angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
        ring = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        return centre + np.linalg.norm(edge - centre) * ring
    raise ValueError(f'a {shape_type} with {len(points)} points has no area')


def _has_area(shape: Polygon) -> bool:
    """Return whether a shape is a mask, or has three different points."""
    return shape.mask is not None or len({tuple(point) for point in shape.points.tolist()}) > 2


def _decode_mask(text: str) -> np.ndarray:
    """Return the mask that labelme writes as a PNG in base64, (h, w) bool."""
    try:
        return read_mask(base64.b64decode(text), 'the mask').mask()
    except (binascii.Error, ImageError) as error:
        raise ValueError(f'the mask is not a PNG of a mask: {error}') from error


def _check_box(points: np.ndarray, mask: np.ndarray) -> None:
    """Check that a mask (h, w) fills the box of its points (n, 2), which labelme draws it into.

    A script that scales points alone leaves a mask of the old size at the new place.

    Raises:
        ValueError: it is smaller or larger, by more than a pixel; of one point, there is no box.
    """
    if len(points) < 2:
        return
    width, height = points.max(axis=0) - points.min(axis=0) + 1  # the last pixel belongs to it
    if abs(width - mask.shape[1]) > _BOX_TOLERANCE or abs(height - mask.shape[0]) > _BOX_TOLERANCE:
        raise ValueError(
            f'the mask has {mask.shape[1]} x {mask.shape[0]} pixels, the box of its points '
            f'{width:g} x {height:g}; scale both'
        )


def _read_mask(path: Path) -> Polygon:
    """Return the mask in a PNG file.

    Raises:
        DataError: it cannot be read, or is not clear; see `images.mask_file`.
    """
    try:
        mask = read_mask(path).mask()
    except ImageError as error:
        raise image_error(path, error, 'a mask') from error
    return Polygon(path.stem, np.zeros((1, 2)), mask, source=str(path))
