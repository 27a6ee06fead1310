# SPDX-License-Identifier: Apache-2.0
"""Masks drawn on images, for people."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

# Well apart from one another on wood, metal and skin alike, light enough for dark text. RGB.
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


_PAPER, _INK, _FAINT = (24, 27, 34), (240, 242, 245), (150, 158, 170)


def colour(index: int) -> tuple[int, int, int]:
    """Return the colour of the mask with this place in the answer, RGB 0..255."""
    return COLOURS[index % len(COLOURS)]


def overlay(
    image: np.ndarray,
    masks: np.ndarray,
    labels: Sequence[str] = (),
    caption: Sequence[str] = (),
    *,
    opacity: float = 0.45,
    least_width: int = 640,
) -> np.ndarray:
    """Return the picture with its masks and, in a band below it, words: (H', W', 3) uint8 RGB.

    Small pictures grow to `least_width` pixels, so that the words are legible; nothing of the
    picture is hidden but by the masks' tint, contours and labels. The band is as high as the
    words need.

    Args:
        image: (H, W, 3) uint8 RGB.
        masks: (N, H, W) bool.
        labels: a few letters for each mask, drawn on it; none for no label.
        caption: paragraphs; the first (the command) in bright ink, the rest (the answer) softer.
        opacity: of the tint, 0..1.
        least_width: of the result [pixels].
    """
    height, width = image.shape[:2]
    scale = max(1.0, least_width / width)
    size = (round(width * scale), round(height * scale))
    picture = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC) if scale > 1 else image.copy()
    line = max(2, round(size[0] / 320))
    grown = [
        cv2.resize(mask.astype(np.uint8) * 255, size, interpolation=cv2.INTER_LINEAR) > 127
        for mask in masks
    ]
    for index, mask in enumerate(grown):
        tint = np.array(colour(index), np.float32)
        picture[mask] = (picture[mask] * (1 - opacity) + tint * opacity).astype(np.uint8)
    for index, mask in enumerate(grown):  # after all tints, so that no contour is tinted over
        outline, _ = cv2.findContours(
            mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
        )
        cv2.drawContours(picture, outline, -1, (255, 255, 255), line + 2, cv2.LINE_AA)
        cv2.drawContours(picture, outline, -1, colour(index), line, cv2.LINE_AA)
    for index, (mask, label) in enumerate(zip(grown, labels, strict=False)):
        if label and mask.any():
            _draw_label(picture, mask, label, colour(index))
    return _with_band(picture, caption) if any(caption) else picture


RIGHT, WRONG, MISSED = (52, 199, 89), (255, 92, 53), (56, 132, 255)  # of `compared`, RGB


def draw_errors(
    image: np.ndarray, found: np.ndarray, truth: np.ndarray, *, opacity: float = 0.55
) -> np.ndarray:
    """Return the picture with what was found rightly, wrongly and not, (H, W, 3) uint8 RGB.

    Args:
        image: (H, W, 3) uint8 RGB.
        found: (H, W) bool.
        truth: (H, W) bool.
        opacity: of the tints RIGHT, WRONG and MISSED, 0..1.
    """
    picture = image.copy()
    for area, tint in ((found & truth, RIGHT), (found & ~truth, WRONG), (truth & ~found, MISSED)):
        mixed = picture[area] * (1 - opacity) + np.array(tint, np.float32) * opacity
        picture[area] = mixed.astype(np.uint8)
    return picture


def contact_sheet(
    pictures: Sequence[np.ndarray],
    captions: Sequence[str] = (),
    columns: int = 2,
    width: int = 640,
) -> np.ndarray:
    """Return pictures in rows on one sheet, each with its caption below, (H', W', 3) uint8 RGB.

    Args:
        pictures: (H, W, 3) uint8 RGB, of any sizes; each is brought to `width` pixels.
        captions: one for each picture, wrapped; none for no words.
        columns: pictures side by side.
        width: of one picture on the sheet [pixels].
    """
    gap = max(8, width // 40)
    tiles = []
    for index, picture in enumerate(pictures):
        height = round(picture.shape[0] * width / picture.shape[1])
        shrinks = width < picture.shape[1]
        tile = cv2.resize(
            picture, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
        )
        words = captions[index] if index < len(captions) else ''
        tiles.append(_with_band(tile, [words]) if words else tile)
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    heights = [max(tile.shape[0] for tile in row) for row in rows]
    across = min(columns, max(len(tiles), 1))
    sheet = np.empty(
        (sum(heights) + gap * (len(rows) + 1), across * width + gap * (across + 1), 3), np.uint8
    )
    sheet[:] = _PAPER
    y = gap
    for row, height in zip(rows, heights, strict=True):
        for index, tile in enumerate(row):
            x = gap + index * (width + gap)
            sheet[y : y + tile.shape[0], x : x + width] = tile
        y += height + gap
    return sheet


def _with_band(picture: np.ndarray, paragraphs: Sequence[str]) -> np.ndarray:
    """Return the picture with the paragraphs below it, wrapped at its width."""
    width = picture.shape[1]
    size = max(13, round(width / 34))
    margin = round(size * 0.8)
    lines = [
        (words, _INK if index == 0 else _FAINT)
        for index, paragraph in enumerate(paragraphs)
        for words in _wrapped(paragraph, size, width - 2 * margin)
    ]
    band = np.empty((len(lines) * round(size * 1.45) + margin, width, 3), np.uint8)
    band[:] = _PAPER
    baseline = round(margin * 0.5 + size)
    for words, ink in lines:
        _write(band, words, (margin, baseline), size, ink)
        baseline += round(size * 1.45)
    return np.concatenate([picture, band])


def _draw_label(
    picture: np.ndarray, mask: np.ndarray, label: str, back: tuple[int, int, int]
) -> None:
    """Write a label on a filled box at the mask's deepest point, kept inside the picture."""
    depth = cv2.distanceTransform(np.pad(mask.astype(np.uint8), 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    size = max(12, round(picture.shape[1] / 42))
    pad = round(size * 0.35)
    width, height = _text_width(label, size) + 2 * pad, size + 2 * pad
    left = int(np.clip(x - width // 2, 0, max(0, picture.shape[1] - width)))
    top = int(np.clip(y - height // 2, 0, max(0, picture.shape[0] - height)))
    cv2.rectangle(picture, (left, top), (left + width, top + height), back, cv2.FILLED)
    _write(picture, label, (left + pad, top + pad + round(size * 0.82)), size, _PAPER)


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


# OpenCV 5 draws real letters of any alphabet it has; OpenCV 4 (Debian, Ubuntu) only its plotter
# font, where one pixel of letter height is about 1/30 of its scale.
_FONT = cv2.FontFace('sans') if hasattr(cv2, 'FontFace') else None


def _text_width(text: str, size: int) -> int:
    """Return how wide a line of text is [pixels] at a letter size [pixels]."""
    if _FONT is not None:
        # The last argument but one is the weight: 400 is regular.
        return cv2.getTextSize((1, 1), text, (0, 0), _FONT, size, 400)[2]
    (width, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size / 30, 1)
    return width


def _write(
    picture: np.ndarray, text: str, at: tuple[int, int], size: int, ink: tuple[int, int, int]
) -> None:
    """Write one line into the picture; `at` is the left end of its base line (x, y)."""
    if _FONT is not None:
        cv2.putText(picture, text, at, ink, _FONT, size, 400)
    else:
        cv2.putText(picture, text, at, cv2.FONT_HERSHEY_SIMPLEX, size / 30, ink, 1, cv2.LINE_AA)
