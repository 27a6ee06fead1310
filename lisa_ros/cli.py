# SPDX-License-Identifier: Apache-2.0
"""The command `lisa-ros`: parse the arguments and run one command. It works without ROS.

Exit status: 0 success, 1 an error that the user can fix (one line on stderr says how) or a check
that failed, 130 interrupted (see `lisa_ros.startup`), 141 if nobody reads its output any more.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import select
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
from lisa_ros.error_text import one_line
from lisa_ros.errors import LisaError


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors='backslashreplace')  # names of files need not be UTF-8
    options, status = _parser().parse_args(arguments), _PIPE_CLOSED
    try:
        status = options.run(options) or 0
    except LisaError as error:
        print(f'lisa-ros: {error}', file=sys.stderr)
        status = 1
    except BrokenPipeError:
        if not _is_reader_gone():
            raise
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        file = f'{error.filename}: ' if error.filename else ''
        print(f'lisa-ros: {file}{error.strerror}: free some', file=sys.stderr)
        status = 1
    return _end_output(status)


def _is_reader_gone() -> bool:
    """Return whether the reader of stdout has ended, as in `lisa-ros models | head -1`."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _end_output(status: int) -> int:
    """Write what is left of the output; return the exit status."""
    try:
        sys.stdout.flush()
    except OSError as error:
        # stdout leads nowhere from now on, so that nothing is reported when the process ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return _PIPE_CLOSED
        print(f'lisa-ros: the output cannot be written: {one_line(error)}', file=sys.stderr)
        return 1
    return status


_PIPE_CLOSED = 141  # as a shell reports a process that SIGPIPE has ended
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
