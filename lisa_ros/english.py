# SPDX-License-Identifier: Apache-2.0
"""English word forms, as the queries of lisa-tabletop and the spoken commands have them."""

from __future__ import annotations


def plural(noun: str) -> str:
    """Return the plural of a noun, as lisa-tabletop's training queries form it."""
    return noun if noun.endswith('s') else noun + ('es' if noun.endswith('x') else 's')
