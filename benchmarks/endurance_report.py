# SPDX-License-Identifier: Apache-2.0
"""The report of an endurance run: its limits, a JSON file with its figures, and its plot."""

from __future__ import annotations

import datetime
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use('Agg')
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

NODE_COLOUR, MODEL_COLOUR, LIMIT_COLOUR = 'tab:blue', 'tab:orange', 'tab:red'
OTHER_COLOUR = 'tab:gray'  # of what something is compared with


@dataclass(frozen=True)
class Limit:
    """A measured value and the largest one that is allowed."""

    name: str
    value: float
    largest: float
    unit: str = ''
    is_judged: bool = True  # False: the run is too short to tell

    @property
    def holds(self) -> bool:
        """Whether the value is within the limit, or not judged; NaN is not within."""
        return self.value <= self.largest or not self.is_judged


@dataclass(frozen=True)
class Report:
    """What a run has measured."""

    benchmark: str  # soak, chaos or flood
    arguments: dict[str, Any]  # of the command line; `model` among them
    seconds: float  # duration of the run
    limits: Sequence[Limit]
    figures: dict[str, Any]  # everything else that was measured, by name

    @property
    def holds(self) -> bool:
        """Whether all limits hold."""
        return all(limit.holds for limit in self.limits)

    def write(self, folder: Path) -> Path:
        """Write the figures as JSON; return the file."""
        path = folder / f'{self.benchmark}.json'
        content = {
            'benchmark': self.benchmark,
            'date': datetime.datetime.now().astimezone().isoformat(timespec='seconds'),
            'machine': machine(),
            'arguments': self.arguments,
            'seconds': round(self.seconds, 1),
            'holds': self.holds,
            'limits': [{**asdict(limit), 'holds': limit.holds} for limit in self.limits],
            **self.figures,
        }
        text = json.dumps(content, indent=1, ensure_ascii=False, default=str)
        path.write_text(text + '\n', encoding='utf-8')
        return path

    def print_table(self) -> None:
        """Print each limit and whether it holds; "short": the run is too short to tell."""
        model = self.arguments['model']
        print(f'{self.benchmark}, model {model}, {self.seconds:.0f} s on {machine()}')
        for limit in self.limits:
            verdict = ('holds' if limit.holds else 'FAILS') if limit.is_judged else 'short'
            value, largest = f'{limit.value:.4g}', f'{limit.largest:.4g}'
            print(f'  {verdict}  {limit.name:62}{value:>8} of {largest:>4} {limit.unit}')


def machine() -> str:
    """Return the processor, the number of its cores in use, the system and Python, in words."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    names = [
        line.split(':', 1)[1].strip()
        for line in _lines('/proc/cpuinfo')
        if line.startswith('model name')
    ]
    name = names[0] if names else platform.processor() or platform.machine()
    version = '.'.join(map(str, sys.version_info[:2]))
    return f'{name}, {cores} cores, {platform.system()} {platform.release()}, Python {version}'


def _lines(path: str) -> list[str]:
    file = Path(path)
    return file.read_text(encoding='utf-8').splitlines() if file.exists() else []


def figure(rows: int, title: str) -> tuple[Figure, list[Axes]]:
    """Return a figure with plots below each other, in the style of all endurance runs."""
    drawn, axes = pyplot.subplots(
        rows, 1, figsize=(8, 2.4 * rows + 0.6), sharex=True, squeeze=False, layout='constrained'
    )
    drawn.suptitle(title, fontsize=11)
    for axis in axes[:, 0]:
        axis.grid(alpha=0.3)
        axis.spines[['top', 'right']].set_visible(False)
    return drawn, list(axes[:, 0])


def add_legend(axis: Axes, note: str) -> None:
    """Put the legend above a plot, with a note that explains its lines and areas."""
    axis.legend(loc='lower right', bbox_to_anchor=(1, 1), ncols=6, frameon=False, fontsize=8)
    axis.set_title(note, loc='left', fontsize=8, color='0.4')


def save(drawn: Figure, path: Path) -> Path:
    """Save a figure as PNG and free it; return the file."""
    drawn.savefig(path, dpi=110)
    pyplot.close(drawn)
    return path
