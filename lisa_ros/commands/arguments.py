# SPDX-License-Identifier: Apache-2.0
"""Arguments that several commands share: the model and where it may come from."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from lisa_ros.errors import DataError
from lisa_ros.settings import Settings
from lisa_ros.settings_schema import ValidatedSettings, parameter_info

if TYPE_CHECKING:
    from lisa_ros.perception.segmenter import Segmenter

SOURCE_SETTINGS = (  # where a model comes from and how large it may be
    *('allow_download', 'model_sha256', 'model_lock', 'max_input_side', 'max_model_size'),
)
_SHORT_FLAGS = {'model_sha256': ['--sha256'], 'model_lock': ['--lock']}
MODEL_SETTINGS = (
    *('model', 'segmenter_model', 'vlm_url', 'api_key_env'),
    *('api_key_file', 'server_image', 'server_jpeg_quality'),
    *('vision_tower', 'template', 'device', 'precision'),
    *('max_new_tokens', 'answer_style', 'similarity_points', 'verify'),
)


def load_segmenter(options: argparse.Namespace) -> Segmenter:
    """Load the model that the options name."""
    from lisa_ros.perception.segmenter import Segmenter

    return Segmenter.load(**segmenter_arguments(options))


def segmenter_arguments(options: argparse.Namespace) -> dict[str, object]:
    """Return the arguments of `Segmenter.load`, as the options of `model_arguments` have them."""
    from lisa_ros.perception.backend import AnswerStyle, InferenceOptions

    return {
        'name': options.model,
        'device': options.device,
        'precision': options.precision,
        'vision_tower': options.vision_tower,
        'segmenter_model': options.segmenter_model,
        'vlm_url': options.vlm_url,
        'api_key_env': options.api_key_env,
        'api_key_file': options.api_key_file,
        'server_image': options.server_image,
        'server_jpeg_quality': options.server_jpeg_quality,
        'template': options.template,
        **source_arguments(options),
        'options': InferenceOptions(
            max_new_tokens=options.max_new_tokens,
            answer_style=AnswerStyle(options.answer_style),
            similarity_points={'on': True, 'off': False}.get(options.similarity_points),
            typed_specials=options.typed_specials,
            verify=options.verify,
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
        default = 'none' if field.default == '' else field.default
        keywords = {
            'type': type(field.default),
            'default': field.default,
            'choices': info.choices or None,
            'metavar': None if info.choices else field.name.upper(),
            'help': f'{info.description} (default: {default})',
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
    repeated = {}
    if several:
        description = parameter_info(Settings.__dataclass_fields__['model']).description
        text = f'{description}. Several: the models are compared (default: {Settings.model})'
        repeated = {'model': {'action': 'append', 'default': None, 'help': text}}
    setting_arguments(parser, Settings, (*MODEL_SETTINGS, *SOURCE_SETTINGS), **repeated)
    parser.add_argument(
        '--typed-specials',
        action='store_true',
        help='read special tokens typed in QUERY, such as [SEG], as tokens, as in the original '
        '(default: as text)',
    )


_LISTED = 20  # broken items in an error; the others are counted


def refuse_broken(skip_broken: bool, source: str, broken: Sequence[str], usable: Sequence) -> None:
    """Refuse data with items that cannot be used, unless they are to be skipped.

    Args:
        skip_broken: --skip-broken.
        source: of the data, for the message.
        broken: why items cannot be used.
        usable: the other items.

    Raises:
        DataError: there are broken items, and no --skip-broken; or no usable ones.
    """
    more = f'; and {len(broken) - _LISTED} more' if len(broken) > _LISTED else ''
    listed = '; '.join(broken[:_LISTED]) + more
    if not usable:
        raise DataError(f'{source}: nothing can be used' + (f': {listed}' if broken else ''))
    if broken and not skip_broken:
        count = '1 item' if len(broken) == 1 else f'{len(broken)} items'
        raise DataError(
            f'{source}: {count} cannot be used: {listed}; correct them, or leave them out with '
            '--skip-broken'
        )


def print_not_used(error: DataError) -> None:
    """Name an item that is left out, on stderr."""
    print(f'not used: {error}', file=sys.stderr)
