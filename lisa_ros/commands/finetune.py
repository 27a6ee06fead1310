# SPDX-License-Identifier: Apache-2.0
"""`lisa-ros finetune`: fine-tune a LISA model on annotated images."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lisa_ros.commands.arguments import print_not_used, refuse_broken
from lisa_ros.commands.training_arguments import (
    add_config_flags,
    add_trainer_flags,
    with_options,
)
from lisa_ros.errors import DataError, ErrorHandler, SettingsError, raise_error
from lisa_ros.files.output import check_output_folder
from lisa_ros.model.registry import resolve_bundled_model
from lisa_ros.number_arguments import (
    fraction,
    fraction_below_one,
    non_negative_float,
    positive_int,
)

if TYPE_CHECKING:
    from lisa_ros.datasets.annotations import ImageWithQueries
    from lisa_ros.datasets.llava import TextDialogue
    from lisa_ros.training.finetune.config import FinetuneConfig
    from lisa_ros.training.finetune.mixture import Mixture

_TRAINER_DEFAULTS = {
    'steps': 500,
    'learning_rate': 0.0003,
    'warmup_steps': 100,
    'decay_fraction': 1.0,
    'accumulate': 10,
    'validate_every': 100,
    'save_every': 100,
    'patience': None,
    'seed': 0,
}
# Fields of training.finetune.config.FinetuneConfig: parser, description, default.
_CONFIG_FLAGS = {
    'batch_size': (positive_int, 'images in a micro-batch', 1),
    'queries_per_image': (positive_int, 'queries about each image, at most', 3),
    'rank': (positive_int, 'rank of LoRA', 8),
    'alpha': (positive_int, "LoRA's output is multiplied by alpha / rank", 16),
    'dropout': (fraction_below_one, "probability of dropout on LoRA's input", 0.05),
}


def add(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = commands.add_parser(
        'finetune',
        help='fine-tune a LISA model with LoRA on annotated images',
        description='Fine-tunes the weights that the original LISA code fine-tunes: LoRA on the '
        'language model; all weights of embed_tokens, lm_head, text_hidden_fcs and the mask '
        "decoder. Writes the merged weights to RUN/model, and in LISA's released format to "
        'RUN/original. If RUN contains a run, it is resumed.',
    )
    _add_data_arguments(parser)
    parser.add_argument('--out', type=Path, required=True, metavar='RUN', help='folder of the run')
    parser.add_argument('--device', help='cpu or cuda (default: cuda if there is a GPU)')
    parser.add_argument(
        '--precision',
        choices=('fp32', 'bf16', 'nf4'),
        help='precision of the frozen weights (default: bf16 on a GPU, fp32 on a CPU); nf4 fits '
        'the 7B model into 24 GB and needs a GPU and bitsandbytes',
    )
    add_trainer_flags(parser, _TRAINER_DEFAULTS)
    add_config_flags(parser, _CONFIG_FLAGS)
    parser.add_argument(
        '--recompute',
        action=argparse.BooleanOptionalAction,
        default=None,
        help="recompute the language model's activations in the backward pass, which takes less "
        'memory and more time (default: yes)',
    )
    parser.add_argument(
        '--skip-broken',
        action='store_true',
        help='leave out images and annotations that cannot be used, and list them in '
        'RUN/skipped.txt (default: refuse data with such items before the model is loaded)',
    )
    parser.set_defaults(run=finetune)


def _add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that choose the base model and the data."""
    start = parser.add_mutually_exclusive_group(required=True)
    start.add_argument(
        '--model', help='LISA model to start from: lisa-tabletop, a folder or a hub id'
    )
    start.add_argument(
        '--llava',
        help='LLaVA model (folder or hub id) to build a new LISA model from; needs --sam',
    )
    parser.add_argument(
        '--sam',
        type=Path,
        metavar='FILE',
        help='weights of SAM, a .pth of segment-anything; for --llava',
    )
    parser.add_argument('--vision-tower', help="CLIP folder or hub id (default: the checkpoint's)")
    parser.add_argument(
        '--allow-download',
        action='store_true',
        help="download the CLIP that a local folder's config.json names by its hub id",
    )
    parser.add_argument('--sha256', help='SHA-256 of the model, as lisa-ros checksum prints it')
    parser.add_argument('--lock', help='lock file with the checksums of all that is loaded')
    parser.add_argument('--template', help="conversation template (default: the checkpoint's)")
    parser.add_argument(
        '--data',
        nargs='+',
        required=True,
        help='data sets: folders of images with masks or with JSON files of ReasonSeg or labelme; '
        'or published data sets, such as refer:refer_seg/refcoco (docs/finetuning.md)',
    )
    parser.add_argument(
        '--rates',
        type=non_negative_float,
        nargs='+',
        metavar='RATE',
        help='relative sampling rate of each data set (default: all equal)',
    )
    parser.add_argument(
        '--val',
        metavar='DATA',
        help='data set to validate on; the weights with the best gIoU are exported (default: no '
        'validation, the last weights are exported)',
    )
    parser.add_argument(
        '--words-only',
        type=fraction,
        default=0.1,
        metavar='X',
        help='for images with an explanation: fraction of the answers that are the explanation '
        'alone, without a mask (default: 0.1)',
    )


def finetune(options: argparse.Namespace) -> int:
    """Fine-tune a LISA model on annotated images, or resume a run.

    Returns:
        Exit status: 0 done, 130 stopped by a signal.
    """
    from lisa_ros.model.checksums import Lock
    from lisa_ros.model.device import resolve_device
    from lisa_ros.model.origin import Origin
    from lisa_ros.training.finetune import run
    from lisa_ros.training.finetune.base_checkpoint import BaseCheckpoint

    device = str(resolve_device(options.device))
    check_output_folder(options.out)
    config = _config(options, device)
    skipped = SkippedItems()
    on_error = skipped.add if options.skip_broken else raise_error
    mixture = _mixture(options, config, on_error, skipped)
    validation = _validation_images(options, skipped)
    base = BaseCheckpoint(
        options.llava or resolve_bundled_model(options.model),
        options.vision_tower,
        options.sam,
        is_llava=options.llava is not None,
        template=options.template,
        seed=config.trainer.seed,
        origin=Origin(
            options.allow_download,
            options.sha256,
            Lock.read(options.lock) if options.lock else None,
        ),
    )
    if options.skip_broken:
        skipped.write_to(options.out)
    is_done = run.finetune(options.out, base, mixture, validation, config, device, on_error)
    skipped.print_count()
    return 0 if is_done else 130


class SkippedItems:
    """What a fine-tuning leaves out: printed, and listed in skipped.txt of its folder.

    Threads: any thread, and any forked process, may call `add`.
    """

    def __init__(self):
        self._messages: dict[str, None] = {}  # in order
        self._file: Path | None = None

    def add(self, error: DataError) -> None:
        """Name an item that is left out, once; an `ErrorHandler`."""
        text = str(error)
        if text not in self._messages:
            self._messages[text] = None
            print_not_used(error)
            self._append(text)

    def write_to(self, run: Path) -> None:
        """Write what is left out so far into the folder of a run, and from now on the rest.

        Raises:
            DataError: the folder cannot be written to.
        """
        self._file = run / 'skipped.txt'
        try:
            run.mkdir(parents=True, exist_ok=True)
            self._file.unlink(missing_ok=True)
        except OSError as error:
            raise DataError(
                f'{run}: cannot be written to ({error}); give another --out'
            ) from error
        for text in self._messages:
            self._append(text)

    def print_count(self) -> None:
        """Print how many items were left out, if any."""
        if self._messages:
            print(f'{len(self._messages)} items were left out: {self._file}', file=sys.stderr)

    def _append(self, text: str) -> None:
        if self._file is not None:
            with self._file.open('a', encoding='utf-8') as file:
                file.write(text + '\n')


def _config(options: argparse.Namespace, device: str) -> FinetuneConfig:
    """Return the config that the options ask for."""
    from lisa_ros.training.finetune.config import FinetuneConfig

    default = FinetuneConfig(precision='bf16' if device.startswith('cuda') else 'fp32')
    config = with_options(default, options)
    trainer = with_options(config.trainer, options)
    trainer = replace(
        trainer,
        bf16=config.precision != 'fp32',
        monitor='val_giou' if options.val else None,
        warmup_steps=min(trainer.warmup_steps, max(1, trainer.steps // 5)),  # for short runs
    )
    return replace(config, trainer=trainer)


def _mixture(
    options: argparse.Namespace,
    config: FinetuneConfig,
    on_error: ErrorHandler,
    skipped: SkippedItems,
) -> Mixture:
    """Return the training data.

    Raises:
        SettingsError: the number of rates differs from the number of data sets, or one is given
            twice.
        DataError: a data set cannot be read.
    """
    from lisa_ros.training.finetune.mixture import Mixture
    from lisa_ros.training.finetune.samplers import make_sampler

    twice = [name for name in options.data if options.data.count(name) > 1]
    if twice:
        raise SettingsError(f'--data has {twice[0]} twice; set its rate with --rates')
    rates = options.rates or [1.0] * len(options.data)
    if len(rates) != len(options.data):
        raise SettingsError(
            f'{len(rates)} --rates for {len(options.data)} data sets of --data: give one for each'
        )
    samplers = {
        name: make_sampler(
            _read(options, name, skipped, explained=True),
            config.queries_per_image,
            options.words_only,
            on_error,
        )
        for name in options.data
    }
    return Mixture(samplers, dict(zip(samplers, rates, strict=True)), config.trainer.seed)


def _read(
    options: argparse.Namespace, text: str, skipped: SkippedItems, *, explained: bool
) -> list[ImageWithQueries] | list[TextDialogue]:
    """Return the items of a data set, all of which can be used.

    Raises:
        DataError: there are items that cannot be used, and no --skip-broken; or no others.
    """
    from lisa_ros.datasets.checking import read_checked

    errors: list[DataError] = []
    items = read_checked(text, errors.append, explained=explained)
    refuse_broken(options.skip_broken, text, [str(error) for error in errors], items)
    for error in errors:
        skipped.add(error)
    return items


def _validation_images(
    options: argparse.Namespace, skipped: SkippedItems
) -> list[ImageWithQueries]:
    """Return the images to validate on; none without --val.

    Raises:
        SettingsError: the data set has no masks.
        DataError: it cannot be read.
    """
    from lisa_ros.datasets.llava import TextDialogue

    images = _read(options, options.val, skipped, explained=False) if options.val else []
    if images and isinstance(images[0], TextDialogue):
        raise SettingsError(
            f'--val {options.val}: text dialogues have no masks to validate on; '
            'give annotated images'
        )
    return images
