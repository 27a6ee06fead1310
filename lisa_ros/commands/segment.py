# SPDX-License-Identifier: Apache-2.0
"""`lisa-ros segment`: one request about one picture."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from lisa_ros.commands.arguments import load, model_arguments
from lisa_ros.errors import DataError
from lisa_ros.model.image_processing import read_rgb
from lisa_ros.perception import masks, overlay
from lisa_ros.results import Segmentation


def add(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    one = commands.add_parser('segment', help='one request about one picture')
    one.add_argument('image', type=Path, metavar='IMAGE')
    one.add_argument('query', metavar='QUERY', help='such as "something to drink from"')
    model_arguments(one)
    one.add_argument('--out', type=Path, metavar='DIR', help='for masks and overlay (lisa-out)')
    one.add_argument('--json', action='store_true', help='print one JSON object')
    one.set_defaults(run=segment)


def segment(options: argparse.Namespace) -> None:
    """Answer one request about one picture: words and pictures, or one JSON object."""
    image = read_rgb(options.image)
    result = load(options).segment(image, options.query)
    out = options.out or (None if options.json else Path('lisa-out'))
    if out:
        _save(result, image, out)
    if options.json:
        print(json.dumps(as_json(result)))
        return
    print(result.answer)
    for i, mask in enumerate(result.masks):
        x, y, width, height = masks.bounding_box(mask)
        print(
            f'mask {i + 1}: score {result.scores[i]:.2f}, {masks.area(mask)} pixels '
            f'in {width} x {height} at ({x}, {y})'
        )
    print(f'{result.status.name}, {sum(result.timings.values()):.2f} s, pictures in {out}/')


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
                'box': dict(
                    zip(('x', 'y', 'width', 'height'), masks.bounding_box(mask), strict=True)
                ),
                'area': masks.area(mask),
                'rle': masks.encode_rle(mask),
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
        shown = overlay.overlay(image, result.masks, labels, [result.query, result.answer])
        Image.fromarray(shown).save(out / 'overlay.png')
    except OSError as error:
        raise DataError(
            f'{out}: cannot be written to ({error}); give another with --out'
        ) from error
