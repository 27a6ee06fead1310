# SPDX-License-Identifier: Apache-2.0
"""`lisa-ros frames` and `lisa-ros finetune`: a LISA learns pictures of one's own."""

from __future__ import annotations

import argparse
from dataclasses import fields, replace
from pathlib import Path

from lisa_ros.commands.arguments import pace_arguments, trainer_config
from lisa_ros.errors import SettingsError
from lisa_ros.model.registry import resolve_bundled_model


def add(commands: argparse._SubParsersAction) -> None:
    """Add the commands."""
    taken = commands.add_parser('frames', help='pictures out of a bag, to be labelled')
    taken.add_argument('bag', type=Path, metavar='BAG', help='rosbag2 folder, or a bare .mcap')
    taken.add_argument('--topic', help='of Image or CompressedImage (default: the only one)')
    taken.add_argument('--out', type=Path, required=True, help='folder for <stamp in ns>.png')
    taken.add_argument(
        '--every', type=float, default=0.0, metavar='SECONDS', help='between frames (default: all)'
    )
    taken.set_defaults(run=frames)

    _finetune_arguments(
        commands.add_parser(
            'finetune',
            help='teach a LISA your own pictures by LoRA',
            description='Fine-tunes a LISA on labelled pictures, as the original does: LoRA on '
            'the language model; its words, text_hidden_fcs and the mask decoder whole. Writes '
            'the merged weights to RUN/model, and in the released layout to RUN/original.',
        )
    )


def frames(options: argparse.Namespace) -> None:
    """Take pictures out of a bag."""
    from lisa_ros.datasets.bag_frames import extract_frames

    written = extract_frames(options.bag, options.out, options.topic, options.every)
    print(f'{len(written)} frames in {options.out}/: label them with `labelme {options.out}`')


def finetune(options: argparse.Namespace) -> int:
    """Fine-tune a LISA on labelled pictures, or go on with a run."""
    from lisa_ros.datasets import registry
    from lisa_ros.datasets.llava import TextDialogue
    from lisa_ros.model.device import resolve_device
    from lisa_ros.training.finetune import task as school
    from lisa_ros.training.finetune.mixture import Mixture
    from lisa_ros.training.finetune.samplers import make_sampler

    device = str(resolve_device(options.device))
    recipe = school.FinetuneConfig()
    given = {f.name: getattr(options, f.name, None) for f in fields(recipe)}
    recipe = replace(recipe, **{k: v for k, v in given.items() if v is not None})
    if options.precision is None:
        recipe = replace(recipe, precision='bf16' if device.startswith('cuda') else 'fp32')
    pace = trainer_config(options, recipe.pace)
    pace = replace(
        pace,
        bf16=recipe.precision != 'fp32',
        monitor='val_giou' if options.val else None,
        warmup_steps=min(pace.warmup_steps, max(1, pace.steps // 5)),
    )
    recipe = replace(recipe, pace=pace)
    sources = {
        data: make_sampler(registry.read(data), recipe.queries_per_image, options.words_only)
        for data in options.data
    }
    rates = options.rates or [1.0] * len(sources)
    if len(rates) != len(sources):
        raise SettingsError(
            f'{len(rates)} --rates for {len(sources)} data sets of --data: give one for each'
        )
    mixture = Mixture(sources, dict(zip(sources, rates, strict=True)), pace.seed)
    validation = registry.read(options.val) if options.val else []
    if validation and isinstance(validation[0], TextDialogue):
        raise SettingsError(f'--val {options.val}: talks have no masks to validate on')
    origin = school.BaseCheckpoint(
        options.llava or resolve_bundled_model(options.model),
        options.vision_tower,
        options.sam,
        is_llava=options.llava is not None,
        template=options.template,
        seed=pace.seed,
    )
    done = school.finetune(options.out, origin, mixture, validation, recipe, device)
    return 0 if done else 130


def _finetune_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `finetune` asks; the numbers' defaults are in training.finetune.Recipe."""
    start = parser.add_mutually_exclusive_group(required=True)
    start.add_argument('--model', help='a LISA: lisa-tabletop, a folder or a hub id')
    start.add_argument('--llava', help='or a LLaVA, folder or hub id, to begin a LISA; with --sam')
    parser.add_argument('--sam', type=Path, help='a .pth of segment-anything')
    parser.add_argument('--vision-tower', help="CLIP (default: the checkpoint's own)")
    parser.add_argument('--template', help="conversation template (default: the checkpoint's own)")
    parser.add_argument(
        '--data',
        nargs='+',
        required=True,
        help='FOLDERs of pictures with JSON beside them as ReasonSeg and labelme have it, or with '
        'masks; or published data sets, as refer:refer_seg/refcoco (docs/finetuning.md)',
    )
    parser.add_argument('--rates', type=float, nargs='+', help='of each of them (default: alike)')
    parser.add_argument('--val', metavar='DATA', help='pictures to validate on')
    parser.add_argument('--out', type=Path, required=True, metavar='RUN', help='goes on if there')
    parser.add_argument('--device', help='cpu, cuda (default: the GPU where there is one)')
    parser.add_argument(
        '--precision',
        choices=('fp32', 'bf16', 'nf4'),
        help='of the weights that stay (default: bf16 on a GPU, fp32 on a CPU); nf4 needs a GPU '
        'and bitsandbytes, and lets 7B fit into 24 GB',
    )
    pace_arguments(parser)
    for name, kind, what in (
        ('--accumulate', int, 'micro-batches of a step (default: 10)'),
        ('--patience', int, 'end after so many validations without a rise'),
        ('--batch-size', int, 'in a micro-batch (default: 1)'),
        ('--queries-per-image', int, 'about each picture at most (default: 3)'),
        ('--rank', int, 'of LoRA (default: 8)'),
        ('--alpha', int, 'of LoRA (default: 16)'),
        ('--dropout', float, 'of LoRA (default: 0.05)'),
    ):
        parser.add_argument(name, type=kind, help=what)
    parser.add_argument(
        '--words-only',
        type=float,
        default=0.1,
        help='share of explained pictures that are answered without a mask (default: 0.1)',
    )
    parser.add_argument(
        '--recompute',
        action=argparse.BooleanOptionalAction,
        default=None,
        help='work activations out twice, to save memory (default: yes)',
    )
    parser.set_defaults(run=finetune)
