# SPDX-License-Identifier: Apache-2.0
"""Test where a served model points: a test image with a box that is known.

A server may resize images by a rule of its own, and a model may count in other units than its
profile says. Then every box is wrong in the same way, which no single answer shows. Any thread.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from lisa_ros.error_text import one_line
from lisa_ros.vlm.profiles import PROFILES, Coordinates, Profile

TEST_QUERY = 'the red rectangle'
TEST_BOX = (0.70, 0.25, 0.85, 0.40)  # left, top, right, bottom as shares of width and height
_HEIGHT, _WIDTH = 480, 640  # of the image [px]
_MIN_IOU = 0.5  # above it a box is that of the rectangle
_RATIO_TOLERANCE = 0.1
_NUMBER = r'\s*(-?\d+(?:\.\d+)?)\s*'
_BOX = re.compile(rf'\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]')
_UNITS = {
    Coordinates.PIXELS: 'pixels of the image as it is sent',
    Coordinates.THOUSANDTHS: 'thousandths of the image',
}

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class CoordinateCheck:
    """Where a model has pointed at in the test image."""

    problem: str = ''  # in words, with the cure; '': it points at the rectangle
    is_certain: bool = False  # the coordinates fit another unit: every answer would be wrong


def draw_test_image() -> np.ndarray:
    """Return an image with a red rectangle on white, (H, W, 3) uint8 RGB."""
    image = np.full((_HEIGHT, _WIDTH, 3), 255, np.uint8)
    x0, y0, x1, y1 = TEST_BOX
    rows = slice(round(y0 * _HEIGHT), round(y1 * _HEIGHT))
    image[rows, round(x0 * _WIDTH) : round(x1 * _WIDTH)] = (220, 20, 20)
    return image


def check_coordinates(answer: str, profile: Profile, resized: tuple[int, int]) -> CoordinateCheck:
    """Compare the first box of an answer about the test image with the rectangle's.

    Args:
        answer: all text.
        profile: of the model.
        resized: width and height of the image that was sent [px].
    """
    text = answer.rpartition('<answer>')[2]
    match = _BOX.search(text)
    if match is None:
        return CoordinateCheck(
            f'about a test image with a red rectangle the model gives no box: {one_line(text)!r}; '
            'check that the server runs the model that you mean, and template'
        )
    numbers = tuple(map(float, match.groups()))
    units = {Coordinates.PIXELS: resized, Coordinates.THOUSANDTHS: (1000, 1000)}
    if _fits(numbers, units[profile.coordinates]):
        return CoordinateCheck()
    expected = _UNITS[profile.coordinates]
    for coordinates, sides in units.items():
        if _fits(numbers, sides):
            names = [name for name, p in PROFILES.items() if p.coordinates is coordinates]
            return CoordinateCheck(
                f"the model's coordinates are {_UNITS[coordinates]}, the profile expects "
                f'{expected}: choose another one with template ({", ".join(names)})',
                is_certain=True,
            )
    for unit, fits in _other_units(numbers, units[profile.coordinates]).items():
        if fits:
            return CoordinateCheck(
                f"the model's coordinates are {unit}, the profile expects {expected}: correct the "
                'server, or choose another model',
                is_certain=True,
            )
    return CoordinateCheck(
        f'in a test image of {resized[0]} x {resized[1]} pixels the model points at '
        f'{match[0]}, not at the red rectangle; expected about '
        f'{_in_units(units[profile.coordinates])}: see that the server does not resize images, '
        'and check template'
    )


def _other_units(numbers: Box, sides: tuple[int, int]) -> dict[str, bool]:
    """Return whether a box fits the rectangle if it is read in ways that no profile has."""
    x0, y0, x1, y1 = numbers
    swapped = (y0, x0, y1, x1)
    read_sides = (x1 / TEST_BOX[2], y1 / TEST_BOX[3])
    is_resized = min(read_sides) > 0 and _fits(numbers, read_sides)
    if is_resized:  # a server keeps the ratio of sides
        ratio = read_sides[0] / read_sides[1] * sides[1] / sides[0]
        is_resized = abs(ratio - 1) < _RATIO_TOLERANCE
    size = f'{read_sides[0]:.0f} x {read_sides[1]:.0f}'
    return {
        'shares of the image, 0 to 1': _fits(numbers, (1, 1)),
        'y before x': _fits(swapped, sides) or _fits(swapped, (1000, 1000)),
        f'those of an image of about {size} pixels, to which the server resizes it': is_resized,
    }


def _fits(box: Box, sides: tuple[float, float]) -> bool:
    """Return whether a box is that of the rectangle; `sides` of the image are in its units."""
    x0, y0, x1, y1 = (box[i] / sides[i % 2] for i in range(4))
    test_x0, test_y0, test_x1, test_y1 = TEST_BOX
    shared = max(0.0, min(x1, test_x1) - max(x0, test_x0))
    shared *= max(0.0, min(y1, test_y1) - max(y0, test_y0))
    areas = (x1 - x0) * (y1 - y0) + (test_x1 - test_x0) * (test_y1 - test_y0)
    return shared > _MIN_IOU * (areas - shared)


def _in_units(sides: tuple[int, int]) -> list[int]:
    return [round(TEST_BOX[i] * sides[i % 2]) for i in range(4)]
