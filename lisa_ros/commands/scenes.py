# SPDX-License-Identifier: Apache-2.0
"""`lisa-ros scenes`: render the tabletop scenes that lisa-tabletop is trained on."""

from __future__ import annotations

import argparse
from pathlib import Path

from lisa_ros.files.output import check_output_folder
from lisa_ros.number_arguments import non_negative_int, positive_int


def add(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = commands.add_parser(
        'scenes',
        help='render tabletop scenes (needs MuJoCo)',
        description='Renders scenes of a split into OUT/SPLIT and writes their test set. Scenes '
        'that are already there are kept. With --bag it writes a sample bag instead.',
    )
    parser.add_argument(
        '--assets', type=Path, required=True, help='folder with meshes/ and textures/'
    )
    parser.add_argument(
        '--out', type=Path, required=True, help='folder for all splits and the prepared assets'
    )
    parser.add_argument(
        '--split',
        default='train',
        choices=('train', 'val', 'test', 'unseen'),
        help='split to render; unseen has objects that train has not (default: train)',
    )
    parser.add_argument(
        '--count', type=non_negative_int, default=10000, help='number of scenes (default: 10000)'
    )
    parser.add_argument(
        '--first', type=non_negative_int, default=0, help='number of the first scene (default: 0)'
    )
    parser.add_argument(
        '--workers', type=positive_int, default=1, help='processes that render (default: 1)'
    )
    parser.add_argument(
        '--bag',
        type=non_negative_int,
        metavar='N',
        help='write a rosbag of scene N to OUT/sample, no scenes',
    )
    parser.add_argument(
        '--pack',
        nargs='+',
        metavar='SPLIT',
        help='pack the test sets of these splits into OUT/test_set.zip',
    )
    parser.set_defaults(run=scenes)


def scenes(options: argparse.Namespace) -> None:
    """Render the scenes of a split and write its test set; or write a bag of one scene."""
    from lisa_ros.tabletop import assets, sample_bag, scene_writer, test_sets

    out = options.out
    check_output_folder(out)
    if options.bag is not None:
        cache = assets.prepare_assets(options.assets, out / 'assets')
        sample_bag.write_sample_bag(cache, out / 'sample', options.split, options.bag)
        return
    scene_writer.render_split(
        options.assets,
        out,
        options.split,
        options.count,
        first=options.first,
        workers=options.workers,
    )
    test_sets.write_test_set(out / options.split)
    if options.pack:
        test_sets.pack_test_set([out / split for split in options.pack], out / 'test_set.zip')
