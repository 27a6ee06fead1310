# SPDX-License-Identifier: Apache-2.0
"""Cells of CSV files that a spreadsheet shows, and never runs.

Excel, LibreOffice and Google Sheets take a cell for a formula that starts with one of
FORMULA_STARTS, and formulas can start programs and send data
(owasp.org/www-community/attacks/CSV_Injection). Queries, answers and file names come from other
people. A text of that kind gets an apostrophe in front, which spreadsheets do not show. Numbers
stay numbers.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from decimal import Decimal
from pathlib import Path

# with the full-width forms that spreadsheets of East Asia read as the same characters
FORMULA_STARTS = ('=', '+', '-', '@', '\t', '\r', '\n', '\uff1d', '\uff0b', '\uff0d', '\uff20')

Cell = str | int | float | Decimal


def text_cell(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula."""
    # some programs skip blanks at the start of a cell
    is_formula = text.startswith(FORMULA_STARTS) or text.lstrip().startswith(FORMULA_STARTS)
    return f"'{text}" if is_formula else text


def number_cell(value: float | None, digits: int) -> Cell:
    """Return a number with some digits after the point; an empty text for None."""
    return '' if value is None else Decimal(f'{value:.{digits}f}')


def write_rows(path: Path, rows: Iterable[Sequence[Cell]]) -> None:
    """Write a CSV file: texts quoted and without formulas, numbers bare.

    Quotes keep a text in one cell also where a spreadsheet separates cells by semicolons.

    Raises:
        OSError: the file cannot be written.
    """
    with path.open('w', newline='', encoding='utf-8', errors='backslashreplace') as file:
        writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC)
        for row in rows:
            writer.writerow([text_cell(cell) if isinstance(cell, str) else cell for cell in row])
