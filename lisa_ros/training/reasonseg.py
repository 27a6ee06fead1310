# SPDX-License-Identifier: Apache-2.0
"""Folders of pictures that people have labelled, as ReasonSeg has them and labelme writes them.

ReasonSeg (LISA, section 3.2): beside each picture a JSON file of the same name:

    {"text": ["the thing that keeps her warm"], "is_sentence": false,
     "shapes": [{"label": "target", "points": [[x, y], ...]}, {"label": "ignore", ...}]}

All "target" shapes together are the mask that each text asks for; pixels of "ignore" count
neither way; "flag" is left over from labelling and means nothing. Shapes are painted from large to
small, as the original does (utils/data_processing.py), so that a small one cuts a hole.

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
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from lisa_ros.errors import DataError
from lisa_ros.results import Turn
from lisa_ros.training.lessons import UNSURE, Sample

PICTURES = ('.jpg', '.jpeg', '.png', '.webp', '.bmp')
_EXPLANATIONS = 'explanations.json'

# How the original asks and answers (utils/utils.py); the model knows these words.
SHORT_QUESTIONS = (
    'Can you segment the {} in this image?',
    'Please segment the {} in this image.',
    'What is {} in this image? Please respond with segmentation mask.',
    'What is {} in this image? Please output segmentation mask.',
)
LONG_QUESTIONS = (
    '{} Please respond with segmentation mask.',
    '{} Please output segmentation mask.',
)
WHY = (
    'Please output segmentation mask and explain why.',
    'Please output segmentation mask and explain the reason.',
    'Please output segmentation mask and give some explanation.',
)
ANSWERS = (
    'It is [SEG].',
    'Sure, [SEG].',
    'Sure, it is [SEG].',
    'Sure, the segmentation result is [SEG].',
    '[SEG].',
)


@dataclass(frozen=True)
class Shape:
    """A labelled region: a filled outline, or a mask in a box."""

    label: str
    points: np.ndarray  # (n, 2) float, x and y in pixels; of a mask: the top left corner first
    mask: np.ndarray | None = None  # (h, w) bool, put with its corner at the first point

    def paint(self, onto: np.ndarray, value: int) -> None:
        """Set the pixels of the region, its outline included, in a (H, W) uint8 picture."""
        if self.mask is None:
            outline = [self.points.astype(np.int32)]  # cut, not rounded: as the original
            cv2.polylines(onto, outline, isClosed=True, color=value, thickness=1)
            cv2.fillPoly(onto, outline, color=value)
            return
        x, y = self.points[0].astype(int)
        part = onto[max(y, 0) : y + self.mask.shape[0], max(x, 0) : x + self.mask.shape[1]]
        inside = self.mask[max(-y, 0) :, max(-x, 0) :][: part.shape[0], : part.shape[1]]
        part[inside] = value


@dataclass(frozen=True)
class Query:
    """What can be asked about a picture, and which shapes answer it."""

    text: str
    is_sentence: bool  # else the name of a thing
    shapes: tuple[Shape, ...]  # all that are painted, "ignore" among them

    def truth(self, height: int, width: int) -> np.ndarray:
        """Return (height, width) uint8: 1 target, UNSURE where ignored, 0 elsewhere."""
        areas = []
        for shape in self.shapes:
            alone = np.zeros((height, width), np.uint8)
            shape.paint(alone, 1)
            areas.append(int(alone.sum()))
        truth = np.zeros((height, width), np.uint8)
        for index in np.argsort(areas)[::-1]:
            shape = self.shapes[index]
            shape.paint(truth, UNSURE if _is_ignored(shape.label) else 1)
        return truth


@dataclass(frozen=True)
class Labelled:
    """A picture with what can be asked about it; its pixels are read when they are wanted."""

    path: Path
    queries: tuple[Query, ...]
    explanation: str = ''  # why the target is what is asked for

    def picture(self) -> np.ndarray:
        """Return the picture as a person sees it, (H, W, 3) uint8 RGB, turned as its EXIF says.

        Raises:
            DataError: it cannot be read.
        """
        try:
            with Image.open(self.path) as picture:
                return np.asarray(ImageOps.exif_transpose(picture).convert('RGB'))
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise DataError(
                f'{self.path}: not a picture that can be read ({error}); copy it again'
            ) from error

    def sample(self, dialogues: Sequence[Sequence[Turn]], asked: Sequence[Query]) -> Sample:
        """Return the picture with dialogues whose [SEG] stand for the queries, in their order."""
        picture = self.picture()
        height, width = picture.shape[:2]
        truth = [query.truth(height, width) for query in asked]
        return Sample(
            picture,
            tuple(tuple(turns) for turns in dialogues),
            np.stack(truth) if truth else np.zeros((0, height, width), np.uint8),
            str(self.path),
        )


class Reasoning:
    """A source of samples (mixture.Source): labelled pictures, asked about as the original asks.

    Of a picture with an explanation each draw takes one of three forms for all its queries: the
    mask alone, the mask and why, or the words alone; the latter with the probability `words_only`,
    else either of the others.
    """

    def __init__(self, labelled: Sequence[Labelled], queries: int = 3, words_only: float = 0.1):
        self._labelled, self._queries, self._words_only = labelled, queries, words_only

    def draw(self, rng: np.random.Generator) -> Sample:
        """Return a picture with up to `queries` dialogues of one turn.

        Raises:
            DataError: its picture cannot be read.
        """
        one = self._labelled[rng.integers(len(self._labelled))]
        count = min(self._queries, len(one.queries))
        chosen = [one.queries[i] for i in rng.choice(len(one.queries), count, replace=False)]
        form = 'mask'
        if one.explanation:
            plain = rng.random() >= self._words_only
            form = ('mask', 'why')[rng.integers(2)] if plain else 'words'
        turns = [_turn(rng, query, form, one.explanation) for query in chosen]
        return one.sample([[turn] for turn in turns], chosen if form != 'words' else [])


def _turn(rng: np.random.Generator, query: Query, form: str, explanation: str) -> Turn:
    """Return a query as a question, with its answer."""

    def pick(texts: Sequence[str]) -> str:
        return texts[rng.integers(len(texts))]

    if form == 'words':
        return Turn(query.text, explanation)
    if form == 'why':
        return Turn(f'{query.text} {pick(WHY)}', f'{pick(ANSWERS)} {explanation}')
    if query.is_sentence:
        return Turn(pick(LONG_QUESTIONS).format(query.text), pick(ANSWERS))
    return Turn(pick(SHORT_QUESTIONS).format(query.text.lower()), pick(ANSWERS))


def examination(one: Labelled) -> Sample:
    """Return a picture with all its queries, asked as the original does in its validation."""
    turns = [
        Turn((LONG_QUESTIONS[1] if q.is_sentence else SHORT_QUESTIONS[3]).format(q.text), '[SEG].')
        for q in one.queries
    ]
    return one.sample([[turn] for turn in turns], one.queries)


# ---- folders


def read_folder(folder: str | Path) -> list[Labelled]:
    """Return the labelled pictures of a folder, by name; those without labels are left out.

    Every JSON file is read and checked here, and every picture's size, so that what is broken is
    named before a training begins; only a picture's pixels are read when they are drawn.

    Raises:
        DataError: no picture is labelled; or a file is broken: the message names it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f'{folder}: there is no such folder; expected pictures with labels')
    why = _read_explanations(folder)
    pictures = {p.stem: p for p in sorted(folder.iterdir()) if p.suffix.lower() in PICTURES}
    labelled = []
    for path in sorted(folder.glob('*.json')):
        if path.name == _EXPLANATIONS:
            continue
        if path.stem not in pictures:
            raise DataError(
                f'{path}: no picture {path.stem} ({", ".join(PICTURES)}) lies beside it; put it '
                'there or take the file away'
            )
        queries = read_labels(path)
        picture = pictures[path.stem]
        noted = _read_json(path)
        _same_size(picture, path, noted.get('imageWidth'), noted.get('imageHeight'))
        if queries:
            labelled.append(Labelled(picture, queries, why.get(picture.name, '')))
    for stem, picture in pictures.items():
        masks = sorted((folder / stem).glob('*.png'))
        if masks:
            shapes = [_mask_file(p) for p in masks]
            for p, shape in zip(masks, shapes, strict=True):
                _same_size(picture, p, *shape.mask.shape[::-1])
            queries = tuple(Query(p.stem, False, (s,)) for p, s in zip(masks, shapes, strict=True))
            labelled.append(Labelled(picture, queries, why.get(picture.name, '')))
    if not labelled:
        raise DataError(
            f'{folder}: {len(pictures)} pictures, none of them labelled; expected beside each a '
            'JSON file of the same name, as labelme writes it: `labelme FOLDER` makes them'
        )
    return labelled


def _same_size(picture: Path, labels: Path, width: int | None, height: int | None) -> None:
    """Hold the size that labels are for against the picture's, as a person sees it.

    Raises:
        DataError: they differ, or the picture cannot be opened.
    """
    try:
        with Image.open(picture) as opened:
            turned = opened.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # EXIF: lies on its side
            size = opened.size[::-1] if turned else opened.size
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DataError(
            f'{picture}: not a picture that can be read ({error}); copy it again'
        ) from error
    if None not in (width, height) and (width, height) != size:
        raise DataError(
            f'{labels}: labels of {width} x {height} pixels for a picture of '
            f'{size[0]} x {size[1]} ({picture.name}); bring both to one size'
        )


def read_labels(path: Path) -> tuple[Query, ...]:
    """Return what a JSON file of labels asks; nothing if it has neither texts nor shapes.

    Raises:
        DataError: it is none, naming the file, what is wrong and what was expected.
    """
    plain = _read_json(path)
    if not isinstance(plain, dict) or not isinstance(plain.get('shapes'), list):
        raise DataError(f'{path}: no labels; expected an object with a list "shapes", as labelme')
    shapes = [_shape(path, entry) for entry in plain['shapes']]
    shapes = [shape for shape in shapes if shape.label.lower() != 'flag']
    ignored = tuple(shape for shape in shapes if _is_ignored(shape.label))
    targets = [shape for shape in shapes if not _is_ignored(shape.label)]
    texts = plain.get('text') or []
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not all(isinstance(t, str) and t.strip() for t in texts):
        raise DataError(f'{path}: "text" is {texts!r}; expected a list of instructions')
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


def _is_ignored(label: str) -> bool:
    return 'ignore' in label.lower()  # ReasonSeg has "ignore" and "ignored"


def _read_json(path: Path) -> object:
    try:
        raw = path.read_bytes()
        try:
            return json.loads(raw.decode('utf-8'))
        except UnicodeDecodeError:
            return json.loads(raw.decode('cp1252'))  # some of ReasonSeg's own
    except (OSError, ValueError) as error:
        raise DataError(
            f'{path}: no JSON that can be read ({error}); save it with labelme again'
        ) from error


def _read_explanations(folder: Path) -> dict[str, str]:
    """Return explanations by picture's name, if there are any."""
    own, beside = folder / _EXPLANATIONS, folder.parent / 'explanatory' / f'{folder.name}.json'
    path = next((p for p in (own, beside) if p.is_file()), None)
    if path is None:
        return {}
    entries = _read_json(path)
    try:
        return {str(entry['image']): str(entry['outputs']) for entry in entries}
    except (TypeError, KeyError) as error:
        raise DataError(
            f'{path}: no explanations ({error!r}); expected a list of {{"image": name, '
            '"query": text, "outputs": explanation}'
        ) from error


# ---- shapes


def _shape(path: Path, entry: object) -> Shape:
    """Return a shape of a JSON file: polygon, rectangle, circle or mask."""
    try:
        label, kind = entry['label'], entry.get('shape_type') or 'polygon'
        points = np.array(entry['points'], np.float64).reshape(-1, 2)
        if not isinstance(label, str) or not label.strip() or not np.isfinite(points).all():
            raise ValueError(f'label {label!r}, points {entry["points"]!r}')
        if kind == 'mask':
            return Shape(label, points, _decoded(entry['mask']))
        return Shape(label, _outline(kind, points))
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
    except (binascii.Error, OSError, UnidentifiedImageError) as error:
        raise ValueError(f'a mask that is no PNG: {error}') from error


def _mask_file(path: Path) -> Shape:
    """Return a mask of a folder of masks.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with Image.open(path) as picture:
            mask = np.asarray(picture.convert('L')) > 0
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f'{path}: no mask that can be read ({error}); save it again') from error
    return Shape(path.stem, np.zeros((1, 2)), mask)
