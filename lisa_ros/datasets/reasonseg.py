# SPDX-License-Identifier: Apache-2.0
"""Reads folders of annotated images in the formats of ReasonSeg and of the program labelme.

In ReasonSeg (LISA, section 3.2) each image has a JSON file of the same name next to it:

    {"text": ["the thing that keeps her warm"], "is_sentence": false,
     "shapes": [{"label": "target", "points": [[x, y], ...]}, {"label": "ignore", ...}]}

Each text is a query. Its mask is the union of all "target" shapes. Pixels of "ignore" shapes are
left out of losses and metrics. "flag" shapes are annotation notes and are skipped.

labelme writes files without "text". There each label is a query, except target, ignore and flag:
the label is the name of an object ("the red mug"), its mask the union of all its shapes.

Masks can also be PNG files. The folder `kitchen/` next to `kitchen.jpg` then has a file for each
query, such as `red mug.png`: (H, W), not 0 on the red mug, 0 elsewhere. `images.mask_file` says
what this means for palettes, transparency and colours.

Explanations are a list of {"image", "query", "outputs"}. The file is `explanations.json` in the
folder or, as in ReasonSeg, `../explanatory/FOLDER.json`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from lisa_ros.datasets.annotations import (
    IMAGE_SUFFIXES,
    AnnotatedImage,
    AnnotatedQuery,
    Polygon,
    image_size,
)
from lisa_ros.datasets.json_io import ErrorHandler, existing_folder, raise_error, read_json
from lisa_ros.errors import DataError, ImageError
from lisa_ros.images.mask_file import read_mask

_EXPLANATIONS = 'explanations.json'

# ---- folders


def read_folder(folder: str | Path, on_error: ErrorHandler = raise_error) -> list[AnnotatedImage]:
    """Return the annotated images of a folder, sorted by name; skip images without annotations.

    It checks every JSON file and the size of every image, so that errors are found before a
    training starts. The pixels are read later.

    Args:
        folder: images and annotations.
        on_error: called for each file that cannot be used; if it returns, the file is skipped.

    Raises:
        DataError: no image is annotated, or `on_error` raised it; the message names the file.
    """
    folder = existing_folder(folder, 'images and annotations')
    explanations = _read_explanations(folder)
    images: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in IMAGE_SUFFIXES and images.setdefault(path.stem, path) != path:
            on_error(
                DataError(
                    f'{path}: {images[path.stem].name} has the same stem; rename one of them'
                )
            )
    queries: dict[Path, tuple[AnnotatedQuery, ...]] = {}
    for path in sorted(folder.glob('*.json')):
        if path.name != _EXPLANATIONS:
            json_queries = _read_or_skip(partial(_queries_of_json, path, images), on_error)
            if json_queries:
                queries[images[path.stem]] = json_queries
    for image in images.values():
        mask_queries = _read_or_skip(partial(_queries_of_masks, image), on_error)
        if mask_queries:
            queries[image] = (*queries.get(image, ()), *mask_queries)
    annotated = [
        AnnotatedImage(image, image_queries, explanations.get(image.name, ''))
        for image, image_queries in sorted(queries.items())
    ]
    if not annotated:
        raise DataError(
            f'{folder}: {len(images)} images, none of them annotated; expected a JSON file of the '
            'same name next to each, as labelme writes it: run `labelme FOLDER`'
        )
    return annotated


def _read_or_skip(
    read: Callable[[], tuple[AnnotatedQuery, ...]], on_error: ErrorHandler
) -> tuple[AnnotatedQuery, ...]:
    """Return the queries that `read` returns; none if it fails and `on_error` returns."""
    try:
        return read()
    except DataError as error:
        on_error(error)
        return ()


def _queries_of_json(path: Path, images: dict[str, Path]) -> tuple[AnnotatedQuery, ...]:
    """Return the queries of a JSON file; check that its shapes lie inside its image."""
    if path.stem not in images:
        raise DataError(
            f'{path}: there is no image {path.stem} ({", ".join(IMAGE_SUFFIXES)}) next to it; add '
            'the image, or remove this file'
        )
    queries = read_labels(path)
    content = read_json(path)
    width, height = _check_size(
        images[path.stem], path, content.get('imageWidth'), content.get('imageHeight')
    )
    for query in queries:
        for shape in (region for region in query.regions if region.mask is None):
            x, y = shape.points.T
            if x.max() < 0 or y.max() < 0 or x.min() >= width or y.min() >= height:
                raise DataError(
                    f'{path}: a shape {shape.label!r} lies outside of the image, which has '
                    f'{width} x {height} pixels; draw it again'
                )
    return queries


def _queries_of_masks(image: Path) -> tuple[AnnotatedQuery, ...]:
    """Return a query for each mask in the folder with the image's name; none without it."""
    paths = sorted(image.with_suffix('').glob('*.png'))
    masks = [_read_mask(path) for path in paths]
    for path, mask in zip(paths, masks, strict=True):
        _check_size(image, path, *mask.mask.shape[::-1])
    return tuple(
        AnnotatedQuery(path.stem, False, (mask,)) for path, mask in zip(paths, masks, strict=True)
    )


def _check_size(
    image: Path, labels: Path, width: int | None, height: int | None
) -> tuple[int, int]:
    """Compare the size in an annotation file with the upright image's; return (width, height).

    Raises:
        DataError: they differ, or the image cannot be opened.
    """
    size = image_size(image)
    if None not in (width, height) and (width, height) != size:
        raise DataError(
            f'{labels}: annotations of {width} x {height} pixels for an image of '
            f'{size[0]} x {size[1]} ({image.name}); scale both to one size'
        )
    return size


def read_labels(path: Path) -> tuple[AnnotatedQuery, ...]:
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
    shapes = [_read_shape(path, entry) for entry in content['shapes']]
    shapes = [shape for shape in shapes if shape.label.lower() != 'flag']
    ignored = tuple(shape for shape in shapes if shape.ignored)
    targets = [shape for shape in shapes if not shape.ignored]
    texts = content.get('text') or []
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not all(isinstance(t, str) and t.strip() for t in texts):
        raise DataError(f'{path}: "text" is {texts!r}; expected a list of instructions')
    if texts and ignored and not targets:
        raise DataError(
            f'{path}: has the text {texts[0]!r}, but only ignored shapes; draw a shape "target"'
        )
    if texts:
        # in ReasonSeg all shapes that are not ignored are the target, whatever their labels
        return _queries_of_texts(texts, content.get('is_sentence'), (*targets, *ignored))
    return _queries_of_labels(path, targets, ignored)


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
    names = list(dict.fromkeys(shape.label.strip() for shape in targets))
    if any(name.lower() == 'target' for name in names):
        raise DataError(
            f'{path}: has "target" shapes, but no "text" for them; add "text": '
            '["an instruction"], or use object names as labels'
        )
    return tuple(
        AnnotatedQuery(
            name, False, (*(shape for shape in targets if shape.label.strip() == name), *ignored)
        )
        for name in names
    )


def _looks_like_a_sentence(text: str) -> bool:
    return text.rstrip().endswith(('.', '?', '!'))


def _read_explanations(folder: Path) -> dict[str, str]:
    """Return explanations by image name; empty if there is no file."""
    candidates = (
        folder / _EXPLANATIONS,
        folder.parent / 'explanatory' / f'{folder.name}.json',
    )
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        return {}
    entries = read_json(path)
    try:
        return {str(entry['image']): str(entry['outputs']) for entry in entries}
    except (TypeError, KeyError) as error:
        raise DataError(
            f'{path}: cannot be read as explanations ({error!r}); expected a list of '
            '{"image": name, "query": text, "outputs": explanation}'
        ) from error


# ---- shapes


def _read_shape(path: Path, entry: object) -> Polygon:
    """Return a shape of a JSON file: polygon, rectangle, circle or mask."""
    try:
        label, shape_type = entry['label'], entry.get('shape_type') or 'polygon'
        points = np.array(entry['points'], np.float64).reshape(-1, 2)
        if not isinstance(label, str) or not label.strip() or not np.isfinite(points).all():
            raise ValueError(f'label {label!r}, points {entry["points"]!r}')
        ignored = 'ignore' in label.lower()  # ReasonSeg has "ignore" and "ignored"
        if shape_type == 'mask' and len(points):
            return Polygon(label, points, _decode_mask(entry['mask']), ignored)
        return Polygon(label, _corners(shape_type, points), ignored=ignored)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f'{path}: a shape cannot be read ({type(error).__name__}: {error}); expected '
            '{"label": name, "points": [[x, y], ...]} of a polygon, rectangle, circle or mask'
        ) from error


def _corners(shape_type: str, points: np.ndarray) -> np.ndarray:
    """Return the corners of a region, (n, 2), from the points in labelme's file."""
    if shape_type == 'polygon' and len(points) >= 1:
        return points
    if shape_type == 'rectangle' and len(points) == 2:
        (left, top), (right, bottom) = points
        return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    if shape_type == 'rectangle' and len(points) == 4:
        return points
    if shape_type == 'circle' and len(points) == 2:
        centre, edge = points
        angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
        ring = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        return centre + np.linalg.norm(edge - centre) * ring
    raise ValueError(f'a {shape_type} with {len(points)} points has no area')


def _decode_mask(text: str) -> np.ndarray:
    """Return the mask that labelme writes as a PNG in base64, (h, w) bool."""
    try:
        return read_mask(base64.b64decode(text), 'the mask').mask()
    except (binascii.Error, ImageError) as error:
        raise ValueError(f'the mask is not a PNG of a mask: {error}') from error


def _read_mask(path: Path) -> Polygon:
    """Return the mask in a PNG file.

    Raises:
        DataError: it cannot be read, or is not clear; see `images.mask_file`.
    """
    try:
        mask = read_mask(path).mask()
    except ImageError as error:
        raise DataError(str(error)) from error
    return Polygon(path.stem, np.zeros((1, 2)), mask)
