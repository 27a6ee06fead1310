# SPDX-License-Identifier: Apache-2.0
"""What a fuzz target is, and what it may do with any input."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mutation import mutated_bytes, mutated_json

from lisa_ros.error_text import MAX_CHARS, printable
from lisa_ros.errors import LisaError

FINDINGS = Path(__file__).parent / 'findings'  # inputs that failed once, in a folder per target


@dataclass(frozen=True)
class Target:
    """A reader of other people's bytes."""

    run: Callable[[bytes, Path], object]  # takes an input and an empty folder for files
    seeds: Callable[[], list[bytes]]  # valid inputs
    is_json: bool = False

    def check(self, content: bytes, folder: Path) -> None:
        """Run the target: any exception but a LisaError of one line is a finding."""
        try:
            self.run(content, folder)
        except LisaError as error:
            text = str(error)
            assert printable(text) == text, f'an error with control characters: {text!r}'
            assert len(text) <= MAX_CHARS, f'an error of {len(text)} characters'

    def mutated(self, content: bytes, rng: random.Random) -> bytes:
        """Return a hostile variant of an input."""
        if self.is_json and rng.random() < 0.7:
            return mutated_json(content, rng)
        return mutated_bytes(content, rng)


def write_documents(content, folder, names):
    """Write each entry of a document as a file; other bytes become the first file."""
    try:
        parts = json.loads(content)
        texts = {name: json.dumps(parts[name]) for name in names if name in parts}
    except (ValueError, TypeError, RecursionError):
        (folder / names[0]).write_bytes(content)
        return
    for name, text in texts.items():
        (folder / name).write_text(text)
