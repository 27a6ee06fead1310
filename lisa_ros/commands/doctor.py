# SPDX-License-Identifier: Apache-2.0
"""`lisa-ros doctor`: check the installation, the model and a running node; one cure per line."""

from __future__ import annotations

import argparse

from lisa_ros.commands.arguments import SOURCE_SETTINGS, setting_arguments, source_arguments
from lisa_ros.number_arguments import positive_float
from lisa_ros.settings import Settings

_MODEL = (
    *('model', 'segmenter_model', 'vlm_url', 'api_key_env', 'api_key_file'),
    *('vision_tower', 'template', 'device', 'precision'),
    *SOURCE_SETTINGS,
)


def add(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = commands.add_parser(
        'doctor',
        help='check the installation, the model and a running node; name one cure per line',
        description='Checks versions, GPU and driver, weights, shared memory, discovery, a '
        'message between two nodes, and a running node with its inputs. It works without ROS, '
        'too. Exit status: 0 without errors (warnings are possible), 1 with errors.',
    )
    parser.add_argument(
        '--node',
        metavar='NAME',
        help='a node that must run, such as /lisa or /arm/lisa (default: /lisa, if it runs)',
    )
    parser.add_argument(
        '--load',
        action='store_true',
        help='load the model and ask it about the sample image; takes as long as the start of '
        'the node (default: read the headers of its files)',
    )
    parser.add_argument(
        '--strict', action='store_true', help='exit status 1 with warnings, too (default: no)'
    )
    parser.add_argument('--json', action='store_true', help='print JSON (default: a table)')
    parser.add_argument(
        '--timeout',
        type=positive_float,
        default=10.0,
        metavar='SECONDS',
        help='time limit of each check; they run at the same time. Checksums and --load may take '
        'ten minutes (default: 10)',
    )
    setting_arguments(parser, Settings, _MODEL)
    parser.set_defaults(run=doctor)


def doctor(options: argparse.Namespace) -> int:
    """Run all checks, print the findings; return the exit status."""
    from lisa_ros.doctor.run import DoctorOptions, report
    from lisa_ros.doctor.weights import ModelOptions

    model = ModelOptions(
        options.model,
        vision_tower=options.vision_tower,
        segmenter_model=options.segmenter_model,
        vlm_url=options.vlm_url,
        api_key_env=options.api_key_env,
        api_key_file=options.api_key_file,
        template=options.template,
        device=options.device,
        precision=options.precision,
        **source_arguments(options),
    )
    asked = DoctorOptions(model, options.node, options.load, options.timeout)
    return report(asked, as_json=options.json, is_strict=options.strict)
