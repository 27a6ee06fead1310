# SPDX-License-Identifier: Apache-2.0
"""The bundled models: folders of weights, tokenizer and vocabulary inside the package."""

from __future__ import annotations

import os
from pathlib import Path

from lisa_ros.resources import WEIGHTS


def resolve_bundled_model(name: str | Path) -> str | Path:
    """Return the folder of a bundled model, such as "lisa-tabletop"; other names unchanged."""
    folder = WEIGHTS / str(name)
    is_plain = Path(name).name == str(name)  # a path is never a bundled model
    return folder if is_plain and os.path.lexists(folder / 'config.json') else name
