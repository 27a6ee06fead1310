# SPDX-License-Identifier: Apache-2.0
"""`lisa-ros export`: segment an RGB-D image and write files for grasp planners."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lisa_ros.commands.arguments import load_segmenter, model_arguments, print_not_used
from lisa_ros.errors import DataError, ImageError, ModelError, SettingsError
from lisa_ros.files.output import check_output_folder
from lisa_ros.number_arguments import non_negative_float

if TYPE_CHECKING:
    from lisa_ros.commands.export_answer import InstanceMasks
    from lisa_ros.commands.rgbd_input import RgbdInput
    from lisa_ros.geometry.object_3d import Object3D


def add(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = commands.add_parser('export', help='write files for grasp planners (needs depth)')
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument('--image', type=Path, help='an image file, with --depth and --k')
    source.add_argument('--bag', type=Path, help='a bag of ROS 2 (mcap, sqlite3) or ROS 1')
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument('--find', metavar='QUERY', help='such as "something to drink from"')
    target.add_argument(
        '--mask',
        type=Path,
        help='a PNG with masks instead of a query: 0 background, each other value an instance',
    )
    parser.add_argument(
        '--out', type=Path, required=True, metavar='DIR', help='folder for the files'
    )

    files = parser.add_argument_group('with --image')
    files.add_argument(
        '--depth', type=Path, help='registered to the image: 16-bit PNG [mm] or .npy [m]'
    )
    files.add_argument(
        '--k',
        type=float,
        nargs=4,
        metavar=('FX', 'FY', 'CX', 'CY'),
        help='camera intrinsics of the image [px]',
    )
    bag = parser.add_argument_group('with --bag')
    bag.add_argument('--image-topic', help="(default: the bag's only colour image topic)")
    bag.add_argument('--depth-topic', help="(default: the bag's only depth image topic)")
    bag.add_argument('--info-topic', help='(default: camera_info beside the image topic)')
    bag.add_argument(
        '--at',
        type=non_negative_float,
        metavar='SECONDS',
        help='the first image at or after this time from the start of the bag (default: 0)',
    )
    model_arguments(parser)
    parser.set_defaults(run=export)


def export(options: argparse.Namespace) -> None:
    """Segment an RGB-D image and write files for grasp planners."""
    from lisa_ros.commands import export_answer, grasp_formats

    check_output_folder(options.out)
    rgbd_input = _load_input(options)
    instances = _instance_masks(options, rgbd_input)
    objects = rgbd_input.rgbd.localize(instances.masks)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        for name in (*grasp_formats.NAMES, *export_answer.NAMES):
            (options.out / name).unlink(missing_ok=True)  # of an earlier answer
        export_answer.write(options.out, rgbd_input, instances, objects)
        if any(objects):
            grasp_formats.write_all(options.out, rgbd_input.rgbd, objects, instances.masks)
    except OSError as error:
        raise DataError(
            f'{options.out}: cannot be written to ({error}); give another with --out'
        ) from error
    _check(options, instances, objects)
    camera = rgbd_input.rgbd.camera
    if any(camera.distortion):
        print(
            f'the lens is distorted ({camera.distortion_model}), but Contact-GraspNet reads only '
            'K: give it a rectified image; the other files are undistorted',
            file=sys.stderr,
        )
    export_answer.print_summary(instances, objects, options.out)


def _check(
    options: argparse.Namespace, instances: InstanceMasks, objects: list[Object3D | None]
) -> None:
    """Raise an error if there is no mask, or no mask has valid depth."""
    if not len(instances.masks):
        text = ' '.join(instances.answer.answer.split())
        raise DataError(f'nothing was found ("{text}"), so {options.out} has only its overlay')
    if not any(objects):
        raise ImageError(
            f'no mask has valid depth of its object; {options.out} has only its overlay'
        )


def _load_input(options: argparse.Namespace) -> RgbdInput:
    """Return the RGB-D image that the options name."""
    from lisa_ros.commands.rgbd_input import from_bag, from_files

    _refuse_other_source(options)
    if options.bag:
        topics = (options.image_topic, options.depth_topic, options.info_topic)
        return from_bag(options.bag, *topics, at=options.at or 0.0, on_error=print_not_used)
    if options.depth is None:
        raise SettingsError(
            'no --depth: a 16-bit PNG [mm] or a .npy [m] is needed, registered to the image'
        )
    if options.k is None:
        raise SettingsError('no --k FX FY CX CY: the intrinsics of the image are needed [px]')
    return from_files(options.image, options.depth, options.k)


def _refuse_other_source(options: argparse.Namespace) -> None:
    """Raise a SettingsError for a flag of --image with --bag, or of --bag with --image."""
    for_image = {'--depth': options.depth, '--k': options.k}
    for_bag = {
        '--image-topic': options.image_topic,
        '--depth-topic': options.depth_topic,
        '--info-topic': options.info_topic,
        '--at': options.at,
    }
    for flag, value in (for_image if options.bag else for_bag).items():
        if value is not None:
            raise SettingsError(f'{flag} is not for {"--bag" if options.bag else "--image"}')


def _instance_masks(options: argparse.Namespace, rgbd_input: RgbdInput) -> InstanceMasks:
    """Return the masks of the PNG, or of the model's answer."""
    from lisa_ros.commands.export_answer import InstanceMasks, read_masks
    from lisa_ros.perception.masks import MAX_MASKS
    from lisa_ros.results import BROKEN

    image = rgbd_input.rgbd.image
    if options.mask is not None:
        return InstanceMasks(read_masks(options.mask, image.shape[:2]), options.mask.name)
    answer = load_segmenter(options).segment(image, options.find)
    if answer.status in BROKEN:
        raise ModelError(answer.reason)
    return InstanceMasks(answer.masks[:MAX_MASKS], options.find, answer)
