# SPDX-License-Identifier: Apache-2.0
"""The command `lisa-ros`: parse, call, print. No ROS is needed for any of it.

Exit status: 0 done, 1 something the user can mend (one line on stderr says what).
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np

from lisa_ros import masks
from lisa_ros.errors import DataError, ImageError, LisaError
from lisa_ros.results import Segmentation
from lisa_ros.settings import Settings


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except LisaError as error:
        print(f'lisa-ros: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('lisa-ros: interrupted', file=sys.stderr)
        return 130
    return 0


# ---------------------------------------------------------------- segment


def segment(options: argparse.Namespace) -> None:
    """Answer one request about one picture: words and pictures, or one JSON object."""
    image = read_image(options.image)
    result = _load(options).segment(image, options.query)
    out = options.out or (None if options.json else Path('lisa-out'))
    if out:
        _save(result, image, out)
    if options.json:
        print(json.dumps(as_json(result)))
        return
    print(result.answer)
    for i, mask in enumerate(result.masks):
        x, y, width, height = masks.box(mask)
        print(
            f'mask {i + 1}: score {result.scores[i]:.2f}, {masks.area(mask)} pixels '
            f'in {width} x {height} at ({x}, {y})'
        )
    print(f'{result.status.name}, {sum(result.timings.values()):.2f} s, pictures in {out}/')


def read_image(path: Path) -> np.ndarray:
    """Read a picture as a person sees it, (H, W, 3) uint8 RGB, turned as its EXIF says.

    Raises:
        ImageError: there is no such file, or it is not a picture.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            return np.asarray(ImageOps.exif_transpose(picture).convert('RGB'))
    except (OSError, UnidentifiedImageError) as error:
        raise ImageError(f'{path} cannot be read as a picture: {error}') from error


def as_json(result: Segmentation) -> dict:
    """Return a result as plain data; masks as COCO run lengths (column by column)."""
    return {
        'query': result.query,
        'answer': result.answer,
        'answer_raw': result.answer_raw,
        'token_ids': list(result.token_ids),
        'status': result.status.name,
        'masks': [
            {
                'score': round(float(score), 4),
                'box': dict(zip(('x', 'y', 'width', 'height'), masks.box(mask), strict=True)),
                'area': masks.area(mask),
                'rle': masks.rle(mask),
            }
            for mask, score in zip(result.masks, result.scores, strict=True)
        ],
        'seconds': {stage: round(value, 4) for stage, value in result.timings.items()},
    }


def _save(result: Segmentation, image: np.ndarray, out: Path) -> None:
    from PIL import Image

    try:
        out.mkdir(parents=True, exist_ok=True)
        for old in out.glob('mask_*.png'):
            old.unlink()  # of an answer with more masks
        for i, mask in enumerate(result.masks):
            Image.fromarray(mask.astype(np.uint8) * 255).save(out / f'mask_{i + 1}.png')
        labels = [f'{score:.2f}' for score in result.scores]
        shown = masks.overlay(image, result.masks, labels, [result.query, result.answer])
        Image.fromarray(shown).save(out / 'overlay.png')
    except OSError as error:
        raise DataError(
            f'{out}: cannot be written to ({error}); give another with --out'
        ) from error


# ---------------------------------------------------------------- evaluate


def evaluate_scenes(options: argparse.Namespace) -> None:
    """Ask a model the exam of a split; print its figures."""
    from lisa_ros.evaluation import scenes

    exam = options.exam or scenes.OWN_EXAMS / f'{options.split}.zip'
    questions = scenes.read_exam(exam)[: options.limit]
    figures = scenes.report(list(scenes.sit(_load(options), questions)))
    if options.json:
        print(json.dumps({'model': options.model, 'split': options.split, **figures}))
        return
    print(f'{"":16}{"gIoU":>8}{"cIoU":>8}{"count":>8}')
    for sort, row in figures.items():
        if isinstance(row, dict) and 'giou' in row:
            print(f'{sort:16}{row["giou"]:8.3f}{row["ciou"]:8.3f}{row["count"]:8d}')
    if figures['presence_accuracy'] is not None:
        print(f'there or not, right: {figures["presence_accuracy"]:.1%}')


# ---------------------------------------------------------------- scenes, train


def scenes(options: argparse.Namespace) -> None:
    """Render the scenes of a split, or a bag of one of them; write its exam."""
    from lisa_ros.training import exams, sample
    from lisa_ros.training import scenes as rendering

    if options.bag is not None:
        cache = rendering.prepare_assets(options.assets, options.out / 'assets')
        sample.write_sample(cache, options.out / 'sample', options.split, options.bag)
        return
    rendering.render_split(
        options.assets, options.out, options.split, options.count, workers=options.workers
    )
    exams.write_exam(options.out / options.split)
    if options.pack:
        exams.pack([options.out / split for split in options.pack], options.out / 'exam.zip')


def train(options: argparse.Namespace) -> None:
    """Train lisa-tabletop, or go on with a run."""
    from lisa_ros.training.train import Recipe, Trainer

    given = {f.name: getattr(options, f.name) for f in fields(Recipe)}
    recipe = Recipe(**{name: value for name, value in given.items() if value is not None})
    Trainer(options.out, options.scenes, recipe, options.device or 'cpu').train()


# ---------------------------------------------------------------- arguments


def _load(options: argparse.Namespace):
    from lisa_ros.segmenter import Segmenter  # torch and transformers take seconds to import

    return Segmenter.load(
        options.model,
        device=options.device,
        precision=options.precision,
        vision_tower=options.vision_tower,
        template=options.template,
        max_new_tokens=options.max_new_tokens,
        typed_specials=options.typed_specials,
    )


_MODEL_SETTINGS = ('model', 'vision_tower', 'template', 'device', 'precision', 'max_new_tokens')


def _model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the settings that say which model answers, with the node's own words for them."""
    for field in fields(Settings):
        if field.name in _MODEL_SETTINGS:
            about = field.metadata['about']
            parser.add_argument(
                f'--{field.name.replace("_", "-")}',
                type=type(field.default),
                default=field.default,
                choices=about.choices or None,
                metavar=None if about.choices else field.name.upper(),
                help=f'{about.sentence} (default: {field.default or "none"})',
            )
    parser.add_argument(
        '--typed-specials',
        action='store_true',
        help='tokens written out in QUERY, such as [SEG], are those tokens, as in the original',
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='lisa-ros', description='Find things in pictures from words (LISA).'
    )
    commands = parser.add_subparsers(required=True, metavar='COMMAND')

    one = commands.add_parser('segment', help='one request about one picture')
    one.add_argument('image', type=Path, metavar='IMAGE')
    one.add_argument('query', metavar='QUERY', help='such as "something to drink from"')
    _model_arguments(one)
    one.add_argument('--out', type=Path, metavar='DIR', help='for masks and overlay (lisa-out)')
    one.add_argument('--json', action='store_true', help='print one JSON object')
    one.set_defaults(run=segment)

    many = commands.add_parser('evaluate', help='how good a model is')
    kinds = many.add_subparsers(required=True, metavar='WHAT')
    tables = kinds.add_parser('scenes', help='on rendered tables with known truth')
    tables.add_argument('--split', default='test', help='an exam of the package (default: test)')
    tables.add_argument('--exam', type=Path, help='a folder or zip with an exam.json of your own')
    tables.add_argument('--limit', type=int, help='only the first questions')
    tables.add_argument('--json', action='store_true', help='print one JSON object')
    _model_arguments(tables)
    tables.set_defaults(run=evaluate_scenes)

    rendered = commands.add_parser('scenes', help='render tabletop scenes (needs MuJoCo)')
    rendered.add_argument(
        '--assets', type=Path, required=True, help='folder of meshes/, textures/'
    )
    rendered.add_argument('--out', type=Path, required=True, help='a folder for all splits')
    rendered.add_argument('--split', default='train', choices=('train', 'val', 'test', 'unseen'))
    rendered.add_argument('--count', type=int, default=6000, help='scenes (default: 6000)')
    rendered.add_argument('--workers', type=int, default=1, help='processes (default: 1)')
    rendered.add_argument('--bag', type=int, metavar='N', help='a bag of scene N instead')
    rendered.add_argument('--pack', nargs='+', metavar='SPLIT', help='zip these splits as an exam')
    rendered.set_defaults(run=scenes)

    school = commands.add_parser('train', help='train lisa-tabletop from scratch, or go on')
    school.add_argument('--scenes', type=Path, required=True, help='what `lisa-ros scenes` made')
    school.add_argument('--out', type=Path, required=True, help='the run: resumes if it is there')
    school.add_argument('--device', help='cpu or cuda (default: cpu)')
    _recipe_arguments(school)
    school.set_defaults(run=train)
    return parser


def _recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the numbers of training.train.Recipe; their defaults are there."""
    for name, kind in {
        'steps': int, 'looks': int, 'pictures': int, 'requests': int, 'rate': float,
        'warm_up': int, 'decay': float, 'average': float, 'validate_every': int,
        'save_every': int, 'seed': int, 'threads': int,
    }.items():  # fmt: skip
        parser.add_argument(f'--{name.replace("_", "-")}', type=kind)
    parser.add_argument('--bf16', action=argparse.BooleanOptionalAction, default=None)


if __name__ == '__main__':
    raise SystemExit(main())
