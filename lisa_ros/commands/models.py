# SPDX-License-Identifier: Apache-2.0
"""`lisa-ros models`: list the checkpoints that are known to load."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lisa_ros.number_arguments import positive_float

if TYPE_CHECKING:  # not at run time: `lisa-ros --help` must not import transformers
    from lisa_ros.model_zoo.known_models import KnownModel

_PRECISIONS = ('bf16', 'fp16', 'fp32', 'int8', 'nf4')
_ABILITIES = ('explains', 'denies', 'instances', 'dialogue')
_GIB = 2**30


def add(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = commands.add_parser(
        'models', help='list known checkpoints: memory, abilities, published figures'
    )
    parser.add_argument(
        '--fits',
        type=positive_float,
        metavar='GIB',
        help='list only models whose weights fit into this memory, in --precision; image and KV '
        'cache need 2 to 3 GiB more (default: list all)',
    )
    parser.add_argument(
        '--precision',
        default='bf16',
        choices=_PRECISIONS,
        help='of the weights, for --fits (default: bf16)',
    )
    parser.add_argument(
        '--can',
        nargs='+',
        default=(),
        choices=_ABILITIES,
        metavar='ABILITY',
        help=f'list only models with these abilities: {", ".join(_ABILITIES)} (default: list all)',
    )
    parser.add_argument('--json', action='store_true', help='print one JSON array')
    parser.set_defaults(run=list_models)


def list_models(options: argparse.Namespace) -> None:
    """Print the known models that the options choose."""
    from lisa_ros.model_zoo import tables
    from lisa_ros.model_zoo.known_models import KNOWN_MODELS

    models = [
        model
        for model in KNOWN_MODELS
        if options.fits is None or tables.fits(model, options.fits * _GIB, options.precision)
        if all(getattr(model.abilities, ability) for ability in options.can)
    ]
    if options.json:
        print(json.dumps([tables.as_json(model) for model in models], indent=1))
        return
    _print_table(models)


def _print_table(models: Sequence[KnownModel]) -> None:
    """Print a row for each model, and below it what has no column."""
    from lisa_ros.model_zoo import tables

    head = ('weights', *tables.PRECISIONS, *_ABILITIES)
    print(' ' * 4 + ''.join(f'{name:>10}' for name in head) + '   ReasonSeg test, gIoU / cIoU')
    for model in models:
        print(model.name)
        cells = [tables.parameters(model)]
        cells += [tables.memory(model, precision) for precision in tables.PRECISIONS]
        cells += tables.abilities(model.abilities).values()
        print(
            ' ' * 4
            + ''.join(f'{cell:>10}' for cell in cells)
            + f'   {tables.figure_on_test(model)}'
        )
        notes = [f'licence {model.licence or tables.UNKNOWN}', f'template {model.template}']
        notes += [model.remark] if model.remark else []
        notes += [f'also {", ".join(model.variants)}'] if model.variants else []
        print(textwrap.indent(textwrap.fill('; '.join(notes), 100), ' ' * 6))
    print(
        '\nMemory is that of the weights; image and KV cache need 2 to 3 GB more. Figures were '
        'published by others\n(docs/models.md has the sources); generated and teacher-forced ones '
        'cannot be compared. Compare models on\nyour own images: lisa-ros evaluate images DATA '
        '--model A --model B --out report'
    )
