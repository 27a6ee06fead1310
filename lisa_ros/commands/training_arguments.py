# SPDX-License-Identifier: Apache-2.0
"""Flags of the training commands, and the configs that they set."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import TypeVar

from lisa_ros.number_arguments import (
    fraction,
    fraction_below_one,
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_int,
)

_Config = TypeVar('_Config')
_METAVARS = {str: 'NAME', positive_int: 'N', non_negative_int: 'N'}  # of others: X

# Fields of training.trainer_config.TrainerConfig that have a flag: parser and description of each.
_TRAINER_FLAGS = {
    'steps': (positive_int, 'optimizer steps'),
    'learning_rate': (positive_float, 'peak learning rate'),
    'warmup_steps': (
        non_negative_int,
        'first steps, in which the learning rate rises from 0 to its peak',
    ),
    'decay_fraction': (fraction, 'last share of the steps, in which the learning rate falls to 0'),
    'weight_decay': (non_negative_float, 'weight decay of matrices'),
    'accumulate': (positive_int, 'micro-batches of a step; their gradients are averaged'),
    'ema_decay': (
        fraction_below_one,
        "decay of the weights' moving average, which is exported; 0: none",
    ),
    'validate_every': (positive_int, 'steps between two validations'),
    'save_every': (positive_int, 'steps between two saved states'),
    'monitor': (
        str,
        'export the weights with the highest value of this validation metric',
    ),
    'patience': (positive_int, 'stop after this many validations without a new best'),
    'workers': (non_negative_int, 'processes that draw batches, for a GPU; 0: a thread'),
    'seed': (non_negative_int, 'seed of batches and of initial weights'),
}


def add_config_flags(
    parser: argparse.ArgumentParser,
    flags: Mapping[str, tuple[Callable[[str], object], str, object]],
) -> None:
    """Add a flag for each of some fields of a config.

    Args:
        parser: gets the flags.
        flags: (parser of the value, description, default) by field name. The default is only
            shown: options that are not given stay None, see `with_options`.
    """
    for name, (parse, description, default) in flags.items():
        parser.add_argument(
            f'--{name.replace("_", "-")}',
            type=parse,
            metavar=_METAVARS.get(parse, 'X'),
            help=f'{description} (default: {"none" if default is None else default})',
        )


def add_trainer_flags(parser: argparse.ArgumentParser, defaults: Mapping[str, object]) -> None:
    """Add flags for some fields of TrainerConfig.

    Args:
        parser: gets the flags.
        defaults: the default to show, by field name; other fields get no flag.
    """
    flags = {name: (*_TRAINER_FLAGS[name], default) for name, default in defaults.items()}
    add_config_flags(parser, flags)


def with_options(config: _Config, options: argparse.Namespace) -> _Config:
    """Return a config with the fields that were given on the command line."""
    values = {field.name: getattr(options, field.name, None) for field in fields(config)}
    return replace(config, **{name: v for name, v in values.items() if v is not None})
