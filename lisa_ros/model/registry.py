# SPDX-License-Identifier: Apache-2.0
"""The models that are in the package, by name: folders of weights, tokenizer and vocabulary."""

from __future__ import annotations

from pathlib import Path

from lisa_ros.resources import WEIGHTS


def resolve_bundled_model(name: str | Path) -> str | Path:
    """Return the folder of one of our own models; any other name as it is."""
    own = WEIGHTS / str(name)
    return own if (own / 'config.json').is_file() else name
