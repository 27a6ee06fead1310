# SPDX-License-Identifier: Apache-2.0
"""Reads what earlier versions wrote into the folder of a run."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from lisa_ros.training.plots import read_curves

# losses of `pretrain`, by their earlier names
PRETRAIN_COLUMNS = {
    'pixels': 'pixel_class',
    'patches': 'patch_class',
    'words': 'patch_names',
    'inventory': 'category_presence',
    'places': 'object_layout',
    'pointing': 'prompt_mask',
    'looking': 'attention',
    'naming': 'name_tokens',
    'presence_right': 'presence_accuracy',
}
# losses and validation figures of `position_distillation`, likewise
POSITION_COLUMNS = {
    'seen': 'features',
    'place': 'positions',
    'val_place': 'val_position_error',
    'val_moved': 'val_feature_change',
}


def rename_columns(run: Path, new_names: Mapping[str, str]) -> None:
    """Rename the columns of a run's curves.csv, if it has old ones, so that the run can go on.

    Args:
        run: folder of the run; nothing happens if curves.csv is missing or empty.
        new_names: today's name of each old one.

    Raises:
        DataError: curves.csv is not a table of numbers.
    """
    path = run / 'curves.csv'
    if not path.exists():
        return
    rows = read_curves(path)
    header = list(rows[0]) if rows else []
    renamed = [new_names.get(name, name) for name in header]
    if renamed == header:
        return
    unfinished = path.with_name('curves.csv.new')
    with unfinished.open('w', newline='', encoding='utf-8') as file:
        csv.writer(file).writerows([renamed, *(row.values() for row in rows)])
    unfinished.replace(path)
