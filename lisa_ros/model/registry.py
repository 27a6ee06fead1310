# SPDX-License-Identifier: Apache-2.0
"""The bundled models: folders of weights, tokenizer and vocabulary inside the package."""

from __future__ import annotations

from pathlib import Path

from lisa_ros.resources import WEIGHTS


def resolve_bundled_model(name: str | Path) -> str | Path:
    """Return the folder of a bundled model, such as "lisa-tabletop"; other names unchanged."""
    folder = WEIGHTS / str(name)
    return folder if (folder / 'config.json').is_file() else name
