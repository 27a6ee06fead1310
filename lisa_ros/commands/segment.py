# SPDX-License-Identifier: Apache-2.0
"""`lisa-ros segment`: answer one query about one image."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from lisa_ros.commands.arguments import load_segmenter, model_arguments
from lisa_ros.errors import DataError, ModelError
from lisa_ros.files.output import check_output_folder

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np

    from lisa_ros.results import Segmentation


def add(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = commands.add_parser('segment', help='answer one query about one image')
    parser.add_argument('image', type=Path, metavar='IMAGE', help='an image file')
    parser.add_argument('query', metavar='QUERY', help='such as "something to drink from"')
    model_arguments(parser)
    parser.add_argument(
        '--out',
        type=Path,
        metavar='DIR',
        help='folder for mask_N.png and overlay.png (default: lisa-out, none with --json)',
    )
    parser.add_argument(
        '--yes-no',
        action='store_true',
        help='QUERY is a yes/no question: print the probability of yes, make no masks',
    )
    parser.add_argument('--json', action='store_true', help='print one JSON object')
    parser.set_defaults(run=segment)


def segment(options: argparse.Namespace) -> None:
    """Answer one query about one image; print text or one JSON object, save masks."""
    from lisa_ros.images.image_file import read_rgb
    from lisa_ros.results import BROKEN

    image = read_rgb(options.image)
    out = options.out or (None if options.json else Path('lisa-out'))
    if out and not options.yes_no:
        check_output_folder(out)
    result = load_segmenter(options).segment(image, options.query, yes_no=options.yes_no)
    if result.status in BROKEN:
        raise ModelError(result.reason)
    if options.yes_no:
        print(json.dumps(as_json(result)) if options.json else _yes_no_line(result))
        return
    if out:
        _save(result, image, out)
    if options.json:
        print(json.dumps(as_json(result)))
    else:
        _print(result, out)


def as_json(result: Segmentation) -> dict:
    """Return a result as plain data, with masks as COCO run lengths (column by column)."""
    from lisa_ros.perception.masks import area, encode_rle

    return {
        'query': result.query,
        'answer': result.answer,
        'answer_raw': result.answer_raw,
        'token_ids': list(result.token_ids),
        'status': result.status.name,
        'yes_probability': result.yes_probability,  # null: no yes/no question
        'masks': [
            {
                'name': name,
                'score': round(float(score), 4),
                'box': box_json(mask),
                'area': area(mask),
                'rle': encode_rle(mask),
            }
            for name, mask, score in _objects(result)
        ],
        'seconds': {stage: round(value, 4) for stage, value in result.timings.items()},
    }


def box_json(mask: np.ndarray) -> dict[str, int]:
    """Return the box of a (H, W) bool mask as plain data [px]."""
    from lisa_ros.perception.masks import bounding_box

    return dict(zip(('x', 'y', 'width', 'height'), bounding_box(mask), strict=True))


def _objects(result: Segmentation) -> Iterable[tuple[str, np.ndarray, float]]:
    """Return name, mask (H, W) and score of each object, as the node's messages have them."""
    from lisa_ros.perception.answer_phrases import object_names

    return zip(object_names(result), result.masks, result.scores, strict=True)


def _yes_no_line(result: Segmentation) -> str:
    return (
        f'{result.answer} ({result.yes_probability:.2f} yes, {sum(result.timings.values()):.2f} s)'
    )


def _print(result: Segmentation, out: Path) -> None:
    from lisa_ros.perception.masks import area, bounding_box

    print(result.answer)
    for number, (name, mask, score) in enumerate(_objects(result), 1):
        x, y, width, height = bounding_box(mask)
        print(
            f'mask {number}: {name}, score {score:.2f}, {area(mask)} pixels '
            f'in {width} x {height} at ({x}, {y})'
        )
    print(f'{result.status.name}, {sum(result.timings.values()):.2f} s, images in {out}/')


def _save(result: Segmentation, image: np.ndarray, out: Path) -> None:
    import numpy as np
    from PIL import Image

    from lisa_ros.perception.overlay import overlay

    try:
        out.mkdir(parents=True, exist_ok=True)
        for path in out.glob('mask_*.png'):
            if re.fullmatch(r'mask_[0-9]+\.png', path.name):  # of an answer with more masks
                path.unlink()
        for number, mask in enumerate(result.masks, 1):
            Image.fromarray(mask.astype(np.uint8) * 255).save(out / f'mask_{number}.png')
        labels = [f'{score:.2f}' for score in result.scores]
        drawing = overlay(image, result.masks, labels, [result.query, result.answer])
        Image.fromarray(drawing).save(out / 'overlay.png')
    except OSError as error:
        raise DataError(
            f'{out}: cannot be written to ({error}); give another with --out'
        ) from error
