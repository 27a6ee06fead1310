# SPDX-License-Identifier: Apache-2.0
"""Draw masks, labels and captions on images. Pure numpy and OpenCV, any thread."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

# RGB. Easy to tell apart on wood, metal and skin, and light enough for dark text.
COLOURS = (
    (255, 92, 53),
    (56, 189, 248),
    (163, 230, 53),
    (232, 121, 249),
    (250, 204, 21),
    (45, 212, 191),
    (248, 113, 166),
    (129, 140, 248),
)
RIGHT, WRONG, MISSED = (52, 199, 89), (255, 92, 53), (56, 132, 255)  # of `draw_errors`, RGB

_LONGEST_SIDE = 8192  # of an image that is enlarged [px]
_BACKGROUND, _TEXT, _TEXT_DIM = (24, 27, 34), (240, 242, 245), (150, 158, 170)  # RGB


def colour(index: int) -> tuple[int, int, int]:
    """Return the colour of the mask with this index, RGB 0..255."""
    return COLOURS[index % len(COLOURS)]


def overlay(
    image: np.ndarray,
    masks: np.ndarray,
    labels: Sequence[str] = (),
    caption: Sequence[str] = (),
    *,
    opacity: float = 0.45,
    min_width: int = 640,
) -> np.ndarray:
    """Return the image with its masks and a caption below it, (H', W', 3) uint8 RGB.

    Small images are enlarged to `min_width`, so that the text is legible, but to at most
    _LONGEST_SIDE in height: what is then still narrower gets a margin. The caption is below the
    image, hides no part of it, and is as high as its text needs.

    Args:
        image: (H, W, 3) uint8 RGB.
        masks: (N, H, W) bool.
        labels: a short text for each mask, drawn on it; '' or missing: no label.
        caption: paragraphs; the first (the query) bright, the others (the answer) dimmer.
        opacity: of the colours of the masks, 0..1.
        min_width: minimum width of the result [px].
    """
    height, width = image.shape[:2]
    scale = max(1.0, min(min_width / width, _LONGEST_SIDE / height))
    size = (round(width * scale), round(height * scale))
    canvas = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC) if scale > 1 else image.copy()
    scaled_masks = [
        cv2.resize(mask.astype(np.uint8) * 255, size, interpolation=cv2.INTER_LINEAR) > 127
        for mask in masks
    ]
    for index, mask in enumerate(scaled_masks):
        tint = np.array(colour(index), np.float32)
        canvas[mask] = (canvas[mask] * (1 - opacity) + tint * opacity).astype(np.uint8)
    for index, mask in enumerate(scaled_masks):  # after all tints, which would cover contours
        _draw_contours(canvas, mask, colour(index))
    for index, (mask, label) in enumerate(zip(scaled_masks, labels, strict=False)):
        if label and mask.any():
            _draw_label(canvas, mask, label, colour(index))
    return _with_caption(_at_least(canvas, min_width), caption) if any(caption) else canvas


def _at_least(image: np.ndarray, width: int) -> np.ndarray:
    """Return an image with a margin on its right side, if it is narrower than `width` [px]."""
    missing = width - image.shape[1]
    if missing <= 0:
        return image
    border = (0, 0, 0, missing)
    return cv2.copyMakeBorder(image, *border, cv2.BORDER_CONSTANT, value=_BACKGROUND)


def draw_errors(
    image: np.ndarray, prediction: np.ndarray, ground_truth: np.ndarray, *, opacity: float = 0.55
) -> np.ndarray:
    """Return the image with right, wrong and missed pixels tinted, (H, W, 3) uint8 RGB.

    Args:
        image: (H, W, 3) uint8 RGB.
        prediction: (H, W) bool.
        ground_truth: (H, W) bool.
        opacity: of the tints RIGHT, WRONG and MISSED, 0..1.
    """
    canvas = image.copy()
    for area, tint in (
        (prediction & ground_truth, RIGHT),
        (prediction & ~ground_truth, WRONG),
        (ground_truth & ~prediction, MISSED),
    ):
        mixed = canvas[area] * (1 - opacity) + np.array(tint, np.float32) * opacity
        canvas[area] = mixed.astype(np.uint8)
    return canvas


def contact_sheet(
    images: Sequence[np.ndarray],
    captions: Sequence[str] = (),
    columns: int = 2,
    width: int = 640,
) -> np.ndarray:
    """Return one sheet of images in rows, each with its caption below, (H', W', 3) uint8 RGB.

    Args:
        images: (H, W, 3) uint8 RGB, of any sizes; each is scaled to `width`.
        captions: one for each image, wrapped; '' or missing: no caption.
        columns: images in a row.
        width: of one image on the sheet [px].
    """
    gap = max(8, width // 40)
    tiles = [
        _tile(image, captions[index] if index < len(captions) else '', width)
        for index, image in enumerate(images)
    ]
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    heights = [max(tile.shape[0] for tile in row) for row in rows]
    across = min(columns, max(len(tiles), 1))
    sheet = np.empty(
        (sum(heights) + gap * (len(rows) + 1), across * width + gap * (across + 1), 3), np.uint8
    )
    sheet[:] = _BACKGROUND
    y = gap
    for row, height in zip(rows, heights, strict=True):
        for index, tile in enumerate(row):
            x = gap + index * (width + gap)
            sheet[y : y + tile.shape[0], x : x + width] = tile
        y += height + gap
    return sheet


_TALLEST_TILE = 4  # height of an image on a sheet, in widths


def _tile(image: np.ndarray, caption: str, width: int) -> np.ndarray:
    """Return an image scaled to a width [px], with its caption below."""
    scale = min(width / image.shape[1], _TALLEST_TILE * width / image.shape[0])
    size = tuple(max(1, round(side * scale)) for side in image.shape[1::-1])
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    tile = _at_least(cv2.resize(image, size, interpolation=interpolation), width)
    return _with_caption(tile, [caption]) if caption else tile


def _with_caption(image: np.ndarray, paragraphs: Sequence[str]) -> np.ndarray:
    """Return the image with the paragraphs below it, wrapped at its width."""
    width = image.shape[1]
    size = max(13, round(width / 34))
    margin = round(size * 0.8)
    lines = [
        (line, _TEXT if index == 0 else _TEXT_DIM)
        for index, paragraph in enumerate(paragraphs)
        for line in _wrapped(paragraph, size, width - 2 * margin)
    ]
    band = np.empty((len(lines) * round(size * 1.45) + margin, width, 3), np.uint8)
    band[:] = _BACKGROUND
    baseline = round(margin * 0.5 + size)
    for line, text_colour in lines:
        _write(band, line, (margin, baseline), size, text_colour)
        baseline += round(size * 1.45)
    return np.concatenate([image, band])


def _draw_contours(
    canvas: np.ndarray, mask: np.ndarray, line_colour: tuple[int, int, int]
) -> None:
    """Draw the outer contours of a mask in its colour, over a wider white line."""
    line = max(2, round(canvas.shape[1] / 320))
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(canvas, contours, -1, (255, 255, 255), line + 2, cv2.LINE_AA)
    cv2.drawContours(canvas, contours, -1, line_colour, line, cv2.LINE_AA)


def _draw_label(
    canvas: np.ndarray, mask: np.ndarray, label: str, background: tuple[int, int, int]
) -> None:
    """Write a label in a filled box at the mask's innermost point, inside the image."""
    depth = cv2.distanceTransform(np.pad(mask.astype(np.uint8), 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    size = max(12, round(canvas.shape[1] / 42))
    pad = round(size * 0.35)
    width, height = _text_width(label, size) + 2 * pad, size + 2 * pad
    left = int(np.clip(x - width // 2, 0, max(0, canvas.shape[1] - width)))
    top = int(np.clip(y - height // 2, 0, max(0, canvas.shape[0] - height)))
    bottom_right = (left + width, top + height)
    cv2.rectangle(canvas, (left, top), bottom_right, background, cv2.FILLED)
    _write(canvas, label, (left + pad, top + pad + round(size * 0.82)), size, _BACKGROUND)


def _wrapped(text: str, size: int, width: int) -> list[str]:
    """Return the text in lines of at most `width` pixels; a word too long for a line is cut."""
    lines = ['']
    for word in text.split():
        candidate = f'{lines[-1]} {word}'.strip()
        if _text_width(candidate, size) <= width:
            lines[-1] = candidate
            continue
        if lines[-1]:
            lines.append('')
        while _text_width(word, size) > width and len(word) > 1:
            fits = max(1, math.floor(len(word) * width / _text_width(word, size)))
            lines[-1], word = word[:fits], word[fits:]  # noqa: PLW2901  # the rest of the same word
            lines.append('')
        lines[-1] = word
    return [line for line in lines if line]


# OpenCV 5 has a TrueType font for any alphabet; OpenCV 4 (Debian, Ubuntu) only the Hershey font,
# where a letter height of 1 px is a scale of about 1/30.
_FONT = cv2.FontFace('sans') if hasattr(cv2, 'FontFace') else None
_REGULAR = 400  # font weight


def _text_width(text: str, size: int) -> int:
    """Return the width [px] of a line of text at a letter size [px]."""
    if _FONT is not None:
        return cv2.getTextSize((1, 1), text, (0, 0), _FONT, size, _REGULAR)[2]
    (width, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size / 30, 1)
    return width


def _write(
    canvas: np.ndarray,
    text: str,
    origin: tuple[int, int],
    size: int,
    text_colour: tuple[int, int, int],
) -> None:
    """Write one line of text; `origin` is the left end of its baseline (x, y) [px]."""
    if _FONT is not None:
        cv2.putText(canvas, text, origin, text_colour, _FONT, size, _REGULAR)
    else:
        cv2.putText(
            canvas, text, origin, cv2.FONT_HERSHEY_SIMPLEX, size / 30, text_colour, 1, cv2.LINE_AA
        )
