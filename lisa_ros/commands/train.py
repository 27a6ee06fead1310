# SPDX-License-Identifier: Apache-2.0
"""`lisa-ros scenes` and `lisa-ros train`: our own small model, from rendered tables."""

from __future__ import annotations

import argparse
import json
from dataclasses import fields, replace
from pathlib import Path

from lisa_ros.commands.arguments import pace_arguments, positive_int, trainer_config
from lisa_ros.errors import SettingsError


def add(commands: argparse._SubParsersAction) -> None:
    """Add the commands."""
    rendered = commands.add_parser('scenes', help='render tabletop scenes (needs MuJoCo)')
    rendered.add_argument(
        '--assets', type=Path, required=True, help='folder of meshes/, textures/'
    )
    rendered.add_argument('--out', type=Path, required=True, help='a folder for all splits')
    rendered.add_argument('--split', default='train', choices=('train', 'val', 'test', 'unseen'))
    rendered.add_argument('--count', type=int, default=10000, help='scenes (default: 10000)')
    rendered.add_argument('--first', type=int, default=0, help='number of the first of them')
    rendered.add_argument('--workers', type=int, default=1, help='processes (default: 1)')
    rendered.add_argument('--bag', type=int, metavar='N', help='a bag of scene N instead')
    rendered.add_argument('--pack', nargs='+', metavar='SPLIT', help='zip these splits as an exam')
    rendered.set_defaults(run=scenes)

    school = commands.add_parser('train', help='train lisa-tabletop from scratch, or go on')
    school.add_argument('--scenes', type=Path, help='what `lisa-ros scenes` made')
    school.add_argument('--out', type=Path, help='the run: goes on if it is there')
    school.add_argument('--device', help='cpu or cuda (default: cpu)')
    school.add_argument(
        '--check',
        type=Path,
        metavar='FOLDER',
        help="train nothing: compare losses and gradients with the original's golden set",
    )
    school.add_argument('--json', action='store_true', help='of --check: print one JSON object')
    pace_arguments(school)
    for name in (
        'vision-warmup-steps', 'number-warmup-steps', 'measured-per-image', 'reasoning-per-image',
        'batch-size', 'queries-per-image', 'fixed-reasoning-pairs', 'threads',
    ):  # fmt: skip
        school.add_argument(f'--{name}', type=int)
    school.add_argument(
        '--name-noise-rate',
        type=float,
        help='of the answers with a name behind a place, those read with a wrong one (default: 0)',
    )
    school.add_argument(
        '--exclude-categories', nargs='+', metavar='SORT', help='sorts left out (lore knows, too)'
    )
    school.add_argument('--init-from', type=Path, help='a model folder to start from')
    school.add_argument(
        '--rebuild-tokenizer',
        action='store_true',
        default=None,
        help="with --init-from: a vocabulary made anew from today's grammar",
    )
    school.add_argument(
        '--lora-rank',
        type=int,
        metavar='RANK',
        help='with --init-from: its weights stand, and what is learnt is kept beside them',
    )
    school.add_argument(
        '--clip-image-size', type=int, metavar='PIXELS', help='CLIP sees pictures of another size'
    )
    school.add_argument(
        '--init-vision-from', type=Path, help='or one whose vision parts alone are taken'
    )
    school.add_argument(
        '--feature-cache',
        type=Path,
        metavar='FOLDER',
        help='keep what the vision parts see there; they stand still and steps are faster',
    )
    school.add_argument(
        '--position-codes',
        action='store_true',
        help="with --init-from: teach its CLIP to tell each patch's place, and nothing else",
    )
    school.add_argument(
        '--views-per-scene', type=int, help='of each scene in the memory (default: 1)'
    )
    school.add_argument('--weight-decay', type=float)
    school.add_argument(
        '--workers', type=positive_int, help='processes that make lessons ready, as a GPU wants'
    )
    school.add_argument('--accumulate', type=int, help='micro-batches of a step (default: 1)')
    school.add_argument('--monitor', help='figure that must rise, such as val_explicit')
    school.add_argument('--patience', type=int, help='end after so many validations without it')
    school.add_argument('--ema-decay', type=float, help="decay of the weights' moving average")
    school.add_argument('--bf16', action=argparse.BooleanOptionalAction, default=None)
    school.set_defaults(run=train)


def scenes(options: argparse.Namespace) -> None:
    """Render the scenes of a split, or a bag of one of them; write its exam."""
    from lisa_ros.tabletop import assets, rendering, sample_bag, test_sets

    if options.bag is not None:
        cache = assets.prepare_assets(options.assets, options.out / 'assets')
        sample_bag.write_sample(cache, options.out / 'sample', options.split, options.bag)
        return
    rendering.render_split(
        options.assets,
        options.out,
        options.split,
        options.count,
        first=options.first,
        workers=options.workers,
    )
    test_sets.write_test_set(options.out / options.split)
    if options.pack:
        test_sets.pack_test_set(
            [options.out / split for split in options.pack], options.out / 'exam.zip'
        )


def train(options: argparse.Namespace) -> int:
    """Train lisa-tabletop, or go on with a run; or check the trainer against the original."""
    if options.check is not None:
        return _check(options)
    if options.scenes is None or options.out is None:
        raise SettingsError('train needs --scenes and --out (or --check and a golden set)')
    if options.position_codes:
        return _waves(options)
    from lisa_ros.model.device import resolve_device
    from lisa_ros.training.tabletop import pretrain as tabletop

    device = str(resolve_device(options.device or 'cpu'))  # before the scenes are read
    given = {f.name: getattr(options, f.name, None) for f in fields(tabletop.PretrainConfig)}
    recipe = tabletop.PretrainConfig(**{k: v for k, v in given.items() if v is not None})
    recipe = replace(recipe, pace=trainer_config(options, recipe.pace))
    return 0 if tabletop.train(options.out, options.scenes, recipe, device) else 130


def _waves(options: argparse.Namespace) -> int:
    """Give a model's CLIP the places of its patches."""
    if options.init_from is None:
        raise SettingsError(
            '--position-codes are given to a model: name its folder with --init-from'
        )
    from lisa_ros.training.tabletop import position_codes

    pace = trainer_config(options, position_codes.PACE)
    return (
        0 if position_codes.distill(options.out, options.scenes, options.init_from, pace) else 130
    )


def _check(options: argparse.Namespace) -> int:
    """Hold losses and gradients against the original's; return 1 if they differ."""
    from lisa_ros.training.finetune.parity_check import check

    report = check(options.check, options.device or 'cpu')
    if options.json:
        print(json.dumps(report))
    else:
        print(f'{"":32}{"golden":>14}{"ours":>14}{"difference":>12}')
        for case in report['cases']:
            tokens = 'the same tokens' if case['tokens'] else 'OTHER TOKENS'
            print(f'{case["set"]} {case["case"]}: {tokens}')
            for name, row in {**case['losses'], **case['gradient_norms']}.items():
                short = name if len(name) < 30 else f'...{name[-27:]}'
                numbers = f'{row["golden"]:14.6g}{row["ours"]:14.6g}{row["difference"]:12.1e}'
                print(f'  {short:30}{numbers}{"" if row["ok"] else "  DIFFERS"}')
        print('all agree' if report['ok'] else 'they differ')
    return 0 if report['ok'] else 1
