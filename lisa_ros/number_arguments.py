# SPDX-License-Identifier: Apache-2.0
"""Types of argparse for numbers on the command line; none of them accepts NaN or infinity."""

from __future__ import annotations

import argparse
import math


def positive_int(text: str) -> int:
    """Parse an integer of 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not an integer of 1 or more')
    return int(text)


def non_negative_int(text: str) -> int:
    """Parse an integer of 0 or more."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f'{text!r} is not an integer of 0 or more')
    return int(text)


def positive_float(text: str) -> float:
    """Parse a finite number above 0."""
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f'{text!r} is not a number above 0')
    return value


def non_negative_float(text: str) -> float:
    """Parse a finite number of 0 or more."""
    value = _number(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f'{text!r} is not a number of 0 or more')
    return value


def fraction(text: str) -> float:
    """Parse a number from 0 to 1."""
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not a number from 0 to 1')
    return value


def fraction_below_one(text: str) -> float:
    """Parse a number of 0 or more, below 1."""
    value = _number(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not a number of 0 or more, below 1')
    return value


def _number(text: str) -> float:
    """Return the number that a text is; NaN, which is in no range, if it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan
