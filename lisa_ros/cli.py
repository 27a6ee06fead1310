# SPDX-License-Identifier: Apache-2.0
"""The command `lisa-ros`: parse, call, print. No ROS is needed for any of it.

Exit status: 0 done, 1 something the user can mend (one line on stderr says what), or a check that
failed.
"""

from __future__ import annotations

import argparse
import sys

from lisa_ros.commands import chat, evaluate, export, finetune, listen, segment, train
from lisa_ros.errors import LisaError


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options) or 0
    except LisaError as error:
        print(f'lisa-ros: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('lisa-ros: interrupted', file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='lisa-ros', description='Find things in pictures from words (LISA).'
    )
    commands = parser.add_subparsers(required=True, metavar='COMMAND')
    for kind in (segment, chat, listen, export, evaluate, train, finetune):
        kind.add(commands)
    return parser


if __name__ == '__main__':
    raise SystemExit(main())
