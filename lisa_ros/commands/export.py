# SPDX-License-Identifier: Apache-2.0
"""`lisa-ros export`: what was found in a picture with depth, as grasp planners read it."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lisa_ros.commands import grasp_formats
from lisa_ros.commands.arguments import load, model_arguments
from lisa_ros.commands.rgbd_input import RgbdInput, from_bag, from_files
from lisa_ros.errors import DataError, ImageError, SettingsError
from lisa_ros.geometry.object_3d import Object3D
from lisa_ros.perception import masks, overlay
from lisa_ros.results import Segmentation, Status

_TOLD = ('answer.json', 'overlay.png')


def add(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    one = commands.add_parser('export', help='what was found, for grasp planners (needs depth)')
    source = one.add_mutually_exclusive_group(required=True)
    source.add_argument('--image', type=Path, help='a picture, with --depth and --k')
    source.add_argument('--bag', type=Path, help='of ROS 2 (mcap, sqlite3) or 1')
    wanted = one.add_mutually_exclusive_group(required=True)
    wanted.add_argument('--find', metavar='QUERY', help='such as "something to drink from"')
    wanted.add_argument(
        '--mask', type=Path, help='a PNG instead: 0 background, each other value an instance'
    )
    one.add_argument('--out', type=Path, required=True, metavar='DIR', help='for the files')

    files = one.add_argument_group('with --image')
    files.add_argument(
        '--depth', type=Path, help='registered to the picture: 16-bit PNG [mm] or .npy [m]'
    )
    files.add_argument(
        '--k', type=float, nargs=4, metavar=('FX', 'FY', 'CX', 'CY'), help='the camera [px]'
    )
    bag = one.add_argument_group('with --bag')
    bag.add_argument('--image-topic', help='default: the only one in colour')
    bag.add_argument('--depth-topic', help='default: the only one')
    bag.add_argument('--info-topic', help='default: the camera_info beside the picture')
    bag.add_argument('--at', type=float, metavar='SECONDS', help="from the bag's start (0)")
    model_arguments(one)
    one.set_defaults(run=export)


@dataclass(frozen=True, eq=False)
class _Found:
    """What is to be grasped."""

    masks: np.ndarray  # (N, H, W) bool
    answer: Segmentation | None  # None: the masks were given


def export(options: argparse.Namespace) -> None:
    """Write what was found in a picture with depth, as files for grasp planners."""
    shot = _shot(options)
    size = shot.space.image.shape[:2]
    given = None if options.mask is None else read_masks(options.mask, size)
    found = _asked(options, shot) if given is None else _Found(given, None)
    things = shot.space.localize(found.masks)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        for name in (*grasp_formats.NAMES, *_TOLD):
            (options.out / name).unlink(missing_ok=True)  # of another answer
        _tell(shot, found, things, options)
        if any(things):
            ids = _ids(things, size)
            scene = grasp_formats.scene_of(shot.space, ids, found.masks)
            grasp_formats.write_all(options.out, shot.space, ids, scene)
    except OSError as error:
        raise DataError(
            f'{options.out}: cannot be written to ({error}); give another with --out'
        ) from error
    if not len(found.masks):
        words = ' '.join(found.answer.answer.split())
        raise DataError(f'nothing was found ("{words}"), so {options.out} has its picture alone')
    if not any(things):
        raise ImageError(
            f'no pixel of the mask has valid depth of the thing itself; {options.out} has its '
            'picture alone'
        )
    if np.any(shot.space.camera.distortion):
        print(
            f'the lens is distorted ({shot.space.camera.model}), and Contact-GraspNet knows K '
            'alone: give it a rectified picture; the other files have it straight',
            file=sys.stderr,
        )
    _print(found, things, options)


def read_masks(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Return the masks of a PNG by rising value, (N, H, W) bool, N at most 254.

    Each value is an instance, as in ~/mask; 255 is one if it is alone, and else "unlabelled".

    Raises:
        ImageError: it cannot be read, is of another size (H, W), of several channels, or empty.
    """
    from PIL import Image

    from lisa_ros.model.image_processing import UNREADABLE

    try:
        with Image.open(path) as picture:
            values = np.asarray(picture)
    except UNREADABLE as error:
        raise ImageError(f'{path} cannot be read as a mask: {error}') from error
    if values.ndim != 2:
        raise ImageError(f'{path} has {values.shape[2]} channels; expected a mask of one')
    if values.shape != size:
        raise ImageError(
            f'{path} is {values.shape[1]} x {values.shape[0]} pixels, the picture '
            f'{size[1]} x {size[0]}: a mask must be of its size'
        )
    found = np.unique(values[values > 0])
    if len(found) > 1:
        found = found[found != 255]
    if not 1 <= len(found) <= 254:
        raise ImageError(f'{path} has {len(found)} values above 0; expected 1 to 254 instances')
    return values[None] == found[:, None, None]


def _shot(options: argparse.Namespace) -> RgbdInput:
    """Return the picture that is asked for."""
    of_files = {'--depth': options.depth, '--k': options.k}
    of_bags = {
        '--image-topic': options.image_topic,
        '--depth-topic': options.depth_topic,
        '--info-topic': options.info_topic,
        '--at': options.at,
    }
    strange = of_files if options.bag else of_bags
    for name, value in strange.items():
        if value is not None:
            raise SettingsError(f'{name} is not for {"--bag" if options.bag else "--image"}')
    if options.bag:
        topics = (options.image_topic, options.depth_topic, options.info_topic)
        return from_bag(options.bag, *topics, at=options.at or 0.0)
    if options.depth is None:
        raise SettingsError(
            'no --depth: a 16-bit PNG [mm] or a .npy [m] is needed, registered to the picture'
        )
    if options.k is None:
        raise SettingsError('no --k FX FY CX CY: the camera of the picture is needed [px]')
    return from_files(options.image, options.depth, options.k)


def _asked(options: argparse.Namespace, shot: RgbdInput) -> _Found:
    """Return what the model finds."""
    answer = load(options).segment(shot.space.image, options.find)
    return _Found(answer.masks[:254], answer)


def _ids(things: list[Object3D | None], size: tuple[int, int]) -> np.ndarray:
    """Return which instance each pixel's depth is of, (H, W) uint8; where two meet, the first."""
    ids = np.zeros(size, np.uint8)
    for number, thing in reversed(list(enumerate(things, 1))):
        if thing is not None:
            u, v = thing.pixels.T
            ids[v, u] = number
    return ids


def _tell(
    shot: RgbdInput, found: _Found, things: list[Object3D | None], options: argparse.Namespace
) -> None:
    """Write answer.json and overlay.png."""
    from PIL import Image

    answer, camera = found.answer, shot.space.camera
    stamp = None if shot.stamp is None else divmod(shot.stamp, 1_000_000_000)
    plain = {
        'query': answer and answer.query,
        'answer': answer and answer.answer,
        'status': (answer.status if answer else Status.FOUND).name,
        'header': stamp
        and {
            'stamp': dict(zip(('sec', 'nanosec'), stamp, strict=True)),
            'frame_id': shot.frame_id,
        },
        'camera': {
            'k': np.asarray(camera.k, float).ravel().tolist(),
            'width': camera.size[0],
            'height': camera.size[1],
            'distortion_model': camera.model,
            'd': np.asarray(camera.distortion, float).ravel().tolist(),
        },
        'instances': [
            {
                'id': number,
                'score': _score(found, number),
                'box': dict(
                    zip(('x', 'y', 'width', 'height'), masks.bounding_box(mask), strict=True)
                ),
                'area': masks.area(mask),
                'place': thing and _place(thing),
            }
            for number, (mask, thing) in enumerate(zip(found.masks, things, strict=True), 1)
        ],
    }
    (options.out / 'answer.json').write_text(json.dumps(plain, indent=1) + '\n', encoding='utf-8')
    words = [answer.query, answer.answer] if answer else [options.mask.name]
    labels = [str(number) for number in range(1, len(found.masks) + 1)]
    shown = overlay.overlay(shot.space.image, found.masks, labels, words)
    Image.fromarray(shown).save(options.out / 'overlay.png')


def _score(found: _Found, number: int) -> float | None:
    return None if found.answer is None else round(float(found.answer.scores[number - 1]), 4)


def _place(thing: Object3D) -> dict:
    """Return where a thing is as plain data, metres in the optical frame."""
    box = {
        'centre': thing.box.centre.tolist(),
        'rotation': thing.box.rotation.tolist(),  # rows of the matrix; its columns are the axes
        'size': thing.box.extent.tolist(),
    }
    return {
        'points': len(thing.points),
        'centroid': thing.centroid.tolist(),
        'nearest': thing.nearest.tolist(),
        'box': box,
        'depth_confidence': round(thing.confidence, 4),
    }


def _print(found: _Found, things: list[Object3D | None], options: argparse.Namespace) -> None:
    """Print the answer, and a line for each instance."""
    if found.answer:
        print(found.answer.answer)
    for number, thing in enumerate(things, 1):
        if thing is None:
            print(f'{number}: no valid depth')
            continue
        x, y, z = thing.centroid
        size = ' x '.join(f'{value:.3f}' for value in thing.box.extent)
        score = _score(found, number)
        sure = '' if score is None else f', score {score:.2f}'
        print(
            f'{number}: {len(thing.points)} points about ({x:.3f}, {y:.3f}, {z:.3f}) m, '
            f'box {size} m{sure}'
        )
    print(f'FOUND, files in {options.out}/')
