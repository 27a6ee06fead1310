# SPDX-License-Identifier: Apache-2.0
"""Arguments that several commands share: the model and numbers."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from lisa_ros.settings import Settings
from lisa_ros.settings_schema import ValidatedSettings, parameter_info

if TYPE_CHECKING:
    from lisa_ros.perception.segmenter import Segmenter

_SOURCE_SETTINGS = (  # where a model comes from and how large it may be
    *('allow_download', 'model_sha256', 'model_lock', 'max_input_side', 'max_model_size'),
)
_SHORT_FLAGS = {'model_sha256': ['--sha256'], 'model_lock': ['--lock']}
MODEL_SETTINGS = ('model', 'vision_tower', 'template', 'device', 'precision', 'max_new_tokens')


def load_segmenter(options: argparse.Namespace) -> Segmenter:
    """Load the model that the options name."""
    from lisa_ros.perception.segmenter import Segmenter

    return Segmenter.load(**segmenter_arguments(options))


def segmenter_arguments(options: argparse.Namespace) -> dict[str, object]:
    """Return the arguments of `Segmenter.load`, as the options of `model_arguments` have them."""
    from lisa_ros.perception.backend import InferenceOptions

    return {
        'name': options.model,
        'device': options.device,
        'precision': options.precision,
        'vision_tower': options.vision_tower,
        'template': options.template,
        **source_arguments(options),
        'options': InferenceOptions(
            max_new_tokens=options.max_new_tokens, typed_specials=options.typed_specials
        ),
    }


def source_arguments(options: argparse.Namespace) -> dict[str, object]:
    """Return where a model may come from, as fields of `LoadOptions`."""
    return {
        'allow_download': options.allow_download,
        'sha256': options.model_sha256,
        'lock': options.model_lock,
        'max_input_side': options.max_input_side,
        'max_model_size': options.max_model_size or None,
    }


def positive_int(text: str) -> int:
    """Parse an integer of 1 or more."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not an integer of 1 or more')
    return int(text)


def positive_float(text: str) -> float:
    """Parse a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float('inf'):
        raise argparse.ArgumentTypeError(f'{text!r} is not a number above 0')
    return value


def setting_arguments(
    parser: argparse.ArgumentParser,
    kind: type[ValidatedSettings],
    names: Sequence[str],
    **overrides: dict,
) -> None:
    """Add a flag for each of some settings, with the setting's type, default and description.

    Args:
        parser: gets the flags.
        kind: the class of settings.
        names: of the settings.
        overrides: keywords of `add_argument` by setting name, which replace the setting's own.
    """
    for field in fields(kind):
        if field.name not in names:
            continue
        info = parameter_info(field)
        keywords = {
            'type': type(field.default),
            'default': field.default,
            'choices': info.choices or None,
            'metavar': None if info.choices else field.name.upper(),
            'help': f'{info.description} (default: {field.default or "none"})',
        }
        if isinstance(field.default, bool):
            keywords = {
                'action': argparse.BooleanOptionalAction,
                'default': field.default,
                'help': f'{info.description} (default: {"yes" if field.default else "no"})',
            }
        flags = [f'--{field.name.replace("_", "-")}', *_SHORT_FLAGS.get(field.name, ())]
        parser.add_argument(*flags, **(keywords | overrides.get(field.name, {})))


def model_arguments(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """Add the flags that choose and load a model; the node has parameters of the same names.

    With `several`, --model may be repeated and is a list, or None.
    """
    repeated = {'model': {'action': 'append', 'default': None}} if several else {}
    setting_arguments(parser, Settings, (*MODEL_SETTINGS, *_SOURCE_SETTINGS), **repeated)
    parser.add_argument(
        '--typed-specials',
        action='store_true',
        help='read special tokens typed in QUERY, such as [SEG], as tokens, as in the original '
        '(default: as text)',
    )
