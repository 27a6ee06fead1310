# SPDX-License-Identifier: Apache-2.0
"""Chat in a terminal: the backend protocol, streamed text, images as half blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np

    from lisa_ros.results import Status


@dataclass(frozen=True)
class Reply:
    """The answer to one line of a chat."""

    status: Status
    answer: str
    reason: str
    scores: tuple[float, ...]  # of the masks, 0..1
    seconds: float
    overlay: np.ndarray | None  # (H, W, 3) uint8 RGB, the image with its masks; None: no image


class ChatBackend(Protocol):
    """A model or a running node that answers the lines of a chat."""

    about: str  # one line that describes it

    def ask(self, text: str, on_text: Callable[[str], None]) -> Reply:
        """Answer a query. Ctrl-C ends the answer; its status is CANCELLED.

        Args:
            text: the query.
            on_text: called with the text so far whenever the answer grows.
        """

    def reset(self) -> None:
        """Begin a new dialogue."""

    def set_image(self, path: Path) -> None:
        """Begin a new dialogue about another image; keep the old ones if it cannot be read.

        Raises:
            LisaError: the file cannot be read, or the backend has a camera of its own.
        """


def render_half_blocks(image: np.ndarray, columns: int = 80) -> str:
    """Return an image as lines of half blocks in 24-bit colours, two rows of pixels a line.

    Args:
        image: (H, W, 3) uint8 RGB.
        columns: width of the terminal [characters]; a narrower image is not enlarged.
    """
    import cv2  # takes a tenth of a second to import

    height, width = image.shape[:2]
    columns = max(1, min(columns, width))
    rows = max(2, 2 * round(height * columns / width / 2))
    small = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA)
    lines = []
    for upper, lower in zip(small[0::2], small[1::2], strict=True):
        cells = (
            f'\x1b[38;2;{a[0]};{a[1]};{a[2]};48;2;{b[0]};{b[1]};{b[2]}m\u2580'
            for a, b in zip(upper.tolist(), lower.tolist(), strict=True)
        )
        lines.append(''.join(cells) + '\x1b[0m')
    return '\n'.join(lines)


class StreamPrinter:
    """Write an answer while it grows, each part once.

    Trailing punctuation is held back because it may change: the text of "Sure, [SEG]." is "Sure,"
    before [SEG] arrives and "Sure." at the end.
    """

    def __init__(self, write: Callable[[str], None]):
        self._write, self._written = write, ''

    def update(self, text: str) -> None:
        """Write the new part of the answer so far."""
        settled = text.rstrip(' .,;:!?')
        if settled.startswith(self._written):
            self._write(settled[len(self._written) :])
            self._written = settled

    def end(self, text: str) -> None:
        """Write the rest of the complete answer, or all of it if the written part has changed."""
        continues = text.startswith(self._written)
        self._write(text[len(self._written) :] if continues else f'\n{text}')
        self._written = text
