# SPDX-License-Identifier: Apache-2.0
"""`lisa-ros train`: train lisa-tabletop, our own small model, on rendered scenes."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from lisa_ros.commands.training_arguments import (
    add_config_flags,
    add_trainer_flags,
    with_options,
)
from lisa_ros.errors import SettingsError
from lisa_ros.files.output import check_output_folder
from lisa_ros.number_arguments import fraction, non_negative_int, positive_int

_TRAINER_DEFAULTS = {
    'steps': 4600,
    'learning_rate': 0.001,
    'warmup_steps': 100,
    'decay_fraction': 0.6,
    'weight_decay': 0.05,
    'accumulate': 1,
    'ema_decay': 0.99,
    'validate_every': 300,
    'save_every': 100,
    'monitor': None,
    'patience': None,
    'workers': 0,
    'seed': 0,
}
# Fields of training.tabletop.pretrain_config.PretrainConfig: parser, description, default.
_BATCH_FLAGS = {
    'vision_warmup_steps': (
        non_negative_int,
        'first steps, which train only vision encoders, no text',
        600,
    ),
    'number_warmup_steps': (
        non_negative_int,
        'next steps: all answers contain numbers, no mask losses',
        0,
    ),
    'batch_size': (positive_int, 'images in a batch', 16),
    'queries_per_image': (positive_int, 'queries about each image', 6),
    'measured_per_image': (non_negative_int, 'of these, queries whose answers contain numbers', 0),
    'reasoning_per_image': (non_negative_int, 'of these, queries that need reasoning', 0),
    'fixed_reasoning_pairs': (
        non_negative_int,
        'number of fixed pairs of an image and a reasoning query, which fill half of each batch',
        0,
    ),
    'name_noise_rate': (
        fraction,
        'fraction of answers with a position that are read with a wrong object name, so that '
        'the mask follows the position',
        0.0,
    ),
}
_MODEL_FLAGS = {
    'clip_image_size': (
        positive_int,
        "side of CLIP's input, a multiple of 16 up to 352 [px]; none: that of the start model",
        None,
    ),
    'lora_rank': (
        non_negative_int,
        'with --init-from: train low-rank updates of this rank and save them beside the '
        'unchanged weights; 0: train the weights',
        0,
    ),
    'views_per_scene': (positive_int, 'augmented views of each scene in a feature cache', 1),
    'threads': (positive_int, 'threads of PyTorch on the CPU', 2),
}
# options of the whole training, which --position-codes does not use
_NOT_OF_POSITION_CODES = (
    *('device', *_BATCH_FLAGS, *_MODEL_FLAGS),
    *('exclude_categories', 'init_vision_from', 'rebuild_tokenizer', 'feature_cache'),
)


def add(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = commands.add_parser(
        'train',
        help='train lisa-tabletop on rendered scenes, or resume a run',
        description='Trains lisa-tabletop; resumes the run if OUT holds one. Ctrl-C ends it after '
        'the current step. docs/lisa-tabletop.md has the commands of the bundled weights.',
    )
    parser.add_argument('--scenes', type=Path, help='folder that `lisa-ros scenes` wrote')
    parser.add_argument(
        '--out', type=Path, help='folder of the run: state, curves, the model in OUT/model'
    )
    parser.add_argument('--device', help='cpu or cuda (default: cpu)')
    add_trainer_flags(parser, _TRAINER_DEFAULTS)
    parser.add_argument(
        '--bf16',
        action=argparse.BooleanOptionalAction,
        default=None,
        help='matrix products in bfloat16 (default: where the machine has instructions for it)',
    )
    add_config_flags(parser, _BATCH_FLAGS)
    parser.add_argument(
        '--exclude-categories',
        nargs='+',
        metavar='CATEGORY',
        help='query categories that are not sampled (default: none)',
    )
    _add_model_arguments(parser)
    _add_check_arguments(parser)
    parser.set_defaults(run=train)


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags about the model to start from."""
    parser.add_argument(
        '--init-from', type=Path, metavar='MODEL', help='model folder (default: random weights)'
    )
    parser.add_argument(
        '--init-vision-from',
        type=Path,
        metavar='MODEL',
        help='model folder whose sizes, tokenizer and vision weights are used; the language model '
        'starts from random weights',
    )
    parser.add_argument(
        '--rebuild-tokenizer',
        action='store_true',
        default=None,
        help="with --init-from: train a new tokenizer on today's queries and remap the embeddings",
    )
    add_config_flags(parser, _MODEL_FLAGS)
    parser.add_argument(
        '--feature-cache',
        type=Path,
        metavar='FOLDER',
        help='folder for features of CLIP and SAM, written once; their encoders are frozen, and '
        'a step is three to five times as fast (default: no cache)',
    )
    parser.add_argument(
        '--position-codes',
        action='store_true',
        help='with --init-from: only add position codes to the features of its CLIP, on the CPU, '
        'with learning rate, steps and decay of its own unless given',
    )


def _add_check_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the comparison with the original."""
    parser.add_argument(
        '--check',
        type=Path,
        metavar='GOLDEN_SET',
        help='train nothing: compare losses and gradients of `lisa-ros finetune` with those of '
        'the original in this folder; exit status 1 if they differ',
    )
    parser.add_argument('--json', action='store_true', help='with --check: print one JSON object')


def train(options: argparse.Namespace) -> int:
    """Train lisa-tabletop, or resume a run; or compare our losses with the original's.

    Returns:
        Exit status: 0 done, 1 the comparison found a difference, 130 stopped by a signal.
    """
    if options.check is not None:
        return _check(options)
    if options.scenes is None or options.out is None:
        raise SettingsError('train needs --scenes and --out (or --check with a golden set)')
    if options.patience is not None and options.monitor is None:
        raise SettingsError(
            '--patience counts validations without a new best of a metric: name it with --monitor'
        )
    check_output_folder(options.out)
    finished = _add_position_codes(options) if options.position_codes else _pretrain(options)
    return 0 if finished else 130


def _pretrain(options: argparse.Namespace) -> bool:
    """Train; return False if a signal stopped it."""
    from lisa_ros.model.device import resolve_device
    from lisa_ros.training.tabletop import pretrain
    from lisa_ros.training.tabletop.pretrain_config import PretrainConfig

    device = str(resolve_device(options.device or 'cpu'))  # before the scenes are read
    config = with_options(PretrainConfig(), options)
    config = replace(config, trainer=with_options(config.trainer, options))
    return pretrain.train(options.out, options.scenes, config, device)


def _add_position_codes(options: argparse.Namespace) -> bool:
    """Train the position codes of a model's CLIP; return False if a signal stopped it."""
    if options.init_from is None:
        raise SettingsError('--position-codes changes a given model: name it with --init-from')
    unused = [name for name in _NOT_OF_POSITION_CODES if getattr(options, name) is not None]
    if options.device == 'cpu':
        unused.remove('device')
    if unused:
        flags = ', '.join(f'--{name.replace("_", "-")}' for name in unused)
        raise SettingsError(
            f'--position-codes trains CLIP alone, on the CPU, without {flags}: leave it out'
        )
    from lisa_ros.training.tabletop.position_distillation import TRAINER_CONFIG, distill

    config = with_options(TRAINER_CONFIG, options)
    return distill(options.out, options.scenes, options.init_from, config)


def _check(options: argparse.Namespace) -> int:
    """Print losses and gradients beside the original's; return 1 if they differ."""
    from lisa_ros.training.finetune.parity_check import compare_golden_set, format_report

    report = compare_golden_set(options.check, options.device or 'cpu')
    print(json.dumps(report) if options.json else format_report(report))
    return 0 if report['ok'] else 1
