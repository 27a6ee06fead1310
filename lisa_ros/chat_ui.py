# SPDX-License-Identifier: Apache-2.0
"""A talk in a terminal: who is talked with, words as they come, pictures as half blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from lisa_ros.results import Status


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: Status
    answer: str
    reason: str
    scores: tuple[float, ...]
    seconds: float
    overlay: np.ndarray | None  # (H, W, 3) uint8 RGB; None: there is no picture of it


class ChatBackend(Protocol):
    """Who is talked with."""

    about: str  # one line about it

    def ask(self, text: str, so_far: Callable[[str], None]) -> Reply:
        """Answer; `so_far` takes the answer as it grows. Ctrl-C ends it with CANCELLED."""

    def reset(self) -> None:
        """Forget what was said."""

    def look_at(self, path: Path) -> None:
        """Talk about another picture from here on.

        Raises:
            LisaError: it cannot be read, or the partner has a camera of its own.
        """


def render_half_blocks(image: np.ndarray, columns: int = 80) -> str:
    """Return a picture as lines of half blocks in 24-bit colours, two rows of pixels a line.

    Args:
        image: (H, W, 3) uint8 RGB.
        columns: of the terminal.
    """
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
    """Writes an answer while it grows, each part once.

    Marks at its end wait: "Sure, [SEG]." is read as "Sure," first and as "Sure." at last.
    """

    def __init__(self, write: Callable[[str], None]):
        self._write, self._written = write, ''

    def update(self, text: str) -> None:
        """Write what is new in the answer so far."""
        sure = text.rstrip(' .,;:!?')
        if sure.startswith(self._written):
            self._write(sure[len(self._written) :])
            self._written = sure

    def end(self, text: str) -> None:
        """Write the rest of the whole answer, or all of it anew if it has become another one."""
        same = text.startswith(self._written)
        self._write(text[len(self._written) :] if same else f'\n{text}')
        self._written = text
