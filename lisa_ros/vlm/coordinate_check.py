# SPDX-License-Identifier: Apache-2.0
"""Test where a served model points: test images with a box that is known.

A server may resize images by a rule of its own, and a model may count in other units than its
profile says. Then every box is wrong in the same way, which no single answer shows. A server that
limits the number of pixels resizes only images above or below it: a model that counts pixels is
asked about a large image and a small one. Any thread.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from lisa_ros.error_text import one_line
from lisa_ros.vlm.profiles import PROFILES, Coordinates, Profile, without_thoughts

TEST_QUERY = 'the red rectangle'
TEST_BOX = (0.70, 0.25, 0.85, 0.40)  # left, top, right, bottom as shares of width and height
_USUAL_SIZE = 640, 480  # width and height of a test image [px]
_SMALL_SIZE = 200, 200  # the rectangle still fills an image token of released models
_RATIO = 5 / 4  # of a large image's sides
_MIN_IOU = 0.5  # above it a box is that of the rectangle
_RATIO_TOLERANCE = 0.1
_MIN_RESIZE = 0.04  # change of both sides; below it a model has pointed a little beside
_SAME_FOR_ALL = (401, 403, 404)  # status of HTTP: not for the size of the image
_NUMBER = r'\s*(-?\d+(?:\.\d+)?)\s*'
_BOX = re.compile(rf'\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]')
_UNITS = {
    Coordinates.PIXELS: 'pixels of the image as it is sent',
    Coordinates.THOUSANDTHS: 'thousandths of the image',
}

Box = tuple[float, float, float, float]  # left, top, right, bottom
Size = tuple[int, int]  # width and height [px]


@dataclass(frozen=True)
class CoordinateCheck:
    """Where a model has pointed at in a test image."""

    problem: str = ''  # in words, with the cure; '': it points at the rectangle
    is_certain: bool = False  # the coordinates fit another unit: every answer would be wrong
    server_size: Size | None = None  # to which the server resizes the image, about; None: not


class CoordinateTest:
    """The test images of a server: which are still to be shown, and what the answers say.

    If only small images are resized, larger ones have right answers: the first question about an
    image that may be too small is preceded by a test image of the same size.
    """

    def __init__(self, profile: Profile) -> None:
        """Begin; `profile` is the model's."""
        self._profile = profile
        self._sizes = _test_sizes(profile)  # to be shown, each before it is resized
        self._has_large = len(self._sizes) > 1  # the next one is
        self._first: CoordinateCheck | None = None
        self._small: CoordinateCheck | None = None
        self._by_size: dict[Size, CoordinateCheck] = {}  # of images that may be too small
        self._replacements: list[str] = []

    @property
    def is_over(self) -> bool:
        """Whether no image is left, but those for images that may be too small."""
        return bool(self.problem) or not self._sizes

    @property
    def problem(self) -> str:
        """Why every answer would be wrong, with the cure; '': nothing says so."""
        first, small = self._first, self._small
        if first and first.is_certain:
            return first.problem
        is_enlarged = small and small.server_size  # larger images have right answers
        return small.problem if small and small.is_certain and not is_enlarged else ''

    @property
    def warnings(self) -> list[str]:
        """What a user should know: tests that failed, and what follows."""
        small = self._small.problem if self._small else ''
        if small and self._small.server_size:
            size = _words(self._small.server_size)
            small = f'{small}; until then, questions about images of less than {size} may fail'
        first = self._first.problem if self._first else ''
        return [*self._replacements, *filter(None, (first, small))]

    def next_size(self, size: Size | None = None) -> Size | None:
        """Return the size of the next test image, before it is resized; None: no more is needed.

        Args:
            size: of an image about which the model will be asked, as it is sent; None: of none.
        """
        if self.problem:
            return None
        if self._sizes:
            return self._sizes[0]
        return size if self._may_be_enlarged(size) and size not in self._by_size else None

    def add(self, answer: str, size: Size, sent_size: Size) -> None:
        """Take the answer about the image of `next_size`.

        Args:
            answer: all text.
            size: as `next_size` gave it.
            sent_size: of the image as it was sent.
        """
        check = check_coordinates(answer, self._profile, sent_size)
        if not self._sizes:
            self._by_size[size] = check
            return
        self._sizes = self._sizes[1:]
        self._has_large = False
        if self._first is None:
            self._first = check
        else:
            self._small = check

    def add_refusal(self, message: str, status: int) -> bool:
        """Take the refusal of the image of `next_size`; return whether the test can go on.

        A server may have no room for the largest image, and yet answer about those of a camera.

        Args:
            message: of the error.
            status: of HTTP; 0: another error.
        """
        return status not in _SAME_FOR_ALL and self._replace_large(message)

    def add_timeout(self) -> None:
        """Take the end of the time before the answer about the image of `next_size`.

        The next try has a smaller image: a slow server would never come to an end.
        """
        self._replace_large('the server did not answer in time about the largest test image')

    def _replace_large(self, cause: str) -> bool:
        """Show an image of the usual size in place of the large one; return whether it is next."""
        if not self._has_large:
            return False
        self._replacements.append(f'{cause}: one of {_words(_USUAL_SIZE)} is sent in its place')
        self._sizes = (_USUAL_SIZE, *self._sizes[1:])
        self._has_large = False
        return True

    def problem_of(self, size: Size) -> str:
        """Return why an answer about an image that is sent in this size would be wrong; or ''."""
        check = self._by_size.get(size) if self._may_be_enlarged(size) else None
        return self.problem or (check.problem if check else '')

    def _may_be_enlarged(self, size: Size | None) -> bool:
        server_size = self._small.server_size if self._small else None
        return bool(size and server_size) and math.prod(size) < math.prod(server_size)


def _test_sizes(profile: Profile) -> tuple[Size, ...]:
    """Return the sizes of the test images: the largest that the model gets, and a small one.

    One is enough if the model gets all images in one size, or counts shares of them.
    """
    if profile.coordinates is not Coordinates.PIXELS or profile.resize.square is not None:
        return (_USUAL_SIZE,)
    width = math.sqrt(profile.resize.max_pixels * _RATIO)
    return (round(width), round(width / _RATIO)), _SMALL_SIZE


def draw_test_image(size: Size = _USUAL_SIZE) -> np.ndarray:
    """Return an image with a red rectangle on white, (H, W, 3) uint8 RGB; size: (W, H) [px]."""
    width, height = size
    image = np.full((height, width, 3), 255, np.uint8)
    x0, y0, x1, y1 = TEST_BOX
    rows = slice(round(y0 * height), round(y1 * height))
    image[rows, round(x0 * width) : round(x1 * width)] = (220, 20, 20)
    return image


def check_coordinates(answer: str, profile: Profile, resized: Size) -> CoordinateCheck:
    """Compare the first box of an answer about the test image with the rectangle's.

    Args:
        answer: all text.
        profile: of the model.
        resized: width and height of the image that was sent [px].
    """
    text = without_thoughts(answer.rpartition('<answer>')[2])
    match = _BOX.search(text)
    if match is None:
        return CoordinateCheck(
            'about a test image with a red rectangle the model gives no box: '
            f'{one_line(text or answer)!r}; check that the server runs the model that you mean, '
            'and template'
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
    server_size = _server_size(numbers, resized, profile)
    if server_size is not None:
        rule = profile.resize
        return CoordinateCheck(
            f'the server resizes an image of {_words(resized)} to about {_words(server_size)}, '
            "and the model's coordinates are those of the resized one: let the server take images "
            f'of {rule.min_pixels} to {rule.max_pixels} pixels, with vLLM --mm-processor-kwargs '
            f'\'{{"min_pixels": {rule.min_pixels}, "max_pixels": {rule.max_pixels}}}\'',
            is_certain=True,
            server_size=server_size,
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


def _server_size(numbers: Box, sent: Size, profile: Profile) -> Size | None:
    """Return the size of the image that a box fits, if a server has resized it; None: it has not.

    A server keeps the ratio of sides, and takes whole image tokens.
    """
    sides = numbers[2] / TEST_BOX[2], numbers[3] / TEST_BOX[3]
    if profile.coordinates is not Coordinates.PIXELS or min(sides) <= 0:
        return None
    scales = sides[0] / sent[0], sides[1] / sent[1]
    is_resized = all(abs(scale - 1) > _MIN_RESIZE for scale in scales)
    keeps_ratio = abs(scales[0] / scales[1] - 1) < _RATIO_TOLERANCE
    if not (is_resized and keeps_ratio and _fits(numbers, sides)):
        return None
    width, height = (max(1, round(side / profile.cell)) * profile.cell for side in sides)
    return width, height


def _other_units(numbers: Box, sides: Size) -> dict[str, bool]:
    """Return whether a box fits the rectangle if it is read in ways that no profile has."""
    x0, y0, x1, y1 = numbers
    swapped = (y0, x0, y1, x1)
    return {
        'shares of the image, 0 to 1': _fits(numbers, (1, 1)),
        'y before x': _fits(swapped, sides) or _fits(swapped, (1000, 1000)),
    }


def _fits(box: Box, sides: tuple[float, float]) -> bool:
    """Return whether a box is that of the rectangle; `sides` of the image are in its units."""
    x0, y0, x1, y1 = (box[i] / sides[i % 2] for i in range(4))
    test_x0, test_y0, test_x1, test_y1 = TEST_BOX
    shared = max(0.0, min(x1, test_x1) - max(x0, test_x0))
    shared *= max(0.0, min(y1, test_y1) - max(y0, test_y0))
    areas = (x1 - x0) * (y1 - y0) + (test_x1 - test_x0) * (test_y1 - test_y0)
    return shared > _MIN_IOU * (areas - shared)


def _words(size: Size) -> str:
    return f'{size[0]} x {size[1]} pixels'


def _in_units(sides: tuple[int, int]) -> list[int]:
    return [round(TEST_BOX[i] * sides[i % 2]) for i in range(4)]
