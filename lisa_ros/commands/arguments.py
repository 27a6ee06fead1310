# SPDX-License-Identifier: Apache-2.0
"""What several commands ask for: a model, a pace, numbers."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields, replace

from lisa_ros.settings import Settings
from lisa_ros.settings_schema import ValidatedSettings, parameter_info


def load(options: argparse.Namespace):
    """Return the model that the options ask for."""
    from lisa_ros.perception.segmenter import (
        Segmenter,  # torch and transformers take seconds to import
    )

    return Segmenter.load(**segmenter_arguments(options))


def segmenter_arguments(options: argparse.Namespace) -> dict[str, object]:
    """Return what `Segmenter.load` wants, as the options have it."""
    named = ('device', 'precision', 'vision_tower', 'template', 'max_new_tokens')
    more = {name: getattr(options, name) for name in (*named, 'typed_specials')}
    return {'name': options.model, **more}


MODEL_SETTINGS = ('model', 'vision_tower', 'template', 'device', 'precision', 'max_new_tokens')


def positive_int(text: str) -> int:
    """Return a number of 1 or more."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is no number of 1 or more')
    return int(text)


def positive_float(text: str) -> float:
    """Return a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float('inf'):
        raise argparse.ArgumentTypeError(f'{text!r} is no number above 0')
    return value


def setting_arguments(
    parser: argparse.ArgumentParser,
    kind: type[ValidatedSettings],
    names: Sequence[str],
    **others: dict,
) -> None:
    """Add some of a class of settings, with their own words; `others` are by setting's name."""
    for field in fields(kind):
        if field.name in names:
            known = parameter_info(field)
            given = {
                'type': type(field.default),
                'default': field.default,
                'choices': known.choices or None,
                'metavar': None if known.choices else field.name.upper(),
                'help': f'{known.sentence} (default: {field.default or "none"})',
            }
            name = f'--{field.name.replace("_", "-")}'
            parser.add_argument(name, **(given | others.get(field.name, {})))


def model_arguments(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """Add the settings that say which model answers, with the node's own words for them.

    With `several`, --model may be given again, and is a list, or None.
    """
    many = {'model': {'action': 'append', 'default': None}} if several else {}
    setting_arguments(parser, Settings, MODEL_SETTINGS, **many)
    parser.add_argument(
        '--typed-specials',
        action='store_true',
        help='tokens written out in QUERY, such as [SEG], are those tokens, as in the original',
    )


def trainer_config(options: argparse.Namespace, usual):
    """Return the usual pace with what was given on the command line."""
    given = {f.name: getattr(options, f.name, None) for f in fields(usual)}
    return replace(usual, **{name: value for name, value in given.items() if value is not None})


def pace_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the numbers of training.loop.Pace; the defaults are with each training."""
    for name, kind, what in (
        ('--steps', int, 'of the optimizer'),
        ('--learning-rate', float, 'peak learning rate'),
        ('--warmup-steps', int, 'steps in which it rises'),
        ('--decay-fraction', float, 'share of the steps in which it falls'),
        ('--validate-every', int, 'steps'),
        ('--save-every', int, 'steps'),
        ('--seed', int, 'of all that is drawn'),
    ):
        parser.add_argument(name, type=kind, help=what)
