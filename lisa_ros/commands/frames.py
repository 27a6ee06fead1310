# SPDX-License-Identifier: Apache-2.0
"""`lisa-ros frames`: extract images from a bag, to annotate them."""

from __future__ import annotations

import argparse
from pathlib import Path

from lisa_ros.commands.arguments import print_not_used
from lisa_ros.errors import DataError
from lisa_ros.number_arguments import non_negative_float


def add(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = commands.add_parser('frames', help='extract images from a bag, to annotate them')
    parser.add_argument(
        'bag',
        type=Path,
        metavar='BAG',
        help='a bag of ROS 2 (folder, .mcap or .db3) or of ROS 1',
    )
    parser.add_argument(
        '--topic', help='topic of Image or CompressedImage (default: the only one in the bag)'
    )
    parser.add_argument(
        '--out', type=Path, required=True, help='folder for the images, <stamp in ns>.png'
    )
    parser.add_argument(
        '--every',
        type=non_negative_float,
        default=0.0,
        metavar='SECONDS',
        help='least time between two images [s]; 0: all images (default: 0)',
    )
    parser.add_argument(
        '--skip-broken',
        action='store_true',
        help='exit with 0 even if parts of the bag or images cannot be read; they are named and '
        'left out in any case',
    )
    parser.set_defaults(run=frames)


def frames(options: argparse.Namespace) -> None:
    """Write images of a bag as PNG files; name what cannot be read."""
    from lisa_ros.datasets.bag_frames import extract_frames

    errors: list[DataError] = []

    def skip(error: DataError) -> None:
        errors.append(error)
        print_not_used(error)

    paths = extract_frames(options.bag, options.out, options.topic, options.every, skip)
    print(f'{len(paths)} images in {options.out}/: annotate them with `labelme {options.out}`')
    if errors and not options.skip_broken:
        raise DataError(
            f'{len(errors)} parts or images of {options.bag} could not be used; the first: '
            f'{errors[0]}; --skip-broken ignores them'
        )
