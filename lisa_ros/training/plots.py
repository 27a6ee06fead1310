# SPDX-License-Identifier: Apache-2.0
"""Pictures of a run: its losses and validation figures over the steps, from curves.csv."""

from __future__ import annotations

import csv
from pathlib import Path


def plot(table: Path, picture: Path) -> None:
    """Draw losses (logarithmic) above validation figures; nothing where matplotlib is absent.

    Args:
        table: curves.csv of a run; columns `val_*` are figures, `step` and `minutes` neither.
        picture: the PNG to write.
    """
    try:
        import matplotlib
    except ModuleNotFoundError:
        return  # a training must not end for want of a picture; the table is there
    matplotlib.use('Agg')
    from matplotlib import pyplot

    with table.open(newline='') as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name not in ('step', 'minutes')]
    figures = [name for name in names if name.startswith('val_')]
    groups = ([n for n in names if n not in figures], figures)
    drawing, axes = pyplot.subplots(2, 1, figsize=(8, 8), sharex=True, layout='constrained')
    for axis, group in zip(axes, groups, strict=True):
        for name in group:
            points = [(float(r['step']), float(r[name])) for r in rows if r.get(name)]
            if points:
                axis.plot(*zip(*points, strict=True), '.-', label=name.removeprefix('val_'))
        axis.grid(alpha=0.3)
        if group:
            axis.legend(fontsize=8, ncols=2, loc='center left', bbox_to_anchor=(1, 0.5))
    axes[0].set(yscale='log', ylabel='losses')
    axes[1].set(xlabel='step', ylabel='validation')
    drawing.savefig(picture, dpi=100)
    pyplot.close(drawing)
