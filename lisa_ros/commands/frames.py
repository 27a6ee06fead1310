# SPDX-License-Identifier: Apache-2.0
"""`lisa-ros frames`: extract images from a bag, to annotate them."""

from __future__ import annotations

import argparse
from pathlib import Path


def add(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = commands.add_parser('frames', help='extract images from a bag, to annotate them')
    parser.add_argument('bag', type=Path, metavar='BAG', help='rosbag2 folder or .mcap file')
    parser.add_argument(
        '--topic', help='topic of Image or CompressedImage (default: the only one in the bag)'
    )
    parser.add_argument(
        '--out', type=Path, required=True, help='folder for the images, <stamp in ns>.png'
    )
    parser.add_argument(
        '--every',
        type=float,
        default=0.0,
        metavar='SECONDS',
        help='least time between two images [s]; 0: all images (default: 0)',
    )
    parser.set_defaults(run=frames)


def frames(options: argparse.Namespace) -> None:
    """Write images of a bag as PNG files."""
    from lisa_ros.datasets.bag_frames import extract_frames

    paths = extract_frames(options.bag, options.out, options.topic, options.every)
    print(f'{len(paths)} images in {options.out}/: annotate them with `labelme {options.out}`')
