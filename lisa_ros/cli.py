# SPDX-License-Identifier: Apache-2.0
"""The command `lisa-ros`: parse the arguments and run one command. It works without ROS.

Exit status: 0 success, 1 an error that the user can fix (one line on stderr says how) or a check
that failed, 130 interrupted (see `lisa_ros.startup`).
"""

from __future__ import annotations

import argparse
import sys

from lisa_ros.commands import (
    calibrate,
    chat,
    checksum,
    doctor,
    evaluate,
    export,
    finetune,
    frames,
    listen,
    mcp_server,
    models,
    scenes,
    segment,
    serve,
    train,
)
from lisa_ros.errors import LisaError


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options) or 0
    except LisaError as error:
        print(f'lisa-ros: {error}', file=sys.stderr)
        return 1


_COMMANDS = (
    *(segment, chat, listen, mcp_server, export, evaluate, calibrate, models, scenes, train),
    *(frames, finetune, serve, checksum, doctor),
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='lisa-ros', description='Find objects in images by text queries (LISA).'
    )
    commands = parser.add_subparsers(required=True, metavar='COMMAND')
    for command in _COMMANDS:
        command.add(commands)
    return parser
