# SPDX-License-Identifier: Apache-2.0
"""Flags of the training commands, and the configs that they set."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import TypeVar

_Config = TypeVar('_Config')

# Fields of training.trainer_config.TrainerConfig that have a flag: type and description of each.
_TRAINER_FLAGS = {
    'steps': (int, 'optimizer steps'),
    'learning_rate': (float, 'peak learning rate'),
    'warmup_steps': (int, 'first steps, in which the learning rate rises from 0 to its peak'),
    'decay_fraction': (float, 'last share of the steps, in which the learning rate falls to 0'),
    'weight_decay': (float, 'weight decay of matrices'),
    'accumulate': (int, 'micro-batches of a step; their gradients are averaged'),
    'ema_decay': (float, "decay of the weights' moving average, which is exported; 0: none"),
    'validate_every': (int, 'steps between two validations'),
    'save_every': (int, 'steps between two saved states'),
    'monitor': (
        str,
        'export the weights with the highest value of this validation metric',
    ),
    'patience': (int, 'stop after this many validations without a new best'),
    'workers': (int, 'processes that draw batches, for a GPU; 0: a thread'),
    'seed': (int, 'seed of batches and of initial weights'),
}


def add_config_flags(
    parser: argparse.ArgumentParser, flags: Mapping[str, tuple[type, str, object]]
) -> None:
    """Add a flag for each of some fields of a config.

    Args:
        parser: gets the flags.
        flags: (type, description, default) by field name. The default is only shown: options
            that are not given stay None, see `with_options`.
    """
    for name, (kind, description, default) in flags.items():
        parser.add_argument(
            f'--{name.replace("_", "-")}',
            type=kind,
            metavar='NAME' if kind is str else 'N' if kind is int else 'X',
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
