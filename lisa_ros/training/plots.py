# SPDX-License-Identifier: Apache-2.0
"""Training curves of a run: the table curves.csv and its plot curves.png."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from pathlib import Path

from lisa_ros.error_text import short_repr
from lisa_ros.errors import DataError
from lisa_ros.files.text import read_text

_COLUMN = re.compile(r'\w[\w .\[\]/-]*')  # begins as no formula of a spreadsheet
_CURE = 'remove it, or choose another --out'


def append_curves(run: Path, values: Mapping[str, float]) -> None:
    """Append a row to curves.csv in a run's folder and draw curves.png again.

    Args:
        run: folder of the run.
        values: the row by column: `step`, `minutes`, losses, metrics named `val_*`. It replaces
            rows of the same or a later step, which a resumed run computes again.

    Raises:
        DataError: curves.csv is there, and is not a table of numbers.
    """
    table = run / 'curves.csv'
    rows = read_curves(table) if table.exists() else []
    rows = [row for row in rows if float(row['step']) < values['step']]
    rows.append({name: f'{value:.4f}' for name, value in values.items()})
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with table.open('w', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    plot_curves(table, run / 'curves.png')


def read_curves(table: Path) -> list[dict[str, str]]:
    """Return the rows of curves.csv by column; an empty cell has no number.

    Raises:
        DataError: it has another content; the message names the line.
    """
    lines = csv.DictReader(read_text(table).splitlines())
    rows = list(lines)
    if rows and not all(_COLUMN.fullmatch(name or '') for name in lines.fieldnames or ()):
        raise DataError(f'{table}: has the columns {short_repr(lines.fieldnames)}; {_CURE}')
    for number, row in enumerate(rows, 2):
        for name, cell in row.items():
            if not _is_number(cell) and not (cell in ('', None) and name != 'step'):
                raise DataError(
                    f'{table}: line {number} has {short_repr(name)} {short_repr(cell)}; expected '
                    f'a number; {_CURE}'
                )
    return rows


def _is_number(cell: object) -> bool:
    try:
        float(cell)
    except (TypeError, ValueError):
        return False
    return True


def plot_curves(table: Path, image: Path) -> None:
    """Plot losses (log scale) above validation metrics; do nothing without matplotlib.

    Args:
        table: curves.csv of a run. Columns `val_*` are metrics; all others but `step` and
            `minutes` are losses.
        image: the PNG to write.
    """
    try:
        import matplotlib
    except ModuleNotFoundError:
        return  # a missing plot must not end a training: the table is there
    matplotlib.use('Agg')
    from matplotlib import pyplot

    rows = read_curves(table)
    names = [name for name in rows[0] if name not in ('step', 'minutes')]
    metrics = [name for name in names if name.startswith('val_')]
    losses = [name for name in names if name not in metrics]
    figure, axes = pyplot.subplots(2, 1, figsize=(8, 8), sharex=True, layout='constrained')
    for axis, group in zip(axes, (losses, metrics), strict=True):
        for name in group:
            points = [(float(row['step']), float(row[name])) for row in rows if row.get(name)]
            if points:
                axis.plot(*zip(*points, strict=True), '.-', label=name.removeprefix('val_'))
        axis.grid(alpha=0.3)
        if group:
            axis.legend(fontsize=8, ncols=2, loc='center left', bbox_to_anchor=(1, 0.5))
    axes[0].set(yscale='log' if losses else 'linear', ylabel='losses')
    axes[1].set(xlabel='step', ylabel='validation')
    figure.savefig(image, dpi=100)
    pyplot.close(figure)
